"""Glimpses that look closer: a first look at half the size, and windows at full size, computed where they are looked at or stored."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from learning_parts import SMALL, easy_table
from test_precompute import write_backbone, write_scenes

from hsal_cli.commands.options import recipe_for
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.files import evaluate_file, evaluate_scenes
from hsal_cli.evaluation.flops import backbone_flops, cells_looked_at, flops_of
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.precompute import plan, precompute
from hsal_cli.features.settings import PrecomputeSettings, dataset_of, features_path
from hsal_cli.features.table import open_features
from hsal_cli.models.load import find_backbone, load_policy
from hsal_cli.models.look import look
from hsal_cli.policy.episode import greedy
from hsal_cli.policy.hsal import HSAL
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.feature_task import mirrored
from hsal_cli.training.train import train
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision.backbone import ActivationModel, fused, load_backbone
from hsal_cli.vision.resolution import at_resolution, giving, with_windows

CPU = torch.device("cpu")
WINDOW = dataclasses.replace(SMALL, glimpse="window", glimpses=2, glimpses_apart="yes")


def resnet(side: int = 64) -> ActivationModel:
    torch.manual_seed(0)
    return ActivationModel("resnet18", 2, side, 2).eval()


def test_the_first_look_sees_half_the_size_and_a_window_what_is_around_its_cell_at_full_size() -> None:
    model, images = resnet(), torch.randn(2, 3, 64, 64)
    closer = with_windows(model)
    with torch.inference_mode():
        both = closer(images)
        small = F.avg_pool2d(images, 2)
        x = model.layer3(model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(small)))))))
        assert (closer.channels, closer.fine, both.shape) == (256, 512, (2, 256 + 512, 2, 2))
        torch.testing.assert_close(both[:, :256], x)
        around = F.pad(images, (16,) * 4, mode="replicate")[1:, :, 32:96, :64]  # two cells of 32 px around that of row 1, column 0
        torch.testing.assert_close(both[1, 256:, 1, 0], model(around).mean((2, 3))[0])
        torch.testing.assert_close(with_windows(fused(model))(images), both, rtol=1e-3, atol=1e-3)
    assert not model.fine


def test_windows_of_a_network_of_timm_are_as_many_as_the_cells_of_its_first_look() -> None:
    pytest.importorskip("timm")
    closer = with_windows(ActivationModel("timm:tf_efficientnet_lite0", 2, 64, 2, channels=320).eval())
    with torch.inference_mode():
        assert closer(torch.randn(1, 3, 64, 64)).shape == (1, 112 + 320, 2, 2)


def test_networks_whose_windows_take_their_layers_twice_are_folded_too() -> None:
    closer, images = with_windows(resnet()), torch.randn(2, 3, 64, 64)
    torch.nn.init.constant_(closer.bn1.running_mean, 0.5)
    folded = fused(closer)
    assert not [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), closer(images), rtol=1e-3, atol=1e-3)


def test_a_first_look_and_a_window_cost_less_than_the_whole_image() -> None:
    model = resnet()
    closer, image = with_windows(model), torch.zeros(1, 3, 64, 64)
    whole, none = backbone_flops(model)
    first, window = backbone_flops(closer)
    half = torch.zeros(1, 3, 32, 32)
    reached = flops_of(lambda: model.layer3(model.layer2(model.layer1(model.maxpool(model.conv1(half))))))
    assert (whole, none) == (flops_of(lambda: model(image)), 0)
    assert first == reached < whole / 4 and window == whole  # two cells of two


def policy(**changes) -> HSAL:
    torch.manual_seed(1)
    return HSAL(dataclasses.replace(WINDOW, fine=4, fine_side=1, **changes), 2, (2 + 4, 3, 3), 0.3).eval()


def roll(one: HSAL, windows: torch.Tensor, closer=None):
    """Rolls out over images with windows (12, 4, 3, 3)."""
    table = easy_table(12, 2, seed=3)
    volumes = table.volumes.float() if closer else torch.cat([table.volumes.float(), windows], 1)
    with torch.inference_mode():
        return one(volumes, table.saliency, choose=greedy, max_steps=3, closer=closer)


def test_a_glimpse_reads_the_window_at_its_cell_and_nothing_else() -> None:
    windows = torch.rand(12, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    one = policy()
    before = roll(one, windows)
    looked = F.one_hot(before.glimpses, 9).sum((0, 2)).view(12, 1, 3, 3) > 0
    assert torch.equal(roll(one, torch.where(looked, windows, 9.0)).logits, before.logits)
    assert not torch.equal(roll(one, torch.where(looked, 9.0, windows)).logits, before.logits)
    assert before.masks.shape[2:] == (3, 3)
    columns = policy(glimpse="column")
    assert torch.equal(roll(columns, windows).logits, roll(columns, 0 * windows).logits)


def test_windows_computed_where_it_looks_give_what_stored_ones_give() -> None:
    windows, asked = torch.rand(12, 4, 3, 3, generator=torch.Generator().manual_seed(0)), set()

    def closer(rows, cells):
        asked.update(zip(torch.arange(12)[rows].tolist(), cells.tolist(), strict=True))
        return windows[rows].flatten(2)[torch.arange(len(cells)), :, cells]

    one = policy()
    stored, computed = roll(one, windows), roll(one, windows, closer)
    assert torch.equal(stored.logits, computed.logits) and torch.equal(stored.glimpses, computed.glimpses)
    assert len(asked) == int(cells_looked_at(stored).sum()) < 12 * 9
    with pytest.raises(ValueError, match="glimpse = column reads the volumes"):
        roll(policy(glimpse="column"), windows, closer)


def test_a_cell_that_is_looked_at_twice_counts_once_and_one_after_the_end_not_at_all() -> None:
    episode = roll(policy(), torch.rand(12, 4, 3, 3))
    for image, count in enumerate(cells_looked_at(episode).tolist()):
        assert count == len(episode.glimpses[episode.active[:, image], image].unique())


def test_glimpses_that_read_what_the_features_do_not_hold_are_refused() -> None:
    for held, asked, said in ((0, "window", "hold no windows"), (2, "window", "hold no windows"), (1, "fine", "hold no finer stage")):
        variant = dataclasses.replace(WINDOW, glimpse=asked, fine=4 if held else 0, fine_side=held or 2)
        with pytest.raises(UsageError, match=said) as refused:
            HSAL(variant, 2, (6, 3, 3))
        assert ("--resolution window" if asked == "window" else "--variant columns") in refused.value.hint


def test_features_with_windows_go_from_scenes_to_scores_and_pictures_which_compute_few_of_them(tmp_path, monkeypatch) -> None:
    scenes, backbone = write_scenes(tmp_path / "s.h5"), write_backbone(tmp_path / "b")
    settings, out = PrecomputeSettings(batch_size=4, resolution="window"), features_path(tmp_path / "s.h5", resolution="window")
    assert out.name == "s.window.features.h5" and dataset_of(out) == "s"
    precompute(scenes, backbone, out, settings, CPU)
    assert check_path(out).ok and plan(scenes, backbone, out, settings).exists
    with open_features(out) as file:
        assert file.fine == 512 and file.volume_shape == (256 + 512, 1, 1) and file.map_shape == (1, 1)
        found = file.table("train")
        torch.testing.assert_close(found.saliency, found.volumes[:, :256].float().square().sum(1), rtol=1e-2, atol=1e-2)

    variant = dataclasses.replace(WINDOW, glimpses=1)
    train(out, tmp_path / "run", variant, TrainSettings(epochs=1, batch_size=16), CPU, backbone=backbone)
    loaded = load_policy(tmp_path / "run")
    seen = find_backbone(loaded, named=backbone)
    assert (loaded.policy.variant.fine, loaded.policy.variant.fine_side) == (512, 1) and seen.refined == "window"
    scores = evaluate_file(loaded, out, EvalSettings(resamples=2))
    again = evaluate_scenes(loaded, seen, scenes, EvalSettings(resamples=2))
    assert scores["looking"] == again["looking"] and scores["flops"] == again["flops"]
    flops = scores["flops"]
    assert flops["windows"] == backbone_flops(seen.model)[1] * scores["cells_looked_at"] > 0
    assert flops["image"] == sum(flops[part] for part in ("backbone", "windows", "policy"))

    loaded.policy.controller.label.bias.data[-1] = -100  # never stop, so that there is a step to look at
    monkeypatch.setattr(ActivationModel, "forward", None)  # nothing computes all windows
    shown = look([torch.zeros(20, 30, dtype=torch.uint8)], seen, loaded, max_steps=1)
    assert len(shown[0].steps) == 1


def test_pictures_are_named_alike_whether_windows_are_computed_where_it_looks_or_everywhere(tmp_path) -> None:
    backbone = load_backbone(write_backbone(tmp_path / "b"))
    closer = giving(backbone, (256 + 512, 1, 1), None)
    assert closer.refined == "window" and at_resolution(backbone, "window").model.windows
    images = torch.randn(3, 3, 64, 64)
    first, windows = closer.first_look(images)
    every = closer.volumes(images)
    rows, cells = torch.tensor([2, 0, 2]), torch.tensor([3, 0, 3])
    torch.testing.assert_close(first, every[:, :256])
    torch.testing.assert_close(windows(rows, cells), every[rows, 256:].flatten(2)[torch.arange(3), :, cells], rtol=1e-2, atol=1e-2)
    assert windows.computed == 2 and torch.equal(windows(slice(2, 3), cells[:1]), windows(rows[:1], cells[:1])) and windows.computed == 2


def test_windows_of_mirrored_volumes_change_places_as_the_volume_does() -> None:
    windows, saliency = torch.rand(8, 3, 4, 4), torch.rand(8, 4, 4)
    volumes = torch.cat([windows.sum(1, keepdim=True), windows], 1)
    found, _ = mirrored(volumes, saliency, torch.arange(8), fine=3)
    torch.testing.assert_close(found[:, 1:].sum(1), found[:, 0])
    assert torch.equal(found[1, 1:], windows[1].flip(-1))


def test_training_with_windows_asks_for_the_features_that_they_read(tmp_path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[variant]\nglimpse = "window"\n')
    assert recipe_for(None, config).precompute.resolution == "window"
