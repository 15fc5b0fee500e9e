"""Running a grid (see `grid`): whatever is missing of it is made, whatever is there is left alone.

A step that was interrupted goes on where it stopped, by the means of its own kind: fine-tuning and training from their last checkpoint,
features from their last whole block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hsal_cli.errors import FileError, HsalError, Interrupted, TrainingError
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.experiments.grid import Cell, Grid, GridRun, plan, to_evaluate
from hsal_cli.experiments.pipeline import ensure_features, ensure_run, ensure_scenes, state_of_run
from hsal_cli.features.table import check_match, open_features
from hsal_cli.finetuning.finetune import finetune
from hsal_cli.models.load import load_model
from hsal_cli.progress import Reporter
from hsal_cli.runs import run as runs
from hsal_cli.scenes.settings import frame_of
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import only_writer, write_json
from hsal_cli.vision.backbone import load_backbone

AGAIN = "type the same command again: it goes on from here"


def run_grid(grid: Grid, device: torch.device, reporter: Reporter) -> list[GridRun]:
    """Makes whatever is missing of a grid, and returns every policy of it with its scores.

    A policy whose training fails (a collapse, say) is reported and passed over; the next call tries it again.

    Raises:
        UsageError: the settings are not those that the grid was begun with.
        FileError: another process works on it; or data, features and backbone do not belong together.
        Interrupted: a signal asked to stop; the same call goes on from there.
    """
    plan(grid)
    with only_writer(grid.out), _told_how_to_go_on():
        _verify(grid)
        grid.record(options=list(grid.options), settings=grid.shared_settings())
        for dataset in grid.datasets:
            with _timed(grid, f"data {dataset}", grid.scenes(dataset).exists()):
                ensure_scenes(grid.scenes(dataset), grid.recipe.scenes, reporter)
            reporter.check_stop(AGAIN)
        backbone = _ensure_backbone(grid, device, reporter)
        grid.record(backbone=str(backbone))
        for dataset in grid.datasets:
            with _timed(grid, f"features {dataset}", grid.features(dataset).exists()):
                ensure_features(grid.scenes(dataset), backbone, reporter, device, grid.recipe.precompute)
            reporter.check_stop(AGAIN)
        found = []
        for number, cell in enumerate(grid.cells):
            reporter.say(f"{cell.name} ({number + 1} of {len(grid.cells)})")
            found.append(_run_cell(grid, cell, backbone, device, reporter))
            reporter.check_stop(AGAIN)
    return found


def _verify(grid: Grid) -> None:
    """Refuses a grid whose features are of another backbone or scene file, or a run on other features, before anything is changed."""
    place, _ = grid.backbone_place()
    digest = load_backbone(place).digest if state_of_run(place) == "done" or (place / checkpoints.MANIFEST).is_file() else None
    for dataset in grid.datasets:
        features = grid.features(dataset)
        if features.exists():
            with open_features(features) as file:
                check_match(file, backbone_digest=digest, scenes=grid.scenes(dataset), backbone=place)
            for cell in grid.cells:
                if cell.dataset == dataset:
                    _check_features(grid, cell)


def provenance(grid: Grid) -> dict[str, Any]:
    """What the scores of a finished grid rest on: `backbone` (run, digest, accuracies), `data` (a data set each: files, digests, numbers of
    images, the recipe), `seconds` of each step that this grid ran, `settings`, `environment`."""
    known = grid.read_record()
    loaded = load_backbone(Path(known.backbone))
    accuracies: dict[str, float] = {}
    with contextlib.suppress(HsalError):  # a checkpoint folder given as backbone has no status of its own
        accuracies = runs.open_run(Path(known.backbone), "backbone").status.accuracies
    data = {}
    for dataset in grid.datasets:
        features = grid.features(dataset)
        with open_features(features) as file:
            data[dataset] = {
                "scenes": str(grid.scenes(dataset)),
                "scenes_digest": file.scenes_digest,
                "features": str(features),
                "features_digest": file.digest,
                "images": {split: len(file.labels(split)) for split in file.splits},
                "frame": frame_of(file.config.scenes_config),
            }
    return {
        "backbone": {
            "run": known.backbone,
            "digest": loaded.digest,
            "arch": loaded.meta.arch,
            "input_size": loaded.meta.input_size,
            **accuracies,
        },
        "data": data,
        "seconds": known.seconds,
        "settings": grid.shared_settings(),
        "environment": runs.environment(),
    }


def _run_cell(grid: Grid, cell: Cell, backbone: Path, device: torch.device, reporter: Reporter) -> GridRun:
    path, features, commands = grid.run_path(cell), grid.features(cell.dataset), list(grid.cell_commands(cell, backbone))
    found = GridRun(cell.name, cell.dataset, cell.objective, cell.seed, str(path), None, [], None, "", commands)
    if state_of_run(path) == "odd":  # it is named, and neither trained nor replaced
        try:
            _ = runs.Run(path).config
        except FileError as error:
            found = dataclasses.replace(found, failure=error.message)
        reporter.warn(f"{cell.name} is passed over: {found.failure}")
        return found
    try:
        _check_features(grid, cell)
        with _timed(grid, f"train {cell.name}", state_of_run(path) == "done"):
            ensure_run(path, features, grid.recipe.variant, grid.train_settings(cell), backbone, device, reporter)
        scores = {which: _evaluate(grid, cell, which, features, device, reporter) for which in to_evaluate(path)}
        found = dataclasses.replace(
            found, evaluation=scores["best"], last=scores.get("last"), digest=checkpoints.load(path / "checkpoints", "best").digest
        )
    except TrainingError as error:
        reporter.warn(f"{cell.name} failed: {error.message}")
        found = dataclasses.replace(found, failure=error.message)
    if found.last is not None:
        last = path / "checkpoints" / checkpoints.index_of(path / "checkpoints").last
        commands.append(shlex.join(["hsal", "eval", "--run", str(last), "--out", str(grid.evaluation_place(cell, "last")), *grid.options]))
    rows = runs.Run(path).rows()
    return dataclasses.replace(found, rows=rows, seconds=_seconds_of(grid, cell, rows))


def _evaluate(grid: Grid, cell: Cell, which: str, features: Path, device: torch.device, reporter: Reporter) -> dict[str, Any]:
    """The scores of a finished run's best or last checkpoint: those that are there, else new ones, which are kept."""
    found = grid.evaluated(cell, which)
    if found is None:
        path = grid.run_path(cell)
        with _timed(grid, f"eval {cell.name}"):
            found = evaluate_file(load_model(path, which, device), features, grid.evaluation, device, reporter)
            write_json(grid.evaluation_place(cell, which), found)
    return found


