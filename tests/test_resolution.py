"""Finer maps: fine-tuning, precomputing, training, evaluation and pictures at 14 and 28 cells a side, at toy size."""

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from picture_parts import drawn

from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.files import evaluate_file, evaluate_scenes
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import PrecomputeSettings, dataset_of, features_path
from hsal_cli.features.table import open_features
from hsal_cli.finetuning.finetune import finetune
from hsal_cli.models.load import find_backbone, load_policy
from hsal_cli.models.look import look_at_scenes
from hsal_cli.policy.variant import COLUMNS, FIXED_MASK, Variant
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.storage.hdf5 import attribute, put_text, seal
from hsal_cli.training.train import train
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision.backbone import ActivationModel, load_backbone
from hsal_cli.vision.images import to_input
from hsal_cli.vision.resolution import at_twice_the_size, finer

CPU = torch.device("cpu")
SMALL = {"controller_encode": 8, "controller_hidden": 8, "location_hidden": 4, "meta_encode": 8, "meta_hidden": 8}


def write_scenes(path: Path) -> Path:
    """Bright squares, one an image, of two classes: large and small."""
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["large", "small"])
        for split, count in (("train", 6), ("test", 2)):
            images, boxes = np.zeros((count, 56, 56), np.uint8), np.zeros((count, 1, 4), np.int16)
            for row in range(count):
                side = 20 if row % 2 == 0 else 10
                x, y = 4 + 5 * row, 30 - 4 * row
                images[row, y : y + side, x : x + side] = 230
                boxes[row, 0] = x, y, x + side, y + side
            group = file.create_group(split)
            group["images"], group["boxes"], group["labels"] = images, boxes, (np.arange(count) % 2)[:, None].astype(np.int16)
    return path


@pytest.mark.parametrize("side", [14, pytest.param(28, marks=pytest.mark.slow)])
def test_the_whole_pipeline_works_on_finer_maps(side, tmp_path):
    scenes = write_scenes(tmp_path / "s.h5")
    settings = FinetuneSettings(
        arch="resnet18",
        input_size=8 * side,
        resolution=str(side),
        weights="none",
        crop_images=2,
        full_images=2,
        epoch_images=2,
        crowd=2,
        batch_size=2,
        validation=2,
    )
    run = finetune(scenes, tmp_path / "backbone", settings, CPU)
    features = precompute(scenes, run.path, tmp_path / "s.features.h5", PrecomputeSettings(batch_size=2), CPU)
    with open_features(features) as file:
        assert file.volume_shape == (512, side, side)
        assert file.table("test").saliency.shape == (2, side, side)
    for mask, variant in (("winner-take-all", FIXED_MASK), ("anchored", COLUMNS)):
        variant = dataclasses.replace(variant, **SMALL)
        train(features, tmp_path / mask, variant, TrainSettings(epochs=1, batch_size=4), CPU, backbone=run.path)
    loaded = load_policy(tmp_path / "winner-take-all")
    scores = evaluate_file(loaded, features, EvalSettings(resamples=2))
    assert scores["examples"] == 2
    loaded.policy.controller.label.bias.data[-1] = -100  # never stop, so that there is something to draw
    shown, truth = look_at_scenes(scenes, "test", [1], load_backbone(run.path), loaded, max_steps=2)[0]
    assert shown.steps[0].mask.shape == (side, side) and truth == ["small"]
    # The mask covers what it covers on 7 x 7 cells, exp(-beta d^2) with d in cells of that size, to within the finer cells' width.
    row, column = np.unravel_index(shown.steps[0].saliency.argmax(), (side, side))
    rows, columns = np.indices((side, side))
    wanted = np.exp(-FIXED_MASK.beta[0] * (7 / side) ** 2 * ((rows - row) ** 2 + (columns - column) ** 2))
    np.testing.assert_allclose(shown.steps[0].mask, wanted, atol=1e-5)
    assert drawn(shown, truth).width > 2 * 168


