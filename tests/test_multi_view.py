"""Test-time augmentation (--views): what the views are, what their mean is, and the commands that take them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_parts import NAMES
from PIL import Image
from shipped_parts import use_tiny_backbone, write_backbone, write_policy, write_scenes
from typer.testing import CliRunner

from hsal_cli.console import Reporter
from hsal_cli.errors import HsalError
from hsal_cli.evaluation.evaluate import evaluate_scenes
from hsal_cli.evaluation.loading import load_policy
from hsal_cli.evaluation.look import look
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.learning.export import export
from hsal_cli.main import app
from hsal_cli.vision.backbone import ActivationModel, fused, load_backbone
from hsal_cli.vision.multi_view import VIEWS, view, with_views
from hsal_cli.vision.precompute import precompute
from hsal_cli.vision.settings import PrecomputeSettings


def dot(x: int, y: int, side: int = 101) -> torch.Tensor:
    """A bright spot of 3 x 3 px at (x, y) from the centre."""
    images, middle = torch.zeros(1, 3, side, side), side // 2
    images[..., middle + y - 1 : middle + y + 2, middle + x - 1 : middle + x + 2] = 1.0
    return images


def place_of(images: torch.Tensor) -> tuple[float, float]:
    """The centre of what is bright, (x, y) from the centre of the image."""
    mass, middle = images[0, 0] / images[0, 0].sum(), images.shape[-1] // 2
    steps = torch.arange(images.shape[-1]) - middle
    return float((mass.sum(0) * steps).sum()), float((mass.sum(1) * steps).sum())


def test_the_first_view_is_the_image_and_the_others_enlarge_shrink_and_turn_it() -> None:
    images = torch.rand(2, 3, 40, 40)
    assert torch.equal(view(images, 0), images)
    right, above = dot(30, 0), dot(0, -30)
    for number, (scale, degrees) in enumerate(VIEWS):
        x, y = place_of(view(right, number))
        assert (x**2 + y**2) ** 0.5 == pytest.approx(30 * scale, abs=0.1), "enlarged and shrunk about the centre"
        assert abs(np.degrees(np.arctan2(y, x))) == pytest.approx(abs(degrees), abs=0.2)
        assert place_of(view(above, number)) == pytest.approx((y, -x), abs=0.1), "turned, not sheared or mirrored"
    turns = [place_of(view(right, number))[1] for number, (_, degrees) in enumerate(VIEWS) if degrees]
    assert sum(turns) == pytest.approx(0, abs=0.1) and turns[0] != 0, "as far to one side as to the other"


def test_what_lies_outside_continues_the_border() -> None:
    images = torch.full((1, 3, 40, 40), -1.7)
    for number in range(len(VIEWS)):
        assert torch.allclose(view(images, number), images)


@torch.inference_mode()
def test_the_volume_is_the_mean_over_the_views() -> None:
    torch.manual_seed(0)
    model, images = ActivationModel("resnet18", 10, 96, 3).eval(), torch.rand(2, 3, 96, 96)
    averaged = ActivationModel("resnet18", 10, 96, 3).eval()
    averaged.load_state_dict(model.state_dict())
    for views in range(1, len(VIEWS) + 1):
        averaged.views = views
        wanted = sum(model(view(images, number)) for number in range(views)) / views
        assert torch.allclose(averaged(images), wanted, atol=1e-5)
        assert torch.allclose(fused(averaged)(images), wanted, atol=1e-4), "folding BatchNorms keeps the views"
    assert not torch.allclose(averaged(images), model(images), atol=1e-2)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a backbone, a policy trained on it, its scenes and features, and an image; an hsal that came with that policy."""
    use_tiny_backbone(monkeypatch)
    monkeypatch.chdir(tmp_path)
    digest = write_backbone(Path("runs/finetune"))
    write_policy(Path("runs/policy"), digest, evaluated=False)
    write_scenes(tmp_path / "toy.h5")
    precompute(Path("toy.h5"), Path("runs/finetune"), Path("toy.features.h5"), PrecomputeSettings(), torch.device("cpu"), Reporter())
    write_policy(Path("runs/shipped"), digest)
    export(["mnist-toy.rl=runs/shipped"], tmp_path / "package")
    monkeypatch.setattr("hsal_cli.evaluation.shipped.own_folder", lambda: tmp_path / "package")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)).save("image.png")
    return tmp_path


