"""Exporting trained runs as the folder of `--pretrained`: float16 weights, checksums, and how each was made (see evaluation/shipped.py)."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from hsal_cli import __version__
from hsal_cli.errors import FileError, UsageError
from hsal_cli.models.load import RUNS, PolicyMeta, backbone_folder, place_of_network, policy_meta
from hsal_cli.models.shipped import BACKBONE, FORMAT, FORMAT_VERSION, LOCAL, LOOK, exported_files, is_export, part_of, read_manifest
from hsal_cli.policy.variant import with_variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.documents import BackboneConfig, Evaluation
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import finish_replacing, replacing, write_json
from hsal_cli.storage.documents import read_text
from hsal_cli.storage.files import digest_of_file, refuse_link
from hsal_cli.vision.backbone import MAKE_HINT, backbone_meta

if TYPE_CHECKING:
    from torch import Tensor

RESULT = ("dataset", "split", "examples", "exact_match", "macro_f1", "ci95", "parameters", "flops", "scenes_digest")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run to export under a name, DATASET.OBJECTIVE, with its best checkpoint, which is the one evaluated, and its eval.json."""

    name: str
    run: runs.Run
    checkpoint: checkpoints.Checkpoint
    meta: PolicyMeta
    evaluation: Evaluation


def export(
    sources: Sequence[str],
    out: Path,
    backbone: Path | None = None,
    reporter: Reporter = SILENT,
    overwrite: bool = False,
    look: Path | None = None,
) -> dict[str, Any]:
    """Writes a folder of trained policies, whole or not at all.

    Args:
        sources: evaluated runs trained on one backbone, as RUN or NAME=RUN; the name is else DATASET.OBJECTIVE, as evaluated.
        out: the folder to write.
        backbone: the run or checkpoint of that backbone; None: where the runs say, or in runs/.
        reporter: told what is written.
        overwrite: replace an earlier export in `out`.
        look: the run or checkpoint of the network that looks first for these policies (frame "found").

    Returns:
        The manifest, with `bytes` added to each network and policy.

    Raises:
        UsageError: `out` is taken, or has a network that looks first and none is named; or two runs would have one name.
        FileError: a run is unfinished, was not evaluated, or was trained on another backbone than the others; the backbone is nowhere; or
            weights are not finite.
    """
    _check_out(out, overwrite)
    if look is None and LOOK in (read_manifest(out).parts if is_export(out) else ()):
        raise UsageError(
            f"{out} has a network that looks first, and it would be lost", f"add --look {out / LOOK}, or name another folder with --out"
        )
    exported = [_source(text) for text in sources]
    names = [source.name for source in exported]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two of the runs would be called {twice}", "name them: hsal export NAME=RUN NAME=RUN")
    wrong = next((name for name in names if not name.rpartition(".")[0] or PurePath(name).name != name), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is not a name of the form DATASET.OBJECTIVE", "name the run, such as mnist-multiset.rl=RUN")
    networks = {BACKBONE: checkpoints.read_checkpoint(_backbone_of(exported, backbone))}
    if look is not None:
        networks[LOOK] = checkpoints.load_from(part_of(look, LOOK, BACKBONE), "best", MAKE_HINT)
        backbone_meta(networks[LOOK])  # refuses what is no backbone
    manifest: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "hsal_version": __version__}
    with replacing(out, exported_files) as folder:
        for name, model in networks.items():
            manifest[name] = _write(folder / name, model.weights, model.meta, model.digest) | _origin_of_backbone(model.path)
            reporter.say(f"{name}: {_size(folder / name) / 1e6:.1f} MB, from {model.path}")
        digest = manifest[BACKBONE]["sha256"]["weights.safetensors"]
        manifest["policies"] = {}
        for source in exported:
            # Of the data, the name says enough; where it lay is nobody else's business.
            meta = _resolved(source.checkpoint.meta, source.run)
            meta |= {"backbone": None, "backbone_digest": digest, "features": PurePath(source.meta.features).name}
            entry = _write(folder / source.name, source.checkpoint.weights, meta, source.checkpoint.digest)
            manifest["policies"][source.name] = entry | _origin(source.run)
            found, local = source.evaluation.raw, source.evaluation.localization or {}
            result = {key: found[key] for key in RESULT if key in found} | {key: local[key] for key in LOCAL if key in local}
            manifest["policies"][source.name]["result"] = result
            reporter.say(f"{source.name}: {_size(folder / source.name) / 1e6:.1f} MB, from {source.run.path}")
        write_json(folder / "manifest.json", manifest)
    for name, entry in (*((name, manifest[name]) for name in networks), *manifest["policies"].items()):
        entry["bytes"] = _size(out / name)
    return manifest


