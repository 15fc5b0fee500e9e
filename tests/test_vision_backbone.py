"""The activation model: its strides, its agreement with torchvision, its checkpoints, and mixed installations."""

import builtins
import json
import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.features.saliency.models import activation_saliency
from hsal_cli.runs import run as runs
from hsal_cli.storage import checkpoints
from hsal_cli.vision.backbone import ActivationModel, fused, load_backbone

META = {
    "kind": "backbone",
    "arch": "resnet18",
    "input_size": 64,
    "resolution": 2,
    "classes": ["a", "b"],
    "weights": "random",
    "accuracy": 0.5,
}


def lively(model: nn.Module) -> nn.Module:
    """Gives BatchNorms the statistics of a trained network, so that they cannot be mistaken for the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def strided() -> ActivationModel:
    torch.manual_seed(0)
    return lively(ActivationModel("resnet18", 10, 64, 2))


def sized_like(model: ActivationModel, input_size: int, resolution: int) -> ActivationModel:
    other = ActivationModel("resnet18", 10, input_size, resolution)
    other.load_state_dict(model.state_dict())
    return other.eval()


@torch.inference_mode()
@pytest.mark.parametrize(("arch", "input_size", "resolution"), [("resnet34", 224, 7), ("resnet18", 112, 7), ("resnet18", 224, 14)])
def test_a_volume_has_512_channels_and_as_many_cells_as_asked_for(arch, input_size, resolution):
    volume = ActivationModel(arch, 10, input_size, resolution).eval()(torch.rand(1, 3, input_size, input_size))
    assert volume.shape == (1, 512, resolution, resolution)
    assert volume.min() >= 0 and volume.max() > 0


@torch.inference_mode()
def test_at_stride_32_volume_and_classification_are_torchvisions(strided):
    theirs = resnet18(num_classes=10)
    theirs.load_state_dict(strided.state_dict())
    theirs = theirs.to(memory_format=torch.channels_last).eval()
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    features = nn.Sequential(*list(theirs.children())[:-2])
    assert torch.equal(strided(images), features(images))
    torch.testing.assert_close(strided.classify(images), theirs(images))


@torch.inference_mode()
@pytest.mark.parametrize("finer", [2, 4])
def test_a_dilated_volume_holds_the_strided_one_at_every_nth_cell(strided, finer):
    images = torch.randn(1, 3, 64, 64)
    volume = sized_like(strided, 64, 2 * finer)(images)
    assert volume.shape[-1] == 2 * finer
    torch.testing.assert_close(volume[..., ::finer, ::finer], strided(images), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_crops_of_any_multiple_of_the_stride_give_a_volume(strided):
    assert strided(torch.rand(1, 3, 96, 96)).shape == (1, 512, 3, 3)
    assert sized_like(strided, 64, 4)(torch.rand(1, 3, 48, 48)).shape == (1, 512, 3, 3)


@torch.inference_mode()
def test_fusing_batch_norms_keeps_the_volume_and_the_model(strided):
    images = torch.randn(2, 3, 64, 64)
    before = strided(images)
    faster = fused(strided)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in faster.modules())
    assert (faster(images) - before).abs().max() < 1e-3 * before.abs().max()
    assert torch.equal(strided(images), before)


@pytest.mark.parametrize("values", [("resnet50", 10, 224, 7), ("resnet18", 10, 224, 8), ("resnet18", 10, 64, 7)])
def test_other_networks_and_strides_are_refused(values):
    with pytest.raises(UsageError):
        ActivationModel(*values)


def test_saliency_is_the_sum_of_squares_over_channels_even_of_large_half_precision_volumes():
    volumes = torch.rand(2, 5, 3, 4, dtype=torch.float16) * 1000  # squares beyond float16
    saliency = activation_saliency(volumes)
    assert saliency.shape == (2, 3, 4) and saliency.dtype == torch.float32
    for b in range(2):
        for i in range(3):
            for j in range(4):
                wanted = sum(float(volumes[b, c, i, j]) ** 2 for c in range(5))
                assert float(saliency[b, i, j]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("no"), OSError("libcudart.so")])
def test_a_torchvision_that_does_not_fit_torch_is_named_with_a_way_out(error, monkeypatch):
    real = builtins.__import__

    def mixed(name, *args, **options):
        if name.startswith("torchvision"):
            raise error
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "torchvision.models.resnet")
    monkeypatch.setattr(builtins, "__import__", mixed)
    with pytest.raises(HsalError) as caught:
        ActivationModel("resnet18", 10)
    assert "do not match" in caught.value.message and str(error) in caught.value.message
    assert torch.__version__.split("+")[0] in caught.value.message
    assert "install both together" in caught.value.hint


@pytest.fixture(scope="module")
def weights():
    return ActivationModel("resnet18", 2, 64, 2).state_dict()


def test_a_backbone_is_loaded_from_its_run_and_from_its_checkpoint(weights, tmp_path):
    run = runs.create(tmp_path / "run", "backbone", {})
    checkpoints.save(run.checkpoints, "epoch-1", weights, {}, META, best=True)
    random_state = torch.random.get_rng_state()
    by_run, by_checkpoint = load_backbone(run.path), load_backbone(run.checkpoints / "epoch-1")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert (
        by_run.digest == by_checkpoint.digest
        and by_run.meta == by_checkpoint.meta
        and by_run.meta.classes == META["classes"]
        and by_run.meta.arch == META["arch"]
    )
    assert by_run.path == run.checkpoints / "epoch-1"
    assert not by_run.model.training and by_run.model.resolution == 2
    for name, tensor in by_run.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("case", ["missing", "file", "empty folder", "policy", "other shapes", "no classes", "damaged"])
def test_what_is_not_a_backbone_is_refused(case, weights, tmp_path):
    path = tmp_path / "thing"
    if case == "file":
        path.write_text("x")
    elif case == "empty folder":
        path.mkdir()
    elif case != "missing":
        changes = {"policy": {"kind": "policy"}, "other shapes": {"classes": ["a"]}}.get(case, {})
        meta = {key: value for key, value in {**META, **changes}.items() if not (case == "no classes" and key == "classes")}
        checkpoints.write_checkpoint(path, weights, None, meta)
    if case == "damaged":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["sha256"]["weights.safetensors"] = "0" * 64
        (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="thing"):
        load_backbone(path)
