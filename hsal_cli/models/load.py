"""Loading a trained policy, and finding the backbone it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hsal_cli.errors import FileError, UsageError, first_line
from hsal_cli.models.trust import Trust
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.episode import Choose, until
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.set_predictor import SetPredictor
from hsal_cli.policy.variant import Variant, with_variant
from hsal_cli.runs.places import with_found
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import MANIFEST, WEIGHTS, Checkpoint, Manifest, meta_of
from hsal_cli.storage.documents import read_document

if TYPE_CHECKING:
    import torch

    from hsal_cli.vision.backbone import LoadedBackbone


RUNS = Path("runs")
TRAIN_HINT = "train one with: hsal train"


@dataclasses.dataclass(frozen=True)
class CountMeta:
    """Of a direct baseline.

    Attributes:
        most: a count classifier tells up to so many objects of a class; a set predictor was trained on so many an image.
        hidden: channels of the former's convolutions, width of the latter's tokens.
        queries: of a set predictor; None: it is a count classifier.
        expecting: channels of which a count classifier's cells make what they expect; 0: none do.
    """

    most: int
    hidden: int
    queries: int | None = None
    expecting: int = 0


@dataclasses.dataclass(frozen=True)
class PolicyMeta:
    """The "meta" of a checkpoint of a policy or of a count classifier.

    Attributes:
        kind: which of the two.
        classes: names of the classes.
        volume_shape: (C, h, w) of the volumes that it reads.
        volume_scale: the standard deviation that they are divided by.
        max_labels: most labels of an image in training.
        variant: of a policy.
        count: those of a count classifier.
        objective: what it was trained on.
        features, features_digest: path of the feature file that it was trained on, its name alone where it was exported, and its digest.
        backbone, backbone_digest: the backbone behind those: its path, where it was known, and the digest of its weights.
        scenes_digest: of the scene file behind them.
        saliency: their saliency model.
        trust: how sure the policy may say it is, and what the images that it knows are like.
        fit: how images became squares: "squash", or "pad", as `make-data` calls them.
        input_size: side of the images behind the volumes, px; None: not noted, the backbone's own.
        frame: what was cut out of images first: "image" (nothing), "number" or "found", as `make-data` calls them.
    """

    kind: Literal["policy", "count"]
    classes: list[str]
    volume_shape: tuple[int, int, int]
    volume_scale: float
    max_labels: int
    variant: Variant | None = None
    count: CountMeta | None = None
    objective: str | None = None
    features: str = ""
    features_digest: str | None = None
    backbone: str | None = None
    backbone_digest: str | None = None
    scenes_digest: str | None = None
    saliency: str = "activation"
    trust: Trust = dataclasses.field(default_factory=Trust)
    fit: Literal["squash", "pad"] = "squash"
    frame: Literal["image", "number", "found"] = "image"
    input_size: int | None = None

    def __post_init__(self) -> None:
        counts = () if self.count is None else (self.count.most, self.count.hidden, self.count.queries or 1)
        if min(len(self.classes), *self.volume_shape, self.volume_scale, self.max_labels + 1, *counts) <= 0:
            raise UsageError("a size, a scale or the number of classes is not above 0", "train again")
        if (self.variant if self.kind == "policy" else self.count) is None:
            raise UsageError("variant is missing" if self.kind == "policy" else "count is missing", "train again")

    @staticmethod
    def stored(values: dict[str, Any]) -> dict[str, Any]:
        """What hsal 0.1 left open, as it took it."""
        return with_variant(values)


@dataclasses.dataclass(frozen=True)
class LoadedPolicy:
    """A trained policy, or the count classifier that it is compared with, in evaluation mode, on the device asked for.

    Attributes:
        meta: what its checkpoint says of it; the paths in it are from the folder that hsal runs in.
        checkpoint: where it came from; its `note` says if a damaged checkpoint was passed over.
        stop_threshold: the probability of stop above which it is named; None: where it is likelier than each label.
    """

    policy: HSAL | CountClassifier | SetPredictor
    meta: PolicyMeta
    checkpoint: Checkpoint
    stop_threshold: float | None = None

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.meta.classes

    @property
    def max_steps(self) -> int:
        """The cap on meta-steps at inference: most labels seen in training plus 2."""
        return self.meta.max_labels + 2

    @property
    def choose(self) -> Choose:
        """How it names labels at inference."""
        return until(self.stop_threshold, self.trust.temperature)

    @property
    def trust(self) -> Trust:
        """How sure the policy may say it is, and what the images that it knows are like."""
        return self.meta.trust


def load_policy(path: Path, which: str = "best", device: torch.device | str = "cpu") -> LoadedPolicy:
    """Loads a policy from a run's "best" or "last" checkpoint, or a checkpoint's folder, and verifies that it is what the checkpoint says.

    Raises:
        FileError: missing, damaged, not a policy, or weights that do not fit the settings; names the first that differ.
    """
    loaded = load_model(path, which, device)
    if not isinstance(loaded.policy, HSAL):
        raise FileError(
            f"{path} holds a direct baseline, objective {loaded.meta.objective or 'count'}: it looks nowhere, so there is no trajectory",
            f"name the run of a policy with --run, or have this one count: hsal predict IMAGE --run {path}",
        )
    return loaded


def load_model(path: Path, which: str = "best", device: torch.device | str = "cpu") -> LoadedPolicy:
    """Loads whatever can be evaluated, a policy or a count classifier; arguments and errors are those of `load_policy`."""
    checkpoint = checkpoints.load_from(path, which, TRAIN_HINT)
    policy = policy_of(checkpoint)
    return LoadedPolicy(policy.to(device).eval(), policy_meta(checkpoint), checkpoint)


def policy_meta(checkpoint: Checkpoint) -> PolicyMeta:
    """What a checkpoint says of the policy, or count classifier, that it holds; the paths in it are from the folder that hsal runs in.

    Raises:
        FileError: it is of another kind, or a value of its meta is missing or cannot be used.
    """
    if checkpoint.kind not in ("policy", "count"):
        on_it = f"{TRAIN_HINT} --backbone {checkpoint.path}; one that counts and looks nowhere with --objective count"
        hint = on_it if checkpoint.kind == "backbone" else TRAIN_HINT
        raise FileError(f"{checkpoint.path} is a checkpoint of kind {checkpoint.kind}, not policy", hint)
    here = dataclasses.replace(checkpoint, meta=with_found(checkpoint.meta, run_of(checkpoint)))
    return meta_of(here, PolicyMeta, TRAIN_HINT)


def run_of(checkpoint: Checkpoint) -> Path:
    """The folder of the run that a checkpoint belongs to: RUN/checkpoints/NAME; of an exported one, the folder above its own."""
    above = checkpoint.path.absolute().parent
    return above.parent if above.name == "checkpoints" else above


def policy_of(checkpoint: Checkpoint) -> HSAL | CountClassifier | SetPredictor:
    """The policy, or count classifier, that a checkpoint holds, on the CPU.

    Raises:
        FileError: not a policy, or weights that do not fit the settings; names the first that differ.
    """
    meta = policy_meta(checkpoint)
    try:
        if meta.kind == "count" and meta.count.queries:
            policy = SetPredictor(len(meta.classes), meta.volume_shape, meta.count.queries, meta.volume_scale, meta.count.hidden)
        elif meta.kind == "count":
            sizes = meta.count.most, meta.volume_scale, meta.count.hidden, meta.count.expecting
            policy = CountClassifier(len(meta.classes), meta.volume_shape, *sizes)
        else:
            policy = HSAL(meta.variant, len(meta.classes), meta.volume_shape, meta.volume_scale)
    except (RuntimeError, MemoryError, AssertionError) as error:  # sizes that no memory holds, or that torch refuses
        said = f"{checkpoint.path / MANIFEST}: meta describes a policy that cannot be made: {first_line(error)}"
        raise FileError(said, TRAIN_HINT) from error
    differing = checkpoints.differences(policy.state_dict(), checkpoint.weights)
    if differing:
        raise FileError(f"the weights of {checkpoint.path} do not fit its settings: {differing}", TRAIN_HINT)
    policy.load_state_dict(checkpoint.weights, strict=True)
    return policy


def find_backbone(loaded: LoadedPolicy, device: torch.device | str = "cpu", named: Path | None = None) -> LoadedBackbone:
    """Loads the backbone that made the features a policy was trained on, with volumes as fine as those.

    Args:
        named: a run or a checkpoint to take it from, and from nowhere else; None: see `backbone_folder`.

    Raises:
        FileError: it is nowhere, or not at the place named.
    """
    meta = loaded.meta
    digest, recorded = meta.backbone_digest, meta.backbone
    hint = f"bring the run that holds it to {RUNS}/, or train anew with: hsal finetune, hsal train"
    if not digest and named is None:
        raise FileError("the policy was trained on features that name no backbone, so images cannot be turned into volumes", hint)
    folder = (backbone_folder(digest, named) if named else place_of_network(loaded.checkpoint, digest, recorded)) if digest else named
    if folder is None:
        place = f"not at {named}" if named else f"neither at {recorded} nor under {RUNS}/" if recorded else f"not under {RUNS}/"
        raise FileError(f"the backbone the policy was trained with (weights {digest[:12]}) is {place}", "name that one" if named else hint)
    from hsal_cli.vision.backbone import load_backbone
    from hsal_cli.vision.resolution import giving

    return giving(load_backbone(folder, device=device), meta.volume_shape, meta.input_size)


def place_of_network(policy: Checkpoint, digest: str | None, recorded: str | None) -> Path | None:
    """The checkpoint of a network that a policy sees through: where that was, beside its run, in runs/, or among what came with hsal.

    Args:
        policy: its checkpoint.
        digest: of its weights; None: it is nowhere.
        recorded: where it was.
    """
    from hsal_cli.models.shipped import BACKBONE, LOOK, exports_in, own_folder

    run, folder = run_of(policy), own_folder()
    shipped = [place / part for place in exports_in(folder) for part in (BACKBONE, LOOK)] if folder else []
    return backbone_folder(digest, recorded, run, run.parent, RUNS, *shipped) if digest else None


def backbone_folder(digest: str, *places: Path | str | None) -> Path | None:
    """The first checkpoint folder of the backbone whose weights have this sha256, or None: finding a backbone has this one rule.

    Args:
        places: where to look, in this order: a checkpoint, a run, or a folder of either, such as runs/ or what `hsal export` wrote.
    """
    for place in (Path(place) for place in places if place is not None):
        within = sorted(place.iterdir()) if place.is_dir() else []
        for folder in (place, *within):
            for candidate in (folder, *sorted((folder / "checkpoints").glob("*"))):
                if _weights_digest(candidate) == digest:
                    return candidate
    return None


def _weights_digest(folder: Path) -> str | None:
    """The weights' digest that a backbone checkpoint's manifest names; None where there is no such checkpoint."""
    try:
        manifest = read_document(folder / MANIFEST, Manifest, "hsal finetune")
    except FileError:
        return None
    return manifest.sha256.get(WEIGHTS) if manifest.meta.get("kind") == "backbone" else None
