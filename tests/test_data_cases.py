"""The digit sets, scene files and file systems on which hsal once failed, made anew and used: what their expected.txt says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hsal_cli.errors import FileError
from hsal_cli.progress import SILENT
from hsal_cli.scenes.digits.glyphs import find_digits
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.upkeep.check import check_path
from hsal_cli.upkeep.contents import look_into

READ = ("dots", "plain_named_gz", "gz_without_name", "both", "upper", "letters", "letters26", "int32", "mac", "folder_each", "nested")
READ += ("nested/MNIST", "kmnist/KMNIST/raw", "copy1", "inverted")
REFUSED = {
    "tfds": "has no t10k-images-idx3-ubyte",
    "no_test": "has no t10k-images-idx3-ubyte",
    "wide": "holds glyphs of 32x32 px, not 28x28",
    "html": "is not an IDX file of images: it is a web page",
    "csvs": r"has no train-images-idx3-ubyte or .*; it holds mnist_train\.csv",
}
SOUND = ("int64", "bytes_classes", "list_classes", "array_bytes", "array_unicode_obj", "fmt_bytes", "latest", "userblock", "noboxes")
SOUND += ("extras", "empty_set")
UNSOUND = {
    "nchw": r"images have shape \(30, 3, 64, 64\)",
    "float01": "images have type float32, not uint8",
    "rgba": r"images have shape \(30, 64, 64, 4\)",
    "float_labels": "train: labels have type float64, not integers",
    "uint8_labels": r"train: row 0 has a label outside 0 to 2 \(-1 pads\): 255",
    "one_d": r"train: labels have shape \(30,\), not \(30, L\)",
    "float_boxes": "train: boxes have type float32, not integers",
    "neg_pad0": r"train: row 0 has a label outside 0 to 2 \(-1 pads\): -100",
    "vlen": "train: labels have type object, not integers",
    "blosc": "images needs filter 32001, which this HDF5 lacks",
    "noclasses": "its attribute classes is not a JSON list",
    "noformat": "its format is not given",
}


@pytest.fixture(autouse=True)
def digits(monkeypatch: pytest.MonkeyPatch, mnist_dir: Path) -> None:
    """The cases take real digits from where the tests find them."""
    monkeypatch.setenv("HSAL_MNIST_DIR", str(mnist_dir))


def first_labels(folder: str) -> list[int]:
    """The classes of the first test glyphs, when training and test glyphs are read."""
    source = find_digits(SceneSettings(mnist_dir=folder), SILENT)
    assert len(source.glyphs("train", 0).labels) == 600
    found = source.glyphs("test", 0)
    return found.labels[:5].tolist()


def test_qmnist(case):
    case("qmnist")
    assert first_labels("qmnist") == [7, 2, 1, 0, 4]  # column 0, not the writers' numbers


def test_idx_forms(case):
    case("idx_forms")
    for folder in READ:
        assert first_labels(folder) == [7, 2, 1, 0, 4] or folder == "letters26", folder
    for folder, said in REFUSED.items():
        with pytest.raises(FileError, match=said):
            first_labels(folder)


def test_hdf5_others(case):
    case("hdf5_others")
    for name in SOUND:
        assert look_into(Path(f"{name}.h5")).document["config"] == {}, name
        assert check_path(Path(f"{name}.h5")).faults == [], name
    assert look_into(Path("empty_set.h5")).document["splits"]["train"]["objects_per_image"]["0"] == 1
    for name, said in UNSOUND.items():
        with pytest.raises(FileError, match=said):
            look_into(Path(f"{name}.h5"))
    assert [re.search(UNSOUND["blosc"], fault) is not None for fault in check_path(Path("blosc.h5")).faults] == [True]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="a C compiler makes the file system that has no locks")
@pytest.mark.parametrize("locking", [None, "FALSE"])
def test_no_locks(case, locking):
    place = case("no_locks")
    environment = {**os.environ, "LD_PRELOAD": str(place / "flock.so")}
    environment.pop("HDF5_USE_FILE_LOCKING", None)
    environment |= {"HDF5_USE_FILE_LOCKING": locking} if locking else {}
    code = (
        "from pathlib import Path\nfrom hsal_cli.scenes.make import make_dataset\nfrom hsal_cli.scenes.scene_file import open_scenes\n"
        "from hsal_cli.scenes.settings import SceneSettings\n"
        "make_dataset('multiset', SceneSettings(train=6, test=2), Path('m.h5'), 1)\n"
        "with open_scenes('m.h5') as file: print(file.computed_digest() == file.digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "True\n", done.stderr
