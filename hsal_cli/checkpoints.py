"""Saving and loading states: each checkpoint is a folder, written aside, renamed when whole, verified before it is used.

checkpoints/
    index.json               {"last": NAME, "best": NAME}: which checkpoint is which
    NAME/
        weights.safetensors  the model, in float32; in float16 where it was exported, and float32 again once it is read
        state.pt             what resuming needs (tensors and plain types), absent in exported models
        manifest.json        "meta" (kind, settings, classes, scores ...) and the sha256 of each file
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli import __version__
from hsal_cli.errors import FileError
from hsal_cli.files import digest_of_file, whole, write_json

if TYPE_CHECKING:
    import torch

KEEP = 2  # the newest checkpoints that stay, beside the best one: if the newest is damaged, the one before still serves


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        weights: name -> tensor.
        state: what resuming needs; None where the checkpoint holds weights only.
        meta: the manifest's "meta".
        digest: sha256 of the weights file, by which features name their backbone.
        note: which damaged checkpoint was passed over, else "".
    """

    path: Path
    weights: dict[str, torch.Tensor]
    state: dict[str, Any] | None
    meta: dict[str, Any]
    digest: str
    note: str = ""


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor], state: dict[str, Any] | None, meta: dict[str, Any]) -> None:
    """Writes one checkpoint folder, whole or not at all.

    Raises:
        FileError: the place cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(folder, folder=True) as temporary:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary / "weights.safetensors")
            if state is not None:
                torch.save(state, temporary / "state.pt")
        except (SafetensorError, RuntimeError) as error:  # so they report a full disk
            raise FileError(f"cannot write {folder}: {error}", "free some space, or name another place with --out") from error
        sums = {file.name: digest_of_file(file) for file in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps({"hsal_version": __version__, "sha256": sums, "meta": meta}, indent=2))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads one checkpoint folder and verifies every checksum before anything of it is used.

    Raises:
        FileError: missing, incomplete, damaged, or not loadable without running code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = "train again, or name another checkpoint"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sums, meta = dict(manifest["sha256"]), dict(manifest["meta"])
        for name, expected in sums.items():
            if digest_of_file(folder / name) != expected:
                raise FileError(f"checkpoint {folder} is damaged: {name} does not have the checksum its manifest gives", hint)
        weights = {name: _in_full(tensor) for name, tensor in load_file(folder / "weights.safetensors").items()}
        state = torch.load(folder / "state.pt", weights_only=True) if "state.pt" in sums else None
        return Checkpoint(folder, weights, state, meta, sums["weights.safetensors"])
    except pickle.PickleError as error:
        # torch's own message advises to load it all the same.
        raise FileError(f"checkpoint {folder} cannot be read: state.pt holds more than tensors and plain values", hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RuntimeError, EOFError) as error:
        raise FileError(f"checkpoint {folder} cannot be read: {type(error).__name__}: {error}", hint) from error


def _in_full(tensor: torch.Tensor) -> torch.Tensor:
    """Weights stored in half the bytes, in the precision that they are computed with."""
    return tensor.float() if str(tensor.dtype) == "torch.float16" else tensor


def save(root: Path, name: str, weights: dict[str, torch.Tensor], state: dict[str, Any], meta: dict[str, Any], best: bool) -> None:
    """Adds a checkpoint to a run, points "last" (and "best") at it, and removes those that nothing needs any more.

    Args:
        root: the run's `checkpoints` folder.
        name: the new checkpoint's name; names sort in the order of training.
        best: whether it is the best so far.
    """
    folder = root / name
    if folder.exists():
        shutil.rmtree(folder)
    write_checkpoint(folder, weights, state, meta)
    index = _index(root)
    index["last"] = name
    if best:
        index["best"] = name
    write_json(root / "index.json", index)
    for old in _names(root)[:-KEEP]:
        if old not in index.values():
            shutil.rmtree(root / old)


def load(root: Path, which: str) -> Checkpoint:
    """Loads a run's "last" or "best" checkpoint; a damaged one is passed over for the newest good one, and said so.

    Raises:
        FileError: there is no checkpoint, or none is good.
    """
    names = _names(root)
    wanted = _index(root).get(which)
    order = ([wanted] if wanted in names else []) + [name for name in reversed(names) if name != wanted]
    damaged = []
    for name in order:
        try:
            found = read_checkpoint(root / name)
        except FileError as error:
            damaged.append(error.message)
            continue
        return dataclasses.replace(found, note=f"{damaged[0]}; using {name}" if damaged else "")
    if damaged:
        raise FileError(damaged[0] + "; no other checkpoint is left", "train again")
    raise FileError(f"there is no checkpoint in {root}", "train first: hsal finetune, hsal train")


def load_from(path: Path, which: str, hint: str) -> Checkpoint:
    """Loads what a path names: a run folder's "last" or "best" checkpoint, or the checkpoint whose folder it is.

    Raises:
        FileError: it is neither, or no checkpoint is good; `hint` says how to make one.
    """
    if (path / "manifest.json").is_file():
        return read_checkpoint(path)
    if (path / "checkpoints").is_dir():
        return load(path / "checkpoints", which)
    raise FileError(f"{path} is neither a run of hsal nor a checkpoint", hint)


def _names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")) if root.is_dir() else []


def _index(root: Path) -> dict[str, str]:
    try:
        index = json.loads((root / "index.json").read_text(encoding="utf-8"))
        return {key: value for key, value in index.items() if isinstance(value, str)} if isinstance(index, dict) else {}
    except (OSError, ValueError):
        return {}
