"""Which image a name in labels or in a list means: a folder that is named counts, and what is not there is told."""

import os
import unicodedata

import numpy as np
import pytest
from label_parts import Made, draw, write
from PIL import Image

from hsal_cli.scenes.readers.csv_table import _literal
from hsal_cli.scenes.readers.labels import class_name
from hsal_cli.scenes.readers.names import Pictures, common_folders
from hsal_cli.vision.images import FORMATS

NFD = unicodedata.normalize("NFD", "Käfer.png")
ELSEWHERE = "no such image in that folder; one of that name is in another"
FOUND = {  # the images, the name -> the image, or why there is none
    "path": (["i/a/1.png", "i/b/1.png"], "b/1.png", "b/1.png"),
    "backslashes": (["i/a/1.png", "i/b/1.png"], ".\\b\\1.png", "b/1.png"),
    "name alone": (["i/a/1.png"], "1.png", "a/1.png"),
    "name alone, two of it": (["i/a/1.png", "i/b/1.png"], "1.png", "several images of that name; a path would tell"),
    "name alone, one right in the folder": (["i/a/1.png", "i/1.png"], "1.png", "1.png"),
    "another folder": (["i/a/1.png"], "b/1.png", ELSEWHERE),
    "another folder, which is there": (["i/a/1.png", "i/b/2.png"], "b/1.png", ELSEWHERE),
    "another folder's folder": (["i/a/sub/1.png"], "b/sub/1.png", ELSEWHERE),
    "right in the folder, not in this one": (["i/1.png", "i/b/2.png"], "b/1.png", ELSEWHERE),
    "end of a path": (["i/a/train/1.png", "i/a/val/1.png"], "val/1.png", "a/val/1.png"),
    "folder itself": (["i/1.png"], "i/1.png", "1.png"),
    "folder itself and above": (["i/sub/1.png"], "other/i/sub/1.png", "sub/1.png"),
    "folder of another name": (["i/1.png"], "some/where/1.png", "1.png"),
    "path of this machine": (["i/sub/1.png"], "{root}/i/sub/1.png", "sub/1.png"),
    "path of another machine": (["i/sub/1.png"], "/home/x/set/sub/1.png", "sub/1.png"),
    "path of Windows": (["i/sub/1.png"], "C:\\x\\sub\\1.png", "sub/1.png"),
    "folder above": (["i/sub/1.png"], "..\\..\\media\\1.png", "sub/1.png"),
    "address": (["i/1.png"], "https://x.org/set/1.png?size=2", "1.png"),
    "file's address": (["i/1.png"], "file:///x/1.png", "1.png"),
    "label studio": (["i/1.png"], "/data/upload/12/01234abc-1.png", "1.png"),
    "label studio's local files": (["i/sub/1.png"], "/data/local-files/?d=i/sub/1.png", "sub/1.png"),
    "capitals": (["i/a.JPG"], "A.jpg", "a.JPG"),
    "capitals, both there": (["i/a.JPG", "i/a.jpg"], "a.jpg", "a.jpg"),
    "jpeg": (["i/a.jpg"], "a.jpeg", "a.jpg"),
    "another format": (["i/a.jpg"], "a.png", "no such image; one with another ending is there"),
    "no ending": (["i/a.jpg"], "a", "a.jpg"),
    "no ending, two of it": (["i/a.jpg", "i/a.png"], "a", "several images of that name; a path would tell"),
    "dots": (["i/a.b.c.jpg", "i/a.b.jpg"], "a.b", "a.b.jpg"),
    "composed": (["i/" + NFD], "Käfer.png", NFD),
    "decomposed": (["i/Käfer.png"], NFD, "Käfer.png"),
    "percents": (["i/a b.png"], "a%20b.png", "a b.png"),
    "percents in the name": (["i/a%20b.png", "i/a b.png"], "a%20b.png", "a%20b.png"),
    "byte order mark": (["i/a.png"], "\ufeffa.png", "a.png"),
    "none": (["i/a.png"], "c.png", "no such image"),
    "folder": (["i/a.png", "i/d.png/b.png"], "d.png", "a folder, not a picture"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_image_of_a_name(tmp_path, case):
    images, name, expected = FOUND[case]
    draw(tmp_path, *images)
    pictures, name = Pictures(tmp_path / "i", FORMATS), name.format(root=tmp_path)
    try:
        found = pictures.find(name, common=common_folders([name])).relative_to(tmp_path / "i").as_posix()
    except LookupError as error:
        found = str(error)
    assert found == expected


def test_labels_of_one_split_are_not_those_of_another(tmp_path):
    draw(tmp_path / "train", "1.png")
    assert Made(tmp_path / "train", write(tmp_path / "l.csv", "image,label\nval/1.png,cat\n")).skipped["val/1.png"] == ELSEWHERE


@pytest.mark.parametrize("where", ["", "set/"])
def test_a_list_names_images_as_labels_do(tmp_path, where):
    draw(tmp_path / "i", "a/1.png", "b/1.png", "b/2.png")
    labels = write(tmp_path / "l.csv", "image,label\na/1.png,x\nb/1.png,y\nb/2.png,z\n")
    names = write(tmp_path / "test.txt", f"\ufeff{where}b\\1.png\r\n\r\n{where}c/1.png\r\n".encode())
    made = Made(tmp_path / "i", labels, test_list=str(names))
    assert made.held == {"train": [["x"], ["z"]], "test": [["y"]]}
    assert made.skipped == {f"{where}c/1.png (in test.txt)": ELSEWHERE}


def test_links_are_followed_and_circles_end(tmp_path):
    draw(tmp_path / "real", "sub/a.png")
    (tmp_path / "i").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "i" / "link")
    os.symlink(tmp_path / "i", tmp_path / "real" / "back")
    os.symlink("nowhere.png", tmp_path / "i" / "broken.png")
    for name in ("pipe", "pipe.png"):
        os.mkfifo(tmp_path / "i" / name)  # to open it would wait for ever
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label\nlink/sub/a.png,cat\nbroken.png,cat\n"))
    assert made.train == [["cat"]] and made.skipped == {"broken.png": "a link that leads nowhere"}


ENDINGS = [
    "png",
    "PNG",
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "avif",
    "jp2",
    "ppm",
    "pgm",
    "tga",
    "ico",
    "mpo",
]


def test_every_ending_that_the_documentation_names_is_found_and_those_without_one_by_content(tmp_path):
    place = draw(tmp_path / "i", *[f"{ending}.{ending}" for ending in ENDINGS])
    for name in ("noending", "photo.v2"):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(place / name, "PNG")
    write(place / "README", "no picture")
    write(place / "a.svg", "<svg/>")
    names = [*[f"{ending}.{ending}" for ending in ENDINGS], "noending", "photo.v2", "README", "a.svg"]
    made = Made(place, write(tmp_path / "l.csv", "image,label\n" + "".join(f"{name},cat\n" for name in names)))
    assert len(made.train) == len(ENDINGS) + 2
    assert made.skipped == dict.fromkeys(("README", "a.svg"), "not a picture of a format that is read")


def test_names_that_are_not_utf8_are_read(tmp_path):
    name = os.fsdecode(b"K\xe4fer.png")
    draw(tmp_path / "i", "a.png", "b.png")
    os.rename(tmp_path / "i" / "a.png", tmp_path / "i" / name)
    made = Made(tmp_path / "i", write(tmp_path / "l.csv", "image,label\nb.png,cat\n"), test_share=0.4)
    assert made.train == [["cat"]] and made.skipped == {name: "no label"}


@pytest.mark.parametrize("name", ["c\0at", "\ud800"])
def test_name_that_no_file_can_hold_is_no_class_name(name: str) -> None:
    """A scene file cannot hold a NUL or half of a surrogate pair: the row is refused, and no file is written that cannot be read."""
    with pytest.raises(ValueError, match="NUL or half"):
        class_name(name)


@pytest.mark.parametrize("cell", ["['cat' 'dog']", "['cat'\n 'dog']"])
def test_list_as_numpy_prints_it_is_not_joined_to_one_label(cell: str) -> None:
    """Python reads two texts side by side as one: such a cell is refused."""
    with pytest.raises(ValueError, match="without commas"):
        _literal(cell)
