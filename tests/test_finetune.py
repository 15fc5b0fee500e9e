"""Fine-tuning with a network of one convolution in place of the ResNet: plan, views, exact resuming, refusals."""

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
from learning_parts import OneLayer, StoppingReporter, assert_equal, without

from hsal_cli import threads
from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.finetuning.finetune import FinetuneTask, background_share, finetune, is_own, settle
from hsal_cli.finetuning.objects import SingleObjects
from hsal_cli.finetuning.reading import read_objects
from hsal_cli.finetuning.views import crop_sides, share_in_view, views
from hsal_cli.runs.record import evaluations
from hsal_cli.runs.seeds import Draws, seeded
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.training.rewards import count_labels
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.images import to_input

CPU = torch.device("cpu")
# 18 of 24 images: crops in 2 epochs of 3 steps, full images in 1 of 2.
FAST = FinetuneSettings(
    input_size=32, crop_images=48, full_images=16, epoch_images=24, batch_size=8, validation=6, mode="crops", learning_rate=0.05
)


@pytest.fixture(autouse=True)
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "ActivationModel", OneLayer)
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "initial_weights", lambda model, weights, reporter: "random")


def write_scenes(path: Path, count: int = 24, boxes: bool = True, colour: bool = True, extra_label: bool = False, test: int = 6) -> Path:
    """Red or blue squares (bright or dark ones if grey) on a dim ground, as a user might write them."""
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["red", "blue"])
        for split, size in (("train", count), ("test", test)):
            images = draw.integers(0, 30, (size, 40, 50, 3), dtype=np.uint8)
            labels = draw.integers(0, 2, (size, 2)).astype(np.int16)
            labels[:, 1] = -1
            placed = np.full((size, 2, 4), -1, np.int16)
            for row in range(size):
                side, x, y = draw.integers(8, 16), draw.integers(0, 34), draw.integers(0, 24)
                placed[row, 0] = x, y, x + side, y + side
                images[row, y : y + side, x : x + side, 2 * labels[row, 0]] = 220
            if extra_label and split == "train":
                labels[5, 1] = 1
                placed[5, 1] = 0, 0, 5, 5
            group = file.create_group(split)
            group["images"], group["labels"] = images if colour else images[..., 0], labels
            if boxes:
                group["boxes"] = placed
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "squares.h5")


def task_of(data: SingleObjects, settings: FinetuneSettings = FAST) -> FinetuneTask:
    torch.manual_seed(0)
    return FinetuneTask(OneLayer("resnet34", 2, settings.input_size), data, settings, CPU, {})


@pytest.mark.parametrize("after", [2, 3, 7])
def test_a_stopped_run_resumes_to_exactly_what_it_would_have_been(after: int, scenes: Path, tmp_path: Path) -> None:
    whole = finetune(scenes, tmp_path / "whole", FAST, CPU)
    with pytest.raises(Interrupted, match="state is saved"):
        finetune(scenes, tmp_path / "run", FAST, CPU, StoppingReporter(after))
    torch.manual_seed(999)
    resumed = finetune(Path("nowhere"), tmp_path / "run", FinetuneSettings(), CPU, resume=True)
    for which in ("last", "best"):
        mine, theirs = (checkpoints.load(run.checkpoints, which) for run in (resumed, whole))
        for part in ("weights", "state", "meta"):
            assert_equal(getattr(mine, part), getattr(theirs, part), part)
    assert [without(row) for row in resumed.rows()] == [without(row) for row in whole.rows()]
    ends = [{key: run.status.raw[key] for key in ("state", "accuracy", "test_accuracy")} for run in (resumed, whole)]
    assert ends[0] == ends[1] and ends[0]["state"] == "finished"


def test_cores_that_others_use_are_told_of(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "advice", lambda count: f"{count} threads are too many")
    reporter = StoppingReporter(after=1)
    with pytest.raises(Interrupted):
        finetune(scenes, tmp_path / "run", FAST, CPU, reporter)
    assert f"{torch.get_num_threads()} threads are too many" in reporter.said


def test_a_finished_run_has_nothing_left_to_resume(scenes: Path, tmp_path: Path) -> None:
    run = finetune(scenes, tmp_path / "run", FAST, CPU)
    reporter = StoppingReporter()
    finetune(scenes, run.path, FAST, CPU, reporter, resume=True)
    assert reporter.steps == 0 and any("nothing to do" in line for line in reporter.said)


