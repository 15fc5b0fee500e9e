"""Images without an object are a multiset too: each stage takes them, and scores and pictures that need an object leave them out."""

import dataclasses
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from evaluation_parts import NAMES, SIZE, small_policy, small_table, write_features
from fault_parts import contents, fill_features
from idx_files import write_idx_set
from learning_parts import SMALL, OneLayer, StoppingReporter, easy_table, small
from picture_parts import a_look, drawn

from hsal_cli.errors import FileError
from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.metrics import multiset_metrics, scores_by_count
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.table import FeatureTable
from hsal_cli.finetuning.finetune import finetune, read_objects
from hsal_cli.finetuning.objects import LabelledImages
from hsal_cli.finetuning.reading import way_of
from hsal_cli.models.load import load_model, load_policy
from hsal_cli.pictures.charts.data_figure import data_figure
from hsal_cli.pictures.contact_sheet import contact_sheet
from hsal_cli.pictures.film import film
from hsal_cli.pictures.replay import replay_page
from hsal_cli.pictures.trajectory import titles
from hsal_cli.report.report_figures import confusion_figure, count_figure
from hsal_cli.report.tested import Detail, choose, confusion
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.training.train import train
from hsal_cli.upkeep.check import check_path
from hsal_cli.upkeep.contents import look_into

CPU = torch.device("cpu")


def emptied(table: FeatureTable, every: int = 2) -> FeatureTable:
    """A table in which every so-manieth image holds nothing: neither labels nor activations."""
    rows = torch.arange(len(table)) % every == 0
    labels, boxes, volumes, saliency = (part.clone() for part in (table.labels, table.boxes, table.volumes, table.saliency))
    labels[rows], boxes[rows], volumes[rows], saliency[rows] = -1, -1, 0, 0
    return FeatureTable(volumes, saliency, labels, boxes, table.image_size)


# --- composed, written, precomputed, checked --------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["free", "tight", "grid"])
def test_images_without_a_digit_are_composed_as_often_as_others(placement: str, tmp_path: Path) -> None:
    settings = SceneSettings(
        train=300, test=0, count=(0, 2), image_size=40, digit_size=(8, 16), clutter=1, mnist_dir=str(write_idx_set(tmp_path / "d"))
    )
    with open_scenes(make_dataset("multiset", dataclasses.replace(settings, placement=placement), tmp_path / "a.h5", workers=1)) as file:
        split = file.split("train")
        objects = (split.labels >= 0).sum(1)
        assert split.labels.shape == (300, 2)
        assert [int((objects == n).sum()) for n in range(3)] == pytest.approx([100, 100, 100], abs=35)
        assert (split.boxes[objects == 0] == -1).all() and split.read(0, 300)[objects == 0].any()  # clutter is there all the same


def test_a_set_of_nothing_but_empty_images_can_be_made_read_and_drawn(tmp_path: Path) -> None:
    settings = SceneSettings(train=5, test=2, count=(0, 0), image_size=40, digit_size=(8, 16), mnist_dir=str(write_idx_set(tmp_path / "d")))
    path = make_dataset("set", settings, tmp_path / "a.h5", workers=2)
    with open_scenes(path) as file:
        assert file.split("train").labels.tolist() == [[-1]] * 5 and file.split("test").boxes.shape == (2, 1, 4)
    found = look_into(path)
    assert found.document["splits"]["train"]["objects_per_image"] == {"0": 5} and found.document["splits"]["train"]["boxes"] is None
    assert data_figure(found.measures, found.document["classes"]).startswith(b"\x89PNG")
    report = check_path(path)
    assert report.ok and "no train image holds 0, 1, 2, 3, 4 ..." in report.notes


