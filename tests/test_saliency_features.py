"""Saliency models through the pipeline: features, training, evaluation and pictures hold to one model, and refuse another by name."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from test_precompute import TEST, TRAIN, Heard, write_scenes
from typer.testing import CliRunner

from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import ensure_features
from hsal_cli.features.precompute import precompute
from hsal_cli.features.saliency.cells import to_cells
from hsal_cli.features.saliency.itti import itti_saliency
from hsal_cli.features.saliency.models import CenterPrior, saliency_model
from hsal_cli.features.settings import SALIENCY, PrecomputeSettings, dataset_of, features_path
from hsal_cli.features.table import check_match, open_features
from hsal_cli.main import app
from hsal_cli.models.load import load_policy
from hsal_cli.models.look import look, look_at_scenes
from hsal_cli.policy.variant import Variant
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.storage.hdf5 import attribute, put_text, seal
from hsal_cli.training.train import train
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision.backbone import ActivationModel, load_backbone

CPU = torch.device("cpu")
SMALL = Variant(controller_encode=8, controller_hidden=8, location_hidden=4)


def write_backbone(path: Path, poison: float = 0.0) -> Path:
    """A backbone of random weights whose volumes have 2 x 2 cells."""
    torch.manual_seed(0)
    model = ActivationModel("resnet18", 3, 64, 2)
    torch.nn.init.constant_(model.bn1.bias, poison)
    meta = {"kind": "backbone", "arch": "resnet18", "input_size": 64, "resolution": 2, "classes": ["a", "b", "c"], "weights": "random"}
    checkpoints.write_checkpoint(path, model.state_dict(), None, meta)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Scenes, a backbone, features with two saliency models, and a policy trained on those of one of them."""
    folder = tmp_path_factory.mktemp("made")
    scenes, backbone = write_scenes(folder / "s.h5"), write_backbone(folder / "b")
    precompute(scenes, backbone, folder / "s.features.h5", PrecomputeSettings(), CPU)
    itti = precompute(scenes, backbone, folder / "s.itti.features.h5", PrecomputeSettings(saliency="itti", batch_size=10), CPU)
    train(itti, folder / "run", SMALL, TrainSettings(epochs=1, batch_size=16), CPU, backbone=backbone)
    return folder


def test_features_hold_the_models_maps_and_say_whose_they_are(made):
    with (
        open_features(made / "s.features.h5") as old,
        open_features(made / "s.itti.features.h5") as new,
        open_scenes(made / "s.h5") as file,
    ):
        assert (old.saliency, new.saliency) == ("activation", "itti") and old.digest != new.digest
        for split in ("train", "test"):
            images = torch.from_numpy(file.split(split).read(0, TRAIN))
            assert torch.equal(old.table(split).volumes, new.table(split).volumes)
            torch.testing.assert_close(new.table(split).saliency, to_cells(itti_saliency(images), (2, 2)), rtol=1e-3, atol=1e-5)


