"""Where digits come from: MNIST's IDX files, found or downloaded, or the embedded pen strokes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import socket
import string
import urllib.request
from pathlib import Path

import numpy as np

from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import Reporter
from hsal_cli.scenes.digits.idx import HINT, find_folder, find_idx, needed, read_idx, read_pair
from hsal_cli.scenes.settings import SceneSettings, split_names
from hsal_cli.storage.files import regular

PROBE = "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz"  # the first mirror that torchvision tries
PROBE_S = 4.0
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"  # letters whose two cases look alike share the upper one
EMNIST = {
    "letters": string.ascii_uppercase,
    "balanced": MERGED,
    "bymerge": MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
}


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """The glyphs that one split's images are composed of.

    Attributes:
        images: uint8 (N, 28, 28), white ink on black.
        labels: int64 (N,), index into classes.
        classes: the names, one a class.
        members: for each class, the rows of its glyphs.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    members: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class DigitSource:
    """Where the digits of a scene file come from.

    Attributes:
        name: "mnist" or "strokes".
        folder: the folder of IDX files; None for strokes.
        classes, class_names, transpose: as in `SceneSettings`.
    """

    name: str
    folder: Path | None = None
    classes: str | None = None
    class_names: str | None = None
    transpose: str = "auto"

    def glyphs(self, split: str, seed: int) -> Glyphs:
        """The glyphs of a split, "train" or "test", which come from that split of the source alone; drawn ones depend on the seed.

        Raises:
            FileError: the IDX files are missing or damaged, or a class has no glyph.
            UsageError: a class that there is not, or a wrong number of names.
        """
        if self.folder is None:
            from hsal_cli.scenes.digits.strokes import draw_pool

            images, labels = draw_pool(split, seed)
            numbers, where = np.arange(10), "the strokes"
        else:
            images, labels = read_pair(self.folder, split, self.transpose)
            trained = labels if split == "train" else read_idx(needed(self.folder, "train", "labels"), 1)
            numbers, where = np.unique(trained), str(self.folder)
            if not np.isin(labels, numbers).all():
                raise FileError(f"{self.folder}: the test split has labels that the training split has not", HINT)
        names = split_names(self.class_names, "class_names") if self.class_names else known_names(self.folder, numbers.tolist())
        if len(names) != len(numbers):
            raise UsageError(
                f"class_names names {len(names)} classes, {where} has {len(numbers)}", "give each class one name, in their order"
            )
        labels = np.searchsorted(numbers, labels)
        if self.classes:
            chosen = pick(names, self.classes)
            place = np.full(len(names), -1)
            place[chosen] = np.arange(len(chosen))
            kept = place[labels] >= 0
            images, labels, names = images[kept], place[labels[kept]], [names[index] for index in chosen]
        return gather(images, labels, names, where)


def gather(images: np.ndarray, labels: np.ndarray, classes: list[str], where: str) -> Glyphs:
    """Groups glyphs by class, leaving blank ones out; FileError where a class has no glyph."""
    inked = images.any(axis=(1, 2))
    members = [np.flatnonzero(inked & (labels == label)) for label in range(len(classes))]
    for name, rows in zip(classes, members, strict=True):
        if not len(rows):
            raise FileError(f"{where} has no glyph of class {name}", HINT)
    return Glyphs(images, labels.astype(np.int64), classes, members)


