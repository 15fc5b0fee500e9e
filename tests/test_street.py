"""Street numbers: what is painted is what the labels and boxes say, and depends on nothing else than it should."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsal_cli.errors import FileError
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import StreetSettings
from hsal_cli.scenes.street import street, typefaces
from hsal_cli.scenes.street.plans import LENGTHS, draw_plan, read_plans
from hsal_cli.scenes.street.street import StreetPainter, _Style, _warped, make_street_numbers
from hsal_cli.scenes.street.typefaces import LIKENESS, Typeface, _alike, _shapes, find_typefaces
from hsal_cli.scenes.street.wall import LUMA, against

HOUSES = {
    "10.png": {"digits": [3, 3, 8], "boxes_xyxy": [[20, 5, 30, 25], [31, 5, 41, 25], [42, 6, 52, 26]], "size_wh": [70, 30]},
    "9.png": {"digits": [7], "boxes_xyxy": [[-4, 3, 10, 40]], "size_wh": [40, 44]},
}


@pytest.fixture(scope="module")
def faces() -> list[Typeface]:
    return find_typefaces(system=False)


@pytest.fixture
def labels_file(tmp_path) -> Path:
    path = tmp_path / "labels.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"train": HOUSES, "test": HOUSES}).encode()))
    return path


def test_images_show_the_numbers_of_the_labels_file_in_the_order_of_its_names(labels_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hsal_cli.scenes.make"], "PART", 3)
    settings = StreetSettings(train=5, test=2, image_size=48, svhn_labels=str(labels_file), typefaces="bundled", frame="image")
    with open_scenes(make_street_numbers(settings, tmp_path / "a.h5", workers=1)) as scenes:
        train = scenes.split("train")
        assert train.images.shape == (5, 48, 48, 3) and train.labels.shape == (5, 3)
        assert [sorted(row[row >= 0].tolist()) for row in train.labels] == [[7], [3, 3, 8], [7], [3, 3, 8], [7]]
        images = train.read(0, 5)
        assert not np.array_equal(images[0], images[2]), "the same number is painted anew"
        for row, house in enumerate([HOUSES["9.png"], HOUSES["10.png"]]):
            wanted = np.array(house["boxes_xyxy"]) * np.array([48 / house["size_wh"][0], 48 / house["size_wh"][1]] * 2)
            for label, box in zip(train.labels[row], train.boxes[row], strict=True):
                fitting = wanted[np.array(house["digits"]) == label] if label >= 0 else []
                if label >= 0:  # glyphs keep their shape about, so they may leave some of the box's width, and tilt a little
                    assert min(np.abs(box[[1, 3]] - np.clip(other[[1, 3]], 0, 48)).max() for other in fitting) < 6
                    assert min(abs((box[0] + box[2]) / 2 - (max(other[0], 0) + other[2]) / 2) for other in fitting) < 5
        assert scenes.config["faces"] and scenes.config["svhn_labels_sha256"]


def test_an_image_depends_on_seed_split_and_number_alone(tmp_path, monkeypatch, faces):
    monkeypatch.setattr(sys.modules["hsal_cli.scenes.make"], "PART", 2)
    monkeypatch.setattr(street, "find_typefaces", lambda system: faces)

    def images(name: str, workers: int = 1, **changes: int) -> dict[str, np.ndarray]:
        settings = StreetSettings(**{"train": 4, "test": 4, "image_size": 32, "typefaces": "bundled", **changes})
        with open_scenes(make_street_numbers(settings, tmp_path / name, workers)) as scenes:
            return {split: scenes.split(split).read(0, 4) for split in scenes.splits}

    few, many, other = images("a.h5"), images("b.h5", workers=2, train=7), images("c.h5", seed=1)
    assert np.array_equal(few["train"], many["train"]) and np.array_equal(few["test"], many["test"])
    assert not np.array_equal(few["train"], other["train"]) and not np.array_equal(few["train"], few["test"])


def test_a_box_is_tight_around_the_ink_it_names(faces):
    rng = np.random.default_rng(0)
    for face in faces[::4]:
        for digit in (0, 1, 7):
            canvas = np.full((60, 80, 3), 40, np.float32)
            style = _Style(rng, np.full(3, 220, np.float32), canvas[0, 0], 30)
            style.depth, style.outline, style.ramp = 0.0, None, 0.0
            x0, y0, x1, y1 = style.stamp(rng, canvas, face.digits[digit], np.array([20.0, 12.0, 44.0, 48.0]))
            ink = canvas[..., 0] > 40 + 180 * 96 / 255
            columns, lines = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
            assert (x0, y0, x1, y1) == (columns[0], lines[0], columns[-1] + 1, lines[-1] + 1)
            assert 10 <= y0 <= 16 and 44 <= y1 <= 50 and 15 <= x0 < x1 <= 49


def test_a_glyph_is_warped_by_the_projective_map_of_its_corners():
    glyph = Image.fromarray(np.linspace(0, 255, 64 * 40).reshape(64, 40).astype(np.uint8))
    mask, left, top = _warped((glyph,), np.array([[5.0, 3.0], [45.0, 3.0], [45.0, 67.0], [5.0, 67.0]]))
    assert np.abs(mask[3 - top : 67 - top, 5 - left : 45 - left] * 255 - np.asarray(glyph)).max() <= 1
    corners = np.array([[4.0, 2.0], [30.0, 6.0], [28.0, 40.0], [6.0, 44.0]])
    mask, left, top = _warped((glyph,), corners)
    inside = np.zeros(mask.shape, bool)
    for y in range(mask.shape[0]):  # slow and obvious: on the inner side of all four edges
        for x in range(mask.shape[1]):
            place = np.array([x + left + 0.5, y + top + 0.5])
            edges = [(corners[(k + 1) % 4] - corners[k], place - corners[k]) for k in range(4)]
            turns = [a[0] * b[1] - a[1] * b[0] for a, b in edges]
            inside[y, x] = min(turns) > 1.5 * 34
    assert not mask[:2].any() and (mask[inside] > 0).mean() > 0.99


def test_digits_stand_out_from_what_they_stand_on():
    rng = np.random.default_rng(1)
    for _ in range(300):
        ground = rng.uniform(0, 255, 3).astype(np.float32)
        contrast = rng.uniform(36, 110)
        assert abs(float((against(rng, ground, contrast) - ground) @ LUMA)) > 0.6 * contrast


def test_numbers_drawn_without_labels_are_as_long_as_svhns():
    for split in ("train", "test"):
        rng = np.random.default_rng(0)
        plans = [draw_plan(rng, split) for _ in range(1500)]
        lengths = np.bincount([len(plan.digits) for plan in plans], minlength=7)[1:7] / 1500
        assert np.abs(lengths - np.array(LENGTHS[split]) / sum(LENGTHS[split])).max() < 0.04
        for plan in plans:
            assert (plan.boxes[:, 2:] > plan.boxes[:, :2]).all()
            centres = (plan.boxes[:, :2] + plan.boxes[:, 2:]) / 2
            assert (centres > 0).mean() == 1 and (centres < plan.size).all()


def test_labels_and_boxes_always_fit_a_scene_file(faces):
    painter = StreetPainter(StreetSettings(image_size=32), "test", faces, typefaces.letters(), None)
    for index in range(25):
        image, labels, boxes = painter.compose(index)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and len(labels) == len(boxes) > 0
        assert all(0 <= x0 < x1 <= 32 and 0 <= y0 < y1 <= 32 for x0, y0, x1, y1 in boxes)


def test_symbol_fonts_are_told_from_digits(faces):
    shapes = _shapes(faces[0])
    assert all(_alike(_shapes(face), shapes) >= LIKENESS for face in faces if face.source == "pillow")
    assert _alike(shapes, shapes) == 10 and _alike(shapes[::-1], shapes) < LIKENESS


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"{", "cannot read"),
        (b'{"train": {}}', "no labels of the splits"),
        (b'{"train": {}, "test": {}}', "train names no image"),
        (b'{"train": {"1.png": {"digits": [1]}}, "test": {}}', "train, 1.png: KeyError"),
        (b'{"train": {"1.png": {"digits": [11], "boxes_xyxy": [[0,0,1,1]], "size_wh": [9, 9]}}, "test": {}}', "digit that cannot be"),
    ],
)
def test_a_wrong_labels_file_is_refused_by_name(tmp_path, text, part):
    (tmp_path / "labels.json").write_bytes(text)
    with pytest.raises(FileError, match=part):
        read_plans(tmp_path / "labels.json")
