"""Loading a trained policy, and finding the backbone it was trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli.errors import FileError
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import stored_variant
from hsal_cli.runs.places import with_found
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch

    from hsal_cli.vision.backbone import LoadedBackbone


RUNS = Path("runs")
TRAIN_HINT = "train one with: hsal train"


@dataclasses.dataclass(frozen=True)
class LoadedPolicy:
    """A trained policy, or the count classifier that it is compared with.

    Attributes:
        policy: in evaluation mode, on the device asked for.
        meta: the checkpoint's meta: variant, classes (names), volume_shape, volume_scale, max_labels, backbone_digest ...; the paths in it
            are from the folder that hsal runs in.
        checkpoint: where it came from; its `note` says if a damaged checkpoint was passed over.
    """

    policy: HSAL | CountClassifier
    meta: dict[str, Any]
    checkpoint: Checkpoint

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.meta["classes"]

    @property
    def max_steps(self) -> int:
        """The cap on meta-steps at inference: most labels seen in training plus 2."""
        return self.meta["max_labels"] + 2


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
    meta = with_found(checkpoint.meta, run_of(checkpoint))
    return LoadedPolicy(policy.to(device).eval(), meta, checkpoint)


def run_of(checkpoint: Checkpoint) -> Path:
    """The folder of the run that a checkpoint belongs to: RUN/checkpoints/NAME; of an exported one, the folder above its own."""
    above = checkpoint.path.absolute().parent
    return above.parent if above.name == "checkpoints" else above


def policy_of(checkpoint: Checkpoint) -> HSAL | CountClassifier:
    """The policy, or count classifier, that a checkpoint holds, on the CPU.

    Raises:
        FileError: not a policy, or weights that do not fit the settings; names the first that differ.
    """
    meta = checkpoint.meta
    if not isinstance(meta, dict) or meta.get("kind") not in ("policy", "count"):
        found = meta.get("kind", "unknown") if isinstance(meta, dict) else "unknown"
        raise FileError(f"{checkpoint.path} is a checkpoint of kind {found}, not policy", TRAIN_HINT)
    try:
        classes, shape, scale = len(meta["classes"]), tuple(meta["volume_shape"]), float(meta["volume_scale"])
        if meta["kind"] == "count":
            policy = CountClassifier(classes, shape, meta["count"]["most"], scale, meta["count"]["hidden"])
        else:
            policy = HSAL(stored_variant(meta, shape[1] * shape[2], checkpoint.path), classes, shape, scale)
        int(meta["max_labels"])
    except (LookupError, TypeError, ValueError) as error:
        raise FileError(f"checkpoint {checkpoint.path} does not describe its policy: {type(error).__name__} {error}", TRAIN_HINT) from error
    differing = checkpoints.differences(policy.state_dict(), checkpoint.weights)
    if differing:
        raise FileError(f"the weights of {checkpoint.path} do not fit its settings: {differing}", TRAIN_HINT)
    policy.load_state_dict(checkpoint.weights, strict=True)
    return policy


def find_backbone(loaded: LoadedPolicy, device: torch.device | str = "cpu", named: Path | None = None) -> LoadedBackbone:
    """Loads the backbone that made the features a policy was trained on, with volumes as fine as those.

    Args:
        loaded: the policy, which knows the digest of the backbone's weights.
        device: where the backbone goes.
        named: a run or a checkpoint to take it from, and from nowhere else; None: see `backbone_folder`.

    Raises:
        FileError: it is nowhere, or not at the place named.
    """
    meta, run = loaded.meta, run_of(loaded.checkpoint)
    digest, recorded = meta.get("backbone_digest"), meta.get("backbone")
    hint = f"bring the run that holds it to {RUNS}/, or train anew with: hsal finetune, hsal train"
    if not digest and named is None:
        raise FileError("the policy was trained on features that name no backbone, so images cannot be turned into volumes", hint)
    folder = backbone_folder(digest, *((named,) if named else (recorded, run, run.parent, RUNS))) if digest else named
    if folder is None:
        place = f"not at {named}" if named else f"neither at {recorded} nor under {RUNS}/" if recorded else f"not under {RUNS}/"
        raise FileError(f"the backbone the policy was trained with (weights {digest[:12]}) is {place}", "name that one" if named else hint)
    from hsal_cli.vision.backbone import finer, load_backbone

    backbone = load_backbone(folder, device=device)
    if "volume_shape" not in meta:
        return backbone
    return dataclasses.replace(backbone, model=finer(backbone.model, meta["volume_shape"][1]))


def backbone_folder(digest: str, *places: Path | str | None) -> Path | None:
    """The checkpoint folder of the backbone whose weights have this digest: finding a backbone has this one rule.

    Args:
        digest: sha256 of its weights, by which features and policies know it.
        places: where to look, in this order: a checkpoint, a run, or a folder of either, such as runs/ or what `hsal export` wrote.

    Returns:
        The first one found, else None.
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
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest["sha256"]["weights.safetensors"] if manifest["meta"]["kind"] == "backbone" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
