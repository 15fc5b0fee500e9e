"""Every hint that an error about labels gives is tried: what it says is done, and the error is gone."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from label_parts import Made, draw, write

from hsal_cli.errors import FileError
from hsal_cli.vision.images import read_image

GOOD = "0 .5 .5 .5 .5\n"
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
}
CSV = "image,label\na.png,cat\n"


def rewritten(name: str, text: object) -> Callable[[Path], dict]:
    """The cure is to write a file anew."""
    return lambda place: write(place / name, text) and {}


def named(**changes: object) -> Callable[[Path], dict]:
    """The cure is to name something else."""
    return lambda place: {key: str(place / value) if isinstance(value, str) else value for key, value in changes.items()}


HINTS = {  # files; the labels that are named; what the hint says; what is done then, which gives the options that change
    "no such labels": ({"l.csv": CSV}, "x.csv", "docs/own-images.md shows the forms", named(labels="l.csv")),
    "no such images": ({"l.csv": CSV}, "l.csv", "name it with --images", named(images="i")),
    "no image": ({"l.csv": CSV, "e/x.md": ""}, "l.csv", "put images there that end in", lambda place: draw(place / "e", "a.png") and {}),
    "a folder of none": ({"l/x.md": "", "l.csv": CSV}, "l", "docs/own-images.md shows the forms", named(labels="l.csv")),
    "several forms": ({"l/a.csv": CSV, "l/b.jsonl": "{}"}, "l", "name one file with --labels", named(labels="l/a.csv")),
    "several forms, one said": (
        {"l/a.csv": CSV, "l/b.jsonl": "{}"},
        "l",
        "or the form with --labels-format",
        lambda place: {"labels_format": "csv"},
    ),
    "unknown ending": ({"l.dat": CSV}, "l.dat", "say so with --labels-format", lambda place: {"labels_format": "csv"}),
    "a text file": ({"l/a.txt": GOOD, "l/classes.txt": "cat\n"}, "l/a.txt", "name the folder of the text files", named(labels="l")),
    "no header": ({"l.csv": "a.png,cat\n"}, "l.csv", "name the columns in its first line, such as image,label", rewritten("l.csv", CSV)),
    "counts": ({"l.csv": "image,cat\na.png,1\n"}, "l.csv", "add --labels-format counts", lambda place: {"labels_format": "counts"}),
    "empty table": ({"l.csv": ""}, "l.csv", "docs/own-images.md shows the forms", rewritten("l.csv", CSV)),
    "open quotes": ({"l.csv": 'image,label\na.png,"cat\n'}, "l.csv", "docs/own-images.md shows the forms", rewritten("l.csv", CSV)),
    "two columns": ({"l.csv": "image,label,label\na.png,x,y\n"}, "l.csv", "keep one of them", rewritten("l.csv", CSV)),
    "not COCO": ({"l.json": {}}, "l.json", "export the labels as COCO JSON", rewritten("l.json", COCO)),
    "not JSON": ({"l.json": "{", "l.csv": CSV}, "l.json", "or write a CSV", named(labels="l.csv")),
    "class names alone": (
        {"notes.json": {"categories": [{"id": 0, "name": "cat"}]}, "labels/a.txt": GOOD},
        "notes.json",
        "name the folder of its text files: --labels",
        named(labels="labels"),
    ),
    "image unknown": (
        {"l.json": {**COCO, "annotations": [*COCO["annotations"], None]}},
        "l.json",
        "remove it, or mend its image_id",
        rewritten("l.json", COCO),
    ),
    "no id": ({"l.json": {**COCO, "images": [{"file_name": "a.png"}]}}, "l.json", "remove it, or give it an id", rewritten("l.json", COCO)),
    "same id": (
        {"l.json": {**COCO, "images": COCO["images"] * 2}},
        "l.json",
        "give each image an id of its own",
        rewritten("l.json", COCO),
    ),
    "ids of nothing": (
        {"l.json": {**COCO, "annotations": [{"image_id": 7, "category_id": 1}]}},
        "l.json",
        "image_id must be the id of one of the images",
        rewritten("l.json", COCO),
    ),
    "no names": ({"l/a.txt": GOOD}, "l", "write the class names, one a line, into {}/l/classes.txt", rewritten("l/classes.txt", "cat\n")),
    "a data.yaml without names": (
        {"l/a.txt": GOOD, "data.yaml": "nc: 1\n"},
        "data.yaml",
        "list the class names under names:",
        rewritten("data.yaml", "names: [cat]\n"),
    ),
    "repeated names": (
        {"l/a.txt": GOOD, "classes.txt": "x\nx\n"},
        "l",
        "give each class a name of its own",
        rewritten("classes.txt", "x\ny\n"),
    ),
    "broken names": ({"l/a.txt": GOOD, "data.yaml": "names: cat"}, "l", "names: [cat, dog]", rewritten("data.yaml", "names: [cat, dog]")),
    "broken names, a map": (
        {"l/a.txt": GOOD, "data.yaml": "names: cat"},
        "l",
        "a line 0: cat",
        rewritten("data.yaml", "names:\n  0: cat\n"),
    ),
    "another nc": (
        {"l/a.txt": GOOD, "data.yaml": "names: [x]\nnc: 2"},
        "l",
        "mend nc, or the names",
        rewritten("data.yaml", "names: [x]\nnc: 1"),
    ),
    "boxes alone": (
        {"l.csv": "image,label,x0,y0,x1,y1\na.png,cat,9,9,9,9\n"},
        "l.csv",
        "add --no-boxes to keep labels without boxes",
        lambda place: {"boxes": False},
    ),
    "no image of these": ({"l.csv": "image,label\nq.png,cat\n"}, "l.csv", "mend the labels", rewritten("l.csv", CSV)),
    "two counts": (
        {"l.csv": "image,x,x\na.png,1,1\n"},
        "l.csv",
        "give each class a column of its own",
        rewritten("l.csv", "image,x,y\na.png,1,1\n"),
    ),
}


@pytest.mark.parametrize("case", HINTS)
def test_a_hint_helps(tmp_path, case):
    files, labels, hint, cure = HINTS[case]
    draw(tmp_path / "i", "a.png")
    for name, text in files.items():
        write(tmp_path / name, text)
    changes = {"images": {"no such images": "gone", "no image": "e"}.get(case, "i")}
    changes["labels_format"] = "counts" if case == "two counts" else "auto"

    def make(**more: object) -> Made:
        named = {"images": tmp_path / changes["images"], "labels": tmp_path / labels, "labels_format": changes["labels_format"], **more}
        return Made(Path(named.pop("images")), Path(named.pop("labels")), **named)

    made = make()
    assert made.error is not None and hint.format(tmp_path) in made.error.hint
    again = make(**cure(tmp_path))
    assert again.train and again.train[0]


def test_the_command_that_a_hint_gives_for_another_encoding_works(tmp_path):
    if shutil.which("iconv") is None:
        pytest.skip("this machine has no iconv")
    draw(tmp_path / "i", "a.png")
    labels = write(tmp_path / "my labels.csv", "image;label\na.png;Käfer\n".encode("cp1252"))
    made = Made(tmp_path / "i", labels)
    assert made.error.message.endswith("line 2 is not UTF-8")
    command = made.error.hint.partition("such as by: ")[2]
    assert shlex.quote(str(labels)) in command
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert Made(tmp_path / "i", tmp_path / "new.csv").train == [["Käfer"]]


def test_hints_for_test_lists_help(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png")
    labels = write(tmp_path / "l.csv", "image,label\na.png,cat\nb.png,dog\n")
    assert "name a text file with --test-list" in Made(tmp_path / "i", labels, test_list=str(tmp_path / "x.txt")).error.hint
    names = write(tmp_path / "x.txt", "q.png\n")
    made = Made(tmp_path / "i", labels, test_list=str(names))
    assert made.error.hint == "name images as the labels do, one a line" and made.skipped == {"q.png (in x.txt)": "no such image"}
    write(names, "b.png\n")
    assert Made(tmp_path / "i", labels, test_list=str(names)).held == {"train": [["cat"]], "test": [["dog"]]}


def test_what_is_nearly_called_so_is_named(tmp_path):
    draw(tmp_path / "shapes", "example.png", "1.png")
    labels = write(tmp_path / "labels.csv", "image,label\n1.png,cat\n")
    assert Made(tmp_path / "shape", labels).error.hint.endswith(f"; did you mean {tmp_path / 'shapes'}?")
    assert Made(tmp_path / "shapes", tmp_path / "label.csv").error.hint.endswith(f"; did you mean {labels}?")
    for missing, meant in (("exmple.png", "example.png"), ("example.jpeg", "example.png"), ("2.png", None), ("x/1.png", None)):
        with pytest.raises(FileError, match="is missing") as caught:
            read_image(tmp_path / "shapes" / missing)
        assert caught.value.hint == "check the path" + (f"; did you mean {tmp_path / 'shapes' / meant}?" if meant else "")


def test_unknown_classes_are_refused_with_those_that_there_are(tmp_path):
    draw(tmp_path / "i", "a.png")
    labels = write(tmp_path / "l.csv", CSV)
    made = Made(tmp_path / "i", labels, classes="cow")
    assert made.error.hint == "take some of: cat" and Made(tmp_path / "i", labels, classes="cat").train == [["cat"]]


def test_the_documentation_that_hints_name_shows_every_form():
    text = (Path(__file__).parents[1] / "docs" / "own-images.md").read_text()
    for word in (
        "**CSV**",
        "**JSONL**",
        "**COCO**",
        "**Pascal VOC**",
        "**YOLO**",
        "counts",
        "Hugging Face",
        "Label Studio",
        "data.yaml",
        "obj.names",
    ):
        assert word in text
    assert re.search(r"no object", text) and "EXIF" in text and "--no-boxes" in text