@pytest.mark.parametrize(("input_size", "dilate", "more"), [(56, False, 14), (112, False, 28), (224, True, 14), (112, True, 14)])
def test_finer_volumes_hold_the_trained_ones_at_every_second_cell(input_size, dilate, more):
    torch.manual_seed(0)
    model = ActivationModel("resnet18", 3, input_size, 7, dilate).eval()
    with torch.inference_mode():
        images = torch.randn(1, 3, input_size, input_size)
        fine = finer(model, more)
        volumes, known = fine(images), model(images)
    assert volumes.shape == (1, 512, more, more) and (fine.resolution, fine.stride) == (more, input_size // more)
    step = more // 7
    torch.testing.assert_close(volumes[..., ::step, ::step], known, rtol=1e-4, atol=1e-4)
    assert finer(model, 7) is model
    with pytest.raises(UsageError, match="resolution = 21 is not to be had from a backbone of 7 x 7 cells"):
        finer(model, 21)


def test_twice_the_size_gives_twice_the_cells_by_the_same_strides():
    """An object that is half as large in the image is as large in px; away from the border the volume is that of the image's part."""
    torch.manual_seed(0)
    model = ActivationModel("resnet18", 3, 56, 7).eval()
    double = at_twice_the_size(model)
    assert (double.input_size, double.resolution, double.stride) == (112, 14, model.stride) and model.input_size == 56
    small = to_input(torch.randint(0, 255, (1, 200, 200, 3), dtype=torch.uint8), 112)
    with torch.inference_mode():
        assert double(small).shape == (1, 512, 14, 14)
        torch.testing.assert_close(double(small), model(small), rtol=0, atol=0)  # the weights are the same, and where they look


@pytest.mark.parametrize(
    ("asked", "name"), [("14", "s.14x14.features.h5"), ("double", "s.double.features.h5"), ("double-fine", "s.double-fine.features.h5")]
)
def test_features_finer_than_the_backbone_go_through_training_evaluation_and_pictures(asked, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = write_scenes(tmp_path / "s.h5")
    settings = FinetuneSettings(
        arch="resnet18", input_size=56, weights="none", crop_images=2, full_images=2, epoch_images=2, crowd=1, batch_size=2, validation=2
    )
    run = finetune(scenes, tmp_path / "backbone", settings, CPU)
    fine = PrecomputeSettings(batch_size=2, resolution=asked)
    assert features_path(scenes, resolution=asked).name == name and dataset_of(Path(name.replace(".features", ".itti.features"))) == "s"
    features = precompute(scenes, run.path, features_path(scenes, resolution=asked), fine, CPU)
    own = precompute(scenes, run.path, features_path(scenes), PrecomputeSettings(batch_size=2, resolution="7"), CPU)
    with open_features(features) as file, open_features(own) as coarse:
        channels = 512 + 4 * 64 * (asked == "double-fine")  # layer1's
        assert file.volume_shape == (channels, 14, 14) and file.digest != coarse.digest
        assert file.input_size == (56 if asked == "14" else 112)
        if asked == "14":  # every second cell is that of the own resolution
            np.testing.assert_allclose(file.table("test").volumes[..., ::2, ::2], coarse.table("test").volumes, rtol=1e-2, atol=1e-3)
    plain = precompute(scenes, run.path, tmp_path / "plain.h5", PrecomputeSettings(batch_size=2), CPU)
    with open_features(plain) as file, open_features(own) as coarse:
        assert file.digest == coarse.digest  # asking for what it has changes nothing
    other = tmp_path / "other.features.h5"
    with pytest.raises(FileError, match=rf"the volumes of .* are {channels}x14x14 at \d+ px, those to be written 512x7x7 at 56 px"):
        precompute(scenes, run.path, other, PrecomputeSettings(saliency="itti"), CPU, volumes_from=features)
    assert not other.exists()
    for whole in (features, own, plain):
        assert check_path(whole).ok, check_path(whole).faults
    unasked = Path(shutil.copy(features, tmp_path / "unasked.h5"))
    with h5py.File(unasked, "r+") as file:
        put_text(file, "config", json.dumps({**json.loads(attribute(file, "config")), "resolution": None}))
        seal(file, attribute(file, "digest"))
    assert any("its digest is not that" in fault for fault in check_path(unasked).faults)  # nobody asked for 14 x 14 cells
    train(features, tmp_path / "p", Variant(**SMALL), TrainSettings(epochs=1, batch_size=4), CPU, backbone=run.path)
    loaded = load_policy(tmp_path / "p")
    backbone = find_backbone(loaded)
    assert (backbone.model.resolution, backbone.refined) == (14, asked)
    loaded.policy.controller.label.bias.data[-1] = -100  # never stop, so that there is something to score
    here, there = (
        evaluate_file(loaded, features, EvalSettings(resamples=2)),
        evaluate_scenes(loaded, backbone, scenes, EvalSettings(resamples=2)),
    )
    assert here["exact_match"] == there["exact_match"] and here["attn_saliency"] == pytest.approx(there["attn_saliency"], rel=1e-2)
