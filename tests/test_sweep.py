"""The generalisation sweep: conditions, finished parts taken over, short runs, tables and panels."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch
from evaluation_parts import policy_meta
from fault_parts import evaluation
from idx_files import write_idx_set
from learning_parts import StoppingReporter
from test_precompute import Heard
from test_saliency_features import SMALL, write_backbone
from typer.testing import CliRunner

from hsal_cli.errors import FileError, UsageError
from hsal_cli.experiments import pipeline, sweep
from hsal_cli.experiments.settings import SweepSettings
from hsal_cli.experiments.sweep import SceneRecipe, conditions, dim, recipe_of, shifts
from hsal_cli.experiments.sweep_report import panels, table
from hsal_cli.experiments.sweep_trained import bench_for, glimpse_budgets, saliency_models
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import SALIENCY, PrecomputeSettings
from hsal_cli.main import app
from hsal_cli.models.load import load_policy
from hsal_cli.pictures.charts.panels import Bars
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import SceneSettings, SearchSettings
from hsal_cli.settings import as_dict
from hsal_cli.storage import checkpoints
from hsal_cli.training.train import resume, train
from hsal_cli.vision.backbone import load_backbone

CPU = torch.device("cpu")
ALL = "count,size,clutter,spacing,contrast"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with scenes, a backbone, features and a policy run."""
    folder = tmp_path_factory.mktemp("made")
    digits = write_idx_set(folder / "digits")
    settings = SceneSettings(train=16, test=4, image_size=64, digit_size=(12, 30), digits="mnist", mnist_dir=str(digits))
    make_dataset("mnist-multiset", settings, folder / "s.h5", 1)
    write_backbone(folder / "b")
    precompute(folder / "s.h5", folder / "b", folder / "s.features.h5", PrecomputeSettings(), CPU)
    settings = TrainSettings(epochs=1, batch_size=8)
    train(folder / "s.features.h5", folder / "run", SMALL, settings, CPU, backbone=folder / "b")
    return folder


def test_conditions_change_one_thing_each_and_the_trained_one_comes_first():
    recipe = SceneRecipe("mnist-multiset", SceneSettings(train=0, test=9, count=(1, 3)), None)
    found = list(conditions(recipe, ALL.split(",")))
    assert found[0].part == "trained" and found[0].scenes == recipe.scenes
    fields = {"count": "count", "size": "digit_size", "clutter": "clutter", "spacing": "placement"}
    for condition in found[1:]:
        changed = {
            field.name
            for field in dataclasses.fields(SceneSettings)
            if getattr(condition.scenes, field.name) != getattr(recipe.scenes, field.name)
        }
        assert changed <= {fields.get(condition.part)} and (condition.contrast == 1 or condition.part == "contrast")
    counts = [condition.scenes.count for condition in found if condition.part == "count"]
    assert counts == [(n, n) for n in range(1, 9)]
    for part in ALL.split(","):
        xs = [condition.x for condition in found if condition.part == part]
        assert len(xs) >= 3 and (sorted(xs) == xs or part == "contrast") and len(set(xs)) == len(xs)
    assert {condition.part for condition in conditions(recipe, ["size"])} == {"trained", "size"}


def test_a_condition_that_cannot_be_composed_is_left_out_and_said():
    heard = Heard()
    recipe = SceneRecipe("mnist-multiset", SceneSettings(test=9, digit_size=(40, 50)), None)
    found = [condition.value for condition in conditions(recipe, ["count"], heard)]
    assert found == ["as trained", "1", "2", "3", "4"] and len(heard.said) == 4 and "8 is left out" in heard.said[-1]


def test_dimming_scales_intensities_and_nothing_else(made, tmp_path):
    copy = tmp_path / "s.h5"
    copy.write_bytes((made / "s.h5").read_bytes())
    dim(copy, 0.3)
    with open_scenes(made / "s.h5") as old, open_scenes(copy) as new:
        assert new.splits == old.splits and new.digest != old.digest and new.config["contrast"] == 0.3
        for name in old.splits:
            before, after = old.split(name), new.split(name)
            np.testing.assert_array_equal(after.read(0, 4), np.rint(before.read(0, 4) * 0.3))
            np.testing.assert_array_equal(after.labels, before.labels)
            np.testing.assert_array_equal(after.boxes, before.boxes)


