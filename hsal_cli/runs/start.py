"""What a training does before its first step: it takes its run for itself, finds the checkpoint to go on from, and says what is odd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli import distributed
from hsal_cli.errors import FileError
from hsal_cli.progress import Reporter
from hsal_cli.runs.run import COMMAND_OF, Run, environment, files_of, note_command, text_of
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import finish_replacing, only_writer, write_text
from hsal_cli.storage.documents import read_document

if TYPE_CHECKING:
    from torch import Tensor

    from hsal_cli.storage.checkpoints import Checkpoint

# What a checkpoint says of its model and data, and its run's config.json says too.
SHARED = ("variant", "policy", "count", "classes", "volume_shape", "scenes_digest", "features_digest", "backbone_digest", "saliency")


@contextlib.contextmanager
def being_trained(run: Run, config: dict[str, Any], device: str) -> Iterator[None]:
    """Makes this process, for the time of the block, the only one that trains a run, and notes with which settings and where.

    Workers train it together, and the first one writes. A finished run that was to go on, and did not get as far as another checkpoint, is
    what it was before.

    Raises:
        FileError: another process is training it.
    """
    distributed.barrier()  # the others have read what the run was
    if not distributed.current().leads:
        yield
        return
    with only_writer(run.path):
        finish_replacing(run.path, files_of)
        for place in (run.path, run.checkpoints):
            checkpoints.clear_temporary(place)
        held = {name: text_of(run.path / name) for name in ("config.json", "status.json", "command.txt")}
        index = checkpoints.index_of(run.checkpoints)
        finished = run.status.state == "finished"
        try:
            if config != run.config.raw:
                note_command(run.path / "command.txt")
                run.set_config(config)
            run.set_status("running", device=device, workers=distributed.current().size)
            yield
        except BaseException:
            if finished and checkpoints.index_of(run.checkpoints) == index:
                with contextlib.suppress(FileError):  # the error of the block is the one to tell
                    for name, content in held.items():
                        write_text(run.path / name, content)
            raise


def say_changes(run: Run, device: str, reporter: Reporter) -> None:
    """Names what differs between where a run was before and where it is resumed, such as "torch 2.6.0 -> 2.7.1"."""
    try:
        status = run.status
        before = {**read_document(run.path / "env.json", dict, "hsal train"), "device": status.device, "workers": status.workers}
    except FileError:
        return
    now = {**environment(), "device": device, "workers": distributed.current().size}
    names = ("hsal", "python", "torch", "torchvision", "numpy", "h5py", "cuda", "threads", "device", "workers")
    differing = [f"{name} {before[name]} -> {now[name]}" for name in names if before.get(name) not in (None, now[name])]
    if differing:
        reporter.say(f"differs from before: {', '.join(differing)}; so may the last digits of the numbers")


def resume_from(run: Run, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint to go on from; None where training was ended before it saved any. A damaged one that was passed over is said.

    Raises:
        FileError: there are checkpoints, and none is good, or it is another run's.
    """
    if not checkpoints.present(run.checkpoints):
        reporter.say(f"{run.path} has no checkpoint yet: starting from the beginning")
        return None
    found = checkpoints.load(run.checkpoints, "last")
    if found.note:
        reporter.warn(found.note)
    if found.state is None:
        option = "--weights" if found.kind == "backbone" else "--init-from"
        raise FileError(f"checkpoint {found.path} holds weights only, nothing to resume from", f"start a new run from it: {option}")
    differing = differences(run.config.raw, found.meta)
    if differing:
        hint = f"bring back the run's own checkpoints, or train a new run: {COMMAND_OF[run.status.kind]}"
        raise FileError(f"checkpoint {found.path} is of another run: {'; '.join(differing[:3])}", hint)
    return found


def differences(config: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """Where a checkpoint's meta says something else of its model and data than its run's config.json: "policy.mask is learned, not free".

    What one of them leaves open, or a version did not note, is no difference.
    """
    finetune, train = config.get("finetune") or {}, config.get("train") or {}
    said = {key: config.get(key) for key in SHARED} | {key: finetune.get(key) for key in ("arch", "input_size", "resolution", "dilate")}
    said["objective"] = train.get("objective")
    found = []
    for key, ours in said.items():
        theirs = meta.get(key)
        both = [(key, theirs, ours)]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            both = [(f"{key}.{name}", theirs.get(name), value) for name, value in ours.items()]
        # A resolution is a word in the settings, and a number in the meta.
        found += [
            f"{name} is {_short(left)}, not {_short(right)}"
            for name, left, right in both
            if None not in (left, right) and str(left) != str(right)
        ]
    return found


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def say_missing_classes(labels: Tensor, classes: list[str], source: Path, reporter: Reporter) -> None:
    """Warns of classes that none of the labels (-1 pads) of the training images is of: they cannot be learned."""
    missing = sorted(set(range(len(classes))) - set(labels.unique().tolist()))
    if missing:
        shown = ", ".join(classes[place] for place in missing[:5]) + (" ..." if len(missing) > 5 else "")
        reporter.warn(f"no training image of {source} holds {shown}: {'it' if len(missing) == 1 else 'they'} cannot be learned")
