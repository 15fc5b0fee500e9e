"""hsal reproduce at toy size: the grid, its interruptions, and its report."""

import contextlib
import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import typer
from idx_files import write_idx_set
from learning_parts import StoppingReporter, assert_equal, without
from typer.testing import CliRunner

from hsal_cli.commands.options import recipe_for, settings_for
from hsal_cli.commands.reproduce import parse_names, parse_own_seeds, parse_seeds, reproduce
from hsal_cli.errors import FileError, Interrupted, TrainingError, UsageError
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments import grid_run, pipeline
from hsal_cli.experiments.grid import Grid, GridRun, plan
from hsal_cli.experiments.grid_report import table_rows
from hsal_cli.experiments.grid_run import AGAIN, run_grid
from hsal_cli.policy.variant import named
from hsal_cli.progress import SILENT
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import write_json, write_sealed

TOY = """
[make-data]
train = 24
test = 10
digits = "mnist"
mnist_dir = "digits"

[finetune]
arch = "resnet18"
input_size = 56
weights = "none"
mode = "full"
crowd = 1
full_images = 16
epoch_images = 8
batch_size = 8
validation = 4

[variant]
meta_encode = 8
meta_hidden = 8
controller_encode = 16
controller_hidden = 16
location_hidden = 8

[train]
epochs = 2
batch_size = 8

[eval]
resamples = 20
"""
CPU = torch.device("cpu")
OBJECTIVES = ("rl", "cross-entropy")
app = typer.Typer()
app.command("reproduce")(reproduce)


def call(*words, code=0):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found


def prepare(folder: Path) -> None:
    """Settings of toy size, and glyphs to compose images of."""
    (folder / "toy.toml").write_text(TOY)
    write_idx_set(folder / "digits")


def grid_of(**changes) -> Grid:
    config = Path("toy.toml")
    plain = Grid(
        ("mnist-multiset",),
        OBJECTIVES,
        (0,),
        Path("runs/reproduce"),
        recipe_for(None, config),
        settings_for(EvalSettings, None, config),
        options=("--config", "toy.toml"),
    )
    return dataclasses.replace(plain, **changes)


