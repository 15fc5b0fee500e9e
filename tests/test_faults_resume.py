"""Stopped at the end of an epoch, inside one, or while scores are computed, and resumed: the same to the last bit, each row once."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_parts import write_features
from learning_parts import SMALL, StoppingReporter, assert_equal, easy_table, small, without
from test_finetune import FAST as FINETUNE
from test_finetune import OneLayer, write_scenes

from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.finetuning.finetune import finetune
from hsal_cli.finetuning.objects import Objects
from hsal_cli.runs import run as runs
from hsal_cli.runs.documents import Start
from hsal_cli.runs.run import Run
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.runs.start import resume_from
from hsal_cli.storage import checkpoints
from hsal_cli.training.train import resume, train

CPU = torch.device("cpu")
TRAIN = TrainSettings(epochs=3, batch_size=8, validation=0.25)  # 24 of 32 images: 3 steps an epoch
NAMES = ["one", "two"]


@pytest.fixture(autouse=True)
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "ActivationModel", OneLayer)
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "initial_weights", lambda model, weights, reporter: "random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_features(folder / "easy.features.h5", {"train": easy_table(32)}, classes=NAMES)
    write_scenes(folder / "squares.h5")
    return folder


def go(command: str, data: Path, out: Path, reporter: Any = None, **more: Any) -> Run:
    reporter = reporter or StoppingReporter()
    if command == "train" and more.pop("resume", False):
        return resume(out, CPU, reporter, **more)
    if command == "train":
        return train(data / "easy.features.h5", out, SMALL, TRAIN, CPU, reporter, **more)
    return finetune(data / "squares.h5", out, FINETUNE, CPU, reporter, **more)


def everything(run: Run) -> dict[str, Any]:
    """All that a run holds but what depends on the clock."""
    found = {which: checkpoints.load(run.checkpoints, which) for which in ("last", "best")}
    states = {which: [part.path.name, part.weights, part.state, part.meta] for which, part in found.items()}
    table = [line.split(",")[0] for line in (run.path / "results.csv").read_text().splitlines()]
    status = {key: value for key, value in run.status.raw.items() if key not in ("started", "updated")}
    return {"states": states, "rows": [without(row) for row in run.rows()], "table": table, "status": status, "config": run.config.raw}


class Killed(BaseException):
    """Stands for a process that is gone."""


def interrupt(command: str, point: str, monkeypatch: pytest.MonkeyPatch) -> StoppingReporter:
    """A reporter that stops at a point, or an evaluation that does."""
    # Both have 3 steps in an epoch.
    reporter = StoppingReporter({"epoch end": 3, "mid-epoch": 5}.get(point))
    room, name = (sys.modules["hsal_cli.training.train"], "quick_scores") if command == "train" else (Objects, "score")
    calls, score = [], getattr(room, name)

    def scoring(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            if point == "killed during evaluation":
                raise Killed
            reporter.stop_signal = 2
        return score(*arguments)

    if "evaluation" in point:
        monkeypatch.setattr(room, name, scoring)
    return reporter


@pytest.mark.fault(
    1, "stopped at the end of an epoch, inside one, during evaluation, killed during evaluation; resumed at zero tolerance", tried=4
)
@pytest.mark.parametrize("point", ["epoch end", "mid-epoch", "during evaluation", "killed during evaluation"])
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_resumed_from_any_point_a_run_is_what_it_would_have_been(command, point, data, tmp_path, monkeypatch) -> None:
    whole = everything(go(command, data, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises((Interrupted, Killed)):
        go(command, data, tmp_path / "run", interrupt(command, point, patch))
    torch.manual_seed(12345)  # whatever state the new process has
    resumed = everything(go(command, data, tmp_path / "run", resume=True))
    assert_equal(resumed, whole)
    assert resumed["table"] == ["epoch", "1", "2", "3"]


@pytest.mark.fault(1, "killed before the first checkpoint, then resumed: from the beginning, to the same result", tried=1)
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_without_any_checkpoint_a_resumed_run_begins_anew(command, data, tmp_path, monkeypatch) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("hsal_cli.runs.loop._save", killed)
        go(command, data, tmp_path / "run")
    reporter = StoppingReporter()
    resumed = go(command, data, tmp_path / "run", reporter, resume=True)
    assert any("no checkpoint yet" in line for line in reporter.said)
    assert_equal(everything(resumed), everything(go(command, data, tmp_path / "whole")))


def test_more_epochs_go_on_where_the_run_ended_and_fewer_are_refused(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hsal", "train", "--epochs", "3"])
    run = go("train", data, tmp_path / "run")
    first, weights = run.rows(), checkpoints.load(run.checkpoints, "last").weights
    reporter = StoppingReporter()
    monkeypatch.setattr(sys, "argv", ["hsal", "train", "--resume", "run", "--epochs", "5"])
    longer = go("train", data, run.path, reporter, resume=True, epochs=5)
    assert reporter.steps == 6 and any("epochs 3 -> 5" in line for line in reporter.said)
    assert longer.rows()[:3] == first and [row["epoch"] for row in longer.rows()] == [1, 2, 3, 4, 5]
    assert longer.config.train == dataclasses.replace(TRAIN, epochs=5) and longer.status.state == "finished"
    assert (run.path / "command.txt").read_text().splitlines() == ["hsal train --epochs 3", "hsal train --resume run --epochs 5"]
    assert not torch.equal(checkpoints.load(run.checkpoints, "last").weights["controller.label.weight"], weights["controller.label.weight"])
    with pytest.raises(UsageError, match="has 5 epochs, which is more than 4"):
        go("train", data, run.path, resume=True, epochs=4)


def test_fine_tuning_may_show_more_full_images_where_that_changes_no_epoch_of_before(data, tmp_path) -> None:
    settings = dataclasses.replace(FINETUNE, crop_images=16, epoch_images=16)  # one epoch of crops, one of full images
    run = finetune(data / "squares.h5", tmp_path / "run", settings, CPU)
    first, reporter = run.rows(), StoppingReporter()
    longer = go("finetune", data, run.path, reporter, resume=True, full_images=32)
    assert reporter.steps == 2 and len(first) == 2 and longer.rows()[:2] == first and len(longer.rows()) == 3
    assert longer.config.finetune.full_images == 32
    for images in (31, 40):  # 40 would be two epochs of 20
        with pytest.raises(UsageError, match="would change epochs"):
            go("finetune", data, run.path, resume=True, full_images=images)


def test_what_differs_from_before_is_named(data, tmp_path, monkeypatch) -> None:
    with pytest.raises(Interrupted):
        go("train", data, tmp_path / "run", StoppingReporter(2))
    now = runs.environment()
    monkeypatch.setattr("hsal_cli.runs.start.environment", lambda: {**now, "torch": "9.9", "threads": 77})
    reporter = StoppingReporter()
    go("train", data, tmp_path / "run", reporter, resume=True)
    said = next(line for line in reporter.said if "differs from before" in line)
    assert f"torch {now['torch']} -> 9.9" in said and f"threads {now['threads']} -> 77" in said


@pytest.mark.fault(15, "the clock set back by years between a run and its resumption", tried=1)
def test_a_clock_that_was_set_back_changes_nothing(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "_now", lambda: "2031-01-01T00:00:00.000000+00:00")
    with pytest.raises(Interrupted):
        go("train", data, tmp_path / "run", StoppingReporter(4))
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(runs, "_now", lambda: "1999-01-01T00:00:00.000000+00:00")
    resumed = go("train", data, tmp_path / "run", resume=True)
    whole = everything(go("train", data, tmp_path / "whole"))
    assert_equal(everything(resumed), whole)


# --- starting from the weights of another run -------------------------------------------------------------------------------------


def test_a_new_run_may_start_from_the_weights_of_another(data, tmp_path) -> None:
    first = go("train", data, tmp_path / "first")
    best = checkpoints.load(first.checkpoints, "best")
    with pytest.raises(Interrupted):
        go("train", data, tmp_path / "second", StoppingReporter(1), init_from=first.path)
    second = Run(tmp_path / "second")
    assert second.config.init_from == Start(str(first.path), best.digest) and second.rows() == []
    fresh, after = checkpoints.load(second.checkpoints, "last"), go("train", data, tmp_path / "plain")
    moved = {name: (tensor - best.weights[name]).abs().max() for name, tensor in fresh.weights.items()}
    assert 0 < max(moved.values()) < 0.01  # one step of a warm-up away from where it started
    assert everything(after)["states"]["last"][0] == everything(first)["states"]["last"][0]
    # The optimiser starts anew: it has taken one step, not as many as the other run.
    assert {int(part["step"]) for part in fresh.state["task"]["optimiser"]["state"].values()} == {1}


@pytest.mark.fault(4, "weights of another architecture or other classes: the first that differ are named, with shapes", tried=4)
def test_weights_that_do_not_fit_are_refused_with_the_first_that_differ(data, tmp_path) -> None:
    other = write_features(tmp_path / "more.features.h5", {"train": easy_table(32, classes=3)}, classes=["a", "b", "c"])
    named = write_features(tmp_path / "named.features.h5", {"train": easy_table(32)}, classes=["one", "zwei"])
    first = go("train", data, tmp_path / "first")
    backbone = go("finetune", data, tmp_path / "backbone")
    policy = {"variant": SMALL, "settings": TRAIN, "device": CPU}
    for features, changes, source, said in (
        (data / "easy.features.h5", {"variant": small(meta_hidden=9)}, first.path, r"is 24 x 8, not 27 x 8|not \d+ x \d+"),
        (other, {}, first.path, r"not \d+ x \d+"),
        (named, {}, first.path, "class 1 is two, not zwei"),
        (data / "easy.features.h5", {}, backbone.path, "of kind backbone, not policy"),
    ):
        with pytest.raises(FileError, match=said) as caught:
            train(features, tmp_path / "new", **{**policy, **changes}, init_from=source)
        assert "--init-from" in caught.value.hint and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("kind", "option"), [("policy", "--init-from"), ("count", "--init-from"), ("backbone", "--weights")])
def test_a_checkpoint_without_a_state_names_the_option_that_starts_from_it(kind, option, tmp_path) -> None:
    run = runs.create(tmp_path / "run", kind, {})
    checkpoints.save(run.checkpoints, "epoch-1", {"w": torch.zeros(2)}, None, {"kind": kind}, best=True)
    with pytest.raises(FileError, match="holds weights only") as caught:
        resume_from(run, StoppingReporter())
    assert caught.value.hint.endswith(option)