def test_finished_conditions_are_taken_over_and_equal_ones_are_measured_once(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "CONTRASTS", (1.0, 0.5))
    monkeypatch.setattr(sweep, "MOST_OBJECTS", 6)
    loaded, backbone = load_policy(made / "run"), load_backbone(made / "b")
    recipe = recipe_of(made / "s.features.h5", 3)
    assert recipe.dataset == "mnist-multiset" and (recipe.scenes.train, recipe.scenes.test) == (0, 3)
    assert recipe == dataclasses.replace(recipe_of(made / "s.h5", 3), file=recipe.file)
    settings = SweepSettings(parts="contrast", images=3)
    found = shifts(loaded, backbone, recipe, settings, tmp_path, CPU)
    assert [row["value"] for row in found["contrast"]] == ["1", "0.5"]
    assert {**found["contrast"][0], "value": "", "x": 0} == {**found["trained"][0], "value": "", "x": 0}
    assert len(list((tmp_path / "parts").iterdir())) == 2 and not list((tmp_path / "cache").iterdir())
    asked = []
    monkeypatch.setattr(sweep, "_evaluate", lambda condition, *_: asked.append(condition.value) or scores_of_nothing())
    again = shifts(loaded, backbone, recipe, settings, tmp_path, CPU)
    assert again == found and not asked
    for part, odd in zip((tmp_path / "parts").iterdir(), ("[]", '{"examples": "3"}'), strict=True):
        part.write_text(odd)
    reporter = StoppingReporter()
    shifts(loaded, backbone, recipe, settings, tmp_path, CPU, reporter)
    assert asked == ["as trained", "0.5"] and sum("measured anew" in said for said in reporter.warned) == 2
    asked.clear()
    shifts(loaded, backbone, recipe, SweepSettings(parts="count", images=3), tmp_path, CPU)
    assert asked == ["1", "2", "3", "4", "5", "6"]


def scores_of_nothing():
    none = {"exact_match": [0.0, 0.0], "macro_f1": [0.0, 0.0]}
    return evaluation(examples=3, exact_match=0.0, ci95=none, macro_f1=0.0, cardinality_error=0.0)


def test_more_objects_than_trained_on_get_the_meta_steps_they_take(made, tmp_path, monkeypatch):
    caps = []
    real = sweep.evaluate_file
    monkeypatch.setattr(sweep, "evaluate_file", lambda *given: caps.append(given[2].max_steps) or real(*given))
    monkeypatch.setattr(sweep, "conditions", lambda *_: [c for c in conditions(*_) if c.value in ("as trained", "8")])
    loaded = load_policy(made / "run")
    shifts(loaded, load_backbone(made / "b"), recipe_of(made / "s.h5", 2), SweepSettings(parts="count"), tmp_path, CPU)
    assert caps == [loaded.max_steps, 10]


def test_glimpse_budgets_are_trained_once_each_and_anew_for_other_settings(made, tmp_path, monkeypatch):
    loaded, backbone = load_policy(made / "run"), load_backbone(made / "b")

    def rows(epochs):
        settings = SweepSettings(epochs=epochs)
        bench = bench_for(loaded, made / "run", made / "s.features.h5", backbone, settings, tmp_path, CPU)
        assert bench.train == TrainSettings(epochs=epochs, batch_size=8)
        return glimpse_budgets(bench, (0, 1))

    first = rows(1)
    assert [row["value"] for row in first] == ["k = 0", "k = 1"] and first[0]["glimpse_hit"] is None
    for k in (0, 1):
        trained = load_policy(tmp_path / "runs" / f"glimpses-{k}").policy.variant
        assert trained == dataclasses.replace(loaded.policy.variant, glimpses=k)
    trained = []
    monkeypatch.setattr(pipeline, "train", lambda *given, **more: trained.append(given[1].name) or train(*given, **more))
    monkeypatch.setattr(pipeline, "resume", lambda *given, **more: trained.append(given[0].name) or resume(*given, **more))
    assert rows(1) == first and not trained
    (tmp_path / "runs" / "glimpses-1" / "eval.json").unlink()
    assert rows(1) == first and not trained
    rows(2)
    assert trained == ["glimpses-0", "glimpses-1"]


def test_saliency_models_are_trained_on_maps_of_their_own(made, tmp_path):
    loaded, backbone = load_policy(made / "run"), load_backbone(made / "b")
    bench = bench_for(loaded, made / "run", made / "s.features.h5", backbone, SweepSettings(epochs=1), tmp_path, CPU)
    rows = saliency_models(bench, made / "s.h5")
    assert [row["value"] for row in rows] == list(SALIENCY)
    for name in SALIENCY:
        assert load_policy(tmp_path / "runs" / f"saliency-{name}").meta.saliency == name
    assert not list((tmp_path / "cache").iterdir())
    assert saliency_models(bench, tmp_path / "gone.h5") == rows  # all there: the scenes are not read again
    with pytest.raises(FileError, match="missing"):
        bench = dataclasses.replace(bench, out=tmp_path / "new")
        saliency_models(bench, tmp_path / "gone.h5")


