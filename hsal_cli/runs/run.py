"""Run directories: what a training run writes beside its checkpoints, and finding the newest run of a kind.

RUN/
    config.json    every setting, and what the run was trained on, paths as in places.py; it and status.json hold a digest of themselves
    command.txt    the command lines, one a line: the one that made the run, then any that gave it other settings, such as more epochs
    env.json       versions, device, threads
    status.json    kind, state (running, stopped, failed, finished), times
    metrics.jsonl  one line an epoch
    results.csv    the same as a table
    checkpoints/   see checkpoints.py
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hsal_cli import __version__, distributed
from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import Reporter
from hsal_cli.runs import places
from hsal_cli.runs.record import Record
from hsal_cli.storage import checkpoints
from hsal_cli.storage.files import (
    atomic_write,
    cannot_write,
    only_writer,
    read_json,
    read_sealed,
    remove_pictures,
    write_json,
    write_sealed,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from hsal_cli.storage.checkpoints import Checkpoint

Kind = Literal["backbone", "policy", "count"]
FORMAT = "hsal-run"
COMMAND_OF = {"backbone": "hsal finetune", "policy": "hsal train", "count": "hsal train --objective count"}
EVALUATED: tuple[Kind, ...] = ("policy", "count")  # the kinds that `hsal eval` takes


class Run:
    """One run directory.

    Args:
        path: the directory; `create` makes it, `open_run` opens an existing one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json."""
        return self._document("status.json")

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json, its paths from the folder that hsal runs in (see places.py)."""
        return places.with_found(self._document("config.json"), self.path)

    def _document(self, name: str) -> dict[str, Any]:
        return read_sealed(self.path / name, "hsal train")

    def set_status(self, state: str, **more: Any) -> None:
        """Updates status.json: the state, the time, and whatever else is given. Of several workers the first one alone does."""
        if not distributed.current().leads:
            return
        write_sealed(self.path / "status.json", {**self.status, **more, "state": state, "updated": _now()})

    def set_config(self, config: dict[str, Any]) -> None:
        """Replaces config.json; of several workers the first one alone does."""
        if not distributed.current().leads:
            return
        write_sealed(self.path / "config.json", places.with_stored(config, self.path))

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, in order; a last line that a crash cut short is left out.

        Raises:
            FileError: an earlier line cannot be read.
        """
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
                rows.append(row)
            except (ValueError, RecursionError) as error:
                if number < len(lines):
                    raise FileError(f"{self.path / 'metrics.jsonl'} is damaged in line {number}: {error}", "train again") from error
        return rows

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Writes metrics.jsonl and results.csv whole, so that a resumed epoch never stands twice; of several workers the first one does."""
        if not distributed.current().leads:
            return
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.path / "results.csv", text.getvalue())


def create(path: Path, kind: Kind, config: dict[str, Any], overwrite: bool = False) -> Run:
    """Makes a run directory with its config, command, environment and status; of several workers the first one does.

    Raises:
        UsageError: the place is taken by something else, or by a run and `overwrite` is not set.
        FileError: it cannot be written.
    """
    return distributed.broadcast(lambda: _create(path, kind, config, overwrite))


def _create(path: Path, kind: Kind, config: dict[str, Any], overwrite: bool) -> Run:
    run, config = Run(path), places.with_stored(config, path)
    if not path.exists():
        with atomic_write(path, folder=True) as temporary:  # a kill leaves all of it or nothing
            _fill(temporary, kind, config)
        return run
    if path.is_dir() and any(path.iterdir()):
        if not _is_run(path):
            raise UsageError(f"{path} exists and is not a run of hsal", "name another place with --out")
        if not overwrite:
            raise UsageError(
                f"{path} holds a run already", f"go on with --resume {path}, replace it with --overwrite, or name another --out"
            )
        with only_writer(path):
            run.set_status("failed")  # so that a kill leaves a run that may be overwritten, and that nobody takes for finished
            _empty(path)
            _fill(path, kind, config)
    elif path.is_dir():
        _fill(path, kind, config)
    else:
        raise UsageError(f"{path} exists and is not a run of hsal", "name another place with --out")
    return run


