"""Scenes and features as torch datasets: what is in an item, workers, and digits that never leave their split."""

import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from evaluation_parts import NAMES, small_table, write_features
from idx_files import write_idx_set
from torch.utils.data import ConcatDataset, DataLoader

import hsal_cli as hsal
from hsal_cli.errors import FileError, UsageError
from hsal_cli.scenes import SceneSettings, make

SMALL = {"count": (1, 3), "digit_size": (8, 16), "image_size": 40, "clutter": 3, "seed": 5}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return write_idx_set(tmp_path_factory.mktemp("digits"))


def scenes_file(path: Path, boxes: bool = True, colour: bool = False) -> Path:
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", '["a", "b"]'
        file["train/images"] = draw.integers(0, 256, (7, 10, 12, 3) if colour else (7, 10, 12), dtype=np.uint8)
        file["train/labels"] = np.array([[0, 1], [1, -1]] * 3 + [[0, 0]], np.int16)
        if boxes:
            placed = np.tile(np.array([1, 2, 5, 6], np.int16), (7, 2, 1))
            placed[file["train/labels"][()] < 0] = -1
            file["train/boxes"] = placed
    return path


@pytest.mark.parametrize(("boxes", "colour"), [(True, False), (False, True)])
def test_scenes_of_a_file_are_its_rows(tmp_path, boxes, colour):
    path = scenes_file(tmp_path / "s.h5", boxes, colour)
    scenes = hsal.Scenes(path)
    assert (len(scenes), scenes.classes, scenes.image_size) == (7, ["a", "b"], (10, 12))
    with h5py.File(path) as file:
        images, labels = file["train/images"][()], file["train/labels"][()]
        placed = file["train/boxes"][()] if boxes else np.full((7, 2, 4), -1)
    for row, scene in enumerate(scenes):
        assert scene.image.dtype == torch.uint8 and scene.labels.dtype == scene.boxes.dtype == torch.int64
        assert np.array_equal(scene.image.numpy(), images[row].reshape(10, 12, -1))
        assert np.array_equal(scene.labels.numpy(), labels[row]) and np.array_equal(scene.boxes.numpy(), placed[row])
    assert torch.equal(scenes[-1].image, scenes[6].image)
    with pytest.raises(IndexError):
        scenes[7]
    with pytest.raises(FileError, match="has no split 'test'"):
        hsal.Scenes(path, "test")


def test_workers_open_files_for_themselves_and_read_the_same(tmp_path):
    scenes = hsal.Scenes(scenes_file(tmp_path / "s.h5"), transform=lambda image: image.float() / 255)
    features = hsal.Features(write_features(tmp_path / "f.h5", {"train": small_table(9)}))
    for dataset in (scenes, features):
        dataset[0]  # the file is open here before workers are forked
        alone, shared = (list(DataLoader(dataset, batch_size=2, num_workers=workers)) for workers in (0, 2))
        assert type(alone[0]) is type(dataset[0])
        for one, other in zip(alone, shared, strict=True):
            assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(features))[3].volume, features[3].volume)


def test_features_of_a_file_are_its_rows(tmp_path):
    table = small_table(9)
    features = hsal.Features(write_features(tmp_path / "f.h5", {"train": table}), "train")
    assert (len(features), features.classes, features.volume_shape) == (9, NAMES, (4, 3, 3))
    [volumes, saliency, labels] = next(iter(DataLoader(features, batch_size=9)))
    assert torch.equal(volumes, table.volumes) and torch.equal(saliency, table.saliency) and torch.equal(labels, table.labels)
    row = features[-2]
    assert torch.equal(row.volume, table.volumes[7]) and row.volume.dtype == torch.float16
    assert torch.equal(features.boxes, table.boxes)
    with pytest.raises(IndexError):
        features[9]


@pytest.mark.parametrize("unique", [False, True])
def test_composed_scenes_are_those_that_make_data_writes(tmp_path, digits, unique):
    settings = SceneSettings(train=9, test=4, mnist_dir=str(digits), **SMALL)
    path = make("mnist-set" if unique else "mnist-multiset", settings, tmp_path / "s.h5", workers=1)
    for train, split, count in ((True, "train", 9), (False, "test", 4)):
        composed = hsal.MultisetDigits(digits, train, length=count, unique=unique, **SMALL)
        stored = hsal.Scenes(path, split)
        assert len(composed) == len(stored) and composed.classes == stored.classes
        for one, other in zip(composed, stored, strict=True):
            assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))
    if unique:
        assert all(len(set(named)) == len(named) for named in (scene.labels[scene.labels >= 0].tolist() for scene in composed))


def test_an_image_depends_on_its_number_alone_and_not_on_who_asks(digits):
    composed = hsal.MultisetDigits(digits, length=8, **SMALL)
    backwards = [composed[row] for row in reversed(range(8))][::-1]
    shared = DataLoader(hsal.MultisetDigits(digits, length=8, **SMALL), batch_size=None, num_workers=2)
    longer = hsal.MultisetDigits(digits, length=80, **SMALL)
    for row, scene in enumerate(shared):
        assert torch.equal(scene.image, backwards[row].image) and torch.equal(scene.image, longer[row].image)
    other = hsal.MultisetDigits(digits, length=8, **{**SMALL, "seed": 6})
    assert not any(torch.equal(one.image, two.image) for one, two in zip(composed, other, strict=True))


def test_training_images_hold_no_ink_of_test_digits_and_the_other_way_round(digits):
    # The ink of this set's training digits is grey 100, that of its test digits grey 250; resizing overshoots by some 7%.
    for train, (low, high) in ((True, (100, 110)), (False, (250, 255))):
        brightest = [int(scene.image.max()) for scene in hsal.MultisetDigits(digits, train, length=30, **SMALL)]
        assert low <= min(brightest) and max(brightest) <= high


def test_torchvisions_root_will_do_and_a_folder_without_digits_is_named(tmp_path, digits):
    shutil.copytree(digits, tmp_path / "MNIST" / "raw")
    assert torch.equal(hsal.MultisetDigits(tmp_path, length=1, **SMALL)[0].image, hsal.MultisetDigits(digits, length=1, **SMALL)[0].image)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="has no train-images"):
        hsal.MultisetDigits(tmp_path / "empty")
    with pytest.raises(UsageError, match="at most"):
        hsal.MultisetDigits(digits, unique=True, **{**SMALL, "count": (1, 12), "digit_size": (8, 8)})


def test_scenes_of_several_datasets_are_batched_together(tmp_path, digits):
    settings = SceneSettings(train=4, test=0, mnist_dir=str(digits), **SMALL)
    both = ConcatDataset(
        [hsal.Scenes(make("mnist-multiset", settings, tmp_path / "s.h5", workers=1)), hsal.MultisetDigits(digits, length=4, **SMALL)]
    )
    [scene] = DataLoader(both, batch_size=8)
    assert scene.image.shape == (8, 40, 40, 1) and torch.equal(scene.image[:4], scene.image[4:]) and scene.boxes.shape == (8, 3, 4)
