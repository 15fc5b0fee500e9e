"""One's own images: every form of labels gives the same scene file, and what is left out is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsal_cli.errors import FileError, UsageError
from hsal_cli.scenes.folder import make_from_folder
from hsal_cli.scenes.gather import fitted
from hsal_cli.scenes.readers.labels import Notes
from hsal_cli.scenes.readers.read import read_labels
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import FolderSettings
from hsal_cli.vision.images import FORMATS, read_image

SIZE = (40, 20)
OBJECTS = {  # image -> objects: class, then x0, y0, x1, y1 in px
    "a.png": [("cat", 2, 2, 12, 10), ("dog", 20, 4, 36, 18)],
    "b.png": [("dog", 0, 0, 40, 20)],
    "c.png": [("cat", 4, 6, 10, 12), ("cat", 14, 6, 20, 12), ("ant", 30, 10, 34, 14)],
}
CLASSES = ["ant", "cat", "dog"]


def draw_images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(OBJECTS):
        Image.new("RGB", SIZE, (40 * number, 90, 10)).save(folder / name)
    return folder


def write_csv(folder: Path) -> Path:
    rows = [f"{image},{name},{x0},{y0},{x1},{y1}" for image, found in OBJECTS.items() for name, x0, y0, x1, y1 in found]
    (folder / "l.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *rows]))
    return folder / "l.csv"


def write_sized_tsv(folder: Path) -> Path:
    rows = [f"{image}\t{x0}\t{y0}\t{x1 - x0}\t{y1 - y0}\t{name}" for image, found in OBJECTS.items() for name, x0, y0, x1, y1 in found]
    (folder / "l.tsv").write_text("\n".join(["Filename\tx\ty\tWidth\tHeight\tClass", *rows]))
    return folder / "l.tsv"


def write_jsonl(folder: Path) -> Path:
    rows = [{"image": image, "labels": [o[0] for o in found], "boxes": [list(o[1:]) for o in found]} for image, found in OBJECTS.items()]
    (folder / "l.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return folder / "l.jsonl"


def write_coco(folder: Path) -> Path:
    places = {image: number for number, image in enumerate(OBJECTS, 7)}
    document = {
        "images": [{"id": number, "file_name": f"some/where/{image}"} for image, number in places.items()],
        "categories": [{"id": 3 * number, "name": name} for number, name in enumerate(CLASSES)],
        "annotations": [
            {"id": x0, "image_id": places[image], "category_id": 3 * CLASSES.index(name), "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for image, found in OBJECTS.items()
            for name, x0, y0, x1, y1 in found
        ],
    }
    (folder / "l.json").write_text(json.dumps(document))
    return folder / "l.json"


def write_yolo(folder: Path) -> Path:
    (folder / "labels").mkdir()
    for image, found in OBJECTS.items():
        lines = []
        for name, x0, y0, x1, y1 in found:
            shares = (x0 + x1) / 2 / SIZE[0], (y0 + y1) / 2 / SIZE[1], (x1 - x0) / SIZE[0], (y1 - y0) / SIZE[1]
            lines.append(" ".join(map(str, (CLASSES.index(name), *shares))))
        (folder / "labels" / image.replace(".png", ".txt")).write_text("\n".join(lines))
    (folder / "data.yaml").write_text("path: x\nnames:\n  0: ant\n  1: 'cat'  # soft\n  2: dog\nnc: 3\n")
    return folder / "labels"


def write_voc(folder: Path) -> Path:
    (folder / "voc").mkdir()
    for image, found in OBJECTS.items():
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for name, x0, y0, x1, y1 in found
        )
        text = f"<annotation><filename>{image}</filename>{objects}</annotation>"
        (folder / "voc" / image.replace(".png", ".xml")).write_text(text)
    return folder / "voc"


def make(folder: Path, labels: Path, **changes) -> tuple[Path, list[dict[str, str]]]:
    out = folder / "out.h5"
    settings = {"images": str(folder / "images"), "labels": str(labels), "image_size": 40, "test_share": 0.0, **changes}
    notes = make_from_folder(FolderSettings(**settings), out, read_image, FORMATS)
    return out, notes.skipped


@pytest.mark.parametrize("write", [write_csv, write_sized_tsv, write_jsonl, write_coco, write_yolo, write_voc])
def test_every_form_of_labels_gives_the_same_scene_file(tmp_path, write):
    draw_images(tmp_path / "images")
    out, skipped = make(tmp_path, write(tmp_path))
    assert skipped == []
    with open_scenes(out) as scenes:
        train = scenes.split("train")
        assert scenes.classes == CLASSES and scenes.splits == ["train"]
        assert train.labels.tolist() == [[1, 2, -1], [2, -1, -1], [1, 1, 0]]
        for row, found in enumerate(OBJECTS.values()):
            # 40 x 20 px become 40 x 40: every y is doubled.
            assert train.boxes[row][: len(found)].tolist() == [[x0, 2 * y0, x1, 2 * y1] for _, x0, y0, x1, y1 in found]
            assert train.read(row, row + 1)[0, 5, 5].tolist() == [40 * row, 90, 10]


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("size", [(90, 30), (30, 90), (64, 64)])
def test_boxes_stay_on_their_pixels(fit, size):
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[10:26, 5:23] = 255
    square, boxes = fitted(Image.fromarray(pixels), np.array([[5.0, 10.0, 23.0, 26.0], [-9.0, -9.0, -1.0, -1.0]]), 60, fit)
    lit = square[..., 0] > 127
    columns, lines = np.flatnonzero(lit.any(axis=0)), np.flatnonzero(lit.any(axis=1))
    assert np.abs(boxes[0] - np.array([columns[0], lines[0], columns[-1] + 1, lines[-1] + 1])).max() <= 1
    assert square.shape == (60, 60, 3) and (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
    if fit == "pad":
        seen = (columns[-1] + 1 - columns[0]) / (lines[-1] + 1 - lines[0])
        assert seen == pytest.approx(18 / 16, abs=0.15)


def test_a_row_an_image_with_several_labels_and_no_boxes(tmp_path):
    draw_images(tmp_path / "images")
    (tmp_path / "l.csv").write_text("file,labels\na.png,cat; dog\nb.png,dog\nc.png,cat|cat|ant\n")
    out, _ = make(tmp_path, tmp_path / "l.csv")
    with open_scenes(out) as scenes:
        assert scenes.split("train").labels.tolist() == [[1, 2, -1], [2, -1, -1], [1, 1, 0]] and scenes.split("train").boxes is None


def test_what_is_skipped_is_told_with_its_reason(tmp_path):
    images = draw_images(tmp_path / "images")
    (images / "d.png").write_bytes(b"\x89PNG broken")
    Image.new("RGB", SIZE).save(images / "lonely.png")
    (tmp_path / "l.csv").write_text(
        "image,label,x0,y0,x1,y1\na.png,cat,0,0,9,9\nb.png,dog,5,5,5,9\nc.png,cat,50,2,60,9\nd.png,cat,0,0,5,5\nnowhere.png,cat,0,0,5,5\n"
        "b.png,,0,0,5,5\nb.png,dog,x,0,5,5\n"
    )
    out, skipped = make(tmp_path, tmp_path / "l.csv")
    told = {row["what"]: row["reason"] for row in skipped}
    assert told["nowhere.png"] == "no such image" and told["lonely.png"] == "no label" and told["c.png"] == "a box outside of the image"
    assert "d.png" in told and told["line 3"] == "a box that is empty" and told["line 7"] == "no image or no label"
    assert told["line 8"] == "a value that is not a number" and told["b.png"] == "no label" and len(skipped) == 8
    with open_scenes(out) as scenes:
        assert scenes.split("train").labels.tolist() == [[0]] and scenes.config["skipped"] == 8


def test_boxes_are_dropped_as_a_whole_where_one_is_missing_and_that_is_told(tmp_path):
    draw_images(tmp_path / "images")
    (tmp_path / "l.jsonl").write_text(
        '{"image": "a.png", "labels": ["cat"], "boxes": [[0, 0, 9, 9]]}\n{"image": "b.png", "labels": ["dog"]}\n'
        '{"image": "c.png", "labels": ["dog"], "boxes": [null]}\n'
    )
    out, skipped = make(tmp_path, tmp_path / "l.jsonl")
    assert skipped == [{"what": "all boxes", "reason": "2 of 3 images have an object without one"}]
    with open_scenes(out) as scenes:
        assert scenes.split("train").boxes is None


def test_only_the_wanted_classes_in_the_wanted_order(tmp_path):
    draw_images(tmp_path / "images")
    out, skipped = make(tmp_path, write_csv(tmp_path), classes="dog,ant")
    with open_scenes(out) as scenes:
        assert scenes.classes == ["dog", "ant"] and scenes.split("train").labels.tolist() == [[0], [0], [1]]
    assert skipped == []
    with pytest.raises(UsageError, match="no label is cow"):
        make(tmp_path, tmp_path / "l.csv", classes="dog,cow")


def many(folder: Path, column: bool = False) -> Path:
    (folder / "images").mkdir()
    lines = ["image,label,split" if column else "image,label"]
    for number in range(20):
        Image.new("L", (8, 8), 10 * number).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,x" + (f",{'val' if number in (3, 4) else 'train'}" if column else ""))
    (folder / "l.csv").write_text("\n".join(lines))
    return folder / "l.csv"


def greys(out: Path, split: str) -> list[int]:
    with open_scenes(out) as scenes:
        part = scenes.split(split)
        return [int(image[0, 0, 0]) // 10 for image in part.read(0, len(part))]


def test_a_share_is_set_apart_that_the_seed_alone_decides(tmp_path):
    labels = many(tmp_path)
    tests = [greys(make(tmp_path, labels, test_share=0.25, seed=seed)[0], "test") for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2] and len(tests[0]) == 5
    out, _ = make(tmp_path, labels, test_share=0.25)
    assert sorted(greys(out, "train") + greys(out, "test")) == list(range(20))


def test_the_split_is_as_the_labels_or_a_list_say(tmp_path):
    labels = many(tmp_path, column=True)
    assert greys(make(tmp_path, labels)[0], "test") == [3, 4]
    (tmp_path / "test.txt").write_text("images/7.png\n11\n")
    assert greys(make(tmp_path, labels, test_list=str(tmp_path / "test.txt"))[0], "test") == [3, 4, 7, 11]
    (tmp_path / "test.txt").write_text("none.png\n")
    with pytest.raises(FileError, match="names no image"):
        make(tmp_path, labels, test_list=str(tmp_path / "test.txt"))


def test_labels_and_images_of_the_test_split_may_lie_elsewhere(tmp_path):
    labels = many(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    Image.new("L", (8, 8), 250).save(other / "0.png")
    (tmp_path / "t.csv").write_text("image,label\n0.png,y\n")
    out, _ = make(tmp_path, labels, test_labels=str(tmp_path / "t.csv"), test_images=str(other))
    assert greys(out, "train") == list(range(20)) and greys(out, "test") == [25]
    with open_scenes(out) as scenes:
        assert scenes.classes == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("l.csv", "image,colour\na.png,red\n", "no column image or no column labels"),
        ("l.json", "{}", "not COCO's JSON"),
        ("l.json", "{", "cannot read .* as coco"),
        ("l.doc", "x", "cannot be told from its name"),
        ("l.csv", "image,label\nnone.png,cat\n", "no image of train could be used"),
    ],
)
def test_labels_of_another_form_are_refused(tmp_path, name, text, part):
    draw_images(tmp_path / "images")
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=part):
        make(tmp_path, tmp_path / name)
    assert not (tmp_path / "out.h5").exists()


def test_numbers_as_names_are_sorted_by_value_and_yaml_lists_are_understood(tmp_path):
    (tmp_path / "l.csv").write_text("image,label\n" + "\n".join(f"{n}.png,{n}" for n in (10, 9, 2)))
    assert read_labels(tmp_path / "l.csv", "auto", print)[1] == ["2", "9", "10"]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 .5 .5 .2 .2\n7 .5 .5 .2 .2\n")
    for yaml in ('names: ["red", blue]\n', "names:\n- red\n- blue\nnc: 2\n", "names: [red,\n  blue]\n"):
        (tmp_path / "data.yaml").write_text(yaml)
        told: list[str] = []
        found, names = read_labels(tmp_path / "labels", "auto", lambda what, why, told=told: told.append(f"{what}: {why}"))
        assert names == ["blue"] and [name for name, _ in found[0].objects] == ["blue"]
        assert told == ["a.txt line 2: class 7, which has no name"]


def spots(dark: np.ndarray) -> int:
    """How many connected dark spots there are."""
    left, count = {tuple(place) for place in np.argwhere(dark).tolist()}, 0
    while left:
        count, reached = count + 1, [left.pop()]
        while reached:
            row, column = reached.pop()
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left:
                    left.remove(near)
                    reached.append(near)
    return count


def test_the_dice_of_the_documentation_have_as_many_pips_as_their_labels_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = (Path(__file__).parents[1] / "docs" / "dice.py").read_text()
    assert "range(1500)" in script
    exec(compile(script.replace("range(1500)", "range(12)"), "dice.py", "exec"), {})
    settings = FolderSettings(images="dice", labels="dice/labels.csv", test_share=0.0, image_size=160)
    assert make_from_folder(settings, tmp_path / "dice.h5", read_image) == []
    seen = []
    with open_scenes(tmp_path / "dice.h5") as scenes:
        train = scenes.split("train")
        for row, image in enumerate(train.read(0, len(train))):
            for label, (x0, y0, x1, y1) in zip(train.labels[row], train.boxes[row], strict=True):
                if label >= 0:
                    face = image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].max(axis=2)
                    assert spots(face < 90) == int(scenes.classes[label])
                    seen.append(label)
    assert len(seen) > 12 and len(set(seen)) > 3
