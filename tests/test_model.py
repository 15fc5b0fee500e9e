"""hsal.load: where models are found, what images they take, and the one result that pictures, JSON and Python read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shipped_parts import use_tiny_backbone, write_backbone, write_policy

import hsal_cli as hsal
from hsal_cli.models.export import export
from hsal_cli.models.seen import to_json
from hsal_cli.policy.hsal import HSAL


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with runs/finetune, and runs/rl and runs/ce trained on it."""
    use_tiny_backbone(monkeypatch)
    monkeypatch.chdir(tmp_path)
    digest = write_backbone(tmp_path / "runs" / "finetune")
    for name, objective in (("rl", "rl"), ("ce", "cross-entropy")):
        write_policy(tmp_path / "runs" / name, digest, objective)
    return tmp_path


@pytest.fixture
def pixels() -> np.ndarray:
    """An image that the policy of `write_policy` finds something in."""
    return np.kron(np.random.default_rng(0).integers(0, 2, (3, 4, 3), dtype=np.uint8) * 255, np.ones((10, 10, 1), np.uint8))


def test_a_run_its_checkpoint_and_what_was_exported_of_it_are_one_model(project, pixels, tmp_path_factory, monkeypatch):
    exported = project / "exported"
    export([f"mnist-multiset.rl={project / 'runs' / 'rl'}", f"mnist-multiset.ce={project / 'runs' / 'ce'}"], exported)
    monkeypatch.chdir(tmp_path_factory.mktemp("away"))
    run = project / "runs" / "rl"
    wanted = hsal.load(run, device="cpu")(pixels)
    assert wanted.labels
    for place in (str(run), run / "checkpoints" / "epoch-1"):
        assert np.array_equal(hsal.load(place, device="cpu")(pixels).probabilities, wanted.probabilities)
    for place in (exported, exported / "mnist-multiset.rl", f"{exported}/mnist-multiset", f"{exported}/mnist-multiset.rl"):
        model = hsal.load(place, device="cpu")
        assert model(pixels).labels == wanted.labels  # its weights are in half precision
        assert isinstance(model.policy, HSAL) and model.backbone.resolution == 3 and model.classes == ["cat", "dog", "owl"]
    weights = exported / "mnist-multiset.rl" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(hsal.HsalError, match="is damaged"):
        hsal.load(exported / "mnist-multiset.rl")


def test_of_an_exported_folder_one_policy_or_the_usual_one_is_meant_else_it_must_be_named(project):
    export([f"toy.ce={project / 'runs' / 'ce'}"], project / "one")
    assert hsal.load("one", device="cpu").loaded.meta.objective == "cross-entropy"
    export([f"toy.{name}={project / 'runs' / name}" for name in ("rl", "ce")], project / "two")
    with pytest.raises(hsal.HsalError, match="two holds 2 policies") as caught:
        hsal.load("two")
    assert caught.value.hint == "name one: two/toy.ce, two/toy.rl"


def test_what_is_no_model_is_named(project):
    with pytest.raises(hsal.HsalError, match="there is no pretrained policy 'mnist-mulitset'"):
        hsal.load("mnist-mulitset")
    (project / "nothing").mkdir()
    with pytest.raises(hsal.HsalError, match="nothing is neither a run of hsal nor a checkpoint"):
        hsal.load("nothing")
    with pytest.raises(hsal.HsalError, match="there is no device 'abacus'"):
        hsal.load("runs/rl", device="abacus")


def test_paths_pictures_arrays_and_tensors_are_one_image_and_a_list_gives_a_list(project, pixels):
    model = hsal.load("runs/rl", device="cpu")
    Image.fromarray(pixels).save("image.png")
    shown = ["image.png", Path("image.png"), Image.open("image.png"), pixels, torch.from_numpy(pixels), pixels[:, ::-1][:, ::-1]]
    seen = model(shown)
    assert [one.name for one in seen] == ["image.png", "image.png", "3", "4", "5", "6"]
    for one in (*seen, model("image.png"), model(pixels)):
        assert one.labels == seen[0].labels and np.allclose(one.probabilities, seen[0].probabilities, atol=1e-6)
    grey = model([pixels[..., 0], torch.from_numpy(pixels[..., 0].copy()), pixels[..., :1], np.repeat(pixels[..., :1], 3, 2)])
    assert len({tuple(one.labels) for one in grey}) == 1 and model([]) == []


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((4, 4)), r"float64 of shape \(4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"torch.uint8 of shape \(3, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), r"torch.uint8 of shape \(0, 4\)"),
        (7, "of type int"),
    ],
)
def test_what_is_no_image_is_refused(project, image, what):
    with pytest.raises(hsal.HsalError, match=what) as caught:
        hsal.load("runs/rl", device="cpu")(image)
    assert "uint8 (H, W)" in caught.value.hint


def test_a_result_has_one_row_a_label_and_says_what_its_json_says(project, pixels):
    model = hsal.load("runs/rl", device="cpu")
    assert model(pixels).labels
    for steps in (1, 3, None):
        seen = model(pixels, max_steps=steps)
        named, document = len(seen.labels), to_json(seen)
        assert seen.probabilities.shape == (named,) and seen.glimpses.shape == (named, 2, 2) and seen.glimpses.dtype == np.int64
        for own, name in ((seen.masks, "mask"), (seen.priority, "priority"), (seen.saliency, "saliency")):
            assert own.shape == (named, 3, 3) and np.allclose(own, [step[name] for step in document["steps"]] or own, atol=1e-5)
        assert document["labels"] == seen.labels and [step["glimpses"] for step in document["steps"]] == seen.glimpses.tolist()
    with pytest.raises(AttributeError):
        seen.name = "x"


@pytest.mark.parametrize(
    "asked", [{"max_steps": 0}, {"max_steps": -1}, {"max_steps": 2.5}, {"stop_threshold": 2}, {"stop_threshold": float("nan")}]
)
def test_a_cap_or_a_threshold_out_of_range_is_refused(asked, project, pixels):
    with pytest.raises(hsal.HsalError, match=r"there is no cap|cannot have a probability"):
        hsal.load("runs/rl", device="cpu")(pixels, **asked)


def test_of_an_image_with_nothing_in_it_all_is_empty(project, pixels):
    model = hsal.load("runs/rl", device="cpu")
    with torch.no_grad():
        model.policy.controller.label.bias[model.policy.stop] += 100
    seen = model(pixels)
    assert seen.labels == [] and seen.probabilities.shape == (0,)
    assert seen.glimpses.shape == (0, 2, 2) and seen.masks.shape == seen.saliency.shape == (0, 3, 3)
