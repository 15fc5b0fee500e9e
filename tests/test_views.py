"""More views of few training images: what they show, that they stay beside their images, and that training shows one at a time."""

import json

import h5py
import numpy as np
import pytest
import torch
from test_precompute import CPU, TRAIN, Heard, write_backbone, write_scenes

from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.features.precompute import plan, precompute
from hsal_cli.features.settings import VIEWS_OF_FEW, PrecomputeSettings
from hsal_cli.features.table import open_features
from hsal_cli.features.views import VIEWS, ViewedScenes, view_of
from hsal_cli.policy.variant import COLUMNS
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.training.train import resume, train
from hsal_cli.upkeep.check import check_path

THREE = PrecomputeSettings(batch_size=4, views=3)
SHORT = TrainSettings(epochs=2, batch_size=8, validation=0.2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scenes, a backbone, and features of three views."""
    root = tmp_path_factory.mktemp("views")
    write_scenes(root / "s.h5"), write_backbone(root / "run")
    precompute(root / "s.h5", root / "run", root / "s.features.h5", THREE, CPU)
    return root


def test_a_view_shows_the_whole_image_in_another_arrangement() -> None:
    image = np.zeros((1, 40, 40, 3), np.uint8)
    image[0, 10:14, 4:24] = 200, 100, 50
    seen = view_of(np.repeat(image, 64, 0), range(64), True)
    lit = (seen[..., 0] > seen[..., 0].max((1, 2), keepdims=True) / 2).sum((1, 2))
    assert seen.shape == (64, 40, 40, 3) and bool((lit > 50).all()) and bool((lit < 120).all()), "80 px, up to 12% wider and higher"
    tall = [np.ptp(np.nonzero(one[..., 0] > 100)[0]) > np.ptp(np.nonzero(one[..., 0] > 100)[1]) for one in seen]
    assert 16 < sum(tall) < 48, "half of them turned by a right angle"
    again = view_of(np.repeat(image, 3, 0), range(7, 10), True)
    assert np.array_equal(again, seen[7:10]), "by its row alone"
    flat = view_of(image[:, :30, :, 0], range(1), True)
    assert flat.shape == (1, 30, 40)


def test_what_may_not_be_mirrored_tilts_half_as_far() -> None:
    bar = np.zeros((200, 80, 80), np.uint8)
    bar[:, 38:42, 10:70] = 255

    def tilts(mirror: bool) -> np.ndarray:
        found = []
        for one in view_of(bar, range(200), mirror):
            down, along = np.nonzero(one > 128)
            axes = np.linalg.eigh(np.cov(along, down))[1]
            found.append(abs(np.degrees(np.arctan2(axes[1, -1], axes[0, -1])) + 45) % 90 - 45)
        return np.abs(found)

    upright, any_way = tilts(False), tilts(True)
    assert 4 < upright.max() < 6.5 < 10 < any_way.max() < 12.5


def test_views_stand_beside_their_images_in_a_split_of_their_own(place) -> None:
    with open_features(place / "s.features.h5") as file, open_scenes(place / "s.h5") as scenes:
        assert file.splits == ["train", "test", VIEWS] and file.rows(VIEWS) == 2 * TRAIN and file.config.views == 3
        assert torch.equal(file.labels(VIEWS), file.labels("train").repeat(2, 1)) and file.boxes(VIEWS) is None
        shown = ViewedScenes(scenes, 3, True).split(VIEWS)
        assert np.array_equal(shown.read(TRAIN - 2, TRAIN + 3), np.concatenate([shown.read(n, n + 1) for n in range(TRAIN - 2, TRAIN + 3)]))
        own, views = file.maps("train")[0], file.maps(VIEWS)[0]
        assert not torch.equal(own, views[:TRAIN]) and not torch.equal(views[:TRAIN], views[TRAIN:])
    assert check_path(place / "s.features.h5").faults == []
    assert plan(place / "s.h5", place / "run", place / "x.h5", THREE).images == 3 * TRAIN + 5


def test_features_of_other_views_are_refused_by_name_and_one_view_is_as_before(place, tmp_path) -> None:
    with pytest.raises(FileError, match="holds 3 views of each training image, not 1"):
        precompute(place / "s.h5", place / "run", place / "s.features.h5", PrecomputeSettings(), CPU)
    digests = []
    for views in (None, 1):
        precompute(place / "s.h5", place / "run", tmp_path / f"{views}.h5", PrecomputeSettings(views=views), CPU)
        with open_features(tmp_path / f"{views}.h5") as file:
            digests.append(file.digest)
            assert VIEWS not in file.splits
    assert digests[0] == digests[1]
    with pytest.raises(UsageError, match="no maps of them"):
        PrecomputeSettings(views=2, saliency="file:x.npy")


def test_an_interrupted_computation_of_views_goes_on_to_the_same_numbers(place, tmp_path) -> None:
    with pytest.raises(Interrupted):
        precompute(place / "s.h5", place / "run", tmp_path / "f.h5", THREE, CPU, Heard(stop_after=10))
    heard = Heard()
    precompute(place / "s.h5", place / "run", tmp_path / "f.h5", THREE, CPU, heard)
    assert heard.done > TRAIN
    with h5py.File(tmp_path / "f.h5") as one, h5py.File(place / "s.features.h5") as other:
        assert all(np.array_equal(one[f"{VIEWS}/{part}"], other[f"{VIEWS}/{part}"]) for part in ("volumes", "saliency", "labels"))


@pytest.mark.parametrize("objective", ["rl", "count"])
def test_training_shows_each_image_in_one_view_an_epoch_and_never_one_of_a_held_out_image(place, tmp_path, monkeypatch, objective) -> None:
    from hsal_cli.training import feature_task

    orders = []
    begin = feature_task.FeatureTask.start_epoch
    monkeypatch.setattr(feature_task.FeatureTask, "start_epoch", lambda task, epoch: (begin(task, epoch), orders.append(task.order)))
    heard = Heard()
    settings = TrainSettings(epochs=2, batch_size=8, validation=0.2, objective=objective)
    run = train(place / "s.features.h5", tmp_path / "run", COLUMNS, settings, device=CPU, reporter=heard)
    assert any("in 3 views" in line for line in heard.said) and run.status.state == "finished"
    kept = [sorted((order % TRAIN).tolist()) for order in orders]
    assert kept[0] == kept[1] and len(set(kept[0])) == len(kept[0]) == TRAIN - 5, "each image once"
    seen = torch.cat(orders) // TRAIN
    assert set(seen.tolist()) == {0, 1, 2} and not torch.equal(orders[0], orders[1])


def test_a_list_has_an_order_which_views_do_not_keep(place, tmp_path) -> None:
    heard = Heard()
    train(
        place / "s.features.h5", tmp_path / "run", COLUMNS, TrainSettings(epochs=1, batch_size=8, task="list"), device=CPU, reporter=heard
    )
    assert not any("in 3 views" in line for line in heard.said)


def test_training_on_views_that_was_interrupted_ends_as_one_that_was_not(place, tmp_path) -> None:
    whole = train(place / "s.features.h5", tmp_path / "a", COLUMNS, SHORT, device=CPU)
    with pytest.raises(Interrupted):
        train(place / "s.features.h5", tmp_path / "b", COLUMNS, SHORT, device=CPU, reporter=Heard(stop_after=3))
    parted = resume(tmp_path / "b", CPU)
    rows = [[{k: v for k, v in row.items() if k not in ("seconds", "examples_per_s")} for row in run.rows()] for run in (whole, parted)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])


def test_few_images_are_shown_in_many_views_unless_it_was_said_otherwise() -> None:
    assert PrecomputeSettings().for_few(True).views == VIEWS_OF_FEW and PrecomputeSettings(views=1).for_few(True).views == 1
    assert PrecomputeSettings(saliency="file:x.npy").for_few(True).views is None
    assert [PrecomputeSettings().for_few(mirror).mirror for mirror in (True, False)] == [True, False]


def test_views_of_digits_are_not_mirrored(place, tmp_path) -> None:
    image = np.zeros((1, 40, 40), np.uint8)
    image[0, 8:16, 5:15] = 255  # upper left
    middles = [[axis.mean() for axis in np.nonzero(view)] for view in view_of(np.repeat(image, 64, 0), range(64), False)]
    assert (
        np.max(middles)
        < 18
        < np.max([[axis.mean() for axis in np.nonzero(view)] for view in view_of(np.repeat(image, 64, 0), range(64), True)])
    )
    upright = PrecomputeSettings(batch_size=4, views=3, mirror=False)
    with pytest.raises(FileError, match="other value of --mirror"):
        precompute(place / "s.h5", place / "run", place / "s.features.h5", upright, CPU)
    precompute(place / "s.h5", place / "run", tmp_path / "upright.features.h5", upright, CPU)
    with open_features(tmp_path / "upright.features.h5") as file, open_features(place / "s.features.h5") as mirrored:
        assert not file.config.mirror and file.digest != mirrored.digest
    heard, settings = Heard(), TrainSettings(epochs=1, batch_size=8, task="list")
    train(tmp_path / "upright.features.h5", tmp_path / "run", COLUMNS, settings, device=CPU, reporter=heard)
    assert any("in 3 views" in line for line in heard.said), "these keep the order of a list"
