"""Where digits come from: MNIST's IDX files, found or downloaded, or the embedded pen strokes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import socket
import urllib.request
from pathlib import Path

import numpy as np

from hsal_cli.console import Reporter
from hsal_cli.errors import FileError, UsageError
from hsal_cli.scenes.idx import HINT, find_idx, read_idx, read_pair
from hsal_cli.scenes.settings import SceneSettings

PROBE = "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz"  # the first mirror that torchvision tries
PROBE_S = 4.0


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
    """

    name: str
    folder: Path | None = None

    def glyphs(self, split: str, seed: int) -> Glyphs:
        """The glyphs of a split: train digits come only from the training split, test digits only from the test split.

        Args:
            split: "train" or "test".
            seed: what drawn digits depend on; files do not.

        Raises:
            FileError: the IDX files are missing or damaged, or a class has no glyph.
        """
        if self.folder is None:
            from hsal_cli.scenes.strokes import draw_pool

            images, labels = draw_pool(split, seed)
            return gather(images, labels, [str(digit) for digit in range(10)], "the strokes")
        images, labels = read_pair(self.folder, split)
        numbers = np.unique(labels if split == "train" else self._train_labels(self.folder))
        if not np.isin(labels, numbers).all():
            raise FileError(f"{self.folder}: the test split has labels that the training split has not", HINT)
        return gather(images, np.searchsorted(numbers, labels), [str(number) for number in numbers], str(self.folder))

    @staticmethod
    def _train_labels(folder: Path) -> np.ndarray:
        path = find_idx(folder, "train", "labels")
        if path is None:
            raise FileError(f"{folder} has no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz", HINT)
        return read_idx(path, 1)


def gather(images: np.ndarray, labels: np.ndarray, classes: list[str], where: str) -> Glyphs:
    """Groups glyphs by class, leaving blank ones out.

    Raises:
        FileError: a class has no glyph.
    """
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
    if settings.digits == "strokes":
        if settings.mnist_dir:
            raise UsageError("digits = strokes takes no mnist_dir", "leave one of --digits strokes and --mnist-dir out")
        return DigitSource("strokes")
    folder = find_local(settings)
    if folder is not None:
        return DigitSource("mnist", folder)
    try:
        return DigitSource("mnist", download(reporter))
    except FileError:
        if settings.digits == "mnist":
            raise
        reporter.warn("MNIST is not at hand and cannot be downloaded: digits are drawn by pen strokes (--mnist-dir DIR takes real ones)")
        return DigitSource("strokes")


def find_local(settings: SceneSettings) -> Path | None:
    """The folder of MNIST's IDX files on this machine: the one named, else an earlier download; None where there is none.

    Raises:
        FileError: a folder that was named is missing or has no training images.
    """
    named = settings.mnist_dir or os.environ.get("HSAL_MNIST_DIR")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise FileError(f"the digit folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}", HINT)
        if find_idx(folder, "train", "images") is None:
            raise FileError(f"{folder} has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz", HINT)
        return folder
    for folder in (Path("data") / "MNIST" / "raw", cache_root() / "MNIST" / "raw"):
        if all(find_idx(folder, split, what) for split in ("train", "test") for what in ("images", "labels")):
            return folder
    return None


def download(reporter: Reporter) -> Path:
    """Downloads MNIST by torchvision into the cache.

    Returns:
        The folder with the IDX files.

    Raises:
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