def test_what_cannot_be_swept_is_refused(made, tmp_path):
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["a"])
        file["test/images"], file["test/labels"] = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 1), np.int16)
    with pytest.raises(FileError, match="cannot compose anew"):
        recipe_of(tmp_path / "own.h5", 3)
    for parts in ("counts", "", "count,"[:0] + ","):
        with pytest.raises(UsageError):
            SweepSettings(parts=parts)
    checkpoint = load_policy(made / "run").checkpoint
    meta = policy_meta(load_policy(made / "run").policy, saliency="file:maps", classes=[str(n) for n in range(10)])
    checkpoints.write_checkpoint(tmp_path / "c", checkpoint.weights, None, meta)
    with pytest.raises(UsageError, match="file:maps"):
        shifts(load_policy(tmp_path / "c"), load_backbone(made / "b"), recipe_of(made / "s.h5", 1), SweepSettings(), tmp_path, CPU)


def test_the_command_writes_a_table_json_and_curves(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "CONTRASTS", (1.0, 0.5))
    words = ["sweep", "--run", made / "run", "--parts", "contrast", "--images", 2, "--out", tmp_path / "o", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "Contrast" in result.stdout and "0.5" in result.stdout
    found = json.loads((tmp_path / "o" / "sweep.json").read_text())
    assert list(found["parts"]) == ["trained", "contrast"] and found["parts"]["contrast"][1]["examples"] == 2
    assert (tmp_path / "o" / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    written = (tmp_path / "o" / "sweep.md").read_text()
    assert "--parts contrast --images 2" in written and "](sweep.png)" in written and "\n| 0.5 | 2 | " in written
    result = CliRunner().invoke(app, [*map(str, words), "--dry-run"])
    assert json.loads(result.stdout)["conditions"] == ["trained: as trained", "contrast: 1", "contrast: 0.5"]


def test_scenes_to_search_are_composed_as_their_settings_say(made, tmp_path, monkeypatch):
    settings = SearchSettings(train=0, test=2, digits="mnist", mnist_dir=str(made / "digits"), clutter=3)
    make_dataset("mnist-search", settings, tmp_path / "search.h5", 1)
    recipe = recipe_of(tmp_path / "search.h5", 5)
    assert recipe.dataset == "mnist-search" and as_dict(recipe.scenes) == {**as_dict(settings), "train": 0, "test": 5}
    assert [condition.value for condition in conditions(recipe, ["count"])][-1] == "14", "more than the 10 of training"
    # The policy that comes with hsal sees images at twice the size.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "CONTRASTS", (1.0,))
    seen, real = [], sweep.precompute
    monkeypatch.setattr(sweep, "precompute", lambda *given: seen.append(given[3].resolution) or real(*given))
    words = ["sweep", "--pretrained", "mnist-search", "--parts", "contrast", "--images", "2", "--device", "cpu", "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, (found.output, found.exception)
    row = json.loads(found.stdout)["parts"]["trained"][0]
    assert row["examples"] == 2 and seen == ["double"] and row["macro_f1"] > 0.5, "random labels reach some 0.2"


def test_panels_show_the_scores_there_are_and_tables_dash_the_others():
    row = {"value": "k = 0", "x": 0.0, "examples": 3, "exact_match": 0.5, "exact_match_ci95": [0.4, 0.6], "macro_f1": 0.7}
    row |= {"cardinality_error": 0.1, "glimpse_hit": None, "saliency_hit": 0.9, "mask_mass": None}
    found = {"trained": [{**row, "value": "as trained"}], "count": [{**row, "glimpse_hit": 0.3}], "glimpses": [row]}
    found["spacing"] = [{**row, "value": name, "x": float(place)} for place, name in enumerate(("grid", "free"))]
    made = panels(found)
    assert [panel.title for panel in made] == ["More objects than were trained on", "Glimpse budget, short runs", "Spacing of the digits"]
    assert isinstance(made[2], Bars) and made[2].names == ["grid", "free"], "no line between kinds that have no order"
    assert made[0].levels == {"exact match as trained": 0.5} and not made[1].levels
    assert "glimpse on the digit" in made[0].series and "glimpse on the digit" not in made[1].series
    assert table([row])[1] == [["k = 0", "3", "0.500", "0.400 to 0.600", "0.700", "0.100", "-", "0.900"]]
