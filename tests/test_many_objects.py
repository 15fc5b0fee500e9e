"""Fine-tuning on images of several objects: whose cells teach what, which label is drawn, what counts cost, and how all is scored."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from learning_parts import OneLayer, StoppingReporter, assert_equal, without
from torch import nn
from typer.testing import CliRunner

from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.finetuning.finetune import FinetuneTask, finetune, settled_for
from hsal_cli.finetuning.objects import BoxedObjects, CountedImages, LabelledImages, Scenes
from hsal_cli.finetuning.reading import read_objects, way_of
from hsal_cli.finetuning.views import cell_centres, own_cells
from hsal_cli.main import app
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.storage import checkpoints

CPU = torch.device("cpu")
FAST = FinetuneSettings(input_size=32, crop_images=160, full_images=160, epoch_images=160, batch_size=8, validation=6, learning_rate=0.05)


@pytest.fixture(autouse=True)
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "ActivationModel", OneLayer)
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "initial_weights", lambda model, weights, reporter: "random")


def write_scenes(path: Path, boxes: bool = True, most: int = 3, train: int = 30, test: int = 8) -> Path:
    """Red, green and blue squares in the quarters of a dim image, 1 to `most` of them."""
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["red", "green", "blue"])
        for split, size in (("train", train), ("test", test)):
            images = draw.integers(0, 20, (size, 48, 48, 3), dtype=np.uint8)
            labels, placed = np.full((size, 3), -1, np.int16), np.full((size, 3, 4), -1, np.int16)
            for row in range(size):
                for place, quarter in enumerate(draw.permutation(4)[: draw.integers(1, most + 1)]):
                    side, label = draw.integers(10, 20), draw.integers(3)
                    x, y = 24 * (quarter % 2) + draw.integers(0, 24 - side), 24 * (quarter // 2) + draw.integers(0, 24 - side)
                    images[row, y : y + side, x : x + side, label] = 230
                    labels[row, place], placed[row, place] = label, (x, y, x + side, y + side)
            file[f"{split}/images"], file[f"{split}/labels"] = images, labels
            if boxes:
                file[f"{split}/boxes"] = placed
    return path


@pytest.fixture(scope="module")
def boxed(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "boxed.h5")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "bare.h5", boxes=False)


@pytest.mark.parametrize(("objects", "least", "mode"), [("crops", 0.9, "crops"), ("counts", 0.5, "full"), ("random-label", 0.7, "full")])
def test_each_way_learns_and_says_what_it_does(objects, least, mode, boxed, bare, tmp_path):
    reporter = StoppingReporter()
    settings = dataclasses.replace(FAST, augment=False, full_images=160 if objects == "crops" else 800)
    wanted = "auto" if objects != "random-label" else objects
    run = finetune(boxed if objects == "crops" else bare, tmp_path / "run", dataclasses.replace(settings, objects=wanted), CPU, reporter)
    assert run.status.test_accuracy >= least, run.status
    assert run.config.finetune.objects == objects and run.config.finetune.mode == mode
    assert any(f"--objects {objects}" in line for line in reporter.said)
    assert checkpoints.load(run.checkpoints, "best").meta["classes"] == ["red", "green", "blue"]


@pytest.mark.parametrize(("objects", "counted"), [("counts", True), ("random-label", False)])
def test_where_counts_taught_the_counter_is_what_comes_next(objects, counted, bare, tmp_path):
    run = finetune(bare, tmp_path / "run", dataclasses.replace(FAST, objects=objects, full_images=16, epoch_images=16), CPU)
    told = CliRunner().invoke(app, ["finetune", "--resume", str(run.path)]).stdout.splitlines()
    (place,) = (place for place, line in enumerate(told) if "next: " in line)
    following = f"hsal train --data {bare} --backbone {run.path}"
    assert told[place].endswith(f"next: {following} --objective count" if counted else f"next: {following}")
    assert [line.endswith(f": {following}") for line in told[place + 1 :]] == [True] * counted


@pytest.mark.parametrize("objects", ["crops", "random-label"])
def test_a_stopped_run_resumes_to_exactly_what_it_would_have_been(objects, boxed, tmp_path):
    settings = dataclasses.replace(FAST, objects=objects, crop_images=24, full_images=24, epoch_images=24)
    whole = finetune(boxed, tmp_path / "whole", settings, CPU)
    with pytest.raises(Interrupted):
        finetune(boxed, tmp_path / "run", settings, CPU, StoppingReporter(2))
    torch.manual_seed(9)
    resumed = finetune(Path("nowhere"), tmp_path / "run", FinetuneSettings(), CPU, resume=True)
    mine, theirs = (checkpoints.load(run.checkpoints, "last") for run in (resumed, whole))
    assert_equal(mine.weights, theirs.weights, "weights")
    assert [without(row) for row in resumed.rows()] == [without(row) for row in whole.rows()]


def test_the_way_is_found_from_what_the_data_has(boxed, bare, tmp_path):
    single = write_scenes(tmp_path / "single.h5", most=1)
    assert [way_of(path, "auto") for path in (single, boxed, bare)] == ["single", "crops", "counts"]
    assert way_of(boxed, "random-label") == "random-label"
    for way, mode in (("crops", "crops"), ("counts", "full"), ("random-label", "full")):  # what is told before is what is done
        assert settled_for(boxed, FinetuneSettings(objects=way), CPU).mode == mode
    with pytest.raises(UsageError, match="has no boxes"):
        way_of(bare, "crops")
    with pytest.raises(UsageError, match="does not go with objects = random-label"):
        finetune(boxed, tmp_path / "run", dataclasses.replace(FAST, objects="random-label", mode="crops"), CPU)
    with pytest.raises(FileError, match=r"holds [23] objects"):
        finetune(boxed, tmp_path / "run", dataclasses.replace(FAST, objects="single"), CPU)
    assert not (tmp_path / "run").exists()


def test_every_object_is_an_example_and_no_image_is_on_both_sides(boxed):
    data = read_objects(boxed, "train", "crops")
    scenes = data.scenes
    assert len(data.labels) == int((scenes.multisets >= 0).sum()) and (data.labels >= 0).all()
    assert (data.boxes[:, 2] > data.boxes[:, 0]).all()
    held, rest = data.hold_out(6, 0)
    assert len(held.rows.unique()) == 6 and len(held.rows) + len(rest.rows) == len(data.rows)
    assert not set(held.rows.tolist()) & set(rest.rows.tolist())
    assert len(CountedImages.of(scenes).hold_out(100, 0)[0].rows) == 15, "at most half"
    many = Scenes(torch.zeros(400, 2, 2), torch.zeros(400, 1, dtype=torch.int64), None, 1)
    assert [len(CountedImages.of(many).hold_out(count, 0)[0].rows) for count in (30, 500)] == [30, 80], "of many at most a fifth"


def test_cells_belong_to_the_nearest_object_and_each_object_has_one():
    corners = torch.tensor([[[0.0, 0, 40, 40], [10, 10, 12, 12], [50, 0, 60, 60]], [[5, 5, 20, 20], [-1, -1, -1, -1], [-1, -1, -1, -1]]])
    centres = cell_centres(torch.eye(2, 3).expand(2, 2, 3), 4, (64, 64))
    regions = own_cells(corners, centres)
    for image in range(2):
        objects = [place for place in range(3) if corners[image, place, 0] >= 0]
        for row in range(4):
            for column in range(4):
                x, y = 16 * column + 8, 16 * row + 8
                gaps = []
                for place in objects:
                    x0, y0, x1, y1 = corners[image, place].tolist()
                    gaps.append(math.hypot(max(x0 - x, x - x1, 0), max(y0 - y, y - y1, 0)))
                nearest = objects[gaps.index(min(gaps))]
                assert regions[image, nearest, row, column] == 1
    # The small object lies inside the first one's box, which is nearest everywhere; it keeps the cell at its middle.
    assert regions[0, 1].nonzero().tolist() == [[0, 0]]
    assert regions[1, 1:].sum() == 0 and regions[1, 0].sum() == 16


def test_the_cells_of_a_crop_look_where_they_do_in_the_network():
    # 3.5 cells of 16 px in a view of 56 px: the network has 4, the last of which looks past the border.
    centres = cell_centres(torch.eye(2, 3)[None], 4, (56, 56), 4 * 16 / 56)
    assert torch.allclose(centres[0, 0, :, 0], torch.tensor([8.0, 24.0, 40.0, 56.0]))


def test_a_crop_teaches_its_own_object_although_a_larger_neighbour_is_in_it():
    image = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    image[0, 20:28, 16:24, 0], image[0, 17:31, 26:40, 2] = 230, 230
    corners = torch.tensor([[[16.0, 20, 24, 28], [26, 17, 40, 31]]])
    data = BoxedObjects.of(Scenes(image, torch.tensor([[0, 2]]), corners, 3))
    settings = dataclasses.replace(FAST, augment=False)
    picked = torch.zeros(200, dtype=torch.int64)
    shown = data.show(picked, True, 16, OneLayer("", 3, 32), settings, Draws.all(torch.Generator().manual_seed(0), 200))
    inputs, labels, regions = shown.inputs, shown.labels, shown.regions
    assert inputs.shape == (200, 3, 16, 16) and labels.tolist() == [[0]] * 200 and regions.shape == (200, 1, 4, 4)
    pixels = inputs * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    cells = nn.functional.avg_pool2d(pixels, 4)
    own = torch.einsum("bmhw,bchw->bmc", regions, cells)[:, 0].argmax(1)
    assert (own == 0).float().mean() > 0.95 and (cells.sum((2, 3)).argmax(1) == 0).float().mean() < 0.8


def test_full_images_teach_all_their_objects(boxed):
    data = read_objects(boxed, "train", "crops")
    model = OneLayer("", 3, 32)
    shown = data.show(torch.tensor([0, 5]), False, 32, model, FAST, Draws.all(torch.Generator(), 2))
    inputs, labels, regions = shown.inputs, shown.labels, shown.regions
    assert inputs.shape == (2, 3, 32, 32) and torch.equal(labels, data.scenes.multisets[data.rows[[0, 5]]]) and regions.shape[:2] == (2, 3)
    logits = torch.zeros(2, 3, 3)
    logits[..., 1] = math.log(2.0)  # probabilities 1/4, 1/2, 1/4
    true = labels[labels >= 0]
    sums = data.loss(logits, labels)
    assert (sums.loss / sums.terms).item() == pytest.approx(np.mean([-math.log(0.5 if label == 1 else 0.25) for label in true.tolist()]))
    assert (sums.right / sums.cases).item() == pytest.approx((true == 1).float().mean().item())


def test_one_label_is_drawn_anew_each_time_and_each_as_often_as_it_stands_there():
    scenes = Scenes(torch.zeros(1, 8, 8, dtype=torch.uint8), torch.tensor([[2, 0, 2, 1, -1]]), None, 3)
    data, draws = LabelledImages.of(scenes), Draws.all(torch.Generator().manual_seed(0), 2000)
    settings = dataclasses.replace(FAST, augment=False)
    drawn = data.show(torch.zeros(2000, dtype=torch.int64), False, 32, OneLayer("", 3, 32), settings, draws).labels
    shares = torch.bincount(drawn, minlength=3) / 2000
    assert torch.allclose(shares, torch.tensor([0.25, 0.25, 0.5]), atol=0.04)


def test_counts_cost_poissons_likelihood_and_are_scored_by_their_overlap():
    scenes = Scenes(torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([[0, 0, 1], [2, -1, -1]]), None, 3)
    data = CountedImages.of(scenes)
    volumes = torch.zeros(2, 3, 2, 2)  # a channel a class, on four cells
    volumes[0, 0], volumes[0, 1, 0, 1], volumes[1, 0, 1, 1], volumes[1, 2, 1, 0] = 0.9, 3.2, 1.2, 2.5
    counts = torch.tensor([[2, 1, 0], [0, 0, 1]])

    class Says(nn.Module):
        input_size, fc = 8, nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return volumes

        def classify(self, images: torch.Tensor) -> torch.Tensor:
            return volumes.sum((2, 3))

    rates = [[sum(math.log(1 + math.exp(cell) / 4) for cell in own.flatten().tolist()) for own in row] for row in volumes]
    assert data.answers(Says(), volumes, None).tolist() == [pytest.approx(row) for row in rates]
    assert data.answers(Says(), torch.zeros(1, 3, 2, 2), None).tolist() == [pytest.approx([4 * math.log(1.25)] * 3)], "nothing is seen"
    sums = data.loss(torch.tensor(rates), counts)
    slow = [
        rate - count * math.log(rate) for own, row in zip(counts.tolist(), rates, strict=True) for rate, count in zip(row, own, strict=True)
    ]
    assert (sums.loss / sums.terms).item() == pytest.approx(np.mean(slow), rel=1e-5)
    assert [[round(rate) for rate in row] for row in rates] == [[2, 3, 1], [1, 1, 2]]
    assert (sums.right / sums.cases).item() == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert data.score(Says(), 2, CPU) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert LabelledImages.of(scenes).score(Says(), 2, CPU) == 1.0  # it names 0 and 2


def test_the_score_of_boxed_objects_is_the_share_named_from_their_own_cells(boxed):
    data = read_objects(boxed, "test", "crops")
    torch.manual_seed(3)
    model = OneLayer("", 3, 32).eval()
    right = 0
    centres = cell_centres(torch.eye(2, 3)[None], 8, (48, 48))
    with torch.no_grad():
        for row, column in zip(data.rows.tolist(), data.columns.tolist(), strict=True):
            from hsal_cli.vision.images import to_input

            regions = own_cells(data.scenes.corners[row][None], centres)[:, column][:, None]
            logits = model.classify(to_input(data.scenes.images[row][None], 32), regions)[0, 0]
            right += int(logits.argmax() == data.labels[(data.rows == row) & (data.columns == column)])
    assert data.score(model, 3, CPU) == pytest.approx(right / len(data.rows))


def test_an_epoch_of_crops_is_planned_by_objects(boxed):
    settings = dataclasses.replace(FAST, mode="crops", crowd=1, objects="crops")
    task = FinetuneTask(OneLayer("", 3, 32), read_objects(boxed, "train", "crops"), settings, CPU, {})
    task.start_epoch(0)
    shown = torch.cat([rows for rows, _ in task.batches])
    assert len(shown) == 160 and shown.max() < len(task.data.labels)
    assert {side for _, side in task.batches} <= {16, 20, 24, 28, 32}


def test_a_missing_backbone_is_made_from_the_scenes_themselves_where_they_are_not_mnists(boxed, tmp_path, monkeypatch):
    from hsal_cli.experiments import pipeline

    monkeypatch.chdir(tmp_path)
    taken = []

    class Made:
        path = Path("made")

    monkeypatch.setattr(pipeline, "finetune", lambda scenes, *_: taken.append(scenes) or Made)
    monkeypatch.setattr(pipeline, "make_dataset", lambda name, settings, out, *_: out)
    recipe = pipeline.Recipe(None, None, None, None, None)
    for scenes in (boxed, Path("data/mnist-multiset.h5")):
        pipeline.ensure_backbone(recipe, CPU, StoppingReporter(), scenes)
    assert taken == [boxed, pipeline.SINGLE]
