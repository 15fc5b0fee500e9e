"""The training loop with a task of one layer: schedule, metrics, stopping, exact resuming, and what it does when training fails."""

import json
import math
from pathlib import Path

import pytest
import torch
from learning_parts import StoppingReporter, assert_equal, without

from hsal_cli.errors import FileError, Interrupted, TrainingError
from hsal_cli.progress import SILENT
from hsal_cli.runs import loop
from hsal_cli.runs import run as runs
from hsal_cli.runs.loop import one_cycle, restored, train
from hsal_cli.runs.record import Record
from hsal_cli.storage import checkpoints


class LineTask:
    """Fits a line to points drawn at random: a model, an optimiser with state, and a random state, as real tasks have."""

    command = "hsal train"
    epochs = 3
    score_name = "score"
    headline = ("loss", "score")

    def __init__(self, fail_at: int | None = None, scores: tuple[float, ...] = (0.1, 0.3, 0.2)):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(2, 1)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(7)
        self.fail_at, self.scores, self.taken, self.epoch = fail_at, scores, [], 0
        self.gradient = 1.0

    def steps(self, epoch: int) -> int:
        return 4

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.order = torch.randperm(4, generator=torch.Generator().manual_seed(epoch))

    def step(self, step: int):
        self.taken.append((self.epoch, step))
        points = torch.randn(5, 2, generator=self.generator) + self.order[step]
        loss = (self.model(points) - points.sum(1, keepdim=True)).square().mean()
        if len(self.taken) == self.fail_at:
            loss = loss * math.nan
        self.optimiser.zero_grad()
        loss.backward()
        self.model.bias.grad *= self.gradient
        self.optimiser.step()
        return 5, {"loss": loss, "size": self.model.weight.abs().sum()}

    def validate(self):
        return {"score": self.scores[self.epoch]}

    def check(self, rows):
        if rows[-1]["score"] < 0:
            raise TrainingError("collapsed", "try again")
        return f"epoch {rows[-1]['epoch']} is no good" if rows[-1]["score"] == 0 else None

    def weights(self):
        return self.model.state_dict()

    def state(self):
        return {"optimiser": self.optimiser.state_dict(), "generator": self.generator.get_state()}

    def load(self, weights, state):
        self.model.load_state_dict(weights)
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])

    def meta(self):
        return {"kind": "policy"}


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path / "run", "policy", {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training: its task, rows and run."""
    task, run = LineTask(), runs.create(tmp_path_factory.mktemp("whole") / "run", "policy", {})
    rows = train(task, run, StoppingReporter())
    return task, rows, run


@pytest.mark.parametrize("after", [1, 3, 4, 6, 8, 11])
def test_a_stopped_training_resumes_to_exactly_what_it_would_have_been(after: int, run: runs.Run, whole) -> None:
    with pytest.raises(Interrupted) as caught:
        train(LineTask(), run, StoppingReporter(after))
    assert caught.value.exit_code == 143 and f"hsal train --resume {run.path}" in caught.value.hint
    assert run.status.state == "stopped"
    resumed, reporter = LineTask(), StoppingReporter()
    rows = train(resumed, run, reporter, restored(resumed, checkpoints.load(run.checkpoints, "last")))
    assert reporter.done == after and len(resumed.taken) == 12 - after
    before, before_rows, before_run = whole
    assert_equal(resumed.weights(), before.weights())
    assert_equal(resumed.state(), before.state())
    assert_equal(rows, before_rows)
    assert [without(row) for row in run.rows()] == [without(row) for row in before_run.rows()]
    for which in ("best", "last"):
        mine, theirs = checkpoints.load(run.checkpoints, which), checkpoints.load(before_run.checkpoints, which)
        assert mine.path.name == theirs.path.name
        assert_equal(mine.weights, theirs.weights)


@pytest.mark.parametrize(
    ("scores", "macro_f1", "best"),
    [
        ((0.5, 0.5, 0.4), (0.7, 0.6, 0.9), 1),
        ((0.5, 0.5, 0.5), (0.7, 0.7, 0.6), 2),
        ((0.02, 0.0, 0.04), (0.3, 0.5, 0.4), 2),
        ((0.02, 0.0, 0.06), (0.3, 0.5, 0.4), 3),
    ],
    ids=["macro-F1 settles a tie", "then the later epoch does", "an exact match near zero says nothing", "above that it does"],
)
def test_the_best_epoch_is_chosen_by_more_than_exact_match(scores, macro_f1, best, run: runs.Run) -> None:
    task = LineTask()
    task.score_name = "exact_match"
    task.check = lambda rows: None
    task.validate = lambda: {"exact_match": scores[task.epoch], "macro_f1": macro_f1[task.epoch]}
    train(task, run, StoppingReporter())
    assert checkpoints.load(run.checkpoints, "best").meta["epoch"] == best
    assert Record(run.path, "policy", "finished", {}, run.rows(), run.status, None).best["epoch"] == best


def test_a_stop_at_the_very_last_step_lets_training_finish(run: runs.Run) -> None:
    assert len(train(LineTask(), run, StoppingReporter(12))) == 3


def test_metrics_are_averages_over_the_examples_one_row_an_epoch(whole) -> None:
    _, rows, run = whole
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    task = LineTask()
    for epoch, row in enumerate(rows):
        task.start_epoch(epoch)
        metrics = [task.step(step)[1] for step in range(4)]
        for key in ("loss", "size"):
            assert row[key] == pytest.approx(sum(one[key].item() for one in metrics) / 4)
    assert rows[0].keys() >= {"loss", "score", "examples_per_s", "seconds"}
    table = (run.path / "results.csv").read_text().splitlines()
    assert table[0].split(",") == list(rows[0]) and len(table) == 4


def test_the_best_checkpoint_is_that_of_the_highest_score(whole) -> None:
    _, _, run = whole
    assert checkpoints.load(run.checkpoints, "best").meta["epoch"] == 2
    assert checkpoints.load(run.checkpoints, "last").meta["epoch"] == 3


def test_a_resumed_epoch_stands_once_in_the_metrics_though_it_was_logged_before_the_crash(run: runs.Run) -> None:
    with pytest.raises(Interrupted):
        train(LineTask(), run, StoppingReporter(6))
    # A crash after the second epoch's row was written and before its checkpoint was.
    run.write_rows([*run.rows(), {"epoch": 2, "loss": 9.0}])
    task = LineTask()
    train(task, run, SILENT, restored(task, checkpoints.load(run.checkpoints, "last")))
    assert [row["epoch"] for row in run.rows()] == [1, 2, 3]


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_last_good_checkpoint(run: runs.Run) -> None:
    with pytest.raises(TrainingError, match="loss is not finite at step 3 of epoch 2") as caught:
        train(LineTask(fail_at=7), run, SILENT)
    assert "--learning-rate" in caught.value.hint and run.status.state == "failed"
    kept = checkpoints.load(run.checkpoints, "last")
    assert kept.meta["epoch"] == 1 and all(tensor.isfinite().all() for tensor in kept.weights.values())
    assert [row["epoch"] for row in run.rows()] == [1]


@pytest.mark.parametrize("at", [4, 6])
def test_weights_that_are_not_finite_are_never_saved(at: int, run: runs.Run) -> None:
    task = LineTask()
    step = task.step

    def poisoned(place: int):
        task.gradient = math.inf if len(task.taken) + 1 == at else 1.0  # an infinite gradient of a finite loss
        return step(place)

    task.step = poisoned
    with pytest.raises(TrainingError, match="not finite"):
        train(task, run, StoppingReporter(at))
    assert [row["epoch"] for row in run.rows()] == ([] if at == 4 else [1])
    for manifest in run.checkpoints.glob("*/manifest.json"):
        assert all(tensor.isfinite().all() for tensor in checkpoints.read_checkpoint(manifest.parent).weights.values())


def test_a_task_that_says_it_has_collapsed_ends_training(run: runs.Run) -> None:
    with pytest.raises(TrainingError, match="collapsed"):
        train(LineTask(scores=(0.4, -1.0, 0.5)), run, SILENT)
    assert run.status.state == "failed"
    assert checkpoints.load(run.checkpoints, "best").meta["epoch"] == 1


def test_what_a_task_warns_of_is_said(run: runs.Run) -> None:
    reporter = StoppingReporter()
    train(LineTask(scores=(0.4, 0.0, 0.5)), run, reporter)
    assert reporter.warned == ["epoch 2 is no good"] and len(reporter.said) == 3


def test_a_fault_of_any_kind_leaves_the_status_failed(run: runs.Run) -> None:
    task = LineTask()
    task.step = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(task, run, SILENT)
    assert run.status.state == "failed"


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(run: runs.Run, whole) -> None:
    with pytest.raises(Interrupted):
        train(LineTask(), run, StoppingReporter(10))
    newest = checkpoints.load(run.checkpoints, "last").path
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    found = checkpoints.load(run.checkpoints, "last")
    assert newest.name in found.note and "damaged" in found.note and found.path != newest
    task = LineTask()
    train(task, run, SILENT, restored(task, found))
    assert_equal(task.weights(), whole[0].weights())
    assert [row["epoch"] for row in run.rows()] == [1, 2, 3]


def test_between_epochs_a_checkpoint_is_saved_every_few_minutes(run: runs.Run, monkeypatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    task = LineTask()
    saved = []
    monkeypatch.setattr(checkpoints, "save", lambda root, name, *rest: saved.append(name))
    train(task, run, SILENT)
    assert [name.removeprefix("epoch-0000") for name in saved[:4]] == [
        "0-step-0000001",
        "0-step-0000002",
        "0-step-0000003",
        "1-step-0000000",
    ]


def test_a_full_disk_is_an_error_that_names_the_place(run: runs.Run, monkeypatch) -> None:
    def full(*_):
        raise FileError("cannot write x: No space left on device", "free some space")

    monkeypatch.setattr(checkpoints, "write_checkpoint", full)
    with pytest.raises(FileError, match="No space"):
        train(LineTask(), run, SILENT)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [one_cycle(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(2 / 25) and rates[20] == 2.0 and max(rates) == 2.0
    assert rates[10] == pytest.approx(2 / 25 + (2 - 2 / 25) * 10 / 20)
    for step in range(20, 100):
        assert rates[step] == pytest.approx(2 / 1000 + (2 - 2 / 1000) * (1 + math.cos(math.pi * (step - 20) / 80)) / 2)
    assert one_cycle(100, 100, 2.0) == pytest.approx(2 / 1000)
    assert all(0 < one_cycle(step, steps, 1.0) <= 1 for steps in (1, 2, 3) for step in range(steps))


def test_rows_are_plain_json(whole) -> None:
    _, rows, run = whole
    assert [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()] == rows


def test_after_each_epoch_its_curves_are_shown_with_those_of_a_resumed_run(run: runs.Run) -> None:
    class Plotting(StoppingReporter):
        def __init__(self, after: int | None = None):
            super().__init__(after)
            self.plotted = []

        def plot(self, curves) -> None:
            self.plotted.append({name: len(values) for name, values in curves.items()})

    before = Plotting(after=6)
    with pytest.raises(Interrupted):
        train(LineTask(), run, before)
    after = Plotting()
    task = LineTask()
    rows = train(task, run, after, restored(task, checkpoints.load(run.checkpoints, "last")))
    assert before.plotted == [{"loss": 0, "score": 0}, {"loss": 1, "score": 1}]
    assert after.plotted == [{"loss": n, "score": n} for n in (1, 2, 3)] and len(rows) == 3