@pytest.mark.parametrize("colour", [True, False])
def test_fine_tuning_learns_colour_and_grey_images_and_describes_its_checkpoint(colour: bool, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "squares.h5", colour=colour)
    settings = dataclasses.replace(FAST, crop_images=160, full_images=80, epoch_images=80, augment=False)
    run = finetune(scenes, tmp_path / "run", settings, CPU)
    assert run.status.accuracy == max(row["accuracy"] for row in run.rows()) and run.status.accuracy > 0.8
    best = checkpoints.load(run.checkpoints, "best")
    meta = best.meta
    assert (meta["kind"], meta["arch"], meta["input_size"], meta["resolution"]) == ("backbone", "resnet34", 32, 7)
    assert meta["classes"] == ["red", "blue"] and meta["weights"] == "random" and meta["accuracy"] == run.status.accuracy
    model = OneLayer("resnet34", 2, 32)
    model.load_state_dict(best.weights)
    test = read_objects(scenes, "test", "single")
    model.eval()
    with torch.no_grad():
        right = sum(model.classify(to_input(test.images[row : row + 1], 32)).argmax().item() == test.labels[row].item() for row in range(6))
    assert run.status.test_accuracy == pytest.approx(right / 6) == test.score(model, 4, CPU)


def test_without_boxes_there_are_no_crops_and_that_is_said(tmp_path: Path) -> None:
    scenes, reporter = write_scenes(tmp_path / "squares.h5", boxes=False, test=1), StoppingReporter(1)
    with pytest.raises(Interrupted):
        finetune(scenes, tmp_path / "run", dataclasses.replace(FAST, mode="auto"), CPU, reporter)
    assert any("no boxes" in line for line in reporter.warned)
    run = finetune(scenes, tmp_path / "run", FAST, CPU, resume=True)
    assert run.config.finetune.mode == "full" and [row["epoch"] for row in run.rows()] == [1]
    with pytest.raises(UsageError, match="no boxes"):
        finetune(scenes, tmp_path / "other", FAST, CPU)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("device", "boxes", "expected"),
    [("cpu", True, ("crops", 112, 32)), ("cpu", False, ("full", 112, 128)), ("cuda", True, ("full", 224, 128))],
)
def test_what_is_left_open_is_settled_by_the_device_and_stays_so_on_another(device: str, boxes: bool, expected: tuple) -> None:
    settled = settle(FinetuneSettings(), torch.device(device), boxes)
    assert (settled.mode, settled.input_size, settled.batch_size) == expected and settled.full_images > 0
    assert all(settle(settled, torch.device(other), boxes) == settled for other in ("cpu", "cuda"))
    given = FinetuneSettings(arch="resnet18", mode="full", input_size=56, batch_size=5, full_images=9, crowd=1, background=0.0)
    given = dataclasses.replace(given, mirror=False, frozen=0.0, crop_images=7)
    assert settle(given, torch.device(device), boxes, own=True) == given


@pytest.mark.parametrize("here", [True, False])
def test_own_images_take_the_network_with_imagenets_weights_where_they_are_installed(here: bool, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "lite0_is_here", lambda: here)
    settled = settle(FinetuneSettings(objects="counts"), CPU, False, own=True)
    assert settled.arch == ("timm:tf_efficientnet_lite0" if here else "resnet34")
    assert (settled.batch_size, settled.full_images, settled.background) == (16, 12_000, 1.0), "counts take smaller batches"
    assert settle(FinetuneSettings(weights="none"), CPU, False, own=True).arch == "resnet34" == settle(FinetuneSettings(), CPU, False).arch
    for dataset, own in (("folder", True), ("mnist-single", False)):
        scenes = write_scenes(tmp_path / f"{dataset}.h5", count=2, test=1)
        with h5py.File(scenes, "a") as file:
            file.attrs["config"], file.attrs["hsal_version"] = json.dumps({"dataset": dataset}), "0"
        with open_scenes(scenes) as file:
            assert is_own(file) == own


def test_few_own_images_are_mirrored_and_leave_half_of_imagenets_layers_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "lite0_is_here", lambda: True)
    counts = FinetuneSettings(objects="counts")

    def told(settings: FinetuneSettings, **kept) -> tuple:
        found = settle(settings, CPU, False, **kept)
        return found.mirror, found.frozen, found.full_images

    assert told(counts, own=True, images=200) == (True, 0.5, 6000)
    assert told(counts, own=True, images=2000) == told(counts, images=200) == (False, 0.0, 12_000)
    assert told(dataclasses.replace(counts, weights="none"), own=True, images=200) == (True, 0.0, 12_000), "random layers are trained"
    assert told(dataclasses.replace(counts, mirror=False, frozen=0.25, full_images=9), own=True, images=200) == (False, 0.25, 9)
    boxed = {images: settle(FinetuneSettings(objects="crops"), CPU, True, own=True, images=images) for images in (200, 2000)}
    assert [(found.crop_images, found.full_images) for found in boxed.values()] == [(4000, 2000), (48_000, 36_000)]
    with pytest.raises(UsageError, match="would stay random"):
        settle(dataclasses.replace(counts, weights="none", frozen=0.5), CPU, False)


