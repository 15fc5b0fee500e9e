"""What a check found; and checking a run: its documents, metrics and checkpoints, by themselves and against each other."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hsal_cli.errors import FileError, HsalError, Interrupted, NotInstalled
from hsal_cli.models.load import policy_of
from hsal_cli.runs.documents import BackboneConfig, PolicyConfig, Status, read_evaluation
from hsal_cli.runs.loop import progress_of
from hsal_cli.runs.run import COMMAND_OF, EVALUATIONS, FORMAT, Run
from hsal_cli.runs.start import differences
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import regular
from hsal_cli.vision.backbone import backbone_of

SCORES = {"policy": "exact_match", "count": "exact_match", "backbone": "accuracy"}


@dataclasses.dataclass
class Report:
    """What a check found.

    Attributes:
        path: what was checked.
        kind: "scene file", "feature file", "partial feature file", "run" or "checkpoint"; "" where that cannot be told.
        summary: what it holds, in a few words.
        faults: what is wrong with it; empty if it is sound.
        notes: what is worth knowing and not wrong.
    """

    path: Path
    kind: str = ""
    summary: str = ""
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def fault(self, message: str) -> None:
        """Adds a fault, without the path that the report names anyway."""
        for beginning in (f"checkpoint {self.path} ", f"{self.path}: ", f"{self.path} "):
            message = message.removeprefix(beginning)
        if message not in self.faults:
            self.faults.append(message)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Takes errors of the block down as faults, so that the next thing is checked all the same."""
        try:
            yield
        except Interrupted:
            raise
        except NotInstalled as error:
            self.notes.append(f"not all of it was checked: {error.message}")
        except HsalError as error:
            self.fault(error.message)
        except OSError as error:
            self.fault(f"cannot be read: {error.strerror or error}")


def check_run(path: Path, report: Report) -> None:
    """Checks a run directory and takes down what is wrong with it."""
    report.kind = "run"
    run = Run(path)
    status: Status | None = _held(report, lambda: run.status)
    config = None if status is None else _held(report, lambda: run.config)
    if status is not None and status.format != FORMAT:
        report.fault(f"status.json: format is {status.format!r}, not {FORMAT}")
    for name in ("command.txt", "env.json"):
        if not (path / name).is_file():
            report.fault(f"{name} is missing")
    with report.noting():
        if (path / "env.json").is_file():
            read_document(path / "env.json", dict, "hsal train")
    rows = _held(report, run.rows) or []
    _check_rows(path, rows, report)
    found = _check_checkpoints(run, status, config, rows, report)
    _check_agreement(run, status, config, rows, found, report)
    for which, name in EVALUATIONS.items():
        if (path / name).exists():
            with report.noting():
                run.evaluation(which)
    for other in sorted(path.glob("eval.*.json")):
        if other.name not in EVALUATIONS.values():
            with report.noting():
                read_evaluation(other, f"hsal eval --run {path}")
    what = "" if status is None else f"of a {status.kind}, {status.state}, "
    report.summary = f"{what}{len(rows)} epochs, {len(found)} checkpoints"


def _held(report: Report, read: Callable[[], Any]) -> Any:
    with report.noting():
        return read()
    return None


def _check_rows(path: Path, rows: list[dict[str, Any]], report: Report) -> None:
    """metrics.jsonl: each epoch once, in order, all numbers finite; results.csv: the same."""
    epochs = [row["epoch"] for row in rows]
    if epochs != list(range(1, len(rows) + 1)):
        report.fault(f"metrics.jsonl: its epochs are {', '.join(map(str, epochs))}")
    table = path / "results.csv"
    if not rows and not table.exists():
        return
    with report.noting():
        try:
            with regular(table).open(encoding="utf-8", newline="") as stream:
                shown = [{key: value for key, value in line.items() if value} for line in csv.DictReader(stream)]
        except (UnicodeDecodeError, csv.Error, AttributeError) as error:
            raise FileError(f"results.csv cannot be read: {error}", "") from error
        if shown != [{key: str(value) for key, value in row.items()} for row in rows]:
            report.fault("results.csv does not hold what metrics.jsonl holds")


def _check_checkpoints(
    run: Run, status: Status | None, config: PolicyConfig | BackboneConfig | None, rows: list[dict[str, Any]], report: Report
) -> dict[str, Checkpoint]:
    """Reads every checkpoint, and compares it with what the run says it is; returns the good ones by name."""
    found: dict[str, Checkpoint] = {}
    for name in checkpoints.names(run.checkpoints):
        with report.noting():
            checkpoint = checkpoints.read_checkpoint(run.checkpoints / name)
            found[name] = checkpoint
            if status is not None and checkpoint.kind != status.kind:
                report.fault(f"checkpoint {name} is of kind {checkpoint.kind}, the run of kind {status.kind}")
                continue
            load_as_described(checkpoint, report)
            for differing in differences(config.raw if config else {}, checkpoint.meta):
                report.fault(f"checkpoint {name} does not fit config.json: {differing}")
            score_name = SCORES.get(checkpoint.kind, "")
            score, epoch = checkpoint.meta.get(score_name), checkpoint.meta.get("epoch")
            held = next((row for row in rows if row.get("epoch") == epoch), {}).get(score_name)
            if score is not None and held is not None and score != held:
                report.fault(f"checkpoint {name} has {score_name} {score:.4f}, metrics.jsonl has {held:.4f} for epoch {epoch}")
    return found


def _check_agreement(
    run: Run,
    status: Status | None,
    config: PolicyConfig | BackboneConfig | None,
    rows: list[dict[str, Any]],
    found: dict[str, Checkpoint],
    report: Report,
) -> None:
    """Whether status, metrics and checkpoints tell the same story."""
    if status is None:
        return
    finished = status.state == "finished"
    index = checkpoints.index_of(run.checkpoints)
    if checkpoints.names(run.checkpoints):
        for which in ("last", "best") if rows else ("last",):
            if getattr(index, which) not in checkpoints.names(run.checkpoints):
                report.fault(f"checkpoints/index.json does not say which checkpoint is the {which} one")
    elif finished:
        report.fault("it is finished and has no checkpoint")
    else:
        report.notes.append("it has no checkpoint yet")
    last = found.get(index.last or "")
    if last is not None and last.state is not None and status.state != "running":
        with report.noting():
            if progress_of(last)["rows"] != rows and status.state != "failed":
                report.fault("metrics.jsonl does not hold what the last checkpoint holds")
    if finished:
        score = SCORES[status.kind]
        if rows and getattr(status, score) != max(row.get(score, -math.inf) for row in rows):
            report.fault(f"status.json: {score} is not the best of metrics.jsonl")
        if isinstance(config, PolicyConfig) and len(rows) != config.train.epochs:
            report.fault(f"it is finished after {len(rows)} of {config.train.epochs} epochs")
    else:
        report.notes.append(f"not finished; go on with: {COMMAND_OF[status.kind]} --resume {run.path}")


def load_as_described(checkpoint: Checkpoint, report: Report) -> None:
    """Makes the model that a checkpoint describes, with its weights, and looks for values that are not finite."""
    build_model = {"policy": policy_of, "count": policy_of, "backbone": backbone_of}.get(checkpoint.kind)
    if build_model is None:
        report.fault(f"{checkpoint.path.name}: its kind is {checkpoint.kind}, neither policy nor count nor backbone")
        return
    with report.noting():
        build_model(checkpoint)
    bad = [name for name, tensor in checkpoint.weights.items() if not bool(tensor.isfinite().all())]
    if bad:
        report.fault(f"{checkpoint.path.name}: {bad[0]} is not finite")
