"""Where digits come from: IDX files of every spelling, refusals by name, and what happens without a network."""

import gzip
import urllib.error

import numpy as np
import pytest
from idx_files import idx_bytes, write_idx_set

from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.digits import glyphs
from hsal_cli.scenes.digits.glyphs import DigitSource, find_digits
from hsal_cli.scenes.digits.idx import read_idx, read_pair
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.settings import SceneSettings


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No folder named, no earlier download, no network."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(glyphs.urllib.request, "urlopen", refuse)
    monkeypatch.delenv("HSAL_MNIST_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dots", [True, False])
def test_idx_files_are_read_gzipped_or_not_under_both_spellings(tmp_path, zipped, dots):
    folder = write_idx_set(tmp_path, zipped=zipped, dots=dots)
    for split, rows, grey in (("train", 40, 100), ("test", 20, 250)):
        images, labels = read_pair(folder, split)
        assert images.shape == (rows, 28, 28) and images.max() == grey
        assert labels.tolist() == [row % 10 for row in range(rows)]


def test_classes_are_named_by_the_numbers_that_occur(tmp_path):
    found = DigitSource("mnist", write_idx_set(tmp_path, first=1)).glyphs("test", 0)
    assert found.classes == [str(number) for number in range(1, 11)]
    assert [sorted(rows.tolist()) for rows in found.members] == [[label, label + 10] for label in range(10)]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "begins with 89504e47"),
        (idx_bytes(np.zeros(5, np.uint8)), "not an IDX file of images"),
        (idx_bytes(np.zeros((3, 28, 28), np.uint8))[:-7], "2,345 bytes of data where its header says 2,352"),
        (idx_bytes(np.zeros((3, 28, 28), np.uint8)) + b"x", "damaged"),
    ],
)
def test_a_file_that_is_not_whole_images_is_refused_by_name(tmp_path, data, part):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(FileError, match=part) as caught:
        read_idx(path, 3)
    assert str(path) in caught.value.message and "--mnist-dir" in caught.value.hint


def to_plain_named_gz(folder):
    for path in folder.glob("*.gz"):
        path.write_bytes(gzip.decompress(path.read_bytes()))


def to_gz_without_name(folder):
    for path in folder.glob("*.gz"):
        path.rename(path.with_suffix(""))


def to_upper_case(folder):
    for path in folder.glob("*.gz"):
        path.rename(path.with_suffix(".GZ"))


def to_files_beside_macos_companions(folder):
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(bytes.fromhex("00051607") + b"Mac OS X")
    (folder / "__MACOSX").mkdir()
    for name in (".DS_Store", "Thumbs.db", "__MACOSX/train-images-idx3-ubyte.gz"):
        (folder / name).write_bytes(b"\0")


def to_a_folder_each(folder):
    for path in list(folder.glob("*.gz")):
        data = gzip.decompress(path.read_bytes())
        path.unlink()
        (folder / path.stem).mkdir()
        (folder / path.stem / path.stem).write_bytes(data)
        (folder / path.stem / ".DS_Store").write_bytes(b"\0")


def to_kaggles_folder_with_dots_and_folders(folder):
    to_a_folder_each(folder)
    for path in folder.iterdir():
        (folder / path.name.replace("-idx", ".idx")).write_bytes((path / path.name).read_bytes())