def files_of(*folders: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which `hsal reproduce` ran once, undisturbed."""
    folder = tmp_path_factory.mktemp("grid")
    prepare(folder)
    with contextlib.chdir(folder):
        done = call("--datasets", "mnist-multiset", "--objectives", ",".join(OBJECTIVES), "--seeds", 0, "--config", "toy.toml", "--json")
    (folder / "said.json").write_text(done.stdout)
    return folder


@pytest.fixture
def here(finished, monkeypatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


def test_one_command_makes_data_backbone_features_policies_and_the_report(here) -> None:
    summary = json.loads((here / "said.json").read_text())
    report = here / "runs/reproduce/report"
    assert summary == json.loads((report / "summary.json").read_text())
    for run in summary["runs"]:
        found = json.loads((here / run["run"] / "eval.json").read_text())
        assert run["scores"]["exact_match"] == found["exact_match"] and run["scores"]["macro_f1"] == found["macro_f1"]
        manifest = json.loads((Path(found["checkpoint"]) / "manifest.json").read_text())
        assert run["weights_digest"] == manifest["sha256"]["weights.safetensors"]
        assert run["seconds"] > 0
    assert [(row["dataset"], row["objective"]) for row in summary["table"]] == [("mnist-multiset", name) for name in OBJECTIVES]
    rl, entropy = (row["paper"] for row in summary["table"])
    assert (rl["macro_f1"], rl["exact_match"], entropy["macro_f1"], entropy["exact_match"]) == (0.978, 0.935, 0.726, 0.477)
    made = summary["data"]["mnist-multiset"]
    assert made["images"] == {"train": 24, "test": 10} and made["scenes"] == "data/mnist-multiset.h5"
    assert summary["backbone"]["run"] == "runs/reproduce/backbone" and len(summary["backbone"]["digest"]) == 64
    text = (report / "summary.md").read_text()
    for words in ("0.978", "0.935", "hsal train --data data/mnist-multiset.h5", made["features_digest"][:12], "digits visited once"):
        assert words in text, words
    for name in summary["pictures"]:
        assert f"({name})" in text and (report / name).stat().st_size > 5_000
    assert {"macro-f1.png", "trajectories.mnist-multiset.png"} <= {*summary["pictures"]}
    failure = next(example for example in summary["examples"] if example["rule"] == "first failure")
    assert failure["true"] != failure["predicted"]


def test_a_finished_grid_is_left_alone(here, monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("done before, done again")

    for room, name in ((grid_run, "finetune"), (grid_run, "evaluate_file"), (pipeline, "train"), (pipeline, "resume")):
        monkeypatch.setattr(room, name, refuse)
    record, data = here / "runs/reproduce/grid.json", here / "data"
    before, spent = files_of(data, here / "runs/reproduce/runs", here / "runs/reproduce/backbone"), json.loads(record.read_text())
    run_grid(grid_of(), CPU, SILENT)
    assert files_of(data, here / "runs/reproduce/runs", here / "runs/reproduce/backbone") == before
    assert json.loads(record.read_text())["seconds"] == spent["seconds"]


def test_interrupted_in_every_step_it_ends_as_if_undisturbed(here, tmp_path, monkeypatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)

    class Stopping(StoppingReporter):
        """Counts units of one kind of work only."""

        def __init__(self, what, after):
            super().__init__(after)
            self.what = what

        @contextlib.contextmanager
        def track(self, what, total, unit, done=0):
            with super().track(what, total, unit, done) as advance:
                yield (lambda n, note="": advance(1, note)) if what.startswith(self.what) else (lambda n, note="": None)

    for work, after in (("training", 1), ("precompute", 1), ("training", 4), ("training", 4), ("evaluating", 1)):
        with pytest.raises(Interrupted) as stopped:
            run_grid(grid_of(), CPU, Stopping(work, after))
        assert stopped.value.exit_code == 128 + 15 and stopped.value.hint == AGAIN
    again = {run.name: run for run in run_grid(grid_of(), CPU, SILENT)}
    for run in again.values():
        undisturbed = here / run.path
        assert_equal(
            {k: v for k, v in run.evaluation.items() if k != "checkpoint"},
            {k: v for k, v in json.loads((undisturbed / "eval.json").read_text()).items() if k != "checkpoint"},
        )
        rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
        assert [without(row) for row in run.rows] == [without(row) for row in rows]


def test_more_seeds_and_objectives_are_added_to_what_is_there(here) -> None:
    steps = plan(grid_of(seeds=(0, 1), objectives=(*OBJECTIVES, "multiset")))
    missing = [step.what for step in steps if step.state != "done"]
    added = [("multiset", 0), *((objective, 1) for objective in (*OBJECTIVES, "multiset"))]
    assert missing == [f"{kind} mnist-multiset.{name}.seed{seed}" for name, seed in added for kind in ("train", "eval")]


def test_other_settings_are_not_mixed_into_the_same_table(here) -> None:
    grid = grid_of()
    other = dataclasses.replace(grid.recipe, train=dataclasses.replace(grid.recipe.train, epochs=3))
    with pytest.raises(UsageError, match=r"train\.epochs is 2, not 3"):
        run_grid(dataclasses.replace(grid, recipe=other), CPU, SILENT)


def test_runs_of_other_epochs_are_not_mixed_into_the_same_table(here) -> None:
    with pytest.raises(UsageError, match=r"mnist-multiset\.rl\.seed0 was begun for 2 epochs, not 3") as refused:
        run_grid(grid_of(epochs={"rl": 3}), CPU, SILENT)
    assert "--epochs rl=2" in refused.value.hint
    steps = plan(grid_of(epochs={"rl": 2, "multiset": 3}, objectives=(*OBJECTIVES, "multiset")))
    assert {step.what for step in steps if step.state != "done"} == {
        "train mnist-multiset.multiset.seed0",
        "eval mnist-multiset.multiset.seed0",
    }


def test_a_run_of_other_features_is_refused_by_name(here) -> None:
    config = here / "runs/reproduce/runs/mnist-multiset.rl.seed0/config.json"
    before = config.read_text()
    other = {name: value for name, value in json.loads(before).items() if name != "digest"}
    write_sealed(config, {**other, "features_digest": "0" * 64})
    try:
        with pytest.raises(FileError, match=r"mnist-multiset\.rl\.seed0 was trained on other features"):
            run_grid(grid_of(), CPU, SILENT)
    finally:
        config.write_text(before)


def test_an_evaluation_on_other_data_does_not_count(here) -> None:
    grid = grid_of()
    cell = grid.cells[0]
    path = grid.run_path(cell) / "eval.json"
    before = path.read_text()
    assert grid.evaluated(cell) == json.loads(before)
    for change in ({"features": "data/other.features.h5"}, {"split": "train"}, {"sample": 3}):
        path.write_text(json.dumps({**json.loads(before), **change}))
        assert grid.evaluated(cell) is None
    path.write_text(before)


def test_the_last_epoch_is_evaluated_where_another_is_the_best(here, tmp_path) -> None:
    grid = grid_of(objectives=("rl",))
    [cell] = grid.cells
    run = tmp_path / "run"
    shutil.copytree(grid.run_path(cell), run)
    [plain] = run_grid(grid, CPU, SILENT)
    root = grid.run_path(cell) / "checkpoints"
    last = checkpoints.index_of(root).last
    try:
        shutil.copytree(root / checkpoints.index_of(root).best, root / "epoch-00009-step-0000000")
        checkpoints.write_index(root, last=last, best="epoch-00009-step-0000000")
        assert [step.state for step in plan(grid)][-2:] == ["done", "missing"], "eval.json is of another checkpoint than the best"
        [found] = run_grid(grid, CPU, SILENT)
        names = [Path(scores["checkpoint"]).name for scores in (found.evaluation, found.last)]
        assert names == ["epoch-00009-step-0000000", last]
        assert found.last == json.loads((grid.run_path(cell) / "eval.last.json").read_text())
        assert found.evaluation["exact_match"] == plain.evaluation["exact_match"]
        assert found.commands[-1].startswith(f"hsal eval --run {root / last} --out ") and len(found.commands) == 3
        assert [step.state for step in plan(grid)][-2:] == ["done", "done"]
    finally:
        shutil.rmtree(grid.run_path(cell))
        shutil.copytree(run, grid.run_path(cell))


def test_a_policy_that_collapses_is_passed_over_and_tried_again(here, monkeypatch) -> None:
    real, tried = pipeline.train, []

    def collapse(features, out, policy, settings, *rest, **more):
        tried.append((settings.objective, settings.seed))
        if settings.objective == "cross-entropy":
            raise TrainingError("the policy has collapsed", "take a lower --learning-rate")
        return real(features, out, policy, settings, *rest, **more)

    monkeypatch.setattr(pipeline, "train", collapse)
    found = {run.name: run for run in run_grid(grid_of(seeds=(0, 5)), CPU, SILENT)}
    assert tried == [("rl", 5), ("cross-entropy", 5)]
    lost = found["mnist-multiset.cross-entropy.seed5"]
    assert lost.failure == "the policy has collapsed" and lost.evaluation is None
    row = next(row for row in table_rows(list(found.values())) if row["objective"] == "cross-entropy")
    assert (row["seeds"], row["failed"]) == ([0], [5])
    steps = {step.what: step.state for step in plan(grid_of(seeds=(0, 5)))}
    assert steps["train mnist-multiset.rl.seed5"] == "done" and steps["train mnist-multiset.cross-entropy.seed5"] == "missing"


def test_a_classifier_without_steps_has_its_place_in_the_grid(here) -> None:
    [run] = run_grid(grid_of(objectives=("count",)), CPU, SILENT)
    assert run.evaluation["max_steps"] is None and 0 <= run.evaluation["exact_match"] <= 1 and "localization" not in run.evaluation
    summary = json.loads(
        call("--datasets", "mnist-multiset", "--objectives", "count", "--seeds", 0, "--config", "toy.toml", "--json").stdout
    )
    assert summary["examples"] == [] and summary["pictures"] == ["macro-f1.png"]


def test_two_processes_do_not_work_on_one_grid(here) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (here / "runs/reproduce/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileError, match="runs/reproduce is being written by another process"):
            run_grid(grid_of(), CPU, SILENT)


def test_dry_run_lists_the_steps_and_makes_nothing(tmp_path, monkeypatch, seconds_given) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TOY)
    words = ("--seeds", "0-1", "--datasets", "mnist-set", "--objectives", "rl", "--config", "toy.toml", "--dry-run")
    steps = json.loads(call(*words, "--json").stdout)["steps"]
    assert [step["step"] for step in steps] == [
        *("data mnist-set", "data mnist-single", "backbone", "features mnist-set"),
        *("train mnist-set.rl.seed0", "eval mnist-set.rl.seed0", "train mnist-set.rl.seed1", "eval mnist-set.rl.seed1"),
    ]
    assert {step["state"] for step in steps} == {"missing"}
    assert steps[4]["command"].endswith("--objective rl --seed 0 --out runs/reproduce/runs/mnist-set.rl.seed0 --config toy.toml")
    assert "8 of 8 steps to do" in call(*words).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["toy.toml"]


def test_an_unknown_objective_is_refused_before_anything_is_made(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="luck"):
        call("--objectives", "rl,luck")
    assert not any(tmp_path.iterdir())


def test_objectives_may_have_epochs_of_their_own(tmp_path, monkeypatch, seconds_given) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--objectives", "rl,multiset", "--dry-run", "--json")
    steps = json.loads(call(*words, "--epochs", "multiset=2").stdout)["steps"]
    trained = [step["command"] for step in steps if step["step"].startswith("train")]
    assert trained and all(("--epochs 2" in command) == ("--objective multiset" in command) for command in trained)
    for wrong in ("multiset", "multiset=0", "count=2", "multiset=2.5"):
        with pytest.raises(UsageError, match=f"--epochs {wrong} does not give objectives their epochs"):
            call(*words, "--epochs", wrong)


def test_an_objective_may_have_seeds_of_its_own() -> None:
    assert parse_own_seeds("0-2", "rl") == ((0, 1, 2), {})
    assert parse_own_seeds("0-2,multiset=0,4", "rl,multiset") == ((0, 1, 2), {"multiset": (0, 4)})
    assert parse_own_seeds("rl=1,multiset=0", "rl,multiset") == ((), {"rl": (1,), "multiset": (0,)})
    for wrong in ("0,count=1", "rl=1", "=1", "rl=", "0,rl=x"):
        with pytest.raises(UsageError):
            parse_own_seeds(wrong, "rl,multiset")
    grid = Grid(("a",), ("rl", "multiset"), (0, 1), Path("runs"), recipe_for(None, None), EvalSettings(), own_seeds={"multiset": (1, 5)})
    cells = grid.cells
    assert [(cell.objective, cell.seed) for cell in cells] == [("rl", 0), ("rl", 1), ("multiset", 1), ("multiset", 5)]


def test_a_grid_of_hsal_0_1_is_held_against_what_its_open_values_meant_then(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(None, None, variant=named("columns"))
    grid = Grid(("a",), ("rl",), (0,), Path("grid"), recipe, EvalSettings())
    for glimpses, fits in ((2, True), (3, False)):
        policy = {"mask": "anchored", "beta": None, "inhibition_width": None, "memory": "last", "stop_input": None, "glimpses": glimpses}
        train = {"stop": "supervised", "gradient": None, "epochs": recipe.train.epochs}
        (tmp_path / "grid").mkdir(exist_ok=True)
        write_json(tmp_path / "grid" / "grid.json", {"format": "hsal-grid", "settings": {"policy": policy, "train": train}})
        with contextlib.nullcontext() if fits else pytest.raises(UsageError, match=r"variant\.glimpses is 3, not 2"):
            plan(grid)


def test_seeds_and_names_are_read_as_they_are_written() -> None:
    assert parse_seeds("0-2,7,1") == (0, 1, 2, 7) and parse_names("--datasets", "a, b,a") == ("a", "b")
    for wrong in ("", "a", "2-1", "-1", "0-1000000000", "1,,2"):
        with pytest.raises(UsageError):
            parse_seeds(wrong)
    for wrong in ("", ",", "../a", ".hidden"):
        with pytest.raises(UsageError):
            parse_names("--datasets", wrong)


def run_of(seed: int, exact: float, objective: str = "rl", **more) -> GridRun:
    evaluation = {"exact_match": exact, "macro_f1": exact + 0.01, "ci95": {"exact_match": [exact - 0.02, exact + 0.01]}, **more}
    return GridRun(f"d.{objective}.seed{seed}", "d", objective, seed, "p", evaluation, [], 1.0, "0" * 64, [])


def test_a_row_of_the_table_is_mean_and_interval_over_seeds() -> None:
    values = [0.93, 0.95, 0.955]
    [row] = table_rows([run_of(seed, value) for seed, value in enumerate(values)])
    score = row["scores"]["exact_match"]
    half = 4.302653 * statistics.stdev(values) / 3**0.5
    assert (score["mean"], score["low"], score["high"]) == pytest.approx(
        (statistics.mean(values), statistics.mean(values) - half, statistics.mean(values) + half), abs=1e-6
    )
    assert score["interval"] == "seeds" and score["values"] == values and row["paper"] is None


def test_with_one_seed_the_interval_is_that_over_images() -> None:
    [row] = table_rows([run_of(0, 0.9, localization={"glimpse_hit": 0.8, "mask_mass": None})])
    score = row["scores"]["exact_match"]
    assert (score["low"], score["high"], score["interval"]) == (0.88, pytest.approx(0.91), "images")
    assert row["scores"]["glimpse_hit"]["interval"] is None and "mask_mass" not in row["scores"]


def test_seconds_of_an_interrupted_step_are_added_up(here) -> None:
    grid = grid_of()
    before = grid.read_record().seconds["backbone"]
    with pytest.raises(RuntimeError), grid_run._timed(grid, "backbone"):
        raise RuntimeError
    assert grid.read_record().seconds["backbone"] >= before and set(grid.read_record().raw) == {
        *("format", "options", "settings", "backbone", "seconds")
    }


def test_the_time_of_a_run_trained_outside_the_grid_is_that_of_its_epochs(here) -> None:
    grid = grid_of()
    before = grid.read_record().seconds
    grid.record(seconds={})
    try:
        for run in run_grid(grid, CPU, SILENT):
            assert run.seconds == sum(row["seconds"] for row in run.rows) > 0
    finally:
        grid.record(seconds=before)
