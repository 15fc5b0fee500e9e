"""Exporting trained runs as the folder of `--pretrained`: float16 weights, checksums, and how each was made (see evaluation/shipped.py)."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from hsal_cli import __version__
from hsal_cli.errors import FileError, UsageError
from hsal_cli.models.load import RUNS, backbone_folder
from hsal_cli.models.shipped import BACKBONE, FORMAT, FORMAT_VERSION, read_manifest
from hsal_cli.policy.variant import stored_variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.places import with_found
from hsal_cli.settings import as_dict
from hsal_cli.storage import checkpoints
from hsal_cli.storage.files import atomic_write, cannot_write, digest_of_file, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

RESULT = ("dataset", "split", "examples", "exact_match", "macro_f1", "ci95", "parameters")
LOCAL = ("glimpse_hit", "mask_mass")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run to export.

    Attributes:
        name: what it will be called, DATASET.OBJECTIVE.
        run: the run.
        checkpoint: its best one, which is the one that was evaluated.
        evaluation: its eval.json.
    """

    name: str
    run: runs.Run
    checkpoint: checkpoints.Checkpoint
    evaluation: dict[str, Any]


def export(
    sources: Sequence[str], out: Path, backbone: Path | None = None, reporter: Reporter = SILENT, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a folder of trained policies, whole or not at all.

    Args:
        sources: evaluated runs trained on one backbone, as RUN or NAME=RUN; the name is else DATASET.OBJECTIVE, as evaluated.
        out: the folder to write.
        backbone: the run or checkpoint of that backbone; None: where the runs say, or in runs/.
        reporter: told what is written.
        overwrite: replace an earlier export in `out`.

    Returns:
        The manifest, with `bytes` added to the backbone and to each policy.

    Raises:
        UsageError: `out` is taken, or two runs would have one name.
        FileError: a run is unfinished, was not evaluated, or was trained on another backbone than the others; or the backbone is nowhere.
    """
    _check_out(out, overwrite)
    found = [_source(text) for text in sources]
    names = [source.name for source in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two of the runs would be called {twice}", "name them: hsal export NAME=RUN NAME=RUN")
    wrong = next((name for name in names if not name.rpartition(".")[0] or PurePath(name).name != name), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is not a name of the form DATASET.OBJECTIVE", "name the run, such as mnist-multiset.rl=RUN")
    place = _backbone_of(found, backbone)
    model = checkpoints.read_checkpoint(place)
    manifest: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "hsal_version": __version__}
    staging = out.with_name(f".{out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    with atomic_write(staging, folder=True) as folder:
        manifest[BACKBONE] = _write(folder / BACKBONE, model.weights, model.meta, model.digest) | _origin_of_backbone(place)
        digest = manifest[BACKBONE]["sha256"]["weights.safetensors"]
        reporter.say(f"{BACKBONE}: {_size(folder / BACKBONE) / 1e6:.1f} MB, from {place}")
        manifest["policies"] = {}
        for source in found:
            # Of the data, the name says enough; where it lay is nobody else's business.
            meta = _resolved(source.checkpoint.meta, source.run)
            meta = {**meta, "backbone": None, "backbone_digest": digest, "features": PurePath(meta["features"]).name}
            entry = _write(folder / source.name, source.checkpoint.weights, meta, source.checkpoint.digest)
            manifest["policies"][source.name] = entry | _origin(source.run) | {"result": _result(source.evaluation)}
            reporter.say(f"{source.name}: {_size(folder / source.name) / 1e6:.1f} MB, from {source.run.path}")
        write_json(folder / "manifest.json", manifest)
    _take_place(staging, out)
    for name, entry in ((BACKBONE, manifest[BACKBONE]), *manifest["policies"].items()):
        entry["bytes"] = _size(out / name)
    return manifest


def _resolved(meta: dict[str, Any], run: runs.Run) -> dict[str, Any]:
    """What a checkpoint says of its policy, with every value of the variant; hsal 0.1 left some open."""
    if "policy" not in meta:
        return meta
    _, height, width = meta["volume_shape"]
    variant = stored_variant({**meta, "train": run.config.get("train")}, height * width, run.path)
    return {**{key: value for key, value in meta.items() if key != "policy"}, "variant": as_dict(variant)}


def _source(text: str) -> Source:
    name, equals, path = text.partition("=")
    named = bool(equals) and not Path(text).is_dir()  # a path may hold the sign, too
    run = runs.open_run(Path(path if named else text), runs.EVALUATED)
    if run.status.get("state") != "finished":
        raise FileError(f"{run.path} is {run.status.get('state')}, not finished", f"finish it: hsal train --resume {run.path}")
    evaluation = read_json(run.path / "eval.json", f"hsal eval --run {run.path}")
    checkpoint = checkpoints.load(run.checkpoints, "best")
    if PurePath(str(evaluation.get("checkpoint"))).name != checkpoint.path.name:
        raise FileError(f"eval.json of {run.path} is of another checkpoint than the best one", f"hsal eval --run {run.path}")
    chosen = name if named else f"{evaluation.get('dataset')}.{evaluation.get('objective')}"
    return Source(chosen, run, checkpoint, evaluation)


def _backbone_of(sources: list[Source], given: Path | None) -> Path:
    """The checkpoint folder of the one backbone that all runs were trained on."""
    digests = {source.checkpoint.meta.get("backbone_digest"): source for source in sources}
    if len(digests) > 1:
        first, second = (source.run.path for source in list(digests.values())[:2])
        raise FileError(f"{first} and {second} were trained on different backbones", "export runs of one backbone together")
    digest, source = next(iter(digests.items()))
    recorded = with_found(source.checkpoint.meta, source.run.path).get("backbone")
    place = backbone_folder(str(digest), *((given,) if given else (recorded, source.run.path.parent, RUNS)))
    if place is None:
        where = f"at {given}" if given else f"at {recorded} or under runs/" if recorded else "under runs/"
        raise FileError(f"the backbone of {source.run.path} (weights {str(digest)[:12]}) is not {where}", "name its run with --backbone")
    return place


def _write(folder: Path, weights: dict[str, Tensor], meta: dict[str, Any], made_from: str) -> dict[str, Any]:
    """Writes a checkpoint in float16; returns the checksums of its files, and that of the weights it was made from."""
    checkpoints.write_checkpoint(folder, {name: to_half(tensor) for name, tensor in weights.items()}, None, meta)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
    return {"sha256": {file.name: digest_of_file(file) for file in sorted(folder.iterdir())}, "made_from": made_from}


def to_half(tensor: Tensor) -> Tensor:
    """A tensor of floats in float16, as which half the bytes suffice; a single number, or one that float16 cannot hold, stays as it is."""
    import torch

    if not tensor.is_floating_point() or tensor.numel() < 2 or float(tensor.abs().amax()) > torch.finfo(torch.float16).max:
        return tensor
    return tensor.half()


def _origin(run: runs.Run) -> dict[str, Any]:
    """The command, or commands, and the seed of a run."""
    settings = next((table for table in map(run.config.get, ("train", "finetune")) if table), {})
    try:
        commands = (run.path / "command.txt").read_text(encoding="utf-8").splitlines()
        command = " && ".join(map(tidy, commands)) or None
    except OSError:
        command = None
    return {"command": command, "seed": settings.get("seed")}


def _origin_of_backbone(place: Path) -> dict[str, Any]:
    """Command, seed and accuracy of the run that a backbone's checkpoint lies in; of one exported earlier, what was stated then."""
    run = runs.Run(place.resolve().parents[1])
    if place.resolve().parent == run.checkpoints and (run.path / "status.json").is_file():
        status = run.status
        return {**_origin(run), "result": {key: status[key] for key in ("accuracy", "test_accuracy") if key in status}}
    try:
        stated = read_manifest(place.parent)[BACKBONE]
    except FileError:
        stated = {}
    return {key: stated.get(key) for key in ("command", "seed", "result")}


def _result(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that a manifest states."""
    local = evaluation.get("localization") or {}
    return {key: evaluation[key] for key in RESULT if key in evaluation} | {key: local[key] for key in LOCAL if key in local}


def tidy(command: str) -> str:
    """A command line as anyone would type it: hsal by its name, and files by theirs, without the folders of the machine it ran on."""
    program, *words = shlex.split(command) or [""]
    program = "hsal" if PurePath(program).name in ("hsal", "__main__.py") else PurePath(program).name
    return shlex.join([program, *map(_without_folders, words)])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_without_folders(value)}"
    return PurePath(word).name if PurePath(word).is_absolute() else word


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuses a folder that is taken, unless everything in it was exported earlier and may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest = read_manifest(out)
    except FileError:
        raise UsageError(f"{out} exists and was not made by hsal export, so it is not replaced", "name another folder with --out") from None
    known = {BACKBONE, "manifest.json", *manifest["policies"]}
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if strange:
        raise UsageError(f"{out / strange[0]} was not made by hsal export, so {out} is not replaced", "move it, or name another --out")
    if not overwrite:
        raise UsageError(f"{out} holds exported policies already", "replace them all with --overwrite, or name another folder with --out")


def _take_place(new: Path, out: Path) -> None:
    """Puts a folder where an older one may be; that one comes back if this fails."""
    old = out.with_name(f".{out.name}.old")
    try:
        if not out.exists():
            os.replace(new, out)
            return
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
        try:
            os.replace(new, out)
        except OSError:
            os.replace(old, out)
            raise
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise cannot_write(out, error) from error
    shutil.rmtree(old, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
