"""A finer stage that saliency is made of and that overt glimpses read (section 5.2), and glimpses kept apart within a meta-step."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import typer
from learning_parts import SMALL, easy_table
from test_precompute import write_backbone, write_scenes
from typer.testing import CliRunner

from hsal_cli.commands.train import train as train_command
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.files import evaluate_file, evaluate_scenes
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.precompute import plan, precompute
from hsal_cli.features.saliency.models import activation_saliency, seen_by_saliency
from hsal_cli.features.settings import PrecomputeSettings, dataset_of, features_path
from hsal_cli.features.table import open_features
from hsal_cli.models.load import find_backbone, load_policy
from hsal_cli.models.look import look
from hsal_cli.policy.episode import greedy
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.maps import cells_above, column, finer_columns, initial_glimpse, patches
from hsal_cli.policy.variant import Variant
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.feature_task import mirrored
from hsal_cli.training.objectives import losses, make_targets
from hsal_cli.training.train import train
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision.backbone import ActivationModel, fused, load_backbone
from hsal_cli.vision.resolution import with_finer_stage

CPU = torch.device("cpu")
FINE = dataclasses.replace(SMALL, glimpse="fine", glimpses=2, glimpses_apart="yes")


@pytest.mark.parametrize(("side", "stage"), [(64, 3), (32, 2)])
def test_the_finer_stage_lies_behind_the_volume_which_stays_as_it_is(side: int, stage: int) -> None:
    torch.manual_seed(0)
    model = ActivationModel("resnet18", 2, side, 2).eval()
    finer, images = with_finer_stage(model), torch.randn(2, 3, side, side)
    with torch.inference_mode():
        volume, both = model(images), finer(images)
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        for number in range(1, stage + 1):
            x = getattr(model, f"layer{number}")(x)
        torch.testing.assert_close(fused(finer)(images), both, rtol=1e-3, atol=1e-3)
    assert x.shape[-1] == 4 and finer.fine == 4 * x.shape[1] and model.fine == 0
    assert torch.equal(both[:, :512], volume) and torch.equal(both[:, 512:], F.pixel_unshuffle(x, 2))
    assert torch.equal(both[0, 512:516, 1, 0], x[0, 0, 2:, :2].flatten())  # a cell holds the four that lie in it


def test_a_network_of_timm_gives_its_stage_of_twice_the_cells() -> None:
    pytest.importorskip("timm")
    finer = with_finer_stage(ActivationModel("timm:tf_efficientnet_lite0", 2, 64, 2, channels=320).eval())
    assert finer.fine == 4 * 112  # the last block of stride 16, not the wider layers within the next one
    with torch.inference_mode():
        assert finer(torch.randn(1, 3, 64, 64)).shape == (1, 320 + finer.fine, 2, 2)


def test_a_finer_stage_tells_where_in_a_cell_and_the_volume_whether_at_all() -> None:
    model = with_finer_stage(ActivationModel("resnet18", 2, 32, 4))
    stage, volume = torch.ones(1, 1, 8, 8), torch.zeros(1, model.channels, 4, 4)
    stage[..., :4, 4:] = 10.0  # a background that only edges are found in
    stage[..., 5, 2], volume[..., 2, 1] = 3.0, 2.0
    shown = seen_by_saliency(torch.cat([volume, F.pixel_unshuffle(stage, 2)], 1), model)
    found = activation_saliency(shown)[0]
    assert divmod(int(found.argmax()), 8) == (5, 2) and found[:3].sum() == found[:, 5:].sum() == 0
    even = torch.cat([torch.ones_like(volume), F.pixel_unshuffle(torch.full_like(stage, 7.0), 2)], 1)
    torch.testing.assert_close(activation_saliency(seen_by_saliency(even, model)), torch.full((1, 8, 8), float(model.channels)))
    assert torch.equal(activation_saliency(seen_by_saliency(torch.zeros_like(even), model)), torch.zeros(1, 8, 8))


def policy(variant: Variant = FINE, fine: int = 4) -> HSAL:
    """Volumes of 3 x 3 cells, and behind them a stage of 6 x 6."""
    torch.manual_seed(1)
    return HSAL(dataclasses.replace(variant, fine=fine), 2, (2 + fine, 3, 3), 0.3).eval()


def roll(one: HSAL, finer: torch.Tensor):
    """Rolls out over images of whose finer stage (12, 1, 6, 6) the saliency is not made."""
    volumes = torch.cat([easy_table(12, 2, seed=3).volumes.float(), F.pixel_unshuffle(finer, 2)], 1)
    saliency = torch.rand(12, 6, 6, generator=torch.Generator().manual_seed(5))
    return one(volumes, saliency, choose=greedy, steps=torch.full((12,), 2))


def test_a_glimpse_reads_the_finer_cells_around_it_and_the_first_one_the_volume_alone() -> None:
    finer = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    one = policy()
    with torch.inference_mode():
        before = roll(one, finer)
        assert before.masks.shape[2:] == before.priority.shape[2:] == (6, 6)
        looked = F.one_hot(before.glimpses[0], 36).sum(1).view(12, 1, 6, 6).float()
        seen = F.max_pool2d(looked, 3, 1, 1) > 0
        elsewhere = roll(one, torch.where(seen, finer, 0))
        there = roll(one, torch.where(seen, 0, finer))
        columns = policy(dataclasses.replace(FINE, glimpse="column"))
        assert torch.equal(roll(columns, finer).logits, roll(columns, 0 * finer).logits)
    assert torch.equal(elsewhere.logits[0], before.logits[0]) and torch.equal(there.masks[0], before.masks[0])
    assert torch.equal(there.glimpses[0, :, 0], before.glimpses[0, :, 0])  # the first is chosen before anything finer is seen
    assert (there.logits[0] != before.logits[0]).any(1).float().mean() > 0.5  # of some the few units are silent


def test_patches_are_those_that_unfolding_cuts_out_and_columns_lie_above_their_cells() -> None:
    stage = torch.rand(2, 3, 4, 6)
    columns = finer_columns(F.pixel_unshuffle(stage, 2))
    wanted = F.unfold(stage, 3, padding=1).view(2, 3, 9, 24)
    for cell in range(24):
        found = column(columns, patches(4, 6)[torch.tensor([cell, cell])])
        assert torch.equal(found.view(2, 9, 3).transpose(1, 2), wanted[..., cell])
    volume = torch.arange(6.0).view(1, 1, 2, 3)
    assert torch.equal(cells_above(4, 6).flatten(), F.interpolate(volume, scale_factor=2).flatten().long())
    mask = torch.rand(1, 4, 6)  # the first glimpse weighs a column by the mean of the four cells below it
    torch.testing.assert_close(initial_glimpse(mask, volume.view(1, 6, 1)), (F.avg_pool2d(mask, 2).flatten() @ volume.flatten()).view(1, 1))


def test_glimpses_kept_apart_never_fall_on_one_cell_and_a_cell_looked_at_is_no_reward() -> None:
    finer, table = torch.rand(12, 1, 6, 6), easy_table(12, 2, seed=3)
    episode = roll(policy(), finer)
    assert (episode.glimpses[..., 0] != episode.glimpses[..., 1]).all()
    left = episode.saliency[1].flatten(1).gather(1, episode.glimpses[0])
    assert (left[:, 0] == 0).all() and (left[:, 1] > 0).any()  # what lies beside the object is to be found later
    chances = episode.location_logits.softmax(-1)
    assert (chances[..., 1, :].gather(-1, episode.glimpses[..., :1]) == 0).all() and (chances[..., 0, :] > 0).all()
    settings = TrainSettings()
    terms, logged = losses(episode, make_targets(table.labels, 2, settings, torch.Generator()), settings, FINE)
    terms["location"].backward()
    assert all(value.isfinite() for value in logged.values())
    with pytest.raises(UsageError, match="there are 9 cells, and glimpses = 10"):
        dataclasses.replace(FINE, glimpses=10)


def test_an_untrained_policy_with_fine_glimpses_does_not_look_like_a_trained_one() -> None:
    logits = roll(policy(), torch.rand(12, 1, 6, 6)).location_logits[..., 0, :]
    assert float(logits.detach().softmax(-1).amax(-1).mean()) < 0.3
    assert float(roll(policy(dataclasses.replace(FINE, glimpse="column")), torch.rand(12, 1, 6, 6)).location_logits.detach().std()) > 2


def test_features_with_a_finer_stage_go_from_scenes_to_scores_and_pictures(tmp_path) -> None:
    scenes, backbone = write_scenes(tmp_path / "s.h5"), write_backbone(tmp_path / "b")
    settings, out = PrecomputeSettings(batch_size=4, resolution="fine"), features_path(tmp_path / "s.h5", resolution="fine")
    assert out.name == "s.fine.features.h5" and dataset_of(out) == "s"
    plain = precompute(scenes, backbone, features_path(scenes), PrecomputeSettings(batch_size=4), CPU)
    variant = dataclasses.replace(FINE, glimpses=1)
    with pytest.raises(UsageError, match="hold no finer stage"):
        train(plain, tmp_path / "no", variant, TrainSettings(epochs=1), CPU)
    precompute(scenes, backbone, out, settings, CPU)
    assert check_path(out).ok and plan(scenes, backbone, out, settings).exists
    with open_features(plain) as old, open_features(out) as new:
        assert new.fine == 4 * 256 and new.volume_shape == (512 + new.fine, 1, 1) and old.fine == 0
        assert torch.equal(new.table("train").volumes[:, :512], old.table("train").volumes)
        stage = F.pixel_shuffle(new.table("train").volumes[:, 512:].float(), 2)
        energy = stage.square().sum(1)  # shares out that of the one cell of the volume
        wanted = old.table("train").saliency * energy / energy.mean((1, 2), keepdim=True)
        torch.testing.assert_close(new.table("train").saliency, wanted, rtol=1e-2, atol=1e-2)
        assert old.map_shape == (1, 1) and new.map_shape == (2, 2)

    train(out, tmp_path / "run", variant, TrainSettings(epochs=1, batch_size=16), CPU, backbone=backbone)
    loaded = load_policy(tmp_path / "run")
    found = find_backbone(loaded, named=backbone)
    assert loaded.policy.variant.fine == 1024 and found.refined == "fine"
    scores = evaluate_file(loaded, out, EvalSettings(resamples=2))
    again = evaluate_scenes(loaded, found, scenes, EvalSettings(resamples=2))
    assert scores["looking"] == again["looking"] and scores["attn_saliency"] == pytest.approx(again["attn_saliency"])
    loaded.policy.controller.label.bias.data[-1] = -100  # never stop, so that there is a step to look at
    assert len(look([torch.zeros(20, 30, dtype=torch.uint8)], found, loaded, max_steps=1)[0].steps) == 1
    assert load_backbone(backbone).model.fine == 0


def test_training_with_fine_glimpses_computes_the_features_that_they_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenes, backbone = write_scenes(tmp_path / "s.h5"), write_backbone(tmp_path / "b")
    sizes = [word for name in ("meta_encode", "meta_hidden", "location_hidden") for word in ("--set", f"{name}=8")]
    words = ["--data", scenes, "--backbone", backbone, "--out", "run", "--epochs", "1", "--set", "glimpse=fine", "--yes", *sizes]
    app = typer.Typer()
    app.command()(train_command)
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    with open_features(tmp_path / "s.fine.features.h5") as features:
        assert features.fine == load_policy(tmp_path / "run").policy.variant.fine == 1024
    assert not (tmp_path / "s.features.h5").exists()


def test_the_finer_cells_of_mirrored_volumes_change_places_as_the_volume_does() -> None:
    fine, saliency = torch.rand(8, 3, 6, 6), torch.rand(8, 6, 6)
    volumes = torch.cat([F.avg_pool2d(fine, 2), F.pixel_unshuffle(fine, 2)], 1)
    found, turned = mirrored(volumes, saliency, torch.arange(8), fine=12)
    stage = F.pixel_shuffle(found[:, 3:], 2)
    torch.testing.assert_close(F.avg_pool2d(stage, 2), found[:, :3])
    assert torch.equal(stage[1], fine[1].flip(-1)) and torch.equal(stage[4], fine[4].mT) and torch.equal(turned[2], saliency[2].flip(-2))
