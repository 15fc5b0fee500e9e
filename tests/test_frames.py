"""Frames: the number is cut out by its boxes before an image is resized, and the boxes go along."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from svhn_files import HOUSES, made, pack, write_structure, write_svhn
from typer.testing import CliRunner

from hsal_cli.app import app
from hsal_cli.errors import FileError, UsageError
from hsal_cli.scenes.folder import make_from_folder
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import FolderSettings, StreetSettings, SvhnSettings
from hsal_cli.scenes.street.frames import drawing, number_frame
from hsal_cli.scenes.street.street import StreetPainter, make_street_numbers
from hsal_cli.scenes.street.typefaces import find_typefaces, letters
from hsal_cli.vision.images import FORMATS, read_image

GENUINE = Path(__file__).parents[2] / "shared" / "svhn"


def slow_frame(boxes: list[tuple[float, float, float, float]], width: int, height: int) -> tuple[int, int, int, int]:
    """The union of the boxes + 30%, a side at a time, clipped to the image."""
    left, top, right, bottom = width, height, 0.0, 0.0
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = min(left, x0), min(top, y0), max(right, x1), max(bottom, y1)
    wider, taller = 0.15 * (right - left), 0.15 * (bottom - top)
    return (
        max(0, math.floor(left - wider)),
        max(0, math.floor(top - taller)),
        min(width, math.ceil(right + wider)),
        min(height, math.ceil(bottom + taller)),
    )


def corners(digits: list[tuple[int, float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    return [(left, top, left + across, top + down) for _, left, top, across, down in digits]


@pytest.fixture(scope="module")
def svhn(tmp_path_factory) -> Path:
    folder = write_svhn(tmp_path_factory.mktemp("svhn"), "train")
    return write_svhn(folder, "test", HOUSES[:2])


def test_the_number_is_cut_out_of_svhns_image_before_it_is_resized(svhn, tmp_path):
    with open_scenes(made(svhn, tmp_path / "a.h5")) as scenes:
        assert scenes.config["frame"] == "number", "the default"
        train = scenes.split("train")
        for row, (name, size, digits) in enumerate(HOUSES):
            x0, y0, x1, y1 = slow_frame(corners(digits), *size)
            with Image.open(svhn / "train" / name) as image:
                wanted = np.asarray(image.convert("RGB").crop((x0, y0, x1, y1)).resize((64, 64), Image.Resampling.BILINEAR))
            assert np.array_equal(train.read(row, row + 1)[0], wanted), name
            for box, exact in zip(train.boxes[row], corners(digits), strict=False):
                scale = np.array([64 / (x1 - x0), 64 / (y1 - y0)] * 2)
                place = np.clip((np.array(exact) - [x0, y0, x0, y0]) * scale, 0, 64)
                assert np.abs(box - place).max() < 1 and (box[2:] > box[:2]).all() and box.min() >= 0 and box.max() <= 64


def test_frames_make_other_files_with_other_digests(svhn, tmp_path):
    digests = set()
    for name, changes in {"image": {"frame": "image"}, "number": {}, "jittered": {"frame_jitter": 1}}.items():
        with open_scenes(made(svhn, tmp_path / f"{name}.h5", **changes)) as scenes:
            digests.add(scenes.digest)
    assert len(digests) == 3


def test_shifted_frames_are_stored_for_training_alone_and_hold_all_boxes(svhn, tmp_path):
    out = made(svhn, tmp_path / "a.h5", frame_jitter=3)
    again = made(pack(svhn, "train", pack(svhn, "test", tmp_path / "packed")), tmp_path / "b.h5", frame_jitter=3)
    with open_scenes(out) as scenes, open_scenes(again) as packed, open_scenes(made(svhn, tmp_path / "c.h5")) as exact:
        assert scenes.digest == packed.digest, "frames depend on the image's name alone"
        train = scenes.split("train")
        assert train.labels[:, 0].tolist() == [1] * 3 + [5] * 3 + [7] * 3 + [0] * 3
        assert not np.array_equal(train.read(3, 4), train.read(4, 5)) and not np.array_equal(train.boxes[3], train.boxes[4])
        assert np.array_equal(scenes.split("test").read(0, 2), exact.split("test").read(0, 2))


def test_a_shifted_frame_is_10_to_50_percent_larger_than_the_union_and_never_cuts_a_box():
    boxes = np.array([[200.0, 300, 260, 380], [270.0, 310, 300, 400]])
    shares, places = [], []
    for draw_number in range(300):
        x0, y0, x1, y1 = number_frame(boxes, drawing(0, draw_number))
        assert x0 <= 200 and y0 <= 300 and x1 >= 300 and y1 >= 400
        assert 0.1 <= (x1 - x0) / 100 - 1 <= 0.52 and 0.1 <= (y1 - y0) / 100 - 1 <= 0.52
        shares.append((x1 - x0) / 100 - 1)
        places.append((200 - x0) / (x1 - x0 - 100))
    assert np.ptp(shares) > 0.3 and min(places) < 0.1 and max(places) > 0.9


@pytest.mark.parametrize("frame", ["image", "number"])
def test_street_numbers_are_cut_by_the_boxes_of_their_labels(frame, tmp_path):
    house = {"digits": [3, 8], "boxes_xyxy": [[100, 40, 130, 90], [131, 42, 160, 92]], "size_wh": [400, 200]}
    (tmp_path / "l.json").write_text(json.dumps({"train": {"1.png": house}, "test": {"1.png": house}}))
    settings = StreetSettings(train=3, test=1, image_size=80, svhn_labels=str(tmp_path / "l.json"), typefaces="bundled", frame=frame)
    with open_scenes(make_street_numbers(settings, tmp_path / "a.h5", workers=1)) as scenes:
        x0, y0, x1, y1 = slow_frame(house["boxes_xyxy"], 400, 200) if frame == "number" else (0, 0, 400, 200)
        for row in range(3):
            train = scenes.split("train")
            for label, box in zip(train.labels[row], train.boxes[row], strict=True):
                plan = np.array(house["boxes_xyxy"][house["digits"].index(label)])
                wanted = (plan - [x0, y0, x0, y0]) * np.array([80 / (x1 - x0), 80 / (y1 - y0)] * 2)
                # glyphs keep their shape about, so they may leave some of the box's width, and tilt a little
                assert np.abs((box - wanted)[[1, 3]]).max() < 0.12 * (wanted[3] - wanted[1]) + 1.5
                assert abs((box[0] + box[2] - wanted[0] - wanted[2]) / 2) < 0.15 * (wanted[3] - wanted[1]) + 1
                assert (box[2:] > box[:2]).all() and box.min() >= 0 and box.max() <= 80


def test_a_box_in_the_frame_is_tight_around_its_ink(monkeypatch):
    """Of a digit that is all there is to see, painted white on black."""
    settings = StreetSettings(image_size=96, typefaces="bundled", svhn_labels=None)
    painter = StreetPainter(settings, "test", find_typefaces(system=False), letters(), None)

    def paint(rng, size, digits, boxes):
        canvas = np.zeros((size[1], size[0], 3), np.float32)
        found = []
        for x0, y0, x1, y1 in boxes:
            rect = tuple(int(value) for value in (max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])))
            canvas[rect[1] : rect[3], rect[0] : rect[2]] = 255
            found.append(rect)
        return canvas, found

    monkeypatch.setattr(painter, "_paint", paint)
    monkeypatch.setattr(painter, "_seen", lambda rng, canvas, boxes: canvas.astype(np.uint8))
    for index in range(12):
        image, _, boxes = painter.compose(index)
        ink = np.argwhere(image[..., 0] > 100)
        union = [min(box[0] for box in boxes), min(box[1] for box in boxes), max(box[2] for box in boxes), max(box[3] for box in boxes)]
        assert np.abs(np.array([*ink.min(0)[::-1], *(ink.max(0)[::-1] + 1)]) - union).max() <= 3, index


def test_jittered_street_numbers_are_painted_anew_and_test_images_are_as_they_were(tmp_path):
    def some(name: str, **changes) -> tuple[np.ndarray, np.ndarray]:
        settings = StreetSettings(train=2, test=2, image_size=32, typefaces="bundled", **changes)
        with open_scenes(make_street_numbers(settings, tmp_path / name, workers=1)) as scenes:
            return tuple(scenes.split(split).read(0, len(scenes.split(split))) for split in ("train", "test"))

    (plain, test), (shifted, same) = some("a.h5"), some("b.h5", frame_jitter=2)
    assert len(plain) == 2 and len(shifted) == 4 and np.array_equal(test, same)
    assert not np.array_equal(plain[0], shifted[0]) and not np.array_equal(shifted[0], shifted[2])


def write_own(folder: Path, rows: list[dict]) -> FolderSettings:
    for row in rows:
        pixels = np.random.default_rng(len(row["labels"])).integers(0, 255, (40, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / row["image"])
    (folder / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return FolderSettings(images=str(folder), labels=str(folder / "l.jsonl"), image_size=48, test_share=0.0, frame="number")


def test_of_ones_own_images_those_without_an_object_stay_whole(tmp_path):
    boxes = [[10, 8, 20, 24], [40.5, 10, 52, 30]]
    rows = [{"image": "a.png", "labels": ["cat", "dog"], "boxes": boxes}, {"image": "b.png", "labels": [], "boxes": []}]
    make_from_folder(write_own(tmp_path, rows), tmp_path / "a.h5", read_image, FORMATS)
    with open_scenes(tmp_path / "a.h5") as scenes:
        train = scenes.split("train")
        order = (train.labels[:, 0] < 0).argsort()
        for row, name in zip(order, ("a.png", "b.png"), strict=True):
            frame = slow_frame(boxes, 80, 40) if name == "a.png" else (0, 0, 80, 40)
            with Image.open(tmp_path / name) as image:
                wanted = np.asarray(image.crop(frame).resize((48, 48), Image.Resampling.BILINEAR))
            assert np.array_equal(train.read(row, row + 1)[0], wanted), name


def test_a_frame_without_boxes_is_refused_with_a_way_out(tmp_path, svhn):
    rows = [{"image": "a.png", "labels": ["cat"], "boxes": [[1, 2, 9, 9]]}, {"image": "b.png", "labels": ["cat"]}]
    with pytest.raises(FileError, match="1 of 2 images have an object without a box") as caught:
        make_from_folder(write_own(tmp_path, rows), tmp_path / "a.h5", read_image, FORMATS)
    assert "--frame image" in caught.value.hint and not (tmp_path / "a.h5").exists()
    with pytest.raises(UsageError, match="boxes by which it is cut out"):
        FolderSettings(frame="number", boxes=False)
    for settings in (FolderSettings, StreetSettings, SvhnSettings):
        with pytest.raises(UsageError, match="cuts nothing out"):
            settings(frame="image", frame_jitter=2)
    folder = write_svhn(tmp_path / "odd", "train", [("1.png", (20, 20), [(3, 40, 4, 8, 9)])])
    with pytest.raises(FileError, match=r"train/1\.png: its boxes lie outside of it"):
        made(folder, tmp_path / "b.h5", test=0)


def test_make_data_and_inspect_name_the_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["make-data", "street-numbers", "--train", "2", "--test", "1", "--image-size", "32", "--typefaces", "bundled"]
    made = CliRunner().invoke(app, [*asked, "--workers", "1", "--json"])
    assert made.exit_code == 0 and json.loads(made.stdout)["frame"] == "number"
    shown = CliRunner().invoke(app, ["inspect", "data/street-numbers.h5", "--json"])
    assert json.loads(shown.stdout)["config"]["frame"] == "number"


@pytest.mark.skipif(
    not (GENUINE / "labels.json.gz").exists(), reason="SVHN's genuine images are not at hand: they lie beside some checkouts"
)
def test_the_genuine_images_of_svhn_are_read_in_the_numbers_frame(tmp_path):
    labels = json.loads(gzip.decompress((GENUINE / "labels.json.gz").read_bytes()))
    for split in ("train", "test"):
        houses = []
        (tmp_path / split).mkdir()
        for path in sorted((GENUINE / split).glob("*.png")):
            (tmp_path / split / path.name).write_bytes(path.read_bytes())
            row = labels[split][path.name]
            digits = [
                (digit or 10, x0, y0, x1 - x0, y1 - y0) for digit, (x0, y0, x1, y1) in zip(row["digits"], row["boxes_xyxy"], strict=True)
            ]
            houses.append((path.name, tuple(row["size_wh"]), digits))
        write_structure(tmp_path / split / "digitStruct.mat", houses)
    with open_scenes(made(tmp_path, tmp_path / "a.h5", frame="number")) as scenes:
        for split in scenes.splits:
            part = scenes.split(split)
            assert len(part) == 3
            for row, name in enumerate(("1.png", "2.png", "3.png")):
                known = part.boxes[row][part.labels[row] >= 0]
                assert part.labels[row][part.labels[row] >= 0].tolist() == labels[split][name]["digits"]
                # 1 / 1.3 of the frame at least, as far as the image reaches
                assert min(known[:, 2].max() - known[:, 0].min(), known[:, 3].max() - known[:, 1].min()) >= 0.7 * 64