def _resolved(meta: dict[str, Any], run: runs.Run) -> dict[str, Any]:
    """What a checkpoint says of its policy, with every value of the variant; hsal 0.1 left some open, which its run knows."""
    found = with_variant({**meta, "train": run.config.raw.get("train")})
    return {key: value for key, value in found.items() if key != "train"}


def _source(text: str) -> Source:
    name, equals, path = text.partition("=")
    named = bool(equals) and not Path(text).is_dir()  # a path may hold the sign, too
    run = runs.open_run(Path(path if named else text), runs.EVALUATED)
    if run.status.state != "finished":
        raise FileError(f"{run.path} is {run.status.state}, not finished", f"finish it: hsal train --resume {run.path}")
    evaluation = run.evaluation()
    checkpoint = checkpoints.load(run.checkpoints, "best")
    if PurePath(evaluation.checkpoint).name != checkpoint.path.name:
        raise FileError(f"eval.json of {run.path} is of another checkpoint than the best one", f"hsal eval --run {run.path}")
    chosen = name if named else f"{evaluation.dataset}.{evaluation.objective}"
    return Source(chosen, run, checkpoint, policy_meta(checkpoint), evaluation)


def _backbone_of(sources: list[Source], given: Path | None) -> Path:
    """The checkpoint folder of the one backbone that all runs were trained on."""
    digests = {source.meta.backbone_digest: source for source in sources}
    if len(digests) > 1:
        first, second = (source.run.path for source in list(digests.values())[:2])
        raise FileError(f"{first} and {second} were trained on different backbones", "export runs of one backbone together")
    digest, source = next(iter(digests.items()))
    recorded = source.meta.backbone
    place = backbone_folder(str(digest), given) if given else place_of_network(source.checkpoint, digest, recorded)
    if place is None:
        where = f"at {given}" if given else f"at {recorded} or under {RUNS}/" if recorded else f"under {RUNS}/"
        raise FileError(f"the backbone of {source.run.path} (weights {str(digest)[:12]}) is not {where}", "name its run with --backbone")
    return place


def _write(folder: Path, weights: dict[str, Tensor], meta: dict[str, Any], made_from: str) -> dict[str, Any]:
    """Writes a checkpoint in float16; returns the checksums of its files, and that of the weights it was made from.

    Raises:
        FileError: a weight is not a finite number.
    """
    odd = next((name for name, tensor in weights.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())), None)
    if odd is not None:
        raise FileError(f"{odd} of {folder.name} has values that are not finite, so it is not exported", "train it again")
    checkpoints.write_checkpoint(folder, {name: to_half(tensor) for name, tensor in weights.items()}, None, meta)
    return {"sha256": {file.name: digest_of_file(file) for file in sorted(folder.iterdir())}, "made_from": made_from}


def to_half(tensor: Tensor) -> Tensor:
    """A tensor of floats in float16, as which half the bytes suffice; a single number, or one that float16 cannot hold, stays as it is."""
    import torch

    if not tensor.is_floating_point() or tensor.numel() < 2 or float(tensor.abs().amax()) > torch.finfo(torch.float16).max:
        return tensor
    return tensor.half()


def _origin(run: runs.Run) -> dict[str, Any]:
    """The command, or commands, and the seed of a run."""
    config = run.config
    try:
        commands = read_text(run.path / "command.txt").splitlines()
        command = " && ".join(map(tidy, commands)) or None
    except (OSError, ValueError, FileError):  # not there, no file, or no command lines
        command = None
    return {"command": command, "seed": (config.finetune if isinstance(config, BackboneConfig) else config.train).seed}


def _origin_of_backbone(place: Path) -> dict[str, Any]:
    """Command, seed and accuracy of the run that a backbone's checkpoint lies in; of one exported earlier, what was stated then."""
    run = runs.Run(place.resolve().parents[1])
    if place.resolve().parent == run.checkpoints and (run.path / "status.json").is_file():
        return {**_origin(run), "result": run.status.accuracies}
    try:
        stated = read_manifest(place.parent).parts[place.name]
    except (FileError, KeyError):
        return {"command": None, "seed": None, "result": None}
    return {"command": stated.command, "seed": stated.seed, "result": stated.result and stated.result.raw}


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
    finish_replacing(out, exported_files)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    refuse_link(out)
    ours = exported_files(out)
    if not ours:
        raise UsageError(f"{out} exists and was not made by hsal export, so it is not replaced", "name another folder with --out")
    strange = [place for place in sorted(out.rglob("*")) if place.is_symlink() or (not place.is_dir() and place not in ours)]
    if strange:
        raise UsageError(f"{strange[0]} was not made by hsal export, so {out} is not replaced", "move it, or name another --out")
    if not overwrite:
        raise UsageError(f"{out} holds exported policies already", "replace them all with --overwrite, or name another folder with --out")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
