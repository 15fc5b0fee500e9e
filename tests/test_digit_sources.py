"""Glyphs of Fashion-MNIST, KMNIST and EMNIST: which files, which way up, which names, which classes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx_bytes, write_idx_set

from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT
from hsal_cli.scenes.digits.glyphs import EMNIST, FASHION, KUZUSHIJI, Glyphs, find_digits
from hsal_cli.scenes.settings import SceneSettings


def glyphs_of(folder: Path, split: str = "train", **changes: str) -> Glyphs:
    return find_digits(SceneSettings(mnist_dir=str(folder), **changes), SILENT).glyphs(split, 0)


def write_letters(folder: Path, name: str, classes: int, first: int) -> Path:
    """An EMNIST set of `classes` classes: a bar across the top, as EMNIST stores it: lying on its side."""
    folder.mkdir(exist_ok=True)
    upright = np.zeros((2 * classes, 28, 28), np.uint8)
    upright[:, 4:7, 4:24] = 200
    for split in ("train", "test"):
        labels = np.arange(2 * classes) % classes + first
        (folder / f"emnist-{name}-{split}-images-idx3-ubyte").write_bytes(idx_bytes(upright.transpose(0, 2, 1)))
        (folder / f"emnist-{name}-{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder


@pytest.mark.parametrize(("name", "classes", "first", "last"), [("letters", 26, 1, "Z"), ("balanced", 47, 0, "t"), ("byclass", 62, 0, "z")])
def test_emnist_stands_upright_and_its_classes_have_their_letters(tmp_path, name, classes, first, last):
    found = glyphs_of(write_letters(tmp_path / "e", name, classes, first))
    assert found.images[0, 5, 4:24].all() and not found.images[0, 10:].any()
    assert len(found.classes) == classes and found.classes[-1] == last and "".join(found.classes) == EMNIST[name]
    assert [found.labels[rows[0]] for rows in found.members] == list(range(classes))


def test_which_way_up_can_be_said(tmp_path):
    folder = write_letters(tmp_path / "e", "letters", 26, 1)
    assert glyphs_of(folder, transpose="no").images[0, 4:24, 5].all()
    plain = write_idx_set(tmp_path / "plain")
    assert np.array_equal(glyphs_of(plain, transpose="yes").images, glyphs_of(plain).images.transpose(0, 2, 1))


def test_one_set_of_several_in_a_folder_is_chosen_by_how_its_files_begin(tmp_path):
    folder = write_letters(tmp_path / "e", "letters", 26, 1)
    write_letters(folder, "balanced", 47, 0)
    assert len(glyphs_of(folder / "emnist-letters", "test").classes) == 26 and len(glyphs_of(folder / "emnist-balanced").classes) == 47
    with pytest.raises(FileError, match="holds several sets") as caught:
        glyphs_of(folder)
    assert f"--mnist-dir {folder / 'emnist-balanced'}" in caught.value.hint
    with pytest.raises(FileError, match="does not exist"):
        glyphs_of(folder / "emnist-digits")


def test_a_mapping_file_beside_the_set_names_its_classes(tmp_path):
    folder = write_letters(tmp_path / "e", "letters", 26, 1)
    (folder / "emnist-letters-mapping.txt").write_text("".join(f"{n} {122 - n} {65 + n}\n" for n in range(1, 27)))
    assert glyphs_of(folder).classes == [chr(122 - n) for n in range(1, 27)]
    (folder / "emnist-letters-mapping.txt").write_text("1 sixty\n")
    with pytest.raises(FileError, match=r"cannot read the class names in .*mapping\.txt"):
        glyphs_of(folder)


def test_sets_with_mnists_file_names_are_known_by_their_folder(tmp_path):
    plain = write_idx_set(tmp_path / "digits")
    assert glyphs_of(plain).classes == [str(digit) for digit in range(10)]
    for folder, names in (("FashionMNIST/raw", FASHION), ("kmnist", KUZUSHIJI)):
        shutil.copytree(plain, tmp_path / folder)
        assert glyphs_of(tmp_path / folder).classes == list(names)


def test_classes_are_chosen_by_name_or_index_and_keep_their_glyphs(tmp_path):
    shutil.copytree(write_idx_set(tmp_path / "digits"), tmp_path / "fashion")
    whole, some = glyphs_of(tmp_path / "fashion"), glyphs_of(tmp_path / "fashion", classes="bag, 1,coat")
    assert some.classes == ["bag", "trouser", "coat"] and len(some.images) == 12
    assert [len(rows) for rows in some.members] == [len(whole.members[index]) for index in (8, 1, 4)]
    named = glyphs_of(tmp_path / "digits", class_names=",".join("abcdefghij"), classes="c")
    assert named.classes == ["c"] and len(named.images) == 4


def test_chosen_classes_of_strokes_show_those_digits():
    found = find_digits(SceneSettings(digits="strokes", classes="3,8"), SILENT)
    assert (found.classes, found.folder) == ("3,8", None)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"classes": "1,hat"}, "there is no class hat"),
        ({"classes": "1,,2"}, "a name is empty"),
        ({"classes": "3,3"}, "stands twice"),
        ({"class_names": "a,b"}, "names 2 classes, .* has 10"),
    ],
)
def test_wrong_names_are_refused(tmp_path, changes, part):
    with pytest.raises(UsageError, match=part):
        glyphs_of(write_idx_set(tmp_path / "digits"), **changes)