def test_features_of_empty_images_are_written_read_checked_and_measured(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(NAMES)
        for name in ("train", "test"):
            file[f"{name}/images"] = np.full((6, 10, 12), 9, np.uint8)
            file[f"{name}/labels"] = np.array([[0, -1], [-1, -1], [2, 2], [-1, -1], [-1, -1], [1, -1]])
            file[f"{name}/boxes"] = np.where(file[f"{name}/labels"][()][..., None] >= 0, np.array([0, 0, 12, 10]), -1)
    fill_features(tmp_path / "s.h5", tmp_path / "f.features.h5")
    assert contents(tmp_path / "f.features.h5")["train/labels"][1].tolist() == [-1, -1]
    for path in (tmp_path / "s.h5", tmp_path / "f.features.h5"):
        assert check_path(path).faults == []
    splits = look_into(tmp_path / "f.features.h5").document["splits"]
    assert splits["test"]["objects_per_image"] == {"0": 3, "1": 2, "2": 1}
    # Every object fills its image; of images that have none, no map can lie on one.
    assert splits["train"]["saliency"]["peak_on_object"] == splits["train"]["saliency"]["area_on_object"] == 1


def test_features_of_nothing_but_empty_images_have_no_share_on_objects(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.features.h5", {"train": emptied(small_table(4), every=1)})
    found = look_into(path)
    assert found.document["splits"]["train"]["saliency"]["peak_on_object"] is None
    assert data_figure(found.measures, NAMES, found.saliency).startswith(b"\x89PNG")


# --- trained on -------------------------------------------------------------------------------------------------------------------

OBJECTIVES = [
    {"objective": "rl"},
    {"objective": "rl", "gradient": "sampled", "stop": "sampled", "stop_input": "state"},
    {"objective": "rl", "task": "list"},
    {"objective": "cross-entropy"},
    {"objective": "multiset"},
    {"objective": "count"},
]


@pytest.mark.parametrize("every", [2, 1], ids=["half", "all"])
@pytest.mark.parametrize("chosen", OBJECTIVES, ids=lambda chosen: " ".join(map(str, chosen.values())))
def test_every_objective_trains_on_empty_images_and_on_nothing_else(chosen: dict, every: int, tmp_path: Path) -> None:
    table = emptied(easy_table(24), every)
    features = write_features(tmp_path / "f.features.h5", {"train": table, "test": table}, classes=["one", "two"])
    variant = {name: value for name, value in chosen.items() if name not in ("objective", "task")}
    others = {name: value for name, value in chosen.items() if name not in variant}
    settings = TrainSettings(epochs=2, batch_size=4, validation=0.25, learning_rate=0.05, **others)
    loaded = load_model(train(features, tmp_path / "run", small(**variant), settings, CPU).path)
    found = evaluate(loaded.policy, table, loaded.classes, EvalSettings(resamples=10), loaded.max_steps, train_labels=table.labels)
    assert found["by_count"]["0"]["examples"] == 24 // every
    if every == 1:  # a policy that has only seen empty images names nothing, and all is right
        assert all(found[name] == 1 for name in ("exact_match", "macro_f1", "micro_f1", "example_f1")), found
        assert found["baselines"]["most_frequent_multiset"] == {"exact_match": 1, "macro_f1": 1}


def test_a_policy_learns_to_name_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    table = emptied(easy_table(384, most=1), every=2)
    features = write_features(tmp_path / "f.features.h5", {"train": table}, classes=["one", "two"])
    settings = TrainSettings(epochs=6, batch_size=32, learning_rate=2e-2)
    loaded = load_policy(train(features, tmp_path / "run", SMALL, settings, CPU).path)
    found = evaluate(loaded.policy, emptied(easy_table(100, most=1, seed=9)), loaded.classes, EvalSettings(resamples=10), 3)
    assert found["by_count"]["0"]["exact_match"] > 0.9 and found["by_count"]["1"]["exact_match"] > 0.7


# --- scored -----------------------------------------------------------------------------------------------------------------------


def test_scores_of_empty_images_are_those_of_right_and_wrong() -> None:
    true, predicted = np.array([[0, 0], [0, 0], [1, 0]]), np.array([[0, 0], [0, 1], [1, 0]])
    found = multiset_metrics(true, predicted, ["a", "b"], resamples=50)
    assert found["exact_match"] == found["example_f1"] == pytest.approx(2 / 3)  # right and 1, wrong and 0, right and 1
    assert found["by_count"]["0"] == {"examples": 2, "exact_match": 0.5, "macro_f1": 0.0}
    assert found["by_count"]["1"] == {"examples": 1, "exact_match": 1.0, "macro_f1": 1.0}
    right = multiset_metrics(true[:1], predicted[:1], ["a", "b"], resamples=5)
    assert right["macro_f1"] == right["micro_recall"] == right["ci95"]["macro_f1"][0] == 1 and right["by_class"]["a"]["support"] == 0


def test_where_it_looks_in_empty_images_counts_for_no_object() -> None:
    """Scores over objects are the same whether empty images are among the others or not."""
    table = small_table(20)
    both = FeatureTable(
        torch.cat([table.volumes, table.volumes]),
        torch.cat([table.saliency, table.saliency]),
        torch.cat([table.labels, torch.full_like(table.labels, -1)]),
        torch.cat([table.boxes, torch.full_like(table.boxes, -1)]),
        SIZE,
    )
    found, without = (evaluate(small_policy(), part, NAMES, EvalSettings(resamples=5), 4) for part in (both, table))
    assert found["localization"] == pytest.approx(without["localization"]) and found["by_count"]["0"]["exact_match"] < 1
    alone = evaluate(small_policy(), both.select(slice(20, 40)), NAMES, EvalSettings(resamples=5), 4)
    assert set(alone["localization"].values()) == {None} and alone["macro_f1"] == 0


def test_a_detail_of_empty_images_is_chosen_counted_and_drawn() -> None:
    found = Detail(np.array([[0, 0], [0, 0], [2, 0]]), np.array([[0, 0], [0, 1], [2, 0]]), np.array([0.9, 0.8, 0.7]))
    assert confusion(found.true, found.named).tolist() == [[2, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert choose(found) == {"best": [2, 0], "worst": [1], "repeats": [2], "uncertain": [2, 1, 0]}
    nothing = Detail(np.zeros((2, 2), int), np.zeros((2, 2), int), np.ones(2))
    for detail in (found, nothing):
        assert count_figure({"a": [scores_by_count(detail.true, detail.named)]}) and confusion_figure("a", "a", [detail], ["x", "y"])


# --- drawn ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [(), ("3",)], ids=["right", "wrong"])
def test_trajectories_films_and_replays_know_the_empty_truth(labels: tuple[str, ...]) -> None:
    look = a_look(labels)
    wanted = "exact match" if not labels else "wrong {3}"
    assert titles(look, [])[0].endswith("true {}") and wanted in titles(look, [])[1]
    assert drawn(look, []).width > 100 and film([look], [[]]).startswith(b"GIF")
    page = replay_page([look], [[]])
    assert '"known": true' in page.replace('"known":true', '"known": true')


def test_a_contact_sheet_shows_empty_images_as_the_empty_multiset() -> None:
    images, boxes = np.zeros((2, 20, 20), np.uint8), np.full((2, 1, 4), -1)
    empty, named = (np.asarray(contact_sheet(images, labels, boxes, ["{}"])) for labels in (np.full((2, 1), -1), np.zeros((2, 1), int)))
    assert np.array_equal(empty[205:], named[205:])  # the caption of nothing reads as that of a class called {}


# --- fine-tuned on ----------------------------------------------------------------------------------------------------------------

FAST = FinetuneSettings(input_size=32, crop_images=32, full_images=32, epoch_images=32, batch_size=8, validation=6)


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    room = sys.modules["hsal_cli.finetuning.finetune"]
    monkeypatch.setattr(room, "ActivationModel", OneLayer)
    monkeypatch.setattr(room, "initial_weights", lambda model, weights, reporter: "random")


def write_scenes(path: Path, objects: dict[str, list[int]], boxes: bool = True) -> Path:
    """Bright squares on a dark ground, so many an image of each split."""
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["a", "b"])
        for split, counts in objects.items():
            images, labels = np.zeros((len(counts), 40, 40), np.uint8), np.full((len(counts), 2), -1)
            placed = np.full((len(counts), 2, 4), -1)
            for row, count in enumerate(counts):
                for place in range(count):
                    labels[row, place], placed[row, place] = (row + place) % 2, (2 + 20 * place, 4, 16 + 20 * place, 20)
                    images[row, 4:20, 2 + 20 * place : 16 + 20 * place] = 250
            file[f"{split}/images"], file[f"{split}/labels"] = images, labels
            if boxes:
                file[f"{split}/boxes"] = placed
    return path


MIXED = {"train": [0, 1, 2, 0] * 6, "test": [0, 1, 2, 0]}


@pytest.mark.parametrize(("objects", "boxes"), [("counts", False), ("crops", True), ("random-label", False), ("auto", True)])
def test_fine_tuning_learns_from_empty_images_or_says_that_they_are_left_out(objects: str, boxes: bool, tmp_path, one_layer) -> None:
    reporter = StoppingReporter()
    scenes = write_scenes(tmp_path / "s.h5", MIXED, boxes)
    run = finetune(scenes, tmp_path / "run", dataclasses.replace(FAST, objects=objects), CPU, reporter)
    assert run.status.state == "finished" and 0 <= run.status.test_accuracy <= 1
    left_out = [line for line in reporter.said if "12 training images have no object: they are left out" in line]
    assert len(left_out) == (objects != "counts")


def test_single_objects_refuse_empty_images_of_either_split_before_training(tmp_path: Path, one_layer) -> None:
    for split, counts in (("train", [1, 0, 1, 1]), ("test", [1, 1, 0, 1])):
        scenes = write_scenes(tmp_path / f"{split}.h5", {"train": [1] * 4, "test": [1] * 4, split: counts})
        wanted = dataclasses.replace(FAST, objects="single")
        with pytest.raises(FileError, match=f"image {counts.index(0)} of {split} holds 0 objects") as caught:
            finetune(scenes, tmp_path / "run", wanted, CPU)
        assert "--objects auto" in caught.value.hint and not (tmp_path / "run").exists()
        assert way_of(scenes, "auto") == "crops"  # the hint helps


def test_images_of_nothing_at_all_cannot_be_fine_tuned_on(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no image of train holds an object, so there is nothing to learn"):
        way_of(write_scenes(tmp_path / "s.h5", {"train": [0, 0]}), "auto")


def test_objects_are_held_out_by_images_that_have_some(tmp_path: Path) -> None:
    data = read_objects(write_scenes(tmp_path / "s.h5", {"train": [0] * 30 + [1] * 4}), "train", "crops")
    for seed in range(5):
        held, rest = data.hold_out(10, seed)
        assert len(held.labels) == len(rest.labels) == 2


def test_an_empty_image_whose_counts_are_right_scores_1(tmp_path: Path) -> None:
    data = read_objects(write_scenes(tmp_path / "s.h5", {"train": [0, 0, 0]}), "train", "counts")
    model = OneLayer("", 2, 32)
    torch.nn.init.zeros_(model.fc.weight)
    torch.nn.init.constant_(model.fc.bias, -9.0)  # softplus gives 0 of each
    assert data.score(model, 2, CPU) == 1
    shown = data.loss(torch.full((3, 2), 1e-4), torch.zeros(3, 2))
    assert float(shown.right) == 3 and torch.isfinite(shown.loss)


def test_a_drawn_label_is_one_of_the_images(tmp_path: Path) -> None:
    data = read_objects(write_scenes(tmp_path / "s.h5", MIXED), "train", "random-label")
    assert isinstance(data, LabelledImages) and len(data.labels) == 12 and (data.labels >= 0).all()