def call(*words: object, code: int = 0):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(found.exception, HsalError):
        assert found.exception.exit_code == code, found.exception
        found.error = found.exception
    else:
        assert found.exit_code == code, (found.output, found.exception)
    return found


def without_digest(document: dict) -> dict:
    return {name: value for name, value in document.items() if name != "digest"}


def test_eval_in_several_views_is_kept_apart(here) -> None:
    run = ("eval", "--run", "runs/policy", "--resamples", 10, "--json")
    call(*run, "--data", "toy.features.h5")
    one = Path("runs/policy/eval.json").read_bytes()
    several = json.loads(call(*run, "--data", "toy.features.h5", "--views", 3).stdout)
    assert Path("runs/policy/eval.json").read_bytes() == one
    assert json.loads(Path("runs/policy/eval.views3.json").read_text()) == several
    assert (several["views"], several["scenes"], several["examples"]) == (3, "toy.h5", 41)
    by_scenes = json.loads(call(*run, "--data", "toy.h5", "--views", 3).stdout)
    assert by_scenes == several, "the scenes that features were made from are found"
    backbone = with_views(load_backbone(Path("runs/finetune")), 3)
    found = evaluate_scenes(load_policy(Path("runs/policy")), backbone, Path("toy.h5"), EvalSettings(resamples=10))
    assert without_digest(json.loads(json.dumps(found))) == without_digest(several)
    plain = json.loads(one)
    assert several["attn_saliency"]["raw"] != plain["attn_saliency"]["raw"], "the volumes are others"


def test_eval_of_a_pretrained_policy_takes_views(here) -> None:
    found = json.loads(call("eval", "--pretrained", "mnist-toy", "--data", "toy.h5", "--views", 5, "--resamples", 10, "--json").stdout)
    assert (found["views"], found["pretrained"]) == (5, "mnist-toy.rl")
    same = call("eval", "--pretrained", "mnist-toy", "--data", "toy.features.h5", "--views", 5, "--resamples", 10, "--json")
    assert json.loads(same.stdout) == found


def test_predict_and_visualize_look_in_several_views(here) -> None:
    loaded, backbone = load_policy(Path("runs/policy")), load_backbone(Path("runs/finetune"))
    for views in (1, 4):
        document = json.loads(call("predict", "image.png", "--run", "runs/policy", "--views", views, "--json").stdout)[0]
        wanted = look([Image.open("image.png")], with_views(backbone, views), loaded)[0]
        assert document["stop_probability"] == pytest.approx(wanted.stop_probability, abs=1e-4)
        assert document["labels"] == wanted.labels and set(wanted.labels) <= set(NAMES)
        assert np.allclose(document["steps"][0]["saliency"], wanted.steps[0].saliency, atol=1e-4)
        drawn = json.loads(call("visualize", "image.png", "--run", "runs/policy", "--views", views, "--json").stdout)[0]
        assert drawn["steps"] == document["steps"]
        rows = call(
            "visualize", "--data", "toy.h5", "--rows", "0", "--run", "runs/policy", "--views", views, "--out", f"{views}.png", "--json"
        )
        assert json.loads(rows.stdout)[0]["labels"]
    one, four = (look([Image.open("image.png")], with_views(backbone, views), loaded)[0] for views in (1, 4))
    assert not np.allclose(one.steps[0].saliency, four.steps[0].saliency, atol=1e-4)


def test_views_are_one_to_five(here) -> None:
    for command in (("eval",), ("predict", "image.png"), ("visualize", "image.png")):
        for views in (0, 6):
            call(*command, "--views", views, code=2)


def test_other_images_than_those_of_the_maps_are_refused(here, monkeypatch) -> None:
    loaded = load_policy(Path("runs/policy"))
    loaded.meta["saliency"] = "file:maps"
    monkeypatch.setattr("hsal_cli.commands.eval.load", lambda *_, **__: loaded)
    error = call("eval", "--run", "runs/policy", "--data", "toy.h5", "--views", 3, code=2).error
    assert "trained on file:maps" in error.message and "--views" in error.hint
