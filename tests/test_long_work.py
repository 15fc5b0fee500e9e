"""Harmless commands start no long work: what is meant where nothing is named, estimates, questions, and what needs --yes."""

import contextlib
import dataclasses
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch
import typer
from PIL import Image
from shipped_parts import call, use_tiny_backbone, write_backbone, write_policy, write_scenes

from hsal_cli import console
from hsal_cli.bench import data_sets, estimate
from hsal_cli.bench.estimate import Work, before_a_policy, feature_work, may_be_long, seconds_of
from hsal_cli.commands import make_data
from hsal_cli.commands.asking import about, begin, paced
from hsal_cli.commands.options import recipe_for
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import SINGLE, backbone_scenes, only_scenes
from hsal_cli.models.export import export
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.scenes.settings import FolderSettings, SceneSettings, StreetSettings, SvhnSettings, made_by

CPU = torch.device("cpu")
HOUR = 3600.0


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, and an hsal that came with two tiny policies of mnist-multiset and mnist-set."""
    use_tiny_backbone(monkeypatch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    digest = write_backbone(Path("runs/finetune"))
    write_policy(Path("runs/a"), digest)
    write_policy(Path("runs/b"), digest, seed=1)
    export(["mnist-multiset.rl=runs/a", "mnist-set.rl=runs/b"], tmp_path / "package")
    monkeypatch.setattr("hsal_cli.models.shipped.own_folder", lambda: tmp_path / "package")
    folder = tmp_path / "empty"
    (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def stub(place: Path, form: str = "hsal-scenes") -> Path:
    with h5py.File(place, "w") as file:
        file.attrs["format"] = form
    return place


def test_the_one_scene_file_in_data_is_meant(tmp_path) -> None:
    assert only_scenes(tmp_path / "missing") is None
    stub(tmp_path / "mnist-single.h5")  # made by hsal finetune for itself
    stub(tmp_path / "mine.features.h5", "hsal-features")
    assert only_scenes(tmp_path) is None
    mine = stub(tmp_path / "mine.h5")
    assert only_scenes(tmp_path) == mine
    assert backbone_scenes(mine) == mine and backbone_scenes(None) == SINGLE
    stub(tmp_path / "mnist-set.h5")
    assert only_scenes(tmp_path) is None and backbone_scenes(tmp_path / "mnist-set.h5") == SINGLE


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_dry_run_of_training_names_ones_own_scenes(here, command) -> None:
    assert json.loads(call(command, "--dry-run").stdout)["data"] == f"data/mnist-{'multiset' if command == 'train' else 'single'}.h5"
    stub(here / "data" / "mine.h5")
    assert json.loads(call(command, "--dry-run").stdout)["data"] == "data/mine.h5"


def test_a_dry_run_of_training_has_nothing_that_follows_from_the_features(here) -> None:
    found = json.loads(call("train", "--dry-run").stdout)["variant"]
    assert found["beta"] == [2.5, 2.5] and not {"cells", "reach", "fine", "fine_side"} & set(found)


def test_a_dry_run_of_fine_tuning_leaves_nothing_open(here) -> None:
    found = json.loads(call("finetune", "--dry-run", "--device", "cpu").stdout)["finetune"]  # of what it would make
    assert (found["mode"], found["arch"], found["batch_size"], found["crowd"]) == (
        "crops",
        "resnet34",
        32,
        4,
    ) and None not in found.values()
    write_scenes(here / "data" / "mnist-set.h5", boxed=False)
    found = json.loads(call("finetune", "--dry-run", "--device", "cpu", "--data", "data/mnist-set.h5").stdout)["finetune"]
    assert (found["mode"], found["objects"], found["batch_size"], found["crowd"]) == (
        "full",
        "counts",
        16,
        1,
    ) and None not in found.values()


def test_eval_without_a_run_takes_the_policy_that_came_with_hsal_and_the_scenes_that_are_there(here) -> None:
    write_scenes(here / "data" / "mnist-set.h5")
    found = call("eval", "--resamples", 2, "--json")
    document = json.loads(found.stdout)
    assert document["pretrained"] == "mnist-set.rl" and document["scenes"] == "data/mnist-set.h5"
    assert "using the pretrained mnist-set" in found.stderr
    assert [path.name for path in here.iterdir()] == ["data"]


def test_eval_of_scenes_of_other_classes_says_how_to_get_a_policy_for_them(here) -> None:
    write_scenes(here / "data" / "dice.h5", classes=[*"abcdefghij"])
    error = call("eval", code=1).error
    assert "has classes" in error.message and error.hint.endswith("hsal train --data data/dice.h5")
    assert not (here / "runs").exists()


def test_a_sweep_without_a_run_takes_the_policy_that_came_with_hsal(here, monkeypatch) -> None:
    monkeypatch.setattr("hsal_cli.commands.sweep.begin", lambda *_: None)
    from hsal_cli.experiments import sweep

    seen = []
    monkeypatch.setattr(sweep, "shifts", lambda loaded, backbone, recipe, settings, out, *_: seen.append((recipe, out)) or {"trained": []})
    monkeypatch.setattr("hsal_cli.experiments.sweep_report.write_report", lambda *_: None)
    found = call("sweep", "--images", 7, "--json")
    (recipe, out) = seen[0]
    assert (recipe.dataset, recipe.scenes, out) == ("mnist-multiset", SceneSettings(train=0, test=7), Path("sweep"))
    assert "glimpses and saliency are left out" in found.stderr and "runs" not in [path.name for path in here.iterdir()]


def test_what_a_slow_machine_does_in_five_minutes_is_not_measured(monkeypatch) -> None:
    assert not may_be_long([Work("few", {"finetune": 1000})]) and may_be_long([Work("many", {"finetune": 100_000})])
    plain, windows = (feature_work(Path("none.h5"), 6000, 7, resolution) for resolution in (None, "window"))
    assert may_be_long(windows) and not may_be_long(plain), "windows of an image are many passes"
    monkeypatch.setattr(estimate, "seconds_of", lambda *_: pytest.fail("measured"))
    begin(lambda: [Work("few", {"finetune": 1000}, asked=True)], False, recipe_for(None, None), CPU, console.Reporter())


class Hears(console.Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_evaluating_the_policy_that_came_with_hsal_on_images_yet_to_be_composed_is_measured() -> None:
    scenes = SceneSettings()
    works = [estimate.composing(Path("x.h5"), scenes), estimate.scoring(Path("x.h5"), scenes, EvalSettings(), None)]
    assert works[1].images == {"precompute": 10_000, "eval": 10_000 + 9 * 2000}, "the test of looking rolls out nine times more"
    assert may_be_long(works)
    assert estimate.scoring(Path("x.h5"), scenes, EvalSettings(sample=5), "double").images["eval"] == 50_000
    assert estimate.scoring(Path("x.h5"), scenes, EvalSettings(), "double").heavier == 4


@pytest.mark.parametrize("terminal", [False, True])
def test_work_that_takes_over_five_minutes_without_being_asked_for_says_so_once(monkeypatch, terminal) -> None:
    now, said = [0.0], []
    monkeypatch.setattr("hsal_cli.console.time.monotonic", lambda: now[0])
    reporter = console.TerminalReporter()
    reporter.console._force_terminal = terminal
    monkeypatch.setattr(reporter, "warn", said.append)
    begin(lambda: [Work("few", {"eval": 1000}, asked=True)], False, recipe_for(None, None), CPU, reporter)
    for what in ("composing", "evaluating"):
        with reporter.track(what, 40, "images") as advance:
            for _ in range(40):
                now[0] += 10  # seconds
                advance(1)
    assert said == ["this takes longer than was expected: 5:10 so far, and composing alone about 1:30 more; Ctrl-C stops it"]


@pytest.fixture
def measured(monkeypatch):
    """Works that take an hour each, and a user who answers what is put into `answers`."""
    monkeypatch.setattr(estimate, "may_be_long", lambda works: True)
    monkeypatch.setattr(estimate, "seconds_of", lambda works, *_: [HOUR] * len(works))
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/hsal", "eval", "--data", "my data.h5"])
    answers: list[bool] = []
    monkeypatch.setattr(console, "can_ask", lambda: bool(answers))
    monkeypatch.setattr(console, "confirm", lambda question: answers.pop())
    return answers


ASIDE, OWN = Work("composing", {"make-data": 1}, 2e9, asked=True), Work("training", {"train": 1}, 1e9)


def started(works: list[Work], yes: bool = False) -> list[str]:
    heard = Hears()
    begin(lambda: works, yes, recipe_for(None, None), CPU, heard)
    return heard.said


def test_without_a_terminal_long_work_aside_needs_yes_and_the_hint_is_the_command_with_it(measured) -> None:
    with pytest.raises(UsageError) as caught:
        started([ASIDE, OWN])
    assert "about 2.0 hours" in caught.value.message and "3.0 GB" in caught.value.message and "composing 60 minutes" in caught.value.message
    assert caught.value.hint == "begin it with: hsal eval --data 'my data.h5' --yes"
    assert "2.0 hours" in started([ASIDE, OWN], yes=True)[-1]
    assert "60 minutes" in started([OWN])[-1]  # what the command is named for begins, and says so


def test_on_a_terminal_it_is_asked_whatever_it_is(measured) -> None:
    for works in ([ASIDE], [OWN]):
        measured.append(True)
        started(works)
        measured.append(False)
        with pytest.raises(typer.Exit):
            started(works)
    measured.append(False)
    started([OWN], yes=True)
    assert measured == [False]


def test_a_question_is_read_from_the_terminal(tmp_path) -> None:
    code = "from hsal_cli import console; print(console.can_ask(), console.confirm('Begin?'))"
    for answer, wanted in ((b"y\n", "True True"), (b"\n", "True False"), (b"no\n", "True False")):
        parent, child = pty.openpty()
        os.write(parent, answer)
        done = subprocess.run([sys.executable, "-c", code], stdin=child, stderr=child, stdout=subprocess.PIPE, text=True, timeout=60)
        assert done.stdout.strip() == wanted
        os.close(parent), os.close(child)


@pytest.mark.parametrize(("seconds", "words"), [(3, "10 seconds"), (62, "60 seconds"), (400, "7 minutes"), (9000, "2.5 hours")])
def test_times_are_told_as_roughly_as_they_are_known(seconds, words) -> None:
    assert about(seconds) == words


def test_what_is_missing_before_a_policy_is_found_as_training_would_find_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(recipe_for(None, None), finetune=FinetuneSettings(crop_images=100, full_images=50, epoch_images=75))
    works = before_a_policy(Path("data/mnist-multiset.h5"), None, recipe, CPU)
    images = [(dict(work.images), work.asked) for work in works]
    assert images == [
        ({"make-data": 70_000}, True),
        ({"make-data": 70_000}, True),
        ({"finetune": 150}, True),
        ({"precompute": 70_000}, False),
        ({"train": 60_000 * 0.95 * recipe.train.epochs}, False),
    ]
    (tmp_path / "data").mkdir()
    write_scenes(tmp_path / "data" / "mnist-multiset.h5")
    with_backbone = before_a_policy(Path("data/mnist-multiset.h5"), Path("runs/x"), recipe, CPU)
    assert [list(work.images) for work in with_backbone] == [["precompute"], ["train"]]
    with h5py.File(tmp_path / "data" / "mnist-multiset.h5") as file:
        counted = sum(len(file[f"{split}/labels"]) for split in file)
    assert with_backbone[0].images["precompute"] == counted


def test_the_speeds_are_measured_on_the_stages_of_the_benchmark(monkeypatch) -> None:
    from hsal_cli.bench.stages import MAKERS

    class Stage:
        work = staticmethod(lambda: (10.0, 2.0))

    for name in MAKERS:
        monkeypatch.setitem(MAKERS, name, lambda shop, seconds, evaluation: Stage)
    works = [Work("a", {"finetune": 50}), Work("b", {}), Work("c", {"train": 100, "eval": 5})]
    assert seconds_of(works, recipe_for(None, None), CPU) == [10.0, 0, 21.0]


def test_a_dry_run_of_a_grid_has_the_time_and_disk_of_each_step(here, seconds_given) -> None:
    words = ("reproduce", "--datasets", "mnist-set", "--objectives", "rl", "--seeds", 0, "--dry-run")
    steps = {step["step"].split(" ")[0]: step for step in json.loads(call(*words, "--json").stdout)["steps"]}
    assert steps["data"]["seconds"] == 700 and steps["features"]["bytes"] == 70_000 * 101_136
    assert all(step["seconds"] > 0 for step in steps.values())
    said = call(*words).stdout
    assert "12 minutes" in said and "7.1 GB" in said and "all of it: about" in said


def test_data_of_other_settings_than_the_grids_are_refused(here, tmp_path) -> None:
    words = ("--datasets", "mnist-set", "--objectives", "rl", "--seeds", 0, "--dry-run")
    call("make-data", "mnist-set", "--train", 6, "--test", 3, "--digits", "strokes")
    error = call("reproduce", *words, code=2).error
    assert "train is 6, not 60000; test is 3, not 10000" in error.message
    assert error.hint.endswith("hsal make-data mnist-set --out data/mnist-set.h5 --overwrite")


def test_the_hint_for_a_missing_scene_file_is_a_command_that_makes_it() -> None:
    assert made_by(Path("data/mnist-set.h5")) == "make it with: hsal make-data mnist-set --out data/mnist-set.h5"
    assert "hsal make-data folder --images DIR --labels FILE --out 'my data/dice.h5'" in made_by(Path("my data/dice.h5"))


def photographs(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "labels.csv").write_text("image,labels\n" + "".join(f"{number}.png,a;b\n" for number in range(count)))
    return folder


def test_making_data_sets_that_have_no_stage_is_measured_on_their_own_pictures(tmp_path) -> None:
    street = StreetSettings(train=900, test=100, frame="number", frame_jitter=2, typefaces="bundled")
    folder = FolderSettings(images=str(photographs(tmp_path / "photos")), labels="labels.csv")
    svhn = SvhnSettings(train=None, test=5, extra=True)
    works = [data_sets.painting(Path("x.h5"), street, 4, None), data_sets.reading(Path("x.h5"), folder, None)]
    works.append(data_sets.reading_svhn(Path("x.h5"), svhn, None))
    assert [dict(work.images) for work in works] == [{"paint": 1900}, {"read": 3}, {"read": 33_402 + 5 + 202_353}]
    for work in works:
        seconds, one = seconds_of([work], recipe_for(None, None), CPU)[0], sum(work.images.values())
        assert 0 < seconds < one and work.bytes > one and not work.asked
    assert may_be_long([works[2]]) and not may_be_long([works[1]])


@pytest.mark.parametrize("name", ["street-numbers", "folder", "svhn-multiset"])
def test_make_data_of_any_kind_asks_before_long_work(tmp_path, monkeypatch, measured, name) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_data, "FEW", {"composed": 0, "other": 0})
    photographs(tmp_path / "photos")
    words = ["--images", "photos", "--labels", "photos/labels.csv"] if name == "folder" else ["--train", "5"]
    measured.append(False)
    found = call("make-data", name, *words, "--out", "x.h5", code=1)
    assert "nothing was begun" in found.stderr and not measured and not (tmp_path / "x.h5").exists()
    if name == "folder":
        assert "60 minutes" in call("make-data", name, *words, "--out", "x.h5", "--yes").stderr and (tmp_path / "x.h5").exists()


def test_what_is_wrong_with_a_folder_is_said_by_making_and_not_by_measuring(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(make_data, "FEW", {"composed": 0, "other": -1})
    assert "does not exist" in call("make-data", "folder", "--images", tmp_path / "x", "--labels", "x.csv", code=1).error.message


@pytest.mark.parametrize(("answer", "yes"), [(None, False), (True, False), (False, False), (False, True)])
def test_the_first_of_many_images_show_how_long_the_others_take(monkeypatch, measured, answer, yes) -> None:
    measured += [] if answer is None else [answer]
    heard, seen = Hears(), []
    monkeypatch.setattr("hsal_cli.commands.asking.time.monotonic", lambda: float(len(seen)))  # a second an image
    with pytest.raises(typer.Exit) if answer is False and not yes else contextlib.nullcontext():
        for number in paced(range(500), 500, yes, heard):
            seen.append(number)
    asked = answer is not None and not yes
    assert len(seen) == (5 if asked and not answer else 500)
    assert heard.said == (["stopped after 5 images"] if len(seen) == 5 else [] if asked else ["the other 495 images take about 8 minutes"])
    heard.said.clear(), seen.clear()
    for number in paced(range(200), 200, False, heard):
        seen.append(number)
    assert len(seen) == 200 and not heard.said  # in under five minutes


@pytest.mark.parametrize(("resolution", "size"), [(None, 50_372), ("fine", 101_136), ("window", 62_916)])
def test_the_disk_that_is_told_is_what_features_take(resolution, size):
    """Bytes of an image of ResNet-34's 7 x 7 cells, as docs/scaling.md has them."""
    (work,) = feature_work(Path("none.h5"), 1, 7, resolution)
    assert work.bytes == size
