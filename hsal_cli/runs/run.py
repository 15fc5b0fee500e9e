"""Run directories: what a training run writes beside its checkpoints, and finding the newest run of a kind.

RUN/
    config.json    every setting, and what the run was trained on, paths as in places.py; it and status.json hold a digest of themselves
    command.txt    the command lines, one a line: the one that made the run, then any that gave it other settings, such as more epochs
    env.json       versions, device, threads
    status.json    kind, state (running, stopped, failed, finished), times
    metrics.jsonl  one line an epoch
    results.csv    the same as a table
    eval.json      the best checkpoint's scores on the test split of the features that the run was trained on, and only those
    eval.last.json the same of the last checkpoint, where `hsal reproduce` has asked for them
    eval.NAME.json scores on other data, other features of the same, or another split
    checkpoints/   see checkpoints.py
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from hsal_cli import __version__, distributed
from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import places
from hsal_cli.runs.documents import BackboneConfig, Evaluation, Kind, PolicyConfig, Row, Status, read_evaluation
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import (
    cannot_write,
    finish_replacing,
    only_writer,
    replacing,
    write_json,
    write_sealed,
    write_text,
    write_together,
)
from hsal_cli.storage.documents import read_document, read_text
from hsal_cli.storage.files import own_pictures, refuse_link
from hsal_cli.typed import Odd, checked, parsed

FORMAT = "hsal-run"
COMMAND_OF = {"backbone": "hsal finetune", "policy": "hsal train", "count": "hsal train --objective count"}
EVALUATED: tuple[Kind, ...] = ("policy", "count")  # the kinds that `hsal eval` takes
SCORED: tuple[Kind, ...] = (*EVALUATED, "backbone")  # and those that may have an eval.json: backbones that count have
EVALUATIONS = {"best": "eval.json", "last": "eval.last.json"}  # of a run's checkpoints, on the test split of its own data
DOCUMENTS = ("config.json", "command.txt", "env.json", "metrics.jsonl", "results.csv")


class Run:
    """One run directory; `create` makes it, `open_run` opens an existing one."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    @property
    def status(self) -> Status:
        """The content of status.json."""
        return read_document(self.path / "status.json", Status, "hsal finetune, hsal train")

    @property
    def config(self) -> PolicyConfig | BackboneConfig:
        """The content of config.json, its paths from the folder that hsal runs in (see places.py)."""
        kind = self.status.kind
        form = BackboneConfig if kind == "backbone" else PolicyConfig
        return read_document(self.path / "config.json", form, COMMAND_OF[kind], lambda held: places.with_found(held, self.path))

    def set_status(self, state: str, **more: Any) -> None:
        """Updates status.json: the state, the time, and whatever else is given. Of several workers the first one alone does."""
        if not distributed.current().leads:
            return
        write_sealed(self.path / "status.json", {**self.status.raw, **more, "state": state, "updated": _now()})

    def set_config(self, config: dict[str, Any]) -> None:
        """Replaces config.json; of several workers the first one alone does."""
        if not distributed.current().leads:
            return
        write_sealed(self.path / "config.json", places.with_stored(config, self.path))

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, in order: "epoch", and numbers; a last line that a crash cut short is left out.

        Raises:
            FileError: it is no text, or a line cannot be read.
        """
        source, hint = self.path / "metrics.jsonl", f"train again, or go on with: hsal train --resume {self.path}"
        try:
            lines = read_text(source).splitlines()
        except OSError:
            return []
        except Odd as odd:
            raise FileError(odd.said_of(source), hint) from odd
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = parsed(line)
            except Odd as odd:
                if number == len(lines) and not line.endswith("}"):
                    break
                raise FileError(f"{source} is damaged in line {number}: it {odd}", hint) from odd
            try:
                checked(row, Row)
                checked(row, dict[str, float])
            except Odd as odd:
                raise FileError(f"{source} is damaged in line {number}: {odd}", hint) from odd
            rows.append(row)
        return rows

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Writes metrics.jsonl and results.csv whole, so that a resumed epoch never stands twice; of several workers the first one does."""
        if not distributed.current().leads:
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_together(
            {self.path / "results.csv": text.getvalue().encode(errors="backslashreplace"), self.path / "metrics.jsonl": lines.encode()}
        )

    def evaluation(self, which: str = "best") -> Evaluation:
        """The scores of the run's best, or last, checkpoint on its own test split.

        Raises:
            FileError: there are none, the file is damaged, or it holds scores on other data, as older versions may have left there; of a
                backbone that did not learn counts there are none.
        """
        place, again = self.path / EVALUATIONS[which], f"hsal eval --run {self.path}"
        if self.status.kind == "backbone":
            again = "hsal finetune --objects counts; other backbones name nothing by themselves"
        found = read_evaluation(place, again)
        other = self.other_data(found)
        if other:
            raise FileError(f"{place} holds scores on {other}, not on the test split of the run's own data", f"make it again with: {again}")
        return found

    def other_data(self, evaluation: Evaluation) -> str:
        """What an evaluation is of, in words, where that is not the test split of the features that the run was trained on; else ""."""
        name, config = evaluation.dataset, self.config if (self.path / "config.json").is_file() else None
        if evaluation.split != "test":
            return f"split {evaluation.split} of {name}"
        if config is None:
            return ""
        scenes, features = evaluation.scenes_digest, evaluation.features_digest
        known, digest = (config.features, config.features_digest) if isinstance(config, PolicyConfig) else (None, None)
        if features is None and evaluation.features not in (None, known):  # by a version that noted the place of those
            held = _digests_of(Path(evaluation.features))
            scenes, features = scenes or held[0], held[1]
            if scenes is None:
                return f"{name} ({evaluation.features})"
        for what, found, own in (("scenes", scenes, config.scenes_digest), ("features", features, digest)):
            if None not in (found, own) and found != own:
                return f"{name} ({what} {found[:8]})"
        return ""

    def place_for(self, evaluation: Evaluation) -> Path:
        """Where `hsal eval` keeps an evaluation: eval.json, or beside it under the data's name; with a digest where that name is taken."""
        if not self.other_data(evaluation):
            return self.path / EVALUATIONS["best"]
        name = evaluation.dataset if evaluation.split == "test" else f"{evaluation.dataset}.{evaluation.split}"
        place = self.path / f"eval.{name}.json"
        digest = str(evaluation.features_digest or evaluation.scenes_digest)
        return place if _is_free(place, evaluation) else self.path / f"eval.{name}.{digest[:8]}.json"


