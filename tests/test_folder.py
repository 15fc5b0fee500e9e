"""One's own images: every form of labels gives the same scene file, and what is left out is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from label_parts import Made, draw, write
from learning_parts import StoppingReporter
from PIL import Image, ImageOps
from typer.testing import CliRunner

from hsal_cli import main
from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.pictures.writing import write_picture
from hsal_cli.scenes.folder import make_from_folder, turned
from hsal_cli.scenes.gather import fitted
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import FolderSettings
from hsal_cli.scenes.summary import classes_told
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


@pytest.mark.parametrize(("size", "fit", "told"), [((60, 40), "squash", True), ((60, 40), "pad", False), ((60, 50), "squash", False)])
def test_images_that_are_squashed_are_told_of(tmp_path, size, fit, told):
    for name in "ab":
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "l.csv").write_text("file,labels\na.png,cat\nb.png,dog\n")
    reporter = StoppingReporter()
    settings = FolderSettings(images=str(tmp_path), labels=str(tmp_path / "l.csv"), image_size=40, fit=fit)
    make_from_folder(settings, tmp_path / "out.h5", read_image, FORMATS, reporter)
    assert any("1.5 times" in line and "--fit pad" in line for line in reporter.said) is told


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
    assert told == {
        "nowhere.png": "no such image",
        "lonely.png": "no label",
        "b.png (line 3)": "a box that is empty",
        "b.png (line 7)": "a box without a label",
        "b.png (line 8)": "a value that is not a number",
        "c.png": "a box outside of the image",
        "d.png": told["d.png"],
    }
    with open_scenes(out) as scenes:
        assert scenes.split("train").labels.tolist() == [[0]] and scenes.config["skipped"] == 7


def test_boxes_are_dropped_as_a_whole_where_one_is_missing_and_that_is_told(tmp_path):
    draw_images(tmp_path / "images")
    (tmp_path / "l.jsonl").write_text(
        '{"image": "a.png", "labels": ["cat"], "boxes": [[0, 0, 9, 9]]}\n{"image": "b.png", "labels": ["dog"]}\n'
        '{"image": "c.png", "labels": ["dog"], "boxes": [null]}\n'
    )
    made = Made(tmp_path / "images", tmp_path / "l.jsonl")
    assert made.remarks == ["no boxes are kept: 2 of 3 images have an object without one"] and made.skipped == {}
    assert made.train == [["cat"], ["dog"], ["dog"]] and made.boxes["train"] == [None] * 3


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
        ("l.csv", "image,colour\na.png,red\n", "no column labels"),
        ("l.csv", "imgae,split,labels\na.png,test,red\n", r"labels' has no column image \(did you mean image by imgae\?\)$"),
        (
            "l.csv",
            "iamge,lables\na.png,red\n",
            r"image \(did you mean image by iamge\?\) and column labels \(did .* by lables\?\)$",
        ),
        ("l.json", "{}", "not COCO's JSON"),
        ("l.json", "{", "cannot read .* as coco"),
        ("l.doc", "x", "cannot be told from its name"),
        ("l.csv", "image,label\nnone.png,cat\n", "none of its images can be used"),
    ],
)
def test_labels_of_another_form_are_refused(tmp_path, name, text, part):
    draw_images(tmp_path / "images")
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=part):
        make(tmp_path, tmp_path / name)
    assert not (tmp_path / "out.h5").exists()


def test_numbers_as_names_are_sorted_by_value(tmp_path):
    draw(tmp_path / "i", "10.png", "9.png", "2.png")
    assert Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label\n10.png,10\n9.png,9\n2.png,2\n")).classes == ["2", "9", "10"]


def call(*words: str) -> tuple[int, str, str]:
    """Runs hsal in this process: its exit code, and what it wrote on stdout and stderr."""
    code, result = 0, CliRunner().invoke(main.app, list(words))
    if isinstance(result.exception, HsalError):
        code = result.exception.exit_code
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return code or result.exit_code, result.stdout, result.stderr


def test_the_reasons_are_shown_where_nothing_is_left(tmp_path):
    draw(tmp_path / "i", *[f"{number}.png" for number in range(5)])
    labels = write(tmp_path / "l.csv", "image,label,x0,y0,x1,y1\n" + "".join(f"{number}.png,cat,5,5,5,9\n" for number in range(5)))
    words = ["make-data", "folder", "--images", str(tmp_path / "i"), "--labels", str(labels), "--out", str(tmp_path / "o.h5")]
    code, out, err = call(*words)
    assert code == 1 and out == ""
    assert "Skipped 5: a box that is empty: 0.png (line 2), 1.png (line 3), 2.png (line 4) and 2 more" in err
    code, out, err = call(*words, "--json")
    document = json.loads(out)
    assert code == 1 and document["error"].endswith("none of its images can be used") and "--no-boxes" in document["hint"]
    assert [row["what"] for row in document["skipped"]] == [f"{number}.png (line {number + 2})" for number in range(5)]
    assert {row["reason"] for row in document["skipped"]} == {"a box that is empty"} and document["notes"] == []
    assert call(*words, "--no-boxes")[0] == 0
    with open_scenes(tmp_path / "o.h5") as scenes:
        assert len(scenes) == 5 and scenes.split("train").boxes is None


def test_notes_and_skips_stand_in_the_report_of_what_was_made(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png")
    labels = write(tmp_path / "l.csv", "image,label,x0,y0,x1,y1\na.png,cat,.1,.2,.5,.6\n")
    words = [
        "make-data",
        "folder",
        "--images",
        str(tmp_path / "i"),
        "--labels",
        str(labels),
        "--out",
        str(tmp_path / "o.h5"),
        "--overwrite",
    ]
    code, out, _ = call(*words)
    assert code == 0 and "Skipped 1: no label: b.png\nNote: all boxes lie between 0 and 1" in out
    document = json.loads(call(*words, "--json")[1])
    assert document["skipped"] == [{"what": "b.png", "reason": "no label"}] and len(document["notes"]) == 1


def test_it_is_told_that_test_images_are_drawn(tmp_path):
    draw(tmp_path / "i", *[f"{number}.png" for number in range(5)])
    drawn = "train and test are drawn: 20% of the images to test (--test-share)"
    labels = write(tmp_path / "l.csv", "image,label\n" + "".join(f"{number}.png,cat\n" for number in range(5)))
    assert Made(tmp_path / "i", labels, test_share=0.2).remarks == [drawn]
    write(labels, "image,label,split\n" + "".join(f"{number}.png,cat,{'test' if number else 'train'}\n" for number in range(5)))
    assert Made(tmp_path / "i", labels, test_share=0.2).remarks == []


def test_classes_are_told_with_slips_and_those_of_one_split(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png")
    rows = ["a.png,train,circle;" + "star;" * 20, "b.png,test,circle;stra;red triangle"]
    labels = write(tmp_path / "l.csv", "\n".join(["image,split,labels", *rows]))
    words = ["make-data", "folder", "--images", str(tmp_path / "i"), "--labels", str(labels), "--out", str(tmp_path / "o.h5")]
    code, out, _ = call(*words)
    assert code == 0 and out.splitlines()[-1] == (
        "4 classes: star 20 (in train alone), circle 2, red triangle 1 (in test alone), stra 1 (in test alone, did you mean star?)"
    )
    document = json.loads(call(*words, "--overwrite", "--json")[1])
    assert document["mistyped"] == {"stra": "star"}
    assert document["objects"]["test"] == {"circle": 1, "red triangle": 1, "star": 0, "stra": 1}


def test_of_many_classes_the_ends_are_told():
    train = {f"kind{number}": 100 - number for number in range(20)}
    test = dict.fromkeys(train, 1) | {"kind9": 0, "kind19": 0}
    assert classes_told({"train": train, "test": test}, {}) == (
        "20 classes: kind0 101, kind1 100, kind2 99, kind3 98, kind4 97, 10 more (1 of them not in every split), "
        "kind15 86, kind16 85, kind17 84, kind18 83, kind19 81 (in train alone)"
    )


def test_an_image_of_no_object_is_one(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png", "c.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label,x0,y0,x1,y1\na.png,cat,1,1,5,5\nb.png,,,,,\n"))
    assert made.train == [["cat"], []] and made.boxes["train"] == [[[1, 2, 5, 10]], []]
    assert made.skipped == {"c.png": "no label"} and made.remarks == []


def test_a_data_set_of_no_object_at_all_is_refused(tmp_path):
    draw(tmp_path / "i", "a.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label\na.png,\n"))
    assert "none of its 1 images has an object" in made.error.message
    write(tmp_path / "l.csv", "image,label\na.png,cat\n")  # as the hint says: labels that list an object
    assert Made(tmp_path / "i", tmp_path / "l.csv").train == [["cat"]]


PARTS = {  # an image with an object that cannot be read, beside a good one: (its labels with boxes, without)
    "a box that is empty": ("cat,1,1,5,5", "dog,5,5,5,9", ["cat", "dog"]),
    "a box outside of the image": ("cat,1,1,5,5", "dog,50,5,60,9", ["cat", "dog"]),
    "a value that is not a number": ("cat,1,1,5,5", "dog,nan,1,5,5", ["cat", "dog"]),
    "a box without a label": ("cat,1,1,5,5", ",1,1,5,5", None),
}


@pytest.mark.parametrize("reason", PARTS)
def test_an_image_never_stays_with_a_label_less(tmp_path, reason):
    *rows, without_boxes = PARTS[reason]
    draw(tmp_path / "i", "a.png", "b.png")
    labels = write(tmp_path / "l.csv", "\n".join(["image,label,x0,y0,x1,y1", *[f"a.png,{row}" for row in rows], "b.png,cat,1,1,5,5"]))
    made = Made(tmp_path / "i", labels)
    assert made.train == [["cat"]] and reason in made.skipped.values()
    made = Made(tmp_path / "i", labels, boxes=False)
    assert made.train == ([["cat"]] if without_boxes is None else [without_boxes, ["cat"]])
    assert Made(tmp_path / "i", labels, classes="cat").train == ([["cat"]] if without_boxes is None else [["cat"], ["cat"]])


def test_labels_for_images_in_two_folders(tmp_path):
    draw(tmp_path / "i", "0.png", "both.png")
    draw(tmp_path / "j", "1.png", "both.png", "alone.png")
    labels = write(tmp_path / "l.csv", "image,label\n0.png,x\n1.png,y\n2.png,z\nboth.png,x\n")
    made = Made(tmp_path / "i", labels, test_images=str(tmp_path / "j"))
    assert made.held == {"train": [["x"]], "test": [["y"]]}
    both = "there is an image of that name in both folders"
    assert made.skipped == {"2.png": "no such image", "alone.png": "no label", "both.png": both}


def test_all_images_for_testing_is_an_error_that_says_so(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label,split\na.png,x,test\nb.png,x,val\n"))
    assert "all 2 images are for testing" in made.error.message
    write(tmp_path / "l.csv", "image,label,split\na.png,x,test\nb.png,x,train\n")  # as the hint says
    assert Made(tmp_path / "i", tmp_path / "l.csv").held == {"train": [["x"]], "test": [["x"]]}


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_turned_as_exif_turns_pictures(orientation):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[3:8, 10:30] = 255
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(picture))
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert turned(np.array([[10.0, 3.0, 30.0, 8.0]]), picture.size, orientation)[0].tolist() == expected


UNSURE = "pictures that EXIF turns, while the labels do not say whether their boxes are turned: 1"


@pytest.mark.parametrize(
    ("orientation", "size", "box", "note"),
    [
        (6, "40,20", [[30, 0, 40, 10]], None),  # as stored: turned along
        (6, "20,40", [[0, 0, 20, 5]], None),  # as shown
        (6, ",", [[0, 0, 20, 5]], UNSURE),
        (3, "40,20", [[0, 0, 10, 10]], UNSURE),
        (1, "40,20", [[0, 0, 10, 10]], None),
        (1, "41,20", [[0, 0, 10, 10]], None),  # rounded by a tool
        (1, "20,40", "the labels say 20 x 40 px, the picture has 40 x 20", None),
        (1, "80,40", "the labels say 80 x 40 px, the picture has 40 x 20", None),
        (3, "20,40", "the labels say 20 x 40 px, the picture has 40 x 20", None),
    ],
)
def test_boxes_are_held_against_the_size_that_the_labels_state(tmp_path, orientation, size, box, note):
    draw(tmp_path / "i", "a.jpg", exif=exif(orientation))
    labels = write(tmp_path / "l.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,{size},cat,0,0,10,5\n")
    made = Made(tmp_path / "i", labels)
    if isinstance(box, str):
        assert made.skipped == {"a.jpg": box} and "--no-boxes" in made.error.hint
        assert Made(tmp_path / "i", labels, boxes=False).train == [["cat"]]
    else:
        assert made.boxes["train"] == [box] and [remark.split(";")[0] for remark in made.remarks] == ([note] if note else [])


def test_boxes_that_reach_beyond_their_pictures_are_told(tmp_path):
    draw(tmp_path / "i", "a.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label,x0,y0,x1,y1\na.png,cat,30,5,60,15\n"))
    assert made.boxes["train"] == [[[30, 10, 40, 30]]] and made.remarks[0].startswith(
        "pictures with boxes that reach beyond them, cut off there: 1"
    )


def test_what_tables_write_for_missing_values_is_no_class_without_a_word(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label\na.png,cat\nb.png,NaN\n"))
    assert made.train == [["cat"], ["NaN"]] and any("missing values" in said and "NaN" in said for said in made.remarks)


def test_pictures_that_hsal_drew_beside_images_are_none_of_them(tmp_path):
    draw(tmp_path / "i", "a.png")
    write_picture(Image.new("RGB", SIZE), tmp_path / "i" / "a.hsal.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label\na.png,cat\n"))
    assert made.train == [["cat"]] and not made.skipped


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
    notes = make_from_folder(settings, tmp_path / "dice.h5", read_image, FORMATS)
    assert notes.skipped == notes.remarks == []
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