def _fill(path: Path, kind: Kind, config: dict[str, Any]) -> None:
    """Writes what a new run holds; status.json, which makes the folder a run, last."""
    try:
        (path / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_sealed(path / "config.json", config)
    _note_command(path / "command.txt")
    write_json(path / "env.json", environment())
    write_sealed(path / "status.json", {"format": FORMAT, "kind": kind, "state": "running", "started": _now(), "updated": _now()})


def _note_command(file: Path) -> None:
    """Adds the command line of this process to those that a run was made by."""
    earlier = file.read_text(encoding="utf-8") if file.is_file() else ""
    write_text(file, f"{earlier}{shlex.join(sys.argv)}\n")


def _empty(path: Path) -> None:
    """Removes what hsal wrote into a run but its status, and nothing else."""
    checkpoints.clear(path / "checkpoints")
    for name in ("config.json", "command.txt", "env.json", "metrics.jsonl", "results.csv", "eval.json", "eval.last.json"):
        (path / name).unlink(missing_ok=True)
    remove_pictures(path / "plots")


def _is_run(path: Path) -> bool:
    try:
        return Run(path).status.get("format") == FORMAT
    except FileError:
        return False


def environment() -> dict[str, Any]:
    """Versions and hardware, as env.json records them."""
    import h5py
    import numpy
    import torch

    from hsal_cli.vision.backbone import torchvision_resnet

    torchvision_resnet()  # says so if torchvision does not fit torch
    import torchvision

    return {
        "hsal": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def being_trained(run: Run, config: dict[str, Any], device: str) -> Iterator[None]:
    """Makes this process, for the time of the block, the only one that trains a run, and notes with which settings and where.

    Workers train it together, and the first one writes.

    Raises:
        FileError: another process is training it.
    """
    distributed.barrier()  # the others have read what the run was
    if not distributed.current().leads:
        yield
        return
    with only_writer(run.path):
        for place in (run.path, run.checkpoints):
            checkpoints.clear_temporary(place)
        if config != run.config:
            _note_command(run.path / "command.txt")
            run.set_config(config)
        run.set_status("running", device=device, workers=distributed.current().size)
        yield


def say_changes(run: Run, device: str, reporter: Reporter) -> None:
    """Names what differs between where a run was before and where it is resumed, such as "torch 2.6.0 -> 2.7.1"."""
    try:
        status = run.status
        before = {**read_json(run.path / "env.json", "hsal train"), "device": status.get("device"), "workers": status.get("workers", 1)}
    except (FileError, TypeError):
        return
    now = {**environment(), "device": device, "workers": distributed.current().size}
    names = ("hsal", "python", "torch", "torchvision", "numpy", "h5py", "cuda", "threads", "device", "workers")
    differing = [f"{name} {before[name]} -> {now[name]}" for name in names if before.get(name) not in (None, now[name])]
    if differing:
        reporter.say(f"differs from before: {', '.join(differing)}; so may the last digits of the numbers")


def resume_from(run: Run, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint to go on from; None where training was ended before it saved any. A damaged one that was passed over is said.

    Raises:
        FileError: there are checkpoints, and none is good.
    """
    if not checkpoints.present(run.checkpoints):
        reporter.say(f"{run.path} has no checkpoint yet: starting from the beginning")
        return None
    found = checkpoints.load(run.checkpoints, "last")
    if found.note:
        reporter.warn(found.note)
    if found.state is None:
        option = "--weights" if found.meta.get("kind") == "backbone" else "--init-from"
        raise FileError(f"checkpoint {found.path} holds weights only, nothing to resume from", f"start a new run from it: {option}")
    return found


def say_missing_classes(labels: Tensor, classes: list[str], source: Path, reporter: Reporter) -> None:
    """Warns of classes that no training image holds: they cannot be learned.

    Args:
        labels: integers, -1 pads.
    """
    missing = sorted(set(range(len(classes))) - set(labels.unique().tolist()))
    if missing:
        shown = ", ".join(classes[place] for place in missing[:5]) + (" ..." if len(missing) > 5 else "")
        reporter.warn(f"no training image of {source} holds {shown}: {'it' if len(missing) == 1 else 'they'} cannot be learned")


def open_run(path: Path, kind: Kind | tuple[Kind, ...]) -> Run:
    """Opens an existing run of a kind, or of one of several.

    Raises:
        FileError: there is no run, or one of another kind.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not (path / "status.json").is_file():
        raise FileError(f"{path} is not a run of hsal", f"make one with: {COMMAND_OF[kinds[0]]}")
    run = Run(path)
    found = run.status.get("kind")
    if found not in kinds:
        raise FileError(f"{path} is a run of kind {found}, not {' or '.join(kinds)}", f"make one with: {COMMAND_OF[kinds[0]]}")
    return run


def newest(kind: Kind | tuple[Kind, ...], root: Path = Path("runs")) -> Run | None:
    """The newest finished run of a kind, or of one of several, in a folder, or None."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    runs = []
    for status_file in root.glob("*/status.json"):
        try:
            status = Run(status_file.parent).status
        except FileError:  # some other run is damaged; that must not stop this one
            continue
        if status.get("kind") in kinds and status.get("state") == "finished":
            runs.append((status.get("updated", ""), status_file.parent))
    return Run(max(runs)[1]) if runs else None


def named_or_newest(path: Path | None, kind: Kind | tuple[Kind, ...], otherwise: str = "") -> Path:
    """The run, or checkpoint, that is named, else the newest finished run of a kind: which run is meant has this one rule.

    Args:
        path: what was named; None: nothing.
        kind: of the run.
        otherwise: what to do else, for the hint, such as ", or take --saliency itti".

    Raises:
        FileError: nothing is named, and there is no such run.
    """
    found = newest(kind) if path is None else None
    if path is None and found is None:
        first = kind[0] if isinstance(kind, tuple) else kind
        raise FileError(f"there is no finished {first} in runs", f"make one with: {COMMAND_OF[first]}{otherwise}")
    return path or found.path


def fresh_path(name: str, root: Path = Path("runs")) -> Path:
    """The first of NAME, NAME-2, NAME-3 ... that does not exist yet."""
    number, path = 1, root / name
    while path.exists():
        number += 1
        path = root / f"{name}-{number}"
    return path


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def evaluations(paths: list[Path]) -> list[dict[str, Any]]:
    """The eval.json of each run, with `run` added.

    Raises:
        FileError: a run was not evaluated, or two were evaluated on different data.
    """
    found = [{"run": str(path), **read_sealed(open_run(path, EVALUATED).path / "eval.json", f"hsal eval --run {path}")} for path in paths]
    for document in found:
        missing = [key for key in ("dataset", "split", "examples", "exact_match", "macro_f1", "ci95", "baselines") if key not in document]
        if missing:
            again = f"evaluate it again: hsal eval --run {document['run']}"
            raise FileError(f"{document['run']}/eval.json lacks {', '.join(missing)}", again)
    for document in found[1:]:
        for key in ("dataset", "split", "examples"):
            if document[key] != found[0][key]:
                raise FileError(
                    f"{document['run']} was evaluated on {key} {document[key]}, {found[0]['run']} on {found[0][key]}",
                    "evaluate both on the same data: hsal eval --run RUN --data FILE",
                )
    return found


def read_record(path: Path) -> Record:
    """Reads a run of either kind back, with its metrics and, if there is one, its evaluation.

    Raises:
        FileError: there is no run, or its files cannot be read.
    """
    if not (path / "status.json").is_file():
        raise FileError(f"{path} is not a run of hsal", "make one with: hsal train, or hsal finetune")
    run = Run(path)
    status = run.status
    kind = status.get("kind")
    if kind not in COMMAND_OF:
        raise FileError(f"{path} is a run of kind {kind}, which this hsal does not know", "pip install --upgrade hsal")
    evaluation = read_json(path / "eval.json", f"hsal eval --run {path}") if (path / "eval.json").is_file() else None
    rows = [row for row in run.rows() if isinstance(row, dict) and "epoch" in row]
    return Record(path, kind, str(status.get("state", "unknown")), run.config, rows, status, evaluation)