def _digests_of(features: Path) -> tuple[str | None, str | None]:
    """The digest of the scenes that a feature file was made from, and its own; None where it cannot be read."""
    from hsal_cli.storage.hdf5 import attribute, open_hdf5

    try:
        with open_hdf5(features, "hsal-features", "hsal precompute") as file:
            return attribute(file, "scenes_digest"), attribute(file, "digest")
    except FileError:
        return None, None


def _is_free(place: Path, evaluation: Evaluation) -> bool:
    """Whether an evaluation may be written there: nothing is, or one on the same scenes and features."""
    if place.name in EVALUATIONS.values():
        return False
    try:
        held = read_evaluation(place, "hsal eval") if place.exists() else evaluation
    except FileError:
        return False
    return held.scenes_digest == evaluation.scenes_digest and held.features_digest in (None, evaluation.features_digest)


def create(path: Path, kind: Kind, config: dict[str, Any], overwrite: bool = False) -> Run:
    """Makes a run directory with its config, command, environment and status; of several workers the first one does.

    Raises:
        UsageError: the place is taken by something else, or by a run and `overwrite` is not set, or not all workers see it.
        FileError: it cannot be written, or it is a link, or what would be removed of it lies behind one.
    """
    _check_shared(path)
    return distributed.broadcast(lambda: _create(path, kind, config, overwrite))


def _check_shared(path: Path) -> None:
    """Refuses a place that not all workers see: they would train, and then not find what worker 0 wrote."""
    if distributed.current().size == 1:
        return

    def mark() -> Path | None:
        place = next(place for place in (path, *path.parents) if place.is_dir())
        with contextlib.suppress(OSError):  # making the run will say why nothing can be written there
            handle, name = tempfile.mkstemp(prefix=".hsal-", dir=place)
            os.close(handle)
            return place / Path(name).name
        return None

    file = distributed.broadcast(mark)
    if file is None:
        return
    try:
        seen = distributed.all_gather(file.exists())
    finally:
        if distributed.current().leads:
            file.unlink(missing_ok=True)
    if not all(seen):
        blind = ", ".join(str(rank) for rank, sees in enumerate(seen) if not sees)
        raise UsageError(
            f"worker {blind} does not see {file.parent.absolute()} of worker 0's machine, where the run is to be written",
            "name a place on a disk that all machines share: --out /SHARED/runs/NAME",
        )


