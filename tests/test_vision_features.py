"""The feature file: rows in any order, and files that are not one."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hsal_cli.errors import FileError
from hsal_cli.features import table as feature_file
from hsal_cli.features.table import FeatureTable, open_features
from hsal_cli.storage.hdf5 import seal, stamp

COUNT = 50


def write_features(path: Path) -> dict[str, np.ndarray]:
    """A feature file as the format's description has it, written without our writer."""
    draw = np.random.default_rng(0)
    data = {
        "volumes": draw.normal(size=(COUNT, 4, 2, 3)).astype(np.float16),
        "saliency": draw.random((COUNT, 2, 3), dtype=np.float32),
        "labels": np.where(np.arange(3) < draw.integers(1, 4, (COUNT, 1)), draw.integers(0, 5, (COUNT, 3)), -1).astype(np.int16),
        "boxes": draw.integers((0, 0, 10, 10), (10, 10, 20, 20), (COUNT, 3, 4)).astype(np.int16),
    }
    with h5py.File(path, "w") as file:
        stamp(file, "hsal-features", {})
        file.attrs["classes"] = json.dumps(list("abcde"))
        file.attrs["backbone_digest"], file.attrs["scenes_digest"] = "b" * 64, "5" * 64
        file.attrs["image_size"], file.attrs["input_size"], file.attrs["volume_shape"] = (20, 30), 96, (4, 2, 3)
        for split in ("train", "test"):
            for name, values in data.items():
                file.create_dataset(f"{split}/{name}", data=values, chunks=(7, *values.shape[1:]), fletcher32=True)
        seal(file, "d" * 64)
    return data


@pytest.fixture
def path(tmp_path) -> Path:
    write_features(tmp_path / "f.h5")
    return tmp_path / "f.h5"


def assert_rows(table: FeatureTable, data: dict[str, np.ndarray], rows) -> None:
    for name, values in data.items():
        np.testing.assert_array_equal(getattr(table, name), values[rows])


@pytest.mark.parametrize(
    "rows",
    [None, slice(None), slice(3, 20), slice(40, 99), slice(-5, None), slice(20, 3), slice(1, 40, 7), slice(None, None, -1)],
)
def test_a_slice_reads_those_rows(path, tmp_path, rows):
    data = write_features(tmp_path / "g.h5")
    with open_features(path) as features:
        assert_rows(features.table("train", rows), data, slice(None) if rows is None else rows)


@pytest.mark.parametrize("block_rows", [1, 8, 512])
def test_rows_are_read_in_the_order_asked_for_with_repeats(path, tmp_path, monkeypatch, block_rows):
    monkeypatch.setattr(feature_file, "BLOCK_ROWS", block_rows)
    data = write_features(tmp_path / "g.h5")
    with open_features(path) as features:
        for rows in ([], [0], [COUNT - 1], [7, 7, 0, 49, 8, 16, 7, -1], list(np.random.default_rng(1).permutation(COUNT))):
            rows = torch.tensor(rows, dtype=torch.int64)
            assert_rows(features.table("test", rows), data, rows.numpy())
        for rows in ([COUNT], [-COUNT - 1]):
            with pytest.raises(IndexError):
                features.table("test", torch.tensor(rows))


def test_a_table_selects_rows_and_keeps_the_image_size(path, tmp_path):
    data = write_features(tmp_path / "g.h5")
    with open_features(path) as features:
        table = features.table("train")
    rows = torch.tensor([5, 2, 2])
    assert_rows(table.select(rows), data, rows.numpy())
    assert len(table) == COUNT and len(table.select(rows)) == 3 and table.select(slice(4)).image_size == (20, 30)


def test_an_open_file_tells_what_it_holds(path):
    with open_features(path) as features:
        assert features.splits == ["train", "test"] and features.classes == list("abcde")
        assert features.volume_shape == (4, 2, 3) and features.image_size == (20, 30) and features.input_size == 96
        assert features.digest == "d" * 64 and features.backbone_digest == "b" * 64 and features.scenes_digest == "5" * 64
        with pytest.raises(FileError, match="no split 'valid'"):
            features.table("valid")


@pytest.mark.parametrize(
    "fault", ["missing", "not complete", "no digest", "no volumes", "other shape", "too few labels", "scene file", "bad classes"]
)
def test_what_is_not_a_whole_feature_file_is_refused_by_name(path, fault):
    if fault == "missing":
        path.unlink()
    else:
        with h5py.File(path, "r+") as file:
            if fault == "not complete":
                file.attrs["complete"] = False
            elif fault == "no digest":
                del file.attrs["backbone_digest"]
            elif fault == "no volumes":
                del file["test/volumes"]
            elif fault == "other shape":
                file.attrs["volume_shape"] = (4, 3, 3)
            elif fault == "too few labels":
                del file["train/labels"]
                file["train/labels"] = np.zeros((3, 3), np.int16)
            elif fault == "scene file":
                file.attrs["format"] = "hsal-scenes"
            else:
                file.attrs["classes"] = "[a, b"
    with pytest.raises(FileError, match=str(path)) as caught:
        open_features(path)
    assert "hsal precompute" in caught.value.hint


def test_data_that_does_not_fit_its_checksum_is_refused(path, tmp_path):
    data = write_features(tmp_path / "g.h5")
    content = bytearray(path.read_bytes())
    place = content.find(data["volumes"][0].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with open_features(path) as features, pytest.raises(FileError, match="damaged"):
        features.table("train")
