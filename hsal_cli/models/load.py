"""Loading a trained policy, and finding the backbone it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hsal_cli.errors import FileError, UsageError, first_line
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.settings import PolicySettings
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import MANIFEST, WEIGHTS, Checkpoint, Manifest, meta_of
from hsal_cli.storage.documents import read_document

if TYPE_CHECKING:
    import torch

    from hsal_cli.vision.backbone import LoadedBackbone


TRAIN_HINT = "train one with: hsal train"


@dataclasses.dataclass(frozen=True)
class CountMeta:
    """Of a count classifier: the `most` objects of a class that it can tell, and the `hidden` channels of its convolutions."""

    most: int
    hidden: int


@dataclasses.dataclass(frozen=True)
class PolicyMeta:
    """The "meta" of a checkpoint of a policy or of a count classifier.

    Attributes:
        kind: which of the two.
        classes: names of the classes.
        volume_shape: (C, h, w) of the volumes that it reads.
        volume_scale: the standard deviation that they are divided by.
        max_labels: most labels of an image in training.
        policy: settings of a policy.
        count: those of a count classifier.
        objective: what it was trained on.
        features, features_digest: path of the feature file that it was trained on, its name alone where it was exported, and its digest.
        backbone, backbone_digest: the backbone behind those: its path, where it was known, and the digest of its weights.
        scenes_digest: of the scene file behind them.
        saliency: their saliency model.
    """

    kind: Literal["policy", "count"]
    classes: list[str]
    volume_shape: tuple[int, int, int]
    volume_scale: float
    max_labels: int
    policy: PolicySettings | None = None
    count: CountMeta | None = None
    objective: str | None = None
    features: str = ""
    features_digest: str | None = None
    backbone: str | None = None
    backbone_digest: str | None = None
    scenes_digest: str | None = None
    saliency: str = "activation"

    def __post_init__(self) -> None:
        counts = () if self.count is None else (self.count.most, self.count.hidden)
        if min(len(self.classes), *self.volume_shape, self.volume_scale, self.max_labels + 1, *counts) <= 0:
            raise UsageError("a size, a scale or the number of classes is not above 0", "train again")
        if (self.policy if self.kind == "policy" else self.count) is None:
            raise UsageError(f"{self.kind} is missing", "train again")


@dataclasses.dataclass(frozen=True)
class LoadedPolicy:
    """A trained policy, or the count classifier that it is compared with.

    Attributes:
        policy: in evaluation mode, on the device asked for.
        meta: what its checkpoint says of it.
        checkpoint: where it came from; its `note` says if a damaged checkpoint was passed over.
    """

    policy: HSAL | CountClassifier
    meta: PolicyMeta
    checkpoint: Checkpoint

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.meta.classes

    @property
    def max_steps(self) -> int:
        """The cap on meta-steps at inference: most labels seen in training plus 2."""
        return self.meta.max_labels + 2


def load_policy(path: Path, which: str = "best", device: torch.device | str = "cpu") -> LoadedPolicy:
    """Loads a policy and verifies that it is what its checkpoint says.

    Args:
        path: a run, or the folder of one checkpoint.
        which: "best" or "last", for a run.
        device: where the policy goes.

    Raises:
        FileError: missing, damaged, not a policy, or weights that do not fit the settings; names the first that differ.
    """
    loaded = load_model(path, which, device)
    if isinstance(loaded.policy, CountClassifier):
        raise FileError(
            f"{path} holds a count classifier, the direct baseline: it looks nowhere, so there is no trajectory",
            "name the run of a policy with --run; hsal eval takes count classifiers too",
        )
    return loaded


def load_model(path: Path, which: str = "best", device: torch.device | str = "cpu") -> LoadedPolicy:
    """Loads whatever can be evaluated, a policy or a count classifier; arguments and errors are those of `load_policy`."""
    checkpoint = checkpoints.load_from(path, which, TRAIN_HINT)
    policy = policy_of(checkpoint)
    return LoadedPolicy(policy.to(device).eval(), policy_meta(checkpoint), checkpoint)


def policy_meta(checkpoint: Checkpoint) -> PolicyMeta:
    """What a checkpoint says of the policy, or count classifier, that it holds.

    Raises:
        FileError: it is of another kind, or a value of its meta is missing or cannot be used.
    """
    if checkpoint.kind not in ("policy", "count"):
        raise FileError(f"{checkpoint.path} is a checkpoint of kind {checkpoint.kind}, not policy", TRAIN_HINT)
    return meta_of(checkpoint, PolicyMeta, TRAIN_HINT)


def policy_of(checkpoint: Checkpoint) -> HSAL | CountClassifier:
    """The policy, or count classifier, that a checkpoint holds, on the CPU.

    Raises:
        FileError: not a policy, or weights that do not fit the settings; names the first that differ.
    """
    meta = policy_meta(checkpoint)
    try:
        if meta.kind == "count":
            policy = CountClassifier(len(meta.classes), meta.volume_shape, meta.count.most, meta.volume_scale, meta.count.hidden)
        else:
            policy = HSAL(meta.policy, len(meta.classes), meta.volume_shape, meta.volume_scale)
    except (RuntimeError, MemoryError) as error:  # sizes that no memory holds
        said = f"{checkpoint.path / MANIFEST}: meta describes a policy that cannot be made: {first_line(error)}"
        raise FileError(said, TRAIN_HINT) from error
    differing = checkpoints.differences(policy.state_dict(), checkpoint.weights)
    if differing:
        raise FileError(f"the weights of {checkpoint.path} do not fit its settings: {differing}", TRAIN_HINT)
    policy.load_state_dict(checkpoint.weights, strict=True)
    return policy


def find_backbone(meta: PolicyMeta, root: Path = Path("runs"), device: torch.device | str = "cpu") -> LoadedBackbone:
    """Loads the backbone that made the features a policy was trained on, known by the digest of its weights, with volumes as fine as those.

    Args:
        meta: the policy's.
        root: the folder whose runs are searched if the backbone is not where the policy's meta says.

    Raises:
        FileError: it is nowhere.
    """
    digest, recorded = meta.backbone_digest, meta.backbone
    hint = f"bring the run that holds it to {root}/, or train anew with: hsal finetune, hsal train"
    if not digest:
        raise FileError("the policy was trained on features that name no backbone, so images cannot be turned into volumes", hint)
    folder = backbone_folder(digest, Path(recorded) if recorded else None, root)
    if folder is None:
        place = f"neither at {recorded} nor under {root}/" if recorded else f"not under {root}/"
        raise FileError(f"the backbone the policy was trained with (weights {digest[:12]}) is {place}", hint)
    from hsal_cli.vision.backbone import finer, load_backbone

    backbone = load_backbone(folder, device=device)
    return dataclasses.replace(backbone, model=finer(backbone.model, meta.volume_shape[1]))


def backbone_folder(digest: str, recorded: Path | None = None, root: Path = Path("runs")) -> Path | None:
    """The checkpoint folder of the backbone whose weights have this digest: where it was recorded, else under `root`, else None."""
    places = [recorded] if recorded else []
    places += sorted(root.iterdir()) if root.is_dir() else []
    for place in places:
        for folder in (place, *sorted((place / "checkpoints").glob("*"))):
            if _weights_digest(folder) == digest:
                return folder
    return None


def _weights_digest(folder: Path) -> str | None:
    """The weights' digest that a backbone checkpoint's manifest names; None where there is no such checkpoint."""
    try:
        manifest = read_document(folder / MANIFEST, Manifest, "hsal finetune")
    except FileError:
        return None
    return manifest.sha256.get(WEIGHTS) if manifest.meta.get("kind") == "backbone" else None
