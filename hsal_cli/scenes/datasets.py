"""Scenes as torch datasets: those of a file, and MNIST Multiset composed on the fly, whose digits never leave their split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hsal_cli.scenes.make import composer_of, settle
from hsal_cli.scenes.scene_file import SceneFile, open_scenes
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.storage.hdf5 import EachProcess


class Scene(NamedTuple):
    """An image and what is in it; scenes of one dataset stack as they are, so that a `DataLoader` needs no collate function.

    Attributes:
        image: uint8 (H, W, 1) or (H, W, 3).
        labels: int64 (L,), padded with -1 behind the labels, in no meaningful order; L is the dataset's largest number of labels.
        boxes: int64 (L, 4), of each label x0, y0, x1, y1 in px, half-open; -1 in the padding, and everywhere where boxes are unknown.
    """

    image: Tensor
    labels: Tensor
    boxes: Tensor


class Scenes(Dataset[Scene]):
    """A split of a scene file, such as `hsal make-data` writes, as a torch dataset of `Scene`s.

    Each process that reads it opens the file for itself, so that a `DataLoader` may have workers.

    Args:
        path: the scene file.
        split: its name: "train", "test", or what its writer called it.
        transform: called with each uint8 image (H, W, C) as a tensor; what it returns stands in the image's place.

    Attributes:
        classes: names of the classes; labels index them.
        labels: int64 (N, L), padded with -1.
        boxes: int64 (N, L, 4) in px, padded with -1; None where unknown.
        image_size: height and width of the images, px.

    Raises:
        FileError: the file is missing or damaged, or has no such split.
    """

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Tensor], Any] | None = None):
        self.path, self.split, self.transform = Path(path), split, transform
        self._file: EachProcess[SceneFile] = EachProcess(open_scenes, self.path)
        with open_scenes(self.path) as file:
            part = file.split(split)
            self.classes: list[str] = file.classes
            self.labels = torch.from_numpy(part.labels).long()
            self.boxes = None if part.boxes is None else torch.from_numpy(part.boxes).long()
            self.image_size: tuple[int, int] = part.image_size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Scene:
        row = _row(index, len(self))
        image = self._file.get().split(self.split).read(row, row + 1)[0]
        labels = self.labels[row]
        return _scene(image, labels, torch.full((len(labels), 4), -1) if self.boxes is None else self.boxes[row], self.transform)


class MultisetDigits(Dataset[Scene]):
    """MNIST Multiset (section 5, "Datasets"), composed while it is read: a torch dataset of `Scene`s, as many as you like.

    Image i depends on the recipe, the seed, the split and i alone, and is the one that `hsal make-data` writes into row i. Digits of
    training images come only from the training split of the digits, those of test images only from their test split: nothing leaks.

    Args:
        root: folder of MNIST's IDX files, gzipped or not (or torchvision's root above it); None: HSAL_MNIST_DIR, an earlier download, a
            download, else digits drawn by pen strokes.
        train: images of the training split; else of the test split.
        length: how many images; None: the paper's 60,000 and 10,000.
        unique: an image's labels all differ (MNIST Set).
        count: fewest and most digits in an image.
        digit_size: smallest and largest side of a digit, px.
        image_size: side of the square images, px.
        clutter: pieces of other digits strewn under the digits; `clutter_size`: their side, px.
        placement: free, tight, grid or authors; see `hsal make-data mnist-multiset --help`.
        digits: mnist, strokes (which need no file), or auto.
        classes: the classes to take, names or indices, with commas between them; None: all.
        seed: of all that is random.
        transform: called with each uint8 image (H, W, 1) as a tensor; what it returns stands in the image's place.

    Attributes:
        classes: names of the classes; labels index them.
        settings: the whole recipe, with no open value.

    Raises:
        UsageError: a value that cannot be used; FileError: the digits cannot be had.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        train: bool = True,
        *,
        length: int | None = None,
        unique: bool = False,
        count: tuple[int, int] = (1, 4),
        digit_size: tuple[int, int] = (20, 50),
        image_size: int = 100,
        clutter: int = 8,
        clutter_size: int = 5,
        placement: Literal["free", "tight", "grid", "authors"] = "free",
        digits: Literal["auto", "mnist", "strokes"] = "auto",
        classes: str | None = None,
        seed: int = 0,
        transform: Callable[[Tensor], Any] | None = None,
    ):
        usual = SceneSettings()
        asked = SceneSettings(
            train=usual.train if length is None else length,
            test=usual.test if length is None else length,
            count=count,
            digit_size=digit_size,
            image_size=image_size,
            clutter=clutter,
            clutter_size=clutter_size,
            placement=placement,
            digits=digits,
            mnist_dir=None if root is None else _idx_folder(Path(root).expanduser()),
            classes=classes,
            seed=seed,
        )
        name = "mnist-set" if unique else "mnist-multiset"
        self.settings, source = settle(name, asked)
        self._composer = composer_of(name, "train" if train else "test", self.settings, source)
        self._length = self.settings.train if train else self.settings.test
        self.train, self.transform = train, transform
        self.classes: list[str] = self._composer.glyphs.classes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Scene:
        image, named, found = self._composer.compose(_row(index, len(self)))
        labels = torch.full((self._composer.most,), -1)
        boxes = torch.full((self._composer.most, 4), -1)
        labels[: len(named)] = torch.tensor(named, dtype=torch.int64)
        boxes[: len(named)] = torch.tensor(found, dtype=torch.int64).view(-1, 4)
        return _scene(image, labels, boxes, self.transform)


def _row(index: int, rows: int) -> int:
    row = int(index) + (rows if index < 0 else 0)
    if not 0 <= row < rows:
        raise IndexError(f"row {index}: there are {rows}")  # by which a loop over a dataset ends
    return row


def _scene(image: np.ndarray[Any, Any], labels: Tensor, boxes: Tensor, transform: Callable[[Tensor], Any] | None) -> Scene:
    pixels = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 3 else image[..., None]))
    return Scene(pixels if transform is None else transform(pixels), labels, boxes)


def _idx_folder(root: Path) -> str:
    below = root / "MNIST" / "raw"
    return str(below if below.is_dir() else root)