def to_torchvision(folder):
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for path in list(folder.glob("*.gz")):
        path.rename(folder / "MNIST" / "raw" / path.name)
    (folder / "__MACOSX" / "raw").mkdir(parents=True)
    (folder / "__MACOSX" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0")


def to_qmnist(folder):
    for split, name, rows in (("train", "train", 40), ("t10k", "test", 20)):
        (folder / f"{split}-images-idx3-ubyte.gz").rename(folder / f"qmnist-{name}-images-idx3-ubyte.gz")
        (folder / f"{split}-labels-idx1-ubyte.gz").unlink()
        table = np.arange(rows * 8).reshape(rows, 8)
        table[:, 0] = np.arange(rows) % 10
        (folder / f"qmnist-{name}-labels-idx2-int").write_bytes(wide_labels(table))


def to_labels_of_four_bytes(folder):
    for path in list(folder.glob("*-labels-*")):
        labels = np.frombuffer(gzip.decompress(path.read_bytes())[8:], np.uint8)
        path.with_suffix("").write_bytes(wide_labels(labels))


def wide_labels(labels):
    """An IDX file of integers of four bytes."""
    return bytes((0, 0, 12, labels.ndim)) + b"".join(side.to_bytes(4, "big") for side in labels.shape) + labels.astype(">i4").tobytes()


FORMS = [
    to_plain_named_gz,
    to_gz_without_name,
    to_upper_case,
    to_files_beside_macos_companions,
    to_a_folder_each,
    to_kaggles_folder_with_dots_and_folders,
    to_torchvision,
    to_qmnist,
    to_labels_of_four_bytes,
]


@pytest.mark.parametrize("form", FORMS)
def test_an_idx_set_is_read_in_every_form_that_people_have_it_in(tmp_path, form):
    form(write_idx_set(tmp_path))
    for split, rows, grey in (("train", 40, 100), ("test", 20, 250)):
        found = find_digits(SceneSettings(mnist_dir=str(tmp_path)), SILENT).glyphs(split, 0)
        assert found.images.max() == grey and found.labels.tolist() == [row % 10 for row in range(rows)]
        assert found.classes == [str(digit) for digit in range(10)]


def test_a_folder_of_several_sets_names_them_and_the_hint_helps(tmp_path):
    for name in ("KMNIST", "MNIST"):
        write_idx_set(tmp_path / name / "raw")
    with pytest.raises(FileError, match=r"holds several sets: .*KMNIST.raw, .*MNIST.raw") as caught:
        find_digits(SceneSettings(mnist_dir=str(tmp_path)), SILENT)
    chosen = caught.value.hint.partition("--mnist-dir ")[2]
    assert find_digits(SceneSettings(mnist_dir=chosen), SILENT).glyphs("train", 0).classes[:2] == ["o", "ki"]


def test_what_lies_in_the_place_of_idx_files_is_named(tmp_path):
    (tmp_path / "mnist_train.csv").write_text("label,1x1\n5,0\n")
    (tmp_path / "._mnist_train.csv").write_bytes(b"\0")
    with pytest.raises(FileError, match=r"has no train-images-idx3-ubyte or .*\.gz; it holds mnist_train\.csv$") as caught:
        find_digits(SceneSettings(mnist_dir=str(tmp_path)), SILENT)
    assert "reads no CSV of pixels" in caught.value.hint
    write_idx_set(tmp_path)
    for data, said in ((b"<!DOCTYPE html><html>", "a web page"), (b"PK\x03\x04 and so on", "a ZIP archive; unpack it")):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)
        with pytest.raises(FileError, match=f"is not an IDX file of images: it is {said}"):
            read_pair(tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(wide_labels(np.zeros((40, 3), int)))
    with pytest.raises(FileError, match="labels of 3 columns, and only QMNIST's, of 8, are known"):
        read_idx(tmp_path / "train-labels-idx1-ubyte.gz", 1)


def test_training_glyphs_alone_make_training_images_as_the_hint_says(tmp_path):
    for path in write_idx_set(tmp_path).glob("t10k*"):
        path.unlink()
    source = find_digits(SceneSettings(mnist_dir=str(tmp_path)), SILENT)
    with pytest.raises(FileError, match="has no t10k-images-idx3-ubyte") as caught:
        source.glyphs("test", 0)
    assert "--test 0" in caught.value.hint
    small = {"train": 4, "test": 0, "image_size": 40, "digit_size": (8, 9), "mnist_dir": str(tmp_path)}
    assert make_dataset("multiset", SceneSettings(**small), tmp_path / "a.h5", workers=1).is_file()


def test_a_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.arange(2352, dtype=np.uint8).reshape(3, 28, 28)))[:-30])
    with pytest.raises(FileError, match="cannot read"):
        read_idx(path, 3)


def test_sets_that_do_not_fit_together_are_refused(tmp_path):
    folder = write_idx_set(tmp_path, zipped=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(39, np.uint8)))
    with pytest.raises(FileError, match="40 glyphs, train-labels-idx1-ubyte 39 labels"):
        read_pair(folder, "train")
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileError, match="has no train-labels-idx1-ubyte"):
        read_pair(folder, "train")
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((20, 32, 32), np.uint8)))
    with pytest.raises(FileError, match="32x32 px, not 28x28"):
        read_pair(folder, "test")


def test_two_sets_in_one_folder_and_a_class_without_glyphs_are_refused(tmp_path):
    write_idx_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(20, np.uint8))))
    with pytest.raises(FileError, match="no glyph of class 1"):
        DigitSource("mnist", tmp_path).glyphs("test", 0)
    (tmp_path / "emnist-train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(FileError, match="several sets"):
        read_pair(tmp_path, "train")


def test_offline_mnist_fails_and_names_both_ways_out(offline):
    with pytest.raises(FileError, match="MNIST cannot be downloaded: no network") as caught:
        find_digits(SceneSettings(digits="mnist"), SILENT)
    assert "--mnist-dir DIR" in caught.value.hint and "--digits strokes" in caught.value.hint


def test_offline_auto_takes_strokes_and_says_so(offline):
    class Listener(Reporter):
        heard = ""

        def warn(self, message):
            self.heard = message

    reporter = Listener()
    assert find_digits(SceneSettings(), reporter) == DigitSource("strokes")
    assert "pen strokes" in reporter.heard


def test_a_named_folder_comes_before_the_environment_and_that_before_an_earlier_download(offline, monkeypatch):
    raw = write_idx_set(offline / "data" / "MNIST" / "raw")
    assert find_digits(SceneSettings(), SILENT).folder.resolve() == raw
    monkeypatch.setenv("HSAL_MNIST_DIR", str(write_idx_set(offline / "env")))
    assert find_digits(SceneSettings(), SILENT).folder == offline / "env"
    named = write_idx_set(offline / "named")
    assert find_digits(SceneSettings(mnist_dir=str(named)), SILENT).folder == named


def test_a_named_folder_that_does_not_serve_is_refused_even_by_auto(offline):
    with pytest.raises(FileError, match="does not exist"):
        find_digits(SceneSettings(mnist_dir="nowhere"), SILENT)
    (offline / "empty").mkdir()
    with pytest.raises(FileError, match="has no train-images"):
        find_digits(SceneSettings(mnist_dir="empty"), SILENT)
    with pytest.raises(UsageError, match="takes no mnist_dir"):
        find_digits(SceneSettings(digits="strokes", mnist_dir="empty"), SILENT)
