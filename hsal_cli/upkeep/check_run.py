"""Checking a run: its documents, its metrics against its table and its checkpoints, and every checkpoint against its sums."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsal_cli.errors import FileError
from hsal_cli.models.load import policy_of
from hsal_cli.policy.variant import PAPER_CELLS, stored_variant
from hsal_cli.runs.run import COMMAND_OF, EVALUATED, FORMAT, Run
from hsal_cli.settings import build
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.storage.files import read_json, read_sealed
from hsal_cli.training.settings import FinetuneSettings, TrainSettings
from hsal_cli.upkeep.findings import Report
from hsal_cli.vision.backbone import backbone_of

STATES = ("running", "stopped", "failed", "finished")
SCORES = {"policy": "exact_match", "count": "exact_match", "backbone": "accuracy"}
SETTINGS = {
    "policy": {"train": TrainSettings},
    "count": {"train": TrainSettings},
    "backbone": {"finetune": FinetuneSettings},
}


def check_run(path: Path, report: Report) -> None:
    """Checks a run directory and takes down what is wrong with it."""
    report.kind = "run"
    run = Run(path)
    status = _held(report, lambda: run.status) or {}
    config = _held(report, lambda: run.config) or {}
    kind, state = status.get("kind"), status.get("state")
    if status:
        for name, value, known in (("format", status.get("format"), (FORMAT,)), ("kind", kind, tuple(SCORES)), ("state", state, STATES)):
            if value not in known:
                report.fault(f"status.json: {name} is {value!r}, not {' or '.join(known)}")
    for table, settings in SETTINGS.get(kind, {}).items() if config else ():
        _check_settings(report, table, settings, config)
    if config and kind == "policy":
        with report.noting():
            _check_table(config, "policy" if "policy" in config else "variant")
            stored_variant(config, PAPER_CELLS, "config.json")
    for name in ("command.txt", "env.json"):
        if not (path / name).is_file():
            report.fault(f"{name} is missing")
    with report.noting():
        if (path / "env.json").is_file():
            read_json(path / "env.json", "hsal train")
    rows = _held(report, run.rows) or []
    _check_rows(path, rows, report)
    found = _check_checkpoints(run, kind, config, report)
    _check_agreement(run, status, config, rows, found, report)
    for name in ("eval.json", "eval.last.json"):
        if (path / name).is_file():
            with report.noting():
                read_sealed(path / name, f"hsal eval --run {path}")
    report.summary = f"of a {kind}, {state}, {len(rows)} epochs, {len(found)} checkpoints"


def _held(report: Report, read: Callable[[], Any]) -> Any:
    with report.noting():
        return read()
    return None


def _check_settings(report: Report, table: str, settings: type, config: dict[str, Any]) -> None:
    with report.noting():
        _check_table(config, table)
        build(settings, config[table])


def _check_table(config: dict[str, Any], table: str) -> None:
    if not isinstance(config.get(table), dict):
        raise FileError(f"config.json has no table {table}", "")


def _check_rows(path: Path, rows: list[dict[str, Any]], report: Report) -> None:
    """metrics.jsonl: each epoch once, in order, all numbers finite; results.csv: the same."""
    epochs = [row.get("epoch") for row in rows]
    if epochs != list(range(1, len(rows) + 1)):
        report.fault(f"metrics.jsonl: its epochs are {', '.join(map(str, epochs))}")
    for row in rows:
        bad = [key for key, value in row.items() if isinstance(value, (int, float)) and not math.isfinite(value)]
        if bad:
            report.fault(f"metrics.jsonl: {bad[0]} of epoch {row.get('epoch')} is not finite")
    table = path / "results.csv"
    if not rows and not table.exists():
        return
    with report.noting():
        try:
            with table.open(encoding="utf-8", newline="") as stream:
                shown = [{key: value for key, value in line.items() if value} for line in csv.DictReader(stream)]
        except (UnicodeDecodeError, csv.Error, AttributeError) as error:
            raise FileError(f"results.csv cannot be read: {error}", "") from error
        if shown != [{key: str(value) for key, value in row.items()} for row in rows]:
            report.fault("results.csv does not hold what metrics.jsonl holds")


def _check_checkpoints(run: Run, kind: str | None, config: dict[str, Any], report: Report) -> dict[str, Checkpoint]:
    """Reads every checkpoint; returns the good ones by name."""
    found: dict[str, Checkpoint] = {}
    for name in checkpoints.names(run.checkpoints):
        with report.noting():
            checkpoint = checkpoints.read_checkpoint(run.checkpoints / name)
            found[name] = checkpoint
            if kind in SCORES and checkpoint.meta.get("kind") != kind:
                report.fault(f"checkpoint {name} is of kind {checkpoint.meta.get('kind')}, the run of kind {kind}")
                continue
            load_as_described(checkpoint, report)
            for key in ("scenes_digest", "features_digest", "backbone_digest"):
                if key in config and key in checkpoint.meta and config[key] != checkpoint.meta[key]:
                    report.fault(f"checkpoint {name} and config.json differ in {key}")
    return found


def _check_agreement(
    run: Run, status: dict[str, Any], config: dict[str, Any], rows: list[dict[str, Any]], found: dict[str, Checkpoint], report: Report
) -> None:
    """Whether status, metrics and checkpoints tell the same story."""
    kind, finished = status.get("kind"), status.get("state") == "finished"
    index = checkpoints.index_of(run.checkpoints)
    if checkpoints.names(run.checkpoints):
        for which in ("last", "best") if rows else ("last",):
            if index.get(which) not in checkpoints.names(run.checkpoints):
                report.fault(f"checkpoints/index.json does not say which checkpoint is the {which} one")
    elif finished:
        report.fault("it is finished and has no checkpoint")
    elif status:
        report.notes.append("it has no checkpoint yet")
    last = found.get(index.get("last", ""))
    if last is not None and last.state is not None and status.get("state") != "running":
        progress = last.state.get("progress", {})
        if progress.get("rows") != rows and status.get("state") != "failed":
            report.fault("metrics.jsonl does not hold what the last checkpoint holds")
    if finished:
        score = SCORES.get(kind, "")
        if rows and status.get(score) != max(row.get(score, -math.inf) for row in rows):
            report.fault(f"status.json: {score} is not the best of metrics.jsonl")
        epochs = config.get("train", {}).get("epochs") if kind in EVALUATED else None
        if epochs is not None and len(rows) != epochs:
            report.fault(f"it is finished after {len(rows)} of {epochs} epochs")
    elif status.get("state") in STATES:
        report.notes.append(f"not finished; go on with: {COMMAND_OF.get(kind, 'hsal train')} --resume {run.path}")


def load_as_described(checkpoint: Checkpoint, report: Report) -> None:
    """Makes the model that a checkpoint describes, with its weights, and looks for values that are not finite."""
    build_model = {"policy": policy_of, "count": policy_of, "backbone": backbone_of}.get(checkpoint.meta.get("kind"))
    if build_model is None:
        report.fault(f"{checkpoint.path.name}: its kind is {checkpoint.meta.get('kind')!r}, neither policy nor count nor backbone")
        return
    with report.noting():
        build_model(checkpoint)
    bad = [name for name, tensor in checkpoint.weights.items() if not bool(tensor.isfinite().all())]
    if bad:
        report.fault(f"{checkpoint.path.name}: {bad[0]} is not finite")
