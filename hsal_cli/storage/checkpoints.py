"""Saving and loading states: each checkpoint is a folder, written aside, renamed when whole, verified before it is used.

checkpoints/
    index.json               {"last": NAME, "best": NAME}: which checkpoint is which
    NAME/
        weights.safetensors  the model, in float32; in float16 where it was exported, and float32 again once it is read
        state.pt             what resuming needs (tensors and plain types), absent in exported models
        manifest.json        "meta" (kind, settings, classes, scores ...), the sha256 of each file, and a digest of the manifest itself
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hsal_cli import __version__
from hsal_cli.errors import FileError
from hsal_cli.storage.atomic import finish_replacing, is_temporary, replacing, write_sealed
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import digest_of_file, load_tensors, named, refuse_link
from hsal_cli.typed import Odd, checked

if TYPE_CHECKING:
    import torch

M = TypeVar("M")
WEIGHTS, STATE, MANIFEST, INDEX = "weights.safetensors", "state.pt", "manifest.json", "index.json"
SHOWN = 3  # parameters that an error names at most
KEEP = 2  # the newest checkpoints that stay, beside the best one: if the newest is damaged, the one before still serves


@dataclasses.dataclass(frozen=True)
class Manifest:
    """manifest.json of a checkpoint.

    Attributes:
        sha256: name of a file beside it -> checksum.
        meta: what the model is; its form is that of its kind (`loading.PolicyMeta`, `backbone.BackboneMeta`).
    """

    sha256: dict[str, str]
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Index:
    """index.json: which checkpoint of a run is the `last` and which the `best` one; None where that is not known."""

    last: str | None = None
    best: str | None = None


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

    @property
    def kind(self) -> str:
        """What it is of, such as policy."""
        return str(self.meta.get("kind", "unknown"))[:40]


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor], state: dict[str, Any] | None, meta: dict[str, Any]) -> None:
    """Writes one checkpoint folder, whole or not at all; one of that name stays until the new one is whole. May raise FileError."""
    import torch
    from safetensors.torch import save

    with replacing(folder, files_of) as temporary:
        # Written by Python: on a full disk torch and safetensors raise errors of many kinds, or end the process.
        (temporary / WEIGHTS).write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
        if state is not None:
            stream = io.BytesIO()
            torch.save(_on_cpu(state), stream)
            (temporary / STATE).write_bytes(stream.getbuffer())
        sums = {file.name: digest_of_file(file) for file in sorted(temporary.iterdir())}
        write_sealed(temporary / MANIFEST, {"hsal_version": __version__, "sha256": sums, "meta": meta})


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads one checkpoint folder and verifies every checksum before anything of it is used.

    Raises:
        FileError: missing, incomplete, damaged, or not loadable without running code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors_of

    hint = "train again, or name another checkpoint"
    try:
        manifest = read_document(folder / MANIFEST, Manifest, "hsal train")
    except FileError as error:
        raise FileError(f"checkpoint {folder} cannot be read: {error.message}", hint) from error
    try:
        sums = manifest.sha256
        for name, expected in sums.items():
            if digest_of_file(named(folder, name)) != expected:
                raise FileError(f"checkpoint {folder} is damaged: {name} does not have the checksum its manifest gives", hint)
        if WEIGHTS not in sums:
            raise KeyError(WEIGHTS)
        # Read by Python: safetensors opens no path whose bytes are not UTF-8.
        held = tensors_of((folder / WEIGHTS).read_bytes())
        weights = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in held.items()}
        state = checked(load_tensors(folder / STATE), dict[str, Any]) if STATE in sums else None
        return Checkpoint(folder, weights, state, manifest.meta, sums[WEIGHTS])
    except Odd as odd:
        raise FileError(f"checkpoint {folder} cannot be read: state.pt {odd}", hint) from odd
    except pickle.PickleError as error:
        # torch's own message advises to load it all the same.
        raise FileError(f"checkpoint {folder} cannot be read: state.pt holds more than tensors and plain values", hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"checkpoint {folder} cannot be read: {type(error).__name__}: {error}", hint) from error


def meta_of(checkpoint: Checkpoint, kind: type[M], hint: str) -> M:
    """A checkpoint's meta in the form of its kind; FileError where a value is missing, of another type or out of range."""
    try:
        return checked(checkpoint.meta, kind, "meta")
    except Odd as odd:
        raise FileError(odd.said_of(checkpoint.path / MANIFEST), hint) from odd