def _seconds_of(grid: Grid, cell: Cell, rows: list[dict[str, Any]]) -> float | None:
    """What training and evaluation took; of a run that was trained outside the grid, what its epochs took."""
    spent = grid.read_record().seconds
    parts = [spent[key] for key in (f"train {cell.name}", f"eval {cell.name}") if key in spent]
    if f"train {cell.name}" not in spent:
        parts += [row["seconds"] for row in rows if "seconds" in row]
    return sum(parts) if parts else None


def _check_features(grid: Grid, cell: Cell) -> None:
    """Refuses a run that was trained on other features than are there now."""
    path, features = grid.run_path(cell), grid.features(cell.dataset)
    if state_of_run(path) == "missing":
        return
    with open_features(features) as file:
        if runs.open_run(path, runs.EVALUATED).config.features_digest != file.digest:
            raise FileError(
                f"{path} was trained on other features than {features} holds now",
                "bring those features back, or name another folder with --out",
            )


def _ensure_backbone(grid: Grid, device: torch.device, reporter: Reporter) -> Path:
    place, made_here = grid.backbone_place(reporter)
    state = state_of_run(place)
    if made_here and state == "odd":
        runs.open_run(place, "backbone")
    if made_here and state != "done":
        if state == "missing":
            reporter.say(f"there is no fine-tuned backbone: making {place} (hsal finetune)")
        with _timed(grid, "backbone"):
            single = ensure_scenes(grid.single_objects, grid.recipe.scenes, reporter)
            begun = state == "resume"
            finetune(single, place, grid.recipe.finetune, device, reporter, overwrite=place.exists() and not begun, resume=begun)
    return place


@contextlib.contextmanager
def _timed(grid: Grid, what: str, is_done: bool = False) -> Iterator[None]:
    """Adds the seconds of a step to the record, those of an interrupted one included; a step that was done before has none to add."""
    start = time.monotonic()
    try:
        yield
    finally:
        if not is_done:
            seconds = dict(grid.read_record().seconds)
            seconds[what] = round(seconds.get(what, 0.0) + time.monotonic() - start, 2)
            grid.record(seconds=seconds)


@contextlib.contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    """A step's own advice (`hsal train --resume RUN`) is not what goes on with the grid."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.message, AGAIN, error.exit_code - 128) from error
