"""Where fine-tuning's first weights come from: torchvision's cache, a download, a file; and what each refuses."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from hsal_cli.errors import FileError, HsalError
from hsal_cli.progress import Reporter
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import write_checkpoint, write_index
from hsal_cli.vision import initial
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.initial import imagenet_url, initial_weights


class Heard(Reporter):
    def __init__(self):
        self.said, self.warned = [], []

    def say(self, message):
        self.said.append(message)

    def warn(self, message):
        self.warned.append(message)


@pytest.fixture
def model() -> ActivationModel:
    return ActivationModel("resnet18", 10)


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    """A state dict in torchvision's layout, as its old weight files have it: 1000 classes, no counts of batches."""
    torch.manual_seed(3)
    state = resnet18().state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "num_batches" not in name}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty torch hub cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def served(theirs, tmp_path, monkeypatch) -> Path:
    """A server's weights file, named as torchvision names them."""
    file = tmp_path / "weights.pth"
    torch.save(theirs, file)
    file = file.rename(tmp_path / f"resnet18-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    monkeypatch.setattr(initial, "imagenet_url", lambda arch: file.as_uri())
    return file


@pytest.fixture
def offline(monkeypatch):
    def unreachable(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


def assert_loaded(model, weights):
    own = model.state_dict()
    for name, tensor in weights.items():
        if not name.startswith("fc."):
            assert torch.equal(own[name], tensor), name


def test_imagenet_weights_are_downloaded_once_into_torchvisions_cache(model, theirs, hub, served, monkeypatch):
    heard = Heard()
    fc = model.fc.weight.clone()
    assert initial_weights(model, "auto", heard) == "imagenet"
    assert_loaded(model, theirs)
    assert torch.equal(model.fc.weight, fc)
    assert any("left out" in line for line in heard.said) and not heard.warned
    assert (hub / served.name).read_bytes() == served.read_bytes()
    served.unlink()  # from now on only the cache has it
    assert initial_weights(ActivationModel("resnet18", 10), "imagenet") == "imagenet"


def test_a_classifier_for_as_many_classes_is_kept(theirs, tmp_path):
    save_file(theirs, tmp_path / "w.safetensors")
    model = ActivationModel("resnet18", 1000)
    assert initial_weights(model, str(tmp_path / "w.safetensors")) == "file:w.safetensors"
    assert torch.equal(model.fc.weight, theirs["fc.weight"]) and torch.equal(model.fc.bias, theirs["fc.bias"])
    assert_loaded(model, theirs)


def test_a_folder_that_was_exported_is_taken(theirs, tmp_path, model):
    (tmp_path / "backbone").mkdir()
    save_file({name: tensor.half() for name, tensor in theirs.items()}, tmp_path / "backbone" / "weights.safetensors")
    assert initial_weights(model, str(tmp_path / "backbone")) == "file:backbone"
    assert_loaded(model, {name: tensor.half().float() for name, tensor in theirs.items()})


def test_of_a_run_the_best_weights_are_taken(theirs, tmp_path, model):
    root = tmp_path / "run" / "checkpoints"
    others = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    for name, weights in (("epoch-1", theirs), ("epoch-2", others)):
        write_checkpoint(root / name, weights, None, {"kind": "backbone"})
    write_index(root, last="epoch-2", best="epoch-1")
    assert initial_weights(model, str(tmp_path / "run")) == "file:run"
    assert_loaded(model, theirs)


def test_auto_without_a_network_warns_and_starts_from_random_weights(model, hub, served, offline):
    heard = Heard()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert initial_weights(model, "auto", heard) == "random"
    assert "RANDOM" in heard.warned[0] and "no network" in heard.warned[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_imagenet_without_a_network_fails_and_names_the_ways_out(model, hub, served, offline):
    with pytest.raises(HsalError) as caught:
        initial_weights(model, "imagenet")
    assert "no network" in caught.value.message
    assert "--weights none" in caught.value.hint and "--weights FILE" in caught.value.hint


def test_a_truncated_file_in_the_cache_is_refused_by_name(model, hub, served):
    hub.mkdir(parents=True)
    (hub / served.name).write_bytes(served.read_bytes()[:1000])
    for choice in ("auto", "imagenet"):
        with pytest.raises(FileError, match=served.name) as caught:
            initial_weights(model, choice)
        assert "damaged" in caught.value.message and "delete" in caught.value.hint


def test_a_download_of_something_else_is_not_cached(model, hub, served):
    served.write_bytes(b"<html>log in first</html>")
    heard = Heard()
    assert initial_weights(model, "auto", heard) == "random"
    assert "did not send" in heard.warned[0]
    assert not list(hub.iterdir())


def test_a_cache_that_cannot_be_written_counts_as_no_weights(model, hub, served):
    hub.parent.write_text("a file where the folder should be")
    heard = Heard()
    assert initial_weights(model, "auto", heard) == "random"
    assert "cannot write" in heard.warned[0]


def test_none_leaves_the_random_weights(model):
    assert initial_weights(model, "none") == "random"


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_the_address_is_torchvisions(arch):
    assert imagenet_url(arch).startswith(f"https://download.pytorch.org/models/{arch}-")


def test_weights_of_another_network_are_refused_with_the_first_differences(theirs, tmp_path, model):
    wrong = dict(theirs)
    wrong["layer1.0.conv1.weight"] = torch.zeros(64, 256, 1, 1)
    del wrong["bn1.bias"]
    wrong["layer3.7.conv1.weight"] = torch.zeros(1)
    before = model.conv1.weight.clone()
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(FileError) as caught:
        initial_weights(model, str(tmp_path / "w.pth"))
    for words in ("(64, 256, 1, 1)", "bn1.bias is missing", "layer3.7.conv1.weight is unknown", "resnet18"):
        assert words in caught.value.message
    assert torch.equal(model.conv1.weight, before)


def test_weights_that_are_not_finite_are_refused(theirs, tmp_path, model):
    torch.save({**theirs, "bn1.bias": torch.full((64,), float("nan"))}, tmp_path / "w.pth")
    with pytest.raises(FileError, match=r"bn1\.bias is not finite"):
        initial_weights(model, str(tmp_path / "w.pth"))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("loading a weights file ran code",))


@pytest.mark.parametrize("content", ["missing", "folder", "empty", "text", "code", "list", "numbers"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_hold_no_weights_are_refused(content, suffix, tmp_path, model):
    file = tmp_path / f"w{suffix}"
    if content == "folder":
        file.mkdir()
    elif content in ("empty", "text"):
        file.write_text("" if content == "empty" else "not weights at all, but long enough to be read as a header")
    elif content != "missing":
        torch.save({"code": Bomb(), "list": [torch.zeros(1)], "numbers": {"conv1.weight": 3}}[content], file)
    with pytest.raises(FileError, match=str(file)) as caught:
        initial_weights(model, str(file))
    assert "weights_only" not in caught.value.message  # torch's advice to run what it holds


@pytest.mark.parametrize("place", ["run", "run/checkpoints/epoch-1"])
def test_of_what_is_no_backbone_no_weights_are_taken(place, tmp_path, model):
    checkpoints.save(tmp_path / "run" / "checkpoints", "epoch-1", model.state_dict(), {}, {"kind": "policy"}, best=True)
    with pytest.raises(FileError, match="of kind policy, not backbone"):
        initial_weights(model, str(tmp_path / place))
