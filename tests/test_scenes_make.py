"""Making a whole data set: what it holds, what it depends on, and what is left when it is stopped."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx_set

from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.progress import Reporter
from hsal_cli.scenes.digits import strokes
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import SceneSettings


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that makes small settings with digits from a toy IDX set; parts are small, so that workers share the work."""
    folder = write_idx_set(tmp_path / "digits")
    monkeypatch.setattr(sys.modules["hsal_cli.scenes.make"], "PART", 8)
    small = {"train": 30, "test": 12, "image_size": 40, "digit_size": (8, 16), "clutter": 3, "mnist_dir": str(folder)}
    return lambda **changes: SceneSettings(**{**small, **changes})


def content(path: Path) -> dict:
    with open_scenes(path) as scenes:
        return {
            name: (scenes.split(name).read(0, len(scenes.split(name))), scenes.split(name).labels, scenes.split(name).boxes)
            for name in scenes.splits
        }


def test_a_file_holds_what_was_asked_for_and_records_it(recipe, tmp_path):
    out = make_dataset("mnist-multiset", recipe(count=(2, 3)), tmp_path / "data" / "a.h5", workers=1)
    with open_scenes(out) as scenes:
        assert scenes.splits == ["train", "test"] and scenes.classes == [str(digit) for digit in range(10)]
        assert [len(scenes.split(name)) for name in scenes.splits] == [30, 12]
        assert scenes.split("train").labels.shape == (30, 3) and scenes.split("train").image_size == (40, 40)
        assert set((scenes.split("train").labels >= 0).sum(1).tolist()) == {2, 3}
        assert scenes.config["dataset"] == "mnist-multiset" and scenes.config["digits"] == "mnist"
        assert scenes.config["mnist_dir"] == str(tmp_path / "digits") and scenes.config["count"] == [2, 3]


def test_more_images_and_other_workers_change_no_earlier_image(recipe, tmp_path):
    few = content(make_dataset("mnist-multiset", recipe(), tmp_path / "few.h5", workers=1))
    many = content(make_dataset("mnist-multiset", recipe(train=50, test=20), tmp_path / "many.h5", workers=2))
    for name in ("train", "test"):
        for a, b in zip(few[name], many[name], strict=True):
            assert np.array_equal(a, b[: len(a)])


def test_the_digest_depends_on_the_content_and_not_on_the_workers(recipe, tmp_path):
    digests = []
    for number, (settings, workers) in enumerate([(recipe(), 1), (recipe(), 3), (recipe(seed=1), 1)]):
        with open_scenes(make_dataset("mnist-set", settings, tmp_path / f"{number}.h5", workers)) as scenes:
            digests.append(scenes.digest)
    assert digests[0] == digests[1] != digests[2]


def test_test_images_hold_test_digits_and_training_images_training_digits(recipe, tmp_path):
    found = content(make_dataset("mnist-multiset", recipe(), tmp_path / "a.h5", workers=1))
    train = found["train"][0].max(axis=(1, 2))
    assert train.min() > 80 and train.max() < 150  # the training glyphs are dark, the test glyphs bright
    for image, boxes in zip(found["test"][0], found["test"][2], strict=True):
        assert all(image[y0:y1, x0:x1].max() > 230 for x0, y0, x1, y1 in boxes[boxes[:, 0] >= 0])


def test_the_single_object_set_has_one_digit_an_image_and_keeps_the_clutter(recipe, tmp_path):
    images, labels, boxes = content(make_dataset("mnist-single", recipe(count=(2, 4)), tmp_path / "a.h5", workers=1))["train"]
    assert labels.shape == (30, 1) and (labels >= 0).all()
    for image, (x0, y0, x1, y1) in zip(images, boxes[:, 0], strict=True):
        rest = image.copy()
        rest[y0:y1, x0:x1] = 0
        assert (rest > 0).any()


def test_a_split_of_no_images_is_left_out(recipe, tmp_path):
    with open_scenes(make_dataset("mnist-multiset", recipe(train=0), tmp_path / "a.h5", workers=1)) as scenes:
        assert scenes.splits == ["test"]


def test_strokes_serve_as_digits_and_are_recorded(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(strokes, "POOL", {"train": 40, "test": 40})
    out = make_dataset("mnist-multiset", recipe(digits="strokes", mnist_dir=None), tmp_path / "a.h5", workers=1)
    with open_scenes(out) as scenes:
        assert scenes.config["digits"] == "strokes" and scenes.config["mnist_dir"] is None


class StopsEarly(Reporter):
    """Asks to stop as soon as some images are done."""

    def track(self, *arguments, **names):
        import contextlib

        @contextlib.contextmanager
        def bar():
            yield lambda n, note="": setattr(self, "stop_signal", 2)

        return bar()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_run_leaves_nothing_behind_and_the_older_file_as_it_was(recipe, tmp_path, workers):
    out = tmp_path / "made" / "a.h5"
    out.parent.mkdir()
    out.write_text("older")
    with pytest.raises(Interrupted) as caught:
        make_dataset("mnist-multiset", recipe(), out, workers, StopsEarly())
    assert caught.value.exit_code == 130
    assert [path.name for path in out.parent.iterdir()] == ["a.h5"] and out.read_text() == "older"


@pytest.mark.skipif(sys.platform != "linux", reason="workers inherit the fault by a fork")
def test_a_worker_that_dies_is_an_error_and_not_a_wait_without_end(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hsal_cli.scenes.make"], "compose_part", lambda *_: os._exit(9))
    with pytest.raises(FileError, match="a worker process died"):
        make_dataset("mnist-multiset", recipe(), tmp_path / "made" / "a.h5", workers=2)
    assert list((tmp_path / "made").iterdir()) == []


def test_a_set_cannot_have_more_labels_than_there_are_classes(recipe, tmp_path):
    with pytest.raises(UsageError, match="count = 1-11"):
        make_dataset("mnist-set", recipe(count=(1, 11), image_size=100), tmp_path / "a.h5", workers=1)
    with pytest.raises(UsageError, match="no data set 'mnist'"):
        make_dataset("mnist", recipe(), tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