def test_volumes_of_other_features_are_copied_without_running_the_backbone(made, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the backbone was run")

    monkeypatch.setattr(sys.modules["hsal_cli.features.precompute"], "to_input", never)
    settings = PrecomputeSettings(saliency="itti", batch_size=10)
    out = precompute(made / "s.h5", made / "b", tmp_path / "f.h5", settings, CPU, volumes_from=made / "s.features.h5")
    with open_features(out) as found, open_features(made / "s.itti.features.h5") as wanted:
        assert found.digest == wanted.digest
        for split in ("train", "test"):
            for part in ("volumes", "saliency", "labels"):
                assert torch.equal(getattr(found.table(split), part), getattr(wanted.table(split), part))
    with pytest.raises(UsageError, match="computed from unrounded volumes"):
        precompute(made / "s.h5", made / "b", tmp_path / "g.h5", PrecomputeSettings(), CPU, volumes_from=out)
    other = write_scenes(tmp_path / "other.h5", seed=1)
    with pytest.raises(FileError, match="another scene file"):
        precompute(other, made / "b", tmp_path / "g.h5", settings, CPU, volumes_from=out)
    assert not (tmp_path / "g.h5").exists()


def test_features_of_another_saliency_model_are_refused_by_name(made):
    with pytest.raises(FileError, match="activation, not itti") as caught:
        precompute(made / "s.h5", made / "b", made / "s.features.h5", PrecomputeSettings(saliency="itti"), CPU)
    assert "--overwrite" in caught.value.hint
    with open_features(made / "s.itti.features.h5") as features:
        check_match(features, saliency_digest="itti")
        with pytest.raises(FileError, match="itti, not center"):
            check_match(features, saliency_digest="center")
    with pytest.raises(FileError, match=r"saliency of kind activation, the policy was trained with itti"):
        evaluate_file(load_policy(made / "run"), made / "s.features.h5", EvalSettings(resamples=2))


def test_each_model_has_its_own_file_beside_the_scenes(made):
    heard = Heard()
    found = ensure_features(made / "s.h5", made / "b", heard, CPU, PrecomputeSettings(saliency="itti"))
    assert found == made / "s.itti.features.h5" and not heard.said
    assert ensure_features(made / "s.h5", made / "b", heard, CPU) == made / "s.features.h5"
    assert features_path(Path("d/x.h5"), "file:maps") == Path("d/x.file.features.h5")
    assert [dataset_of(features_path(Path("x.h5"), name)) for name in ("activation", "itti", "file:a")] == ["x"] * 3


def test_a_policy_keeps_to_its_model_when_it_is_scored_and_shown_pictures(made):
    loaded, backbone = load_policy(made / "run"), load_backbone(made / "b")
    assert loaded.meta.saliency == "itti"
    scores = evaluate_file(loaded, made / "s.itti.features.h5", EvalSettings(resamples=2))
    assert scores["saliency"] == "itti" and scores["dataset"] == "s" and scores["examples"] == TEST
    loaded.policy.controller.label.bias.data[-1] = -100  # never stop, so that there is a step to look at
    pictures = [torch.randint(0, 256, size, dtype=torch.uint8) for size in ((40, 30, 3), (25, 70))]
    for picture, shown in zip(pictures, look(pictures, backbone, loaded, max_steps=1), strict=True):
        colour = picture if picture.dim() == 3 else picture[..., None].expand(-1, -1, 3)
        wanted = to_cells(itti_saliency(colour[None]), (2, 2))[0].sqrt()
        wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
        np.testing.assert_allclose(shown.steps[0].saliency, wanted, atol=1e-4)


def test_maps_from_files_are_found_by_split_and_row_and_not_used_for_other_scenes(made, tmp_path):
    draw = np.random.default_rng(0)
    maps = {split: draw.random((count, 4, 4)).astype(np.float32) for split, count in (("train", TRAIN), ("test", TEST))}
    for split, stack in maps.items():
        np.save(tmp_path / f"{split}.npy", stack)
    settings = PrecomputeSettings(saliency=f"file:{tmp_path}", batch_size=7)
    out = precompute(made / "s.h5", made / "b", tmp_path / "f.h5", settings, CPU, volumes_from=made / "s.features.h5")
    with open_features(out) as features:
        for split, stack in maps.items():
            wanted = torch.from_numpy(stack.reshape(-1, 2, 2, 2, 2).mean((2, 4)))
            torch.testing.assert_close(features.table(split).saliency, wanted)
    train(out, tmp_path / "run", SMALL, TrainSettings(epochs=1, batch_size=16), CPU)
    loaded, backbone = load_policy(tmp_path / "run"), load_backbone(made / "b")
    loaded.policy.controller.label.bias.data[-1] = -100
    shown = look_at_scenes(made / "s.h5", "test", [3], backbone, loaded, max_steps=1)[0][0]
    wanted = np.sqrt(maps["test"][3].reshape(2, 2, 2, 2).mean((1, 3)))
    np.testing.assert_allclose(shown.steps[0].saliency, (wanted - wanted.min()) / (wanted.max() - wanted.min()), atol=1e-5)
    with pytest.raises(FileError, match="made for other scenes"):
        look_at_scenes(write_scenes(tmp_path / "other.h5", seed=1), "test", [3], backbone, loaded)
    np.save(tmp_path / "test.npy", maps["test"] + 1)
    with open_features(out) as features, pytest.raises(FileError, match="of other files"):
        check_match(features, saliency_digest=saliency_model(f"file:{tmp_path}").digest)


@pytest.mark.parametrize("kind", [*SALIENCY, "file"])
def test_hsal_check_finds_features_of_every_saliency_model_sound_and_tells_one_from_another(made, tmp_path, kind):
    for split, count in (("train", TRAIN), ("test", TEST)):
        np.save(tmp_path / f"{split}.npy", np.ones((count, 2, 2), np.float32))
    name = f"file:{tmp_path}" if kind == "file" else kind
    copied = {} if kind == "activation" else {"volumes_from": made / "s.features.h5"}
    out = precompute(made / "s.h5", made / "b", tmp_path / "f.h5", PrecomputeSettings(saliency=name), CPU, **copied)
    assert check_path(out).ok, check_path(out).faults
    with h5py.File(out, "r+") as file:
        put_text(file, "saliency_digest", "another")
        seal(file, attribute(file, "digest"))  # as whoever changes it would
    assert check_path(out).faults == ["its digest is not that of the scene file, the backbone and the saliency model that it names"]


def test_a_saliency_model_that_gives_values_below_0_is_refused_by_name(made, tmp_path, monkeypatch):
    monkeypatch.setattr(CenterPrior, "__call__", lambda self, images, volumes, names: -torch.ones(len(volumes), *volumes.shape[2:]))
    with pytest.raises(FileError, match="saliency model center gives values below 0"):
        precompute(made / "s.h5", made / "b", tmp_path / "f.h5", PrecomputeSettings(saliency="center"), CPU)
    assert not (tmp_path / "f.h5").exists()


def test_a_feature_file_with_saliency_below_0_is_not_trained_on(made, tmp_path):
    out = tmp_path / "f.h5"
    out.write_bytes((made / "s.features.h5").read_bytes())
    with h5py.File(out, "r+") as file:
        file["train/saliency"][5, 1, 0] = -0.5
    with pytest.raises(FileError, match="train: row 5 of saliency has values below 0"):
        train(out, tmp_path / "run", SMALL, TrainSettings(epochs=1, batch_size=16), CPU)


def test_volumes_that_are_not_finite_are_refused_whatever_the_saliency_model(made, tmp_path):
    backbone = write_backbone(tmp_path / "b", poison=float("nan"))
    with pytest.raises(FileError, match="not finite"):
        precompute(made / "s.h5", backbone, tmp_path / "f.h5", PrecomputeSettings(saliency="center"), CPU)


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_commands_take_a_saliency_model_and_hold_feature_files_to_it(made):
    error = call("precompute", "--data", made / "s.h5", "--backbone", made / "b", "--saliency", "iti").exception
    assert isinstance(error, UsageError) and "did you mean itti" in error.message
    report = json.loads(
        call("precompute", "--data", made / "s.h5", "--backbone", made / "b", "--resolution", "own", "--saliency", "itti", "--json").stdout
    )
    assert report["saliency"] == "itti" and report["out"] == str(made / "s.itti.features.h5")
    error = call("train", "--data", made / "s.itti.features.h5", "--saliency", "center", "--out", made / "no").exception
    assert isinstance(error, FileError) and "itti, not center" in error.message and not (made / "no").exists()
    with h5py.File(made / "s.itti.features.h5") as file:
        assert attribute(file, "saliency") == "itti"


def test_hsal_saliency_lays_maps_over_pictures(made, tmp_path):
    image = np.full((50, 90, 3), 60, np.uint8)
    image[30:40, 70:80] = (220, 40, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    said = call("saliency", tmp_path / "a.png", "--all", "--backbone", made / "b", "--json")
    found = json.loads(said.stdout)[0]
    assert list(found["maps"]) == ["activation", "itti", "spectral-residual", "center"]
    assert found["maps"]["itti"]["maximum"] == [1, 1] and np.shape(found["maps"]["activation"]["map"]) == (2, 2)
    with Image.open(found["picture"]) as picture:
        assert found["picture"] == str(tmp_path / "a.saliency.hsal.png") and 700 < picture.width <= 1000
    assert "(4, 5)" in call("saliency", tmp_path / "a.png", "--saliency", "itti").stdout  # without a backbone, 7 x 7 cells
    error = call("saliency", tmp_path / "a.png", "--saliency", "itti", "--backbone", made / "b").exception
    assert isinstance(error, UsageError)
    assert call("saliency", tmp_path / "none.png", "--saliency", "itti").exit_code == 1
