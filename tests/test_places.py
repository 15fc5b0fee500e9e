"""Paths that runs and checkpoints hold: they mean the same from any folder, and move with the folder that all of it lies in."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_parts import write_features
from learning_parts import SMALL, StoppingReporter, easy_table

from hsal_cli.errors import Interrupted
from hsal_cli.models.load import load_policy
from hsal_cli.runs.places import found, stored
from hsal_cli.runs.record import read_record
from hsal_cli.runs.run import Run
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.train import resume, train

SETTINGS = TrainSettings(epochs=2, batch_size=8, validation=0.25)
NAMES = ["one", "two"]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with data/x.features.h5, in which hsal is started."""
    made = tmp_path / "project"
    (made / "data").mkdir(parents=True)
    write_features(made / "data" / "x.features.h5", {"train": easy_table(32)}, classes=NAMES)
    monkeypatch.chdir(made)
    return made


def test_a_path_is_stored_relative_to_the_run_where_both_move_together_and_comes_back(project, tmp_path, monkeypatch):
    assert stored("data/x.features.h5", Path("runs/rl")) == "../../data/x.features.h5"
    assert stored(tmp_path / "far.h5", Path("runs/rl")) == str(tmp_path / "far.h5")
    for text in (stored("data/x.features.h5", Path("runs/rl")), str(project / "data" / "x.features.h5")):
        assert found(text, Path("runs/rl")) == Path("data/x.features.h5")
        monkeypatch.chdir(tmp_path)
        assert found(text, project / "runs" / "rl") == Path("project/data/x.features.h5")
        monkeypatch.chdir(project)
    assert found("../../data/gone.h5", Path("runs/rl")) == Path("data/gone.h5")


def test_paths_of_earlier_runs_are_those_from_the_folder_above_runs(project, tmp_path, monkeypatch):
    assert found("data/x.features.h5", Path("runs/rl")) == Path("data/x.features.h5")
    monkeypatch.chdir(tmp_path)
    assert found("data/x.features.h5", project / "runs" / "rl") == Path("project/data/x.features.h5")
    assert found("data/gone.h5", project / "runs" / "rl") == Path("data/gone.h5")


def test_a_run_made_in_one_folder_goes_on_from_another_and_after_all_of_it_has_moved(project, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(
            Path("data/x.features.h5"),
            Path("runs/rl"),
            SMALL,
            SETTINGS,
            torch.device("cpu"),
            StoppingReporter(after=4),
            backbone=Path("runs/gone"),
        )
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    moved = shutil.move(project, tmp_path / "moved")
    there = Path(os.path.relpath(moved, away))
    resume(there / "runs" / "rl", torch.device("cpu"))
    run = Run(there / "runs" / "rl")
    assert run.status.state == "finished"
    record = read_record(run.path).config
    places = [(held.features, held.backbone) for held in (run.config, load_policy(run.path).meta)]
    for features, backbone in (*places, (record["features"], record["backbone"])):
        assert Path(features).samefile(Path(moved) / "data" / "x.features.h5")
        assert Path(backbone).absolute() == Path(moved) / "runs" / "gone"
    held = json.loads((run.path / "config.json").read_text())
    assert (held["features"], held["backbone"]) == (os.path.join("..", "..", "data", "x.features.h5"), os.path.join("..", "gone"))


def test_another_run_starts_from_a_run_by_a_path_that_holds_anywhere(project, tmp_path, monkeypatch):
    for name, start in (("first", None), ("second", Path("runs/first"))):
        train(Path("data/x.features.h5"), Path("runs", name), SMALL, SETTINGS, torch.device("cpu"), init_from=start)
    monkeypatch.chdir(tmp_path)
    assert Run(project / "runs" / "second").config.init_from.path == str(Path("project", "runs", "first"))
