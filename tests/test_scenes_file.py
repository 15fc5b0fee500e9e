"""The scene file: what is written is read back, what users write is taken, what is wrong is refused by file, split and row."""

import json
import shutil

import h5py
import numpy as np
import pytest

from hsal_cli.errors import FileError
from hsal_cli.scenes.scene_file import open_scenes, write_scenes

SHAPE = (7, 12, 10)


def parts(colour: bool = False, step: int = 3):
    """Seven images in parts of `step`, with labels and boxes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (*SHAPE, 3) if colour else SHAPE, dtype=np.uint8)
    labels = np.array([[0, 1], [2, -1], [1, 1], [0, -1], [2, 2], [1, 0], [0, 0]], np.int16)
    boxes = np.where(labels[..., None] >= 0, np.array([1, 2, 5, 9]), -1).astype(np.int16)
    return [(images[start : start + step], labels[start : start + step], boxes[start : start + step]) for start in range(0, 7, step)]


@pytest.fixture
def user_file(tmp_path):
    """A function that writes a scene file as a user would, with some things changed."""

    def write(**changes):
        labels = np.array([[0, 1], [2, -1], [1, 1]])
        things = {
            "images": np.ones((3, 12, 10), np.uint8),
            "labels": labels,
            "format": "hsal-scenes",
            "classes": json.dumps(["a", "b", "c"]),
            **changes,
        }
        path = tmp_path / "own.h5"
        with h5py.File(path, "w") as file:
            for name in ("format", "classes"):
                if things[name] is not None:
                    file.attrs[name] = things[name]
            for name in ("images", "labels", "boxes"):
                if things.get(name) is not None:
                    file[f"train/{name}"] = things[name]
        return path

    return write


@pytest.mark.parametrize("colour", [False, True])
def test_what_is_written_is_read_back(tmp_path, colour):
    path = tmp_path / "a.h5"
    with write_scenes(path, {"seed": 3}, ["a", "b", "c"]) as writer:
        writer.write_split("test", iter(parts(colour)), (*SHAPE, 3) if colour else SHAPE)
        writer.write_split("train", iter(parts(colour)[:1]), (3, *SHAPE[1:], 3) if colour else (3, *SHAPE[1:]))
    whole = [np.concatenate(kind) for kind in zip(*parts(colour), strict=True)]
    with open_scenes(path) as scenes:
        split = scenes.split("test")
        assert scenes.splits == ["train", "test"] and scenes.classes == ["a", "b", "c"] and scenes.config == {"seed": 3}
        assert len(split) == 7 and split.image_size == (12, 10) and split.labels.dtype == split.boxes.dtype == np.int16
        for ours, read in zip(whole, (split.read(0, 7), split.labels, split.boxes), strict=True):
            assert np.array_equal(ours, read)
        assert np.array_equal(split.read(2, 5), whole[0][2:5])
        assert all(data.fletcher32 for data in scenes._file["test"].values())


def test_the_digest_is_that_of_the_content_however_it_was_written(tmp_path):
    digests = []
    for step in (3, 7):
        with write_scenes(tmp_path / "a.h5", {"step": step}, ["a", "b", "c"]) as writer:
            writer.write_split("train", iter(parts(step=step)), SHAPE)
        with open_scenes(tmp_path / "a.h5") as scenes:
            digests.append(scenes.digest)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["digest"], file.attrs["attributes_digest"]  # as in a user's file, the digest is then computed
    with open_scenes(tmp_path / "a.h5") as scenes:
        assert digests == [scenes.digest] * 2
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["train/images"][6, 0, 0] ^= 1
    with open_scenes(tmp_path / "a.h5") as scenes:
        assert scenes.digest != digests[0]


def test_a_file_that_a_user_wrote_is_taken(user_file):
    with open_scenes(user_file()) as scenes:
        assert scenes.splits == ["train"] and scenes.config == {} and scenes.split("train").boxes is None
        assert scenes.split("train").labels.tolist() == [[0, 1], [2, -1], [1, 1]] and len(scenes.digest) == 64
    with open_scenes(user_file(classes=["a", "b", "c"])) as scenes:  # without json.dumps
        assert scenes.classes == ["a", "b", "c"]


BOX = np.broadcast_to(np.array([1, 2, 5, 9]), (3, 2, 4))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"format": "other"}, "not a file of format hsal-scenes"),
        ({"classes": None}, "attribute classes is not a JSON list"),
        ({"classes": "a, b"}, "attribute classes is not a JSON list"),
        ({"classes": '["a", "a", "b"]'}, "attribute classes is not a JSON list"),
        ({"images": None, "labels": None}, "has no split"),
        ({"images": np.ones((3, 12, 10), np.float32)}, "train: images have type float32"),
        ({"images": np.ones((3, 12, 10, 4), np.uint8)}, "train: images have shape"),
        ({"labels": None}, "train: there are no labels"),
        ({"labels": np.full((3, 2), np.nan)}, "train: labels have type float64, not integers"),
        ({"labels": np.zeros((4, 2), int)}, r"train: labels have shape \(4, 2\), not \(3, L\)"),
        ({"labels": np.array([[0, 1], [1, 0], [3, 0]])}, "train: row 2 has a label outside 0 to 2"),
        ({"labels": np.array([[0, -2], [1, 0], [1, 0]])}, "train: row 0 has a label outside 0 to 2"),
        ({"labels": np.array([[0, 1], [1, 40_000], [1, 0]])}, r"train: row 1 has a label outside 0 to 2 \(-1 pads\): 40000"),
        ({"labels": np.array([[0, 1], [1, 2**64 - 1], [1, 0]], np.uint64)}, r"train: row 1 has a label .*: 18446744073709551615"),
        ({"labels": np.array([[0, 1], [1, 65_535], [1, 0]], np.uint16)}, r"train: row 1 has a label .*: 65535"),
        ({"labels": np.array([[0, 1], [1, 2], [1, 0]]), "classes": json.dumps([str(k) for k in range(32_769)])}, "32,769 classes"),
        ({"labels": np.array([[0, 1], [-1, 2], [1, 0]])}, "train: row 1 has a label behind the padding"),
        ({"boxes": np.zeros((3, 4), int)}, r"train: boxes have shape \(3, 4\), not \(3, 2, 4\)"),
        ({"boxes": BOX / 1}, "train: boxes have type float64, not integers"),
        ({"boxes": BOX + np.array([0, 0, 65_536, 65_536])}, r"train: row 0 has a box .*: \[1, 2, 65541, 65545\]"),
        ({"boxes": np.where(np.arange(3)[:, None, None] == 2, BOX[..., ::-1], BOX)}, "train: row 2 has a box that is empty or leaves"),
        ({"boxes": BOX + 5}, "train: row 0 has a box that is empty or leaves the image of 10x12"),
    ],
)
def test_a_file_with_a_fault_is_refused_by_file_split_and_row(user_file, changes, part):
    path = user_file(**changes)
    with pytest.raises(FileError, match=part) as caught:
        open_scenes(path)
    assert str(path) in caught.value.message


def test_what_stands_beside_padding_does_not_count_and_an_image_may_hold_nothing(user_file):
    boxes = np.array(BOX)
    boxes[1], boxes[0, 1] = -40_000, 2**40
    with open_scenes(user_file(labels=np.array([[0, -1], [-1, -1], [1, 0]]), boxes=boxes)) as scenes:
        split = scenes.split("train")
        assert split.labels.tolist() == [[0, -1], [-1, -1], [1, 0]] and split.boxes[0, 0].tolist() == BOX[0, 0].tolist()
        assert len(scenes.digest) == 64


def test_a_box_beyond_what_int16_holds_is_refused_though_the_image_is_that_large(user_file):
    boxes = np.broadcast_to(np.array([1, 2, 5, 9]), (1, 2, 4)).copy()
    boxes[0, 1, 2] = 33_000
    path = user_file(images=np.zeros((1, 12, 40_000), np.uint8), labels=np.array([[0, 1]]), boxes=boxes)
    with pytest.raises(FileError, match=r"row 0 has a box .* lies beyond the 32,767 px that boxes may have: \[1, 2, 33000, 9\]"):
        open_scenes(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": 40_000}, r"a.h5: train: row 2 has a label outside 0 to 2 \(-1 pads\): 40000"),
        ({"labels": -2}, r"a.h5: train: row 2 has a label outside 0 to 2 \(-1 pads\): -2"),
        ({"boxes": 65_540}, r"a.h5: train: row 2 has a box that is empty or leaves the image of 10x12 px: \[.*65540\]"),
    ],
)
def test_a_writer_refuses_what_would_wrap_and_leaves_no_file(changes, said, tmp_path):
    images, labels, boxes = (part.copy() for part in parts(step=7)[0])
    labels, boxes = labels.astype(np.int64), boxes.astype(np.int64)
    labels[2, 0] = changes.get("labels", 0)
    boxes[2, 0, 3] = changes.get("boxes", boxes[2, 0, 3])
    with pytest.raises(FileError, match=said), write_scenes(tmp_path / "a.h5", {}, ["a", "b", "c"]) as writer:
        writer.write_split("train", iter([(images, labels, boxes)]), SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_more_classes_than_labels_can_tell_apart_are_refused_by_the_writer(tmp_path):
    with (
        pytest.raises(FileError, match="there are 40,000 classes, and a label is at most 32,767"),
        write_scenes(tmp_path / "a.h5", {}, [str(name) for name in range(40_000)]),
    ):
        pytest.fail("written")


@pytest.mark.parametrize("config", ["not json", "[1, 2]", 3, np.arange(2)])
def test_an_attribute_config_of_another_program_is_ignored(user_file, config):
    with open_scenes(user_file(config=config)) as scenes:
        assert scenes.config == {} and len(scenes.split("train")) == 3


def test_a_missing_file_and_a_missing_split_are_refused(user_file, tmp_path):
    with pytest.raises(FileError, match="is missing"):
        open_scenes(tmp_path / "none.h5")
    with open_scenes(user_file()) as scenes, pytest.raises(FileError, match="no split 'test'"):
        scenes.split("test")


def test_a_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.h5"
    with write_scenes(path, {}, ["a", "b", "c"]) as writer:
        writer.write_split("train", iter(parts()), SHAPE)
    with h5py.File(path) as file:
        place = file["train/images"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 20] ^= 255
    path.write_bytes(data)
    with open_scenes(path) as scenes, pytest.raises(FileError, match="damaged: train, images 0 to 6"):
        scenes.split("train").read(0, 7)


def test_a_writer_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), write_scenes(tmp_path / "a.h5", {}, ["a", "b", "c"]) as writer:
        writer.write_split("train", iter(parts()), SHAPE)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_before_hdf5_meets_it(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(FileError, match="No space left on device"), write_scenes(tmp_path / "a.h5", {}, ["a", "b", "c"]) as writer:
        writer.write_split("train", iter(parts()), SHAPE)
    assert list(tmp_path.iterdir()) == []