@pytest.mark.parametrize("arch", ["resnet18", "timm:tf_efficientnet_lite0"])
def test_frozen_layers_keep_weights_and_statistics_while_the_others_learn(arch: str) -> None:
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = ActivationModel(arch, 3, 64, 2, False, 512)
    model.freeze(0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.classify(torch.randn(4, 3, 64, 64)).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    changed = [not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if tensor.dim() == 4]
    assert 0.4 < sum(changed) / len(changed) < 0.6 and changed == sorted(changed), "the first half, in the order of a pass"
    means = [not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name.endswith("running_mean")]
    assert 0.4 < sum(means) / len(means) < 0.6
    assert not model.eval().training and not any(module.training for module in model.modules())
    model.freeze(0.0)
    assert all(module.training for module in model.train().modules())


def test_mirrored_views_show_the_image_in_its_eight_arrangements() -> None:
    image = torch.randint(0, 256, (1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    draws = Draws.all(torch.Generator().manual_seed(0), 200)
    seen, theta = views(image.expand(200, 32, 32), None, 32, 32, False, draws, mirror=True)
    plain = to_input(image, 32)[0]
    ways = [turned for flipped in (plain, plain.flip(-1)) for turned in (flipped, flipped.flip(-2), flipped.mT, flipped.flip(-2).mT)]
    which = torch.stack([(seen - way).abs().amax((1, 2, 3)) < 1e-3 for way in ways])
    assert bool((which.sum(0) == 1).all()) and bool((which.sum(1) > 5).all())
    assert torch.allclose(torch.linalg.det(theta[:, :, :2]).abs(), torch.ones(200)), "boxes follow by the same map"


@pytest.mark.parametrize("nothing", [{"mode": "full", "full_images": 0}, {"mode": "crops", "full_images": 0, "crop_images": 0}])
def test_training_on_nothing_is_refused(nothing: dict) -> None:
    with pytest.raises(UsageError, match="nothing to train on"):
        settle(FinetuneSettings(**nothing), CPU, True)


def test_resuming_on_other_scenes_is_refused(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "squares.h5")
    with pytest.raises(Interrupted):
        finetune(scenes, tmp_path / "run", FAST, CPU, StoppingReporter(1))
    write_scenes(scenes, count=20)
    with pytest.raises(FileError, match="is not the scene file"):
        finetune(scenes, tmp_path / "run", FAST, CPU, resume=True)


def test_an_image_of_several_objects_is_refused_by_name(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "squares.h5", extra_label=True)
    with pytest.raises(FileError, match="image 5 of train holds 2 objects") as caught:
        finetune(scenes, tmp_path / "run", dataclasses.replace(FAST, objects="single"), CPU)
    assert "mnist-single" in caught.value.hint and not (tmp_path / "run").exists()


def test_a_missing_split_is_refused_by_name(scenes: Path) -> None:
    with pytest.raises(FileError, match="no split 'validation'"):
        read_objects(scenes, "validation", "single")


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (5, 2), (24, 6)])
def test_at_most_half_of_the_images_are_held_out(count: int, held_out: int, scenes: Path) -> None:
    data = read_objects(scenes, "train", "single", most=count)
    task = task_of(data)
    assert len(task.held_out.labels) == held_out and len(task.data.labels) == count - held_out
    every = torch.cat([task.held_out.images, task.data.images]).flatten(1)
    assert {tuple(image.tolist()) for image in every} == {tuple(image.tolist()) for image in data.images.flatten(1)}
    task.start_epoch(0)
    assert math.isfinite(task.step(0)[1]["loss"].item()) and 0 <= task.validate()["accuracy"] <= 1


def test_crops_come_first_and_every_image_is_shown_as_often(scenes: Path) -> None:
    settings = dataclasses.replace(FAST, crop_images=54, full_images=36, epoch_images=18)  # 18 images to train on
    task = task_of(read_objects(scenes, "train", "single"), settings)
    assert task.plan == [("crops", 18)] * 3 + [("full", 18)] * 2 and task.all_steps == sum(map(task.steps, range(5))) == 15
    for epoch in range(5):
        task.start_epoch(epoch)
        shown = torch.cat([rows for rows, _ in task.batches])
        assert torch.equal(shown.sort().values, torch.arange(18)) and len(task.batches) == task.steps(epoch)
        assert all(side == 32 for _, side in task.batches) if epoch > 2 else any(side < 32 for _, side in task.batches)


def test_an_epoch_of_more_images_than_there_are_repeats_them_evenly(scenes: Path) -> None:
    task = task_of(read_objects(scenes, "train", "single"), dataclasses.replace(FAST, crop_images=45, epoch_images=100))
    task.start_epoch(0)
    counts = torch.bincount(torch.cat([rows for rows, _ in task.batches]), minlength=18)
    assert counts.sum() == 45 and counts.min() >= 2 and counts.max() <= 3


def test_each_batch_of_crops_has_the_side_that_its_largest_object_needs(scenes: Path) -> None:
    task = task_of(read_objects(scenes, "train", "single"))
    task.start_epoch(0)
    for rows, side in task.batches:
        boxes = task.data.boxes[rows]
        needed = []
        for x0, y0, x1, y1 in boxes.tolist():
            object_side = 1.15 * max((x1 - x0) * 32 / 50, (y1 - y0) * 32 / 40)
            needed.append(16 if object_side <= 16 else min(32, 4 * math.ceil(object_side / 4)))
        assert side == max(needed)
        assert crop_sides(boxes, (40, 50), 32, 4).tolist() == needed


def test_the_share_in_view_is_that_of_an_object_which_a_view_shows() -> None:
    images = torch.zeros(60, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor(
        [[x, y, x + 20, y + 20] for x, y in [(0, 40), (80, 0), (40, 0), (40, 80), (40, 40), (78, 78)] * 10], dtype=torch.float
    )
    for image, (x0, y0, x1, y1) in zip(images, boxes.int().tolist(), strict=True):
        image[y0:y1, x0:x1] = 255
    seen, theta = views(images, None, 112, 112, True, Draws.all(torch.Generator().manual_seed(0), 60))
    shares = share_in_view(theta, boxes[:, None], (100, 100))[:, 0]
    assert shares.min() < 0.7 and (shares[4::6] == 1).all() and (shares == 1).float().mean() > 0.4
    grey = seen[:, 0].flatten(1)
    lit = (grey > (grey.amin(1, keepdim=True) + grey.amax(1, keepdim=True)) / 2).sum(1)
    whole = (20 * 1.12) ** 2 / torch.linalg.det(theta[:, :, :2])  # px of the view that the object takes up where none of it is cut off
    free = (boxes.amin(1) > 0) & (boxes.amax(1) < 100)  # what touches the image's border continues beyond it
    assert (lit / whole - shares)[free].abs().max() < 0.1


def looking_at(part: float, right: float):
    """Views that see only the middle `part` of an image, moved to the right."""
    theta = torch.tensor([[part, 0, right], [0, part, 0]])
    return lambda images, *_: (
        views(images, None, 32, 32, False, Draws.all(torch.Generator(), len(images)))[0],
        theta.expand(len(images), 2, 3),
    )


def test_an_object_that_is_cut_off_is_not_asked_for(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsal_cli.finetuning.objects.views", looking_at(0.6, 0.0))
    data = read_objects(scenes, "train", "single")
    settings = dataclasses.replace(FAST, mode="full", crowd=3)
    labels = data.show(torch.arange(24), False, 32, OneLayer("", 2, 32), settings, Draws.all(torch.Generator().manual_seed(0), 24)).labels
    x0, y0, x1, y1 = data.boxes.T
    whole = (x0 >= 10) & (x1 <= 40) & (y0 >= 8) & (y1 <= 32)  # of 50 x 40 px
    outside = (x1 <= 10) | (x0 >= 40) | (y1 <= 8) | (y0 >= 32)
    assert whole.any() and outside.any() and (labels[outside, 0] == -1).all() and torch.equal(labels[whole, 0], data.labels[whole])


def test_a_batch_of_objects_cut_off_alone_teaches_nothing_and_breaks_nothing(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsal_cli.finetuning.objects.views", looking_at(1.0, 3.0))
    task = task_of(read_objects(scenes, "train", "single"), dataclasses.replace(FAST, mode="full", crowd=2))
    task.start_epoch(len(task.plan) - 1)
    logged = task.step(0)[1]
    assert logged["loss"].item() == 0 and all(weight.isfinite().all() for weight in task.model.parameters())


@pytest.mark.parametrize(("augment", "least", "most"), [(False, 0.9, 1.1), (True, 0.65, 1.4)])
def test_a_crop_holds_its_object_whole_and_at_the_scale_of_the_full_image(augment: bool, least: float, most: float) -> None:
    places = [(x, y) for x in range(2, 50, 12) for y in range(2, 54, 8)]
    boxes = torch.tensor([[x, y, x + 12, y + 8] for x, y in places], dtype=torch.float)
    images = torch.zeros(len(places), 64, 64, dtype=torch.uint8)
    for image, (x, y) in zip(images, places, strict=True):
        image[y : y + 8, x : x + 12] = 255
    seen, _ = views(images, boxes, 32, 64, augment, Draws.all(torch.Generator().manual_seed(0), len(images)))
    assert seen.shape == (len(places), 3, 32, 32)
    grey = seen[:, 0].flatten(1)
    lit = (grey > (grey.amin(1, keepdim=True) + grey.amax(1, keepdim=True)) / 2).sum(1) / (12 * 8)
    assert lit.min() >= least and lit.max() <= most


def test_a_full_view_without_augmentation_is_the_networks_usual_input() -> None:
    images = torch.randint(0, 256, (3, 20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(views(images, None, 32, 32, False, Draws.all(torch.Generator(), 3))[0], to_input(images, 32))


def test_the_background_share_is_that_of_the_saliency_off_the_objects() -> None:
    volumes = torch.zeros(2, 3, 2, 2)
    volumes[0, 0, 0, 0], volumes[0, 1, 0, 0], volumes[0, 2, 1, 1] = 2, 1, 3  # saliency 5 and 9
    objects = torch.tensor([[[1.0, 0], [1, 0]], [[0.0, 0], [0, 0]]])
    assert torch.allclose(background_share(volumes, objects), torch.tensor([9 / 14, 0.0]))


@pytest.mark.parametrize("crowd", [1, 3])
def test_the_background_term_takes_saliency_off_the_ground(crowd: int, scenes: Path, tmp_path: Path) -> None:
    shares = {}
    for weight in (1e-9, 1.0):
        settings = dataclasses.replace(FAST, mode="full", full_images=288, epoch_images=144, background=weight, crowd=crowd)
        run = finetune(scenes, tmp_path / f"run-{weight}", settings, CPU)
        shares[weight] = run.rows()[-1]["background_share"]
    assert 0 < shares[1.0] < 0.8 * shares[1e-9] < 0.8


def test_the_background_term_is_off_by_default_and_needs_boxes(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "plain.h5", boxes=False)
    settings = dataclasses.replace(FAST, mode="full")
    assert "background_share" not in finetune(scenes, tmp_path / "run", settings, CPU).rows()[-1]
    with pytest.raises(UsageError, match="there are no boxes that tell"):
        finetune(scenes, tmp_path / "other", dataclasses.replace(settings, background=0.5), CPU)


def test_where_counts_teach_the_background_is_what_expects_no_object(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "plain.h5", boxes=False)
    shares = {}
    for weight in (1e-9, 1.0):
        settings = dataclasses.replace(FAST, mode="full", full_images=288, epoch_images=144, background=weight, objects="counts")
        run = finetune(scenes, tmp_path / f"run-{weight}", settings, CPU)
        shares[weight] = run.rows()[-1]["background_share"]
    assert 0 < shares[1.0] < 0.95 * shares[1e-9] < 0.95
    model = OneLayer("resnet34", 2, 32)
    model.load_state_dict(checkpoints.load(run.checkpoints, "best").weights)
    test = read_objects(scenes, "test", "counts")
    with torch.no_grad():
        found = test.answers(model.eval(), model(to_input(test.images, 32)), None).round()
    right = (found == count_labels(test.scenes.multisets, 2)).all(1).float().mean()
    assert run.status.test_exact_match == pytest.approx(float(right)) and 0 < run.status.test_macro_f1 <= 1
    [(place, scored)] = evaluations([run.path])  # as `hsal compare` asks for them
    assert place == run.path and scored.examples == len(test.images) and scored.exact_match == run.status.test_exact_match
    assert scored.ci95.exact_match[0] <= scored.exact_match <= scored.ci95.exact_match[1] and scored.objective == "counts"
    assert scored.flops["image"] == scored.flops["backbone"] > 0 and scored.parameters == sum(part.numel() for part in model.parameters())
    alone = finetune(scenes, tmp_path / "alone", dataclasses.replace(FAST, mode="full"), CPU)
    with pytest.raises(FileError, match=r"eval\.json") as caught:
        evaluations([alone.path])
    assert "hsal finetune --objects counts" in caught.value.hint


def test_a_classifier_of_single_objects_is_calibrated_before_it_counts(scenes: Path) -> None:
    """Sure in every cell, it would count dozens; scaled and shifted, its counts add up to about what there is."""
    torch.manual_seed(0)
    model, counted = OneLayer("resnet34", 2, 32).eval(), read_objects(scenes, "train", "counts")
    with torch.no_grad():
        model.fc.weight.mul_(40)
        volumes = model(to_input(counted.images, 32))
        before, evidence = counted.answers(model, volumes, None), model.fc(volumes.permute(0, 2, 3, 1))
        scale, shift = counted.calibrate(model, 8, CPU)
        after = counted.answers(model, volumes, None)
        assert torch.allclose(model.fc(volumes.permute(0, 2, 3, 1)), scale * evidence + shift, atol=1e-4)
    true = count_labels(counted.scenes.multisets, 2)
    assert before.sum(1).mean() > 10 and after.sum(1).mean() == pytest.approx(1, abs=0.2)
    assert counted.loss(after, true).loss < counted.loss(before, true).loss
    assert counted.calibrate(model, 8, CPU) == (1, 0)  # what fits already stays


@pytest.mark.parametrize("weights", ["random", "file:run"])
def test_only_weights_of_a_file_are_calibrated(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "initial_weights", lambda model, choice, reporter: weights)
    settings, reporter = dataclasses.replace(FAST, mode="full", objects="counts"), StoppingReporter(after=1)
    scenes = write_scenes(tmp_path / "plain.h5", boxes=False)
    with pytest.raises(Interrupted):
        finetune(scenes, tmp_path / "run", settings, CPU, reporter)
    finetune(scenes, tmp_path / "run", device=CPU, reporter=(again := StoppingReporter(after=99)), resume=True)
    assert len([said for said in reporter.said if "calibrated" in said]) == (weights != "random")
    assert not [said for said in again.said if "calibrated" in said]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # before there is a checkpoint, so it begins anew
        patch.setattr("hsal_cli.runs.loop._save", mock.Mock(side_effect=KeyboardInterrupt))
        finetune(scenes, tmp_path / "killed", settings, CPU)
    finetune(scenes, tmp_path / "killed", device=CPU, resume=True)
    assert_equal(*(checkpoints.load(tmp_path / name / "checkpoints", "last").weights for name in ("run", "killed")))


@pytest.mark.parametrize(("given", "meant"), [("out", "out/backbone"), ("out/backbone", "out/backbone"), ("imagenet", "imagenet")])
def test_of_an_exported_folder_the_backbone_is_meant(given: str, meant: str, scenes: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out/backbone").mkdir(parents=True)
    manifest = {"format": "hsal-pretrained", "format_version": 1, "backbone": {"sha256": {}}, "policies": {}}
    Path("out/manifest.json").write_text(json.dumps(manifest))
    asked = []
    monkeypatch.setattr(
        sys.modules["hsal_cli.finetuning.finetune"], "initial_weights", lambda model, choice, reporter: asked.append(choice) or ""
    )
    with pytest.raises(Interrupted):
        finetune(scenes, Path("run"), dataclasses.replace(FAST, weights=given), CPU, StoppingReporter(after=1))
    assert asked == [meant]


def test_views_depend_on_the_generator_alone() -> None:
    images = torch.randint(0, 256, (4, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again, other = (views(images, None, 32, 32, True, Draws.all(seeded(seed, 0), 4))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.isfinite().all()


def test_a_run_with_distortion_is_read_but_not_gone_on_with(scenes: Path, tmp_path: Path) -> None:
    run = finetune(scenes, tmp_path / "run", dataclasses.replace(FAST, full_images=24), CPU)
    for strength, more, refused in ((0.5, None, False), (0.0, 48, False), (0.5, 72, True)):
        write_sealed(run.path / "config.json", run.config.raw | {"finetune": run.config.raw["finetune"] | {"distort": strength}})
        with pytest.raises(UsageError, match=r"distort 0\.5, which this hsal no longer has") if refused else contextlib.nullcontext():
            assert finetune(scenes, run.path, device=CPU, resume=True, full_images=more).status.state == "finished"