def cache_root() -> Path:
    """The folder that torchvision's download goes to."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hsal"


def find_digits(settings: SceneSettings, reporter: Reporter) -> DigitSource:
    """Chooses the digit source; downloads MNIST if it has to.

    `mnist` takes --mnist-dir, else HSAL_MNIST_DIR, else an earlier torchvision download in data/ or the cache, else downloads it.
    `auto` does the same and falls back to strokes where none of these is to be had.

    Raises:
        FileError: a folder that was named is missing or has no training images, or MNIST cannot be had.
    """
    found = functools.partial(DigitSource, classes=settings.classes, class_names=settings.class_names, transpose=settings.transpose)
    if settings.digits == "strokes":
        if settings.mnist_dir:
            raise UsageError("digits = strokes takes no mnist_dir", "leave one of --digits strokes and --mnist-dir out")
        return found("strokes")
    folder = find_local(settings)
    if folder is not None:
        return found("mnist", folder)
    try:
        return found("mnist", download(reporter))
    except FileError:
        if settings.digits == "mnist":
            raise
        reporter.warn("MNIST is not at hand and cannot be downloaded: digits are drawn by pen strokes (--mnist-dir DIR takes real ones)")
        return found("strokes")


def find_local(settings: SceneSettings) -> Path | None:
    """The folder of MNIST's IDX files on this machine: the one named, else an earlier download; None where there is none.

    Raises:
        FileError: a folder that was named is missing or has no training images.
    """
    named = settings.mnist_dir or os.environ.get("HSAL_MNIST_DIR")
    if named:
        return find_folder(Path(named).expanduser())
    for folder in (Path("data") / "MNIST" / "raw", cache_root() / "MNIST" / "raw"):
        if all(find_idx(folder, split, what) for split in ("train", "test") for what in ("images", "labels")):
            return folder
    return None


def download(reporter: Reporter) -> Path:
    """Downloads MNIST by torchvision into the cache; returns the folder with the IDX files.

    FileError: it cannot be had, with both ways out as its hint; within seconds where there is no network.
    """
    hint = "name a folder of IDX files with --mnist-dir DIR, or draw digits with --digits strokes"
    try:
        # torchvision waits without a limit where packets are dropped, so a quick question comes first.
        urllib.request.urlopen(urllib.request.Request(PROBE, method="HEAD"), timeout=PROBE_S).close()
    except (OSError, ValueError) as error:
        raise FileError(f"MNIST cannot be downloaded: {getattr(error, 'reason', None) or error}", hint) from error
    import torchvision

    reporter.say(f"Downloading MNIST into {cache_root()}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            torchvision.datasets.MNIST(str(cache_root()), download=True)
    except (OSError, RuntimeError) as error:
        raise FileError(f"MNIST cannot be downloaded: {error}", hint) from error
    finally:
        socket.setdefaulttimeout(before)
    return cache_root() / "MNIST" / "raw"


def known_names(folder: Path | None, numbers: list[int]) -> list[str]:
    """The names of a digit source's classes, whose numbers in the files are given, sorted; `folder` as in `find_idx`, None for strokes.

    EMNIST's mapping file is read where it lies beside the set; else sets are known by their files' names (EMNIST) or by a folder's
    (Fashion-MNIST and KMNIST share MNIST's file names); else classes are named by their numbers. FileError: a mapping that cannot be read.
    """
    plain = [str(number) for number in numbers]
    if folder is None:
        return plain
    root, start = (folder, "") if folder.is_dir() else (folder.parent, folder.name)
    files = sorted(path.name for path in root.iterdir() if path.name.startswith(start) and not path.name.startswith("."))
    mapping = [name for name in files if name.endswith("mapping.txt")]
    names: dict[int, str] = {}
    if len(mapping) == 1:
        names = _mapping(root / mapping[0])
    else:
        sets = {name.split("-")[1] for name in files if name.startswith("emnist-")}
        if len(sets) == 1 and (letters := EMNIST.get(sets.pop())):
            first = 1 if letters == EMNIST["letters"] else 0
            names = {first + place: letter for place, letter in enumerate(letters)}
        elif numbers == list(range(10)):
            parts = " ".join(folder.resolve().parts[-3:]).lower()
            known = FASHION if "fashion" in parts else KUZUSHIJI if "kmnist" in parts or "kuzushiji" in parts else ()
            names = dict(enumerate(known))
    found = [names.get(number, str(number)) for number in numbers]
    return found if len(set(found)) == len(found) else plain


def _mapping(path: Path) -> dict[int, str]:
    """Reads EMNIST's mapping: a line a class, its number and the character codes that it stands for."""
    try:
        lines = [[int(word) for word in line.split()] for line in regular(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        return {number: chr(codes[0]) for number, *codes in lines}
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise FileError(f"cannot read the class names in {path}: {error}", "mend or remove that file") from error


def pick(names: list[str], wanted: str) -> list[int]:
    """The classes of these names or indices, in the order in which they were asked for; names come first where a number is both.

    Raises:
        UsageError: a class that there is not, or one that is asked for twice.
    """
    chosen = []
    for word in split_names(wanted, "classes"):
        if word in names:
            chosen.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            chosen.append(int(word))
        else:
            raise UsageError(f"classes = {wanted}: there is no class {word}", f"take some of: {', '.join(names)}")
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"classes = {wanted} names a class twice", "name each class once")
    return chosen