def _create(path: Path, kind: Kind, config: dict[str, Any], overwrite: bool) -> Run:
    config = places.with_stored(config, path)
    finish_replacing(path, files_of)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not _is_run(path):
        raise UsageError(f"{path} exists and is not a run of hsal", "name another place with --out")
    if taken and not overwrite:
        raise UsageError(f"{path} holds a run already", f"go on with --resume {path}, replace it with --overwrite, or name another --out")
    for place in (path, path / "checkpoints", path / "plots") if taken else ():
        refuse_link(place)
    if path.is_dir() and not taken:  # it may be where a disk is mounted, or a link, and stays
        _fill(path, kind, config)
        return Run(path)
    with only_writer(path) if taken else contextlib.nullcontext(), replacing(path, files_of) as temporary:
        _fill(temporary, kind, config)
    return Run(path)


def _fill(path: Path, kind: Kind, config: dict[str, Any]) -> None:
    """Writes what a new run holds; status.json, which makes the folder a run, last."""
    try:
        (path / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_sealed(path / "config.json", config)
    note_command(path / "command.txt")
    write_json(path / "env.json", environment())
    write_sealed(path / "status.json", {"format": FORMAT, "kind": kind, "state": "running", "started": _now(), "updated": _now()})


def note_command(file: Path) -> None:
    """Adds the command line of this process to those that a run was made by."""
    write_text(file, f"{text_of(file)}{shlex.join(sys.argv)}\n")


def text_of(file: Path) -> str:
    """The text of a file; nothing where there is none."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def files_of(path: Path) -> list[Path]:
    """The files that hsal wrote into a run, its status.json last; none where it is no run."""
    if not _is_run(path):
        return []
    found = [path / name for name in (".lock", *DOCUMENTS)] + sorted(path.glob("eval.json")) + sorted(path.glob("eval.*.json"))
    if not (path / "checkpoints").is_symlink():
        found += checkpoints.all_files(path / "checkpoints")
    if not (path / "plots").is_symlink():
        found += [*own_pictures(path / "plots"), path / "plots" / "report.html", path / "plots" / "report.json"]
    return [*(file for file in found if file.is_file()), path / "status.json"]


def recover(path: Path) -> None:
    """Sets right what a process that was killed while it replaced a run has left."""
    if not path.exists():
        with contextlib.suppress(FileError):  # what reads the run says that it is missing
            finish_replacing(path, files_of)


def _is_run(path: Path) -> bool:
    status = path / "status.json"
    try:
        return not status.is_symlink() and Run(path).status.format == FORMAT
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


def open_run(path: Path, kind: Kind | tuple[Kind, ...]) -> Run:
    """Opens an existing run of a kind, or of one of several.

    Raises:
        FileError: there is no run, or one of another kind.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    recover(path)
    if not (path / "status.json").is_file():
        raise FileError(f"{path} is not a run of hsal", f"make one with: {COMMAND_OF[kinds[0]]}")
    run = Run(path)
    found = run.status.kind
    if found not in kinds:
        raise FileError(f"{path} is a run of kind {found}, not {' or '.join(kinds)}", f"make one with: {COMMAND_OF[kinds[0]]}")
    return run


def newest(kind: Kind | tuple[Kind, ...], root: Path = Path("runs"), reporter: Reporter = SILENT) -> Run | None:
    """The newest finished run of a kind, or of one of several, in a folder, or None; one that cannot be read is named and passed over."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    runs = []
    for status_file in root.glob("*/status.json"):
        if status_file.parent.name.startswith("."):  # being written, or replaced
            continue
        try:
            status = Run(status_file.parent).status
        except FileError as error:
            reporter.warn(f"passed over: {error.message}")
            continue
        if status.kind in kinds and status.state == "finished":
            runs.append((status.updated, status_file.parent))
    return Run(max(runs)[1]) if runs else None


def named_or_newest(path: Path | None, kind: Kind | tuple[Kind, ...], otherwise: str = "", reporter: Reporter = SILENT) -> Path:
    """The run, or checkpoint, that is named, else the newest finished run of a kind: which run is meant has this one rule.

    Args:
        otherwise: what to do else, for the hint, such as ", or take --saliency itti".

    Raises:
        FileError: nothing is named, and there is no such run.
    """
    found = newest(kind, reporter=reporter) if path is None else None
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