def _on_cpu(state: Any) -> Any:
    """A state whose tensors lie on the CPU, so that it can be read where there is no such device as wrote it."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_on_cpu, state))
    return state.cpu() if hasattr(state, "cpu") else state


def save(root: Path, name: str, weights: dict[str, torch.Tensor], state: dict[str, Any], meta: dict[str, Any], best: bool) -> None:
    """Adds a checkpoint to a run's `checkpoints` folder, points "last" (and "best") at it, and removes those that nothing needs any more.

    Names sort in the order of training; `best`: whether it is the best so far.
    """
    refuse_link(root)
    refuse_link(root / name)
    write_checkpoint(root / name, weights, state, meta)  # a run that is resumed from an older one has this one already
    index = write_index(root, last=name, best=name if best else index_of(root).best)
    for old in names(root)[:-KEEP]:
        if old not in (index.last, index.best):
            _remove(root / old)


def write_index(root: Path, last: str, best: str | None) -> Index:
    """Notes which checkpoint is "last" and which "best"; None: none is yet. Returns the index."""
    index = {"last": last} | ({"best": best} if best else {})
    write_sealed(root / INDEX, index)
    return Index(last, best)


def files_of(folder: Path) -> list[Path]:
    """The files of one checkpoint folder, its manifest last; none where it holds nothing of a checkpoint."""
    return [folder / name for name in (WEIGHTS, STATE, MANIFEST) if (folder / name).is_file()]


def all_files(root: Path) -> list[Path]:
    """The files of all checkpoints of a run, and their index."""
    found = [file for name in names(root) for file in files_of(root / name)]
    return [*found, root / INDEX] if (root / INDEX).is_file() else found


def clear_temporary(root: Path) -> None:
    """Removes what a writer that was killed left half done; only for the one process that writes there."""
    refuse_link(root)
    for place in filter(is_temporary, root.glob(".*.tmp")):
        _remove(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    for place in [*root.glob(".*.new"), *root.glob(".*.old")]:
        if place.is_dir() and (files_of(place) or not any(place.iterdir())):
            finish_replacing(root / place.stem[1:], files_of)


def present(root: Path) -> bool:
    """Whether a run has any checkpoint, good or damaged."""
    return bool(names(root))


def _remove(folder: Path) -> None:
    """Removes a checkpoint, but no file that is not of one."""
    for name in (MANIFEST, WEIGHTS, STATE):  # without its manifest it is none any more
        (folder / name).unlink(missing_ok=True)
    for place in filter(is_temporary, folder.glob(".*.tmp")):
        place.unlink()
    with contextlib.suppress(OSError):  # somebody keeps something of their own there
        folder.rmdir()


def load(root: Path, which: str) -> Checkpoint:
    """Loads a run's "last" or "best" checkpoint; a damaged one is passed over for the newest good one, and said so. Or FileError."""
    held, index = names(root), index_of(root)
    wanted = getattr(index, which)
    order = ([wanted] if wanted in held else []) + [name for name in reversed(held) if name != wanted]
    damaged = [] if wanted in held or not held else [f"{root / INDEX} does not say which checkpoint is the {which} one"]
    for name in order:
        try:
            found = read_checkpoint(root / name)
        except FileError as error:
            damaged.append(error.message)
            continue
        return dataclasses.replace(found, note=f"{damaged[0]}; using {name}" if damaged else "")
    if held != names(root):  # a training that goes on meanwhile has removed them for newer ones
        return load(root, which)
    if damaged:
        raise FileError(damaged[-1] + "; no other checkpoint is left", "train again")
    raise FileError(f"there is no checkpoint in {root}", "train first: hsal finetune, hsal train")


def differences(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> str:
    """What keeps the weights that were `found` from being loaded, the first few: missing and unknown names, and other shapes; or ""."""
    differing = []
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if name not in found or name not in wanted:
            differing.append(f"{name} is {'unknown' if name in found else 'missing'}")
        elif wanted[name].shape != found[name].shape:
            differing.append(f"{name} is {_shape(found[name])}, not {_shape(wanted[name])}")
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    return "; ".join(differing[:SHOWN]) + more


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def load_from(path: Path, which: str, hint: str) -> Checkpoint:
    """Loads what a path names: a run folder's "last" or "best" checkpoint, or the checkpoint whose folder it is.

    FileError: it is neither, or no checkpoint is good; `hint` says how to make one.
    """
    if (path / MANIFEST).is_file():
        return read_checkpoint(path)
    if (path / "checkpoints").is_dir():
        return load(path / "checkpoints", which)
    raise FileError(f"{path} is neither a run of hsal nor a checkpoint", hint)


def names(root: Path) -> list[str]:
    """The checkpoints of a run, those damaged included; a link, or a folder that holds nothing of a checkpoint, is somebody else's."""
    if not root.is_dir():
        return []
    ours = (MANIFEST, WEIGHTS, STATE)
    folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")]
    return sorted(folder.name for folder in folders if any((folder / name).exists() for name in ours))


def index_of(root: Path) -> Index:
    """Which checkpoint of a run is the last and which the best one; neither is known where the index is missing or damaged."""
    try:
        return read_document(root / INDEX, Index, "hsal train")
    except FileError:
        return Index()
