"""Test images chosen by rule, compared with a walk through all images one by one."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch
from evaluation_parts import NAMES, SMALL, small_policy, small_table, write_features, write_run

from hsal_cli.errors import FileError
from hsal_cli.evaluation import examples as module
from hsal_cli.evaluation.examples import FAILURE, MANY, REPEAT, RIGHT, choose_examples
from hsal_cli.features.table import FeatureTable
from hsal_cli.models.load import load_policy
from hsal_cli.policy.episode import greedy
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage.hdf5 import attribute, seal

COUNT = 40


def named_by(policy, table) -> list[list[int]]:
    """What the policy names, image by image, in steps of one image."""
    found = []
    for row in range(len(table)):
        with torch.inference_mode():
            episode = policy(table.volumes[row : row + 1].float(), table.saliency[row : row + 1], choose=greedy, max_steps=6)
        found.append([int(label) for label in episode.labels[:, 0] if 0 <= label < len(NAMES)])
    return found


def world(folder, labels_of) -> tuple[list[list[int]], list[list[int]]]:
    """Features, scenes and a run whose true labels are `labels_of(row, named)`; (named, true)."""
    policy = small_policy(10, settings=dataclasses.replace(SMALL, stop_input="state"))
    with torch.no_grad():
        policy.controller.label.bias[policy.stop] -= 1.5  # so that it names several
    table = small_table(COUNT)
    named = named_by(policy, table)
    true = [labels_of(row, list(some)) for row, some in enumerate(named)]
    width = max(map(len, true))
    labels = torch.tensor([[*row, *[-1] * (width - len(row))] for row in true])
    table = FeatureTable(table.volumes, table.saliency, labels, None, table.image_size)
    with h5py.File(folder / "s.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(NAMES)
        file["test/images"] = np.random.default_rng(0).integers(0, 256, (COUNT, *table.image_size), dtype=np.uint8)
        file["test/labels"] = labels.numpy().astype(np.int16)
    write_features(folder / "s.features.h5", {"test": table})
    with open_scenes(folder / "s.h5") as scenes, h5py.File(folder / "s.features.h5", "r+") as file:
        file.attrs["scenes_digest"] = scenes.digest
        seal(file, attribute(file, "digest"))
    write_run(folder / "run", policy, max_labels=4)
    return named, true


def choose(folder):
    return choose_examples(load_policy(folder / "run"), folder / "s.features.h5", folder / "s.h5", batch_size=7)


def test_the_first_image_of_each_kind_is_chosen_and_none_twice(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "READ", 16)  # so that several reads are needed
    # All rows are right but row 3, and those in which nothing is named: they hold a 0 more, or in place of a fifth label.
    named, true = world(tmp_path, lambda row, some: [*some[:4], 0] if row == 3 or not some else some)
    right = [sorted(a) == sorted(b) for a, b in zip(named, true, strict=True)]
    repeat = next(row for row in range(COUNT) if right[row] and len(set(true[row])) < len(true[row]))
    many = next(row for row in range(COUNT) if right[row] and len(true[row]) == 4 and row != repeat)
    failure = next(row for row in range(COUNT) if not right[row])
    found = choose(tmp_path)
    assert [(example.rule, example.row) for example in found] == [(REPEAT, repeat), (MANY, many), (FAILURE, failure)]
    with open_scenes(tmp_path / "s.h5") as scenes:
        for example in found:
            assert sorted(example.truth) == sorted(NAMES[label] for label in true[example.row])
            assert example.look.labels == [NAMES[label] for label in named[example.row]]
            picture = scenes.split("test").read(example.row, example.row + 1)[0]
            assert np.array_equal(example.look.image, np.repeat(picture[..., None], 3, axis=2))


def test_in_a_data_set_without_repeats_the_first_right_image_stands_for_one(tmp_path) -> None:
    # A label is kept where it is named first; an image whose labels repeat in the policy's naming is then a failure.
    named, true = world(tmp_path, lambda row, some: list(dict.fromkeys(some)) or [1])
    right = [sorted(a) == sorted(b) for a, b in zip(named, true, strict=True)]
    found = {example.rule: example.row for example in choose(tmp_path)}
    assert REPEAT not in found and found.get(RIGHT) == (right.index(True) if any(right) else None)
    assert found[FAILURE] == right.index(False)


def test_scenes_other_than_those_of_the_features_are_refused(tmp_path) -> None:
    world(tmp_path, lambda row, some: some or [1])
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["test/images"][0] = 255 - file["test/images"][0]
    with pytest.raises(FileError, match="another scene file"):
        choose(tmp_path)
