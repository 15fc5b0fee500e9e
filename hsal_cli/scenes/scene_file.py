"""The scene file: images, label multisets and boxes of a data set in HDF5, ours or one that a user wrote with h5py.

Root attributes: `format` = "hsal-scenes", `classes` (JSON list of names), and those of `hdf5.stamp`. A group a split, with
    images  uint8 (N, H, W) or (N, H, W, 3)
    labels  int16 (N, L), padded with -1 behind the labels, in no meaningful order; a row of nothing but -1 is an image without an object
    boxes   int16 (N, L, 4) x0, y0, x1, y1 in px, half-open, padded with -1; optional
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.storage.atomic import atomic_write, check_space
from hsal_cli.storage.files import digest_of
from hsal_cli.storage.hdf5 import OpenedFile, attribute, described, open_hdf5, put_text, reading, seal, stamp, train_first
from hsal_cli.storage.steady import SteadyFile
from hsal_cli.typed import Odd

FORMAT = "hsal-scenes"
MADE_BY = "hsal make-data mnist-multiset"
HINT = f"mend the file, or make one with: {MADE_BY}"
BLOCK_BYTES = 1 << 20  # size of an HDF5 chunk of images, about
# Files hold labels and boxes as int16, in which 40,000 would become -25,536 without a word: they are checked in the type that they come in.
LARGEST = int(np.iinfo(np.int16).max)  # label, and side of an image with boxes in px


@dataclasses.dataclass(frozen=True)
class SceneSplit:
    """One split of a scene file; usable while the file is open.

    Attributes:
        name: "train", "test", or what a user called it.
        images: the HDF5 dataset, uint8 (N, H, W) or (N, H, W, 3).
        labels: int16 (N, L), padded with -1.
        boxes: int16 (N, L, 4) in px, half-open, padded with -1; None where unknown.
    """

    name: str
    images: h5py.Dataset
    labels: np.ndarray
    boxes: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, px."""
        return self.images.shape[1:3]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads images start to stop (exclusive), uint8 (n, H, W) or (n, H, W, 3); FileError where data does not fit its checksum."""
        with reading(self.images.file.filename, f"{self.name}, images {start} to {stop - 1},", HINT):
            return self.images[start:stop]


class SceneFile(OpenedFile):
    """An open scene file whose structure, labels and boxes have been checked; a context manager.

    Attributes:
        path: the file.
        classes: the class names; labels index them.
        splits: the names of the splits in it, train and test first.
        config: every setting it was made with; empty for a file that hsal did not write.
    """

    def __init__(self, path: Path, file: h5py.File):
        super().__init__(path, file)
        with reading(path, "its content", HINT):
            self.classes = _classes(path, file)
            # Another program's attribute of that name says nothing to us.
            self.config: dict[str, Any] = described(file, "config", dict, "{}") if "hsal_version" in file.attrs else {}
            self.splits = train_first(name for name, group in file.items() if isinstance(group, h5py.Group) and "images" in group)
            if not self.splits:
                raise FileError(f"{path} has no split: no group such as train or test with images", HINT)
            self._splits = {name: _split(path, name, file[name], len(self.classes)) for name in self.splits}

    def split(self, name: str) -> SceneSplit:
        """The split of that name; FileError where there is none."""
        if name not in self._splits:
            raise FileError(f"{self.path} has no split {name!r}", f"it has: {', '.join(self.splits)}")
        return self._splits[name]

    def __len__(self) -> int:
        return sum(map(len, self._splits.values()))

    @property
    def noted_digest(self) -> str | None:
        """The digest that the file's writer noted; None where it noted none."""
        noted = attribute(self._file, "digest")
        return str(noted) if noted else None

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of what the file holds: as its writer noted it, else computed from all images, labels and boxes."""
        return self.noted_digest or self.computed_digest()

    def computed_digest(self, advance: Callable[[int], None] = lambda images: None) -> str:
        """sha256 of what the file holds, from all images, labels and boxes; `advance` is told how many images each block held."""
        sums: dict[str, dict[str, str]] = {}
        for name, split in self._splits.items():
            images = hashlib.sha256()
            step = max(1, BLOCK_BYTES // max(1, int(np.prod(split.images.shape[1:]))))
            for start in range(0, len(split), step):
                some = split.read(start, min(start + step, len(split)))
                images.update(some)
                advance(len(some))
            sums[name] = _sums(images, split.images.shape, split.labels, split.boxes)
        return _digest(self.classes, sums)


def open_scenes(path: Path) -> SceneFile:
    """Opens a scene file and checks it.

    Raises:
        FileError: missing, damaged, not a scene file, or something in it is not as it must be; names file, split and row.
    """
    return open_hdf5(Path(path), FORMAT, MADE_BY, SceneFile)


class SceneWriter:
    """Writes the splits of a scene file one after the other; made by `write_scenes`."""

    def __init__(self, file: SteadyFile, place: Path, classes: list[str]):
        self._file = file
        self._place = place
        self._classes = classes
        self._sums: dict[str, dict[str, str]] = {}

    def write_split(self, name: str, parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]], shape: tuple[int, ...]) -> None:
        """Writes a split, "train" or "test".

        Args:
            parts: images uint8 (n, H, W[, 3]), labels (n, L) and boxes (n, L, 4) of any integer type, in order; boxes None where unknown.
            shape: of all the images: (N, H, W) or (N, H, W, 3).

        Raises:
            FileError: a label or a box that cannot be; names the row.
        """
        group = self._file.create_group(name)
        block = max(1, min(shape[0], BLOCK_BYTES // int(np.prod(shape[1:]))))
        images = group.create_dataset("images", shape, np.uint8, chunks=(block, *shape[1:]), compression="lzf", fletcher32=True)
        seen, labels, boxes, place = hashlib.sha256(), [], [], 0
        for some_images, some_labels, some_boxes in parts:
            check_space(self._place, some_images.nbytes)
            self._file.check()
            images[place : place + len(some_images)] = some_images
            seen.update(np.ascontiguousarray(some_images))
            place += len(some_images)
            labels.append(some_labels)
            boxes.append(some_boxes)
        try:
            all_labels = sound_labels(np.concatenate(labels), len(self._classes), shape[0])
            all_boxes = None if boxes[0] is None else sound_boxes(np.concatenate(boxes), all_labels, shape[1:3])
        except ValueError as error:
            raise FileError(f"{self._place}: {name}: {error}", "nothing was written; mend the labels that it comes from") from None
        group.create_dataset("labels", data=all_labels, compression="lzf", chunks=True, fletcher32=True)
        if all_boxes is not None:
            group.create_dataset("boxes", data=all_boxes, compression="lzf", chunks=True, fletcher32=True)
        self._sums[name] = _sums(seen, shape, all_labels, all_boxes)

    @property
    def digest(self) -> str:
        """sha256 of what has been written, whatever the blocks it came in."""
        return _digest(self._classes, self._sums)


@contextlib.contextmanager
def write_scenes(target: Path, config: dict[str, Any], classes: list[str]) -> Iterator[SceneWriter]:
    """Writes a scene file whole or not at all, in place of one that exists.

    `config` is every setting, as JSON types; it is stamped when all is written, so that what is learned on the way may be noted in it.

    Raises:
        FileError: the place cannot be written, or there are more classes than labels can tell apart.
    """
    try:
        sound_classes(classes)
    except ValueError as error:
        raise FileError(f"{target}: {error}", "nothing was written; take fewer classes, with --classes where the command has it") from None
    # The newer layout has checksums of HDF5's own bookkeeping too.
    with atomic_write(target) as temporary, SteadyFile(temporary, "w", libver=("v110", "latest")) as file:
        put_text(file, "classes", json.dumps(classes))
        writer = SceneWriter(file, temporary, classes)
        yield writer
        stamp(file, FORMAT, config)
        seal(file, writer.digest)


def _sums(images: Any, shape: tuple[int, ...], labels: np.ndarray, boxes: np.ndarray | None) -> dict[str, Any]:
    return {
        "shape": [int(side) for side in shape],
        "images": images.hexdigest(),
        "labels": hashlib.sha256(np.ascontiguousarray(labels, dtype="<i2")).hexdigest(),
        "boxes": None if boxes is None else hashlib.sha256(np.ascontiguousarray(boxes, dtype="<i2")).hexdigest(),
    }


def _digest(classes: list[str], sums: dict[str, dict[str, Any]]) -> str:
    return digest_of({"classes": classes, "splits": sums})


def _classes(path: Path, file: h5py.File) -> list[str]:
    found = attribute(file, "classes")
    try:
        # h5py users may also set the attribute to a list of strings, without json.dumps.
        names = [str(name) for name in found] if isinstance(found, list) else described(file, "classes", list[str])
        if not names or len(set(names)) < len(names):
            raise Odd("", "the names are none, or repeat")
    except Odd as odd:
        raise FileError(f"{path}: its attribute classes is not a JSON list of different names: {odd}", HINT) from odd
    try:
        return sound_classes(names)
    except ValueError as error:
        raise FileError(f"{path}: {error}", HINT) from None


def _split(path: Path, name: str, group: h5py.Group, classes: int) -> SceneSplit:
    """Reads and checks one split."""

    def refuse(what: str) -> FileError:
        return FileError(f"{path}: {name}: {what}", HINT)

    images = group["images"]
    if not isinstance(images, h5py.Dataset) or images.dtype != np.uint8:
        raise refuse(f"images have type {getattr(images, 'dtype', 'group')}, not uint8")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or 0 in images.shape:
        raise refuse(f"images have shape {images.shape}, not (N, H, W) or (N, H, W, 3)")
    if "labels" not in group:
        raise refuse("there are no labels")
    try:
        labels = sound_labels(_values(group, "labels"), classes, len(images))
        boxes = sound_boxes(_values(group, "boxes"), labels, images.shape[1:3]) if "boxes" in group else None
    except ValueError as error:
        raise refuse(str(error)) from None
    return SceneSplit(name, images, labels, boxes)


def _values(group: h5py.Group, part: str) -> np.ndarray:
    data = group[part]
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{part} are a group, not integers")
    return data[()]


def sound_labels(labels: np.ndarray, classes: int, images: int) -> np.ndarray:
    """The multisets of a split as int16, once they are checked; one may hold no object at all.

    Args:
        labels: (N, L), padded with -1 behind the labels, which lie in 0 to `classes` - 1.
        images: N.

    Raises:
        ValueError: not integers of that shape, a label that is no class, or one behind the padding; names the row and the value.
    """
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels have type {labels.dtype}, not integers")
    if labels.ndim != 2 or len(labels) != images or labels.shape[1] < 1:
        raise ValueError(f"labels have shape {labels.shape}, not ({images}, L)")
    padding, highest = labels == -1, min(classes - 1, LARGEST)
    outside = ((labels < 0) & ~padding) | (labels > highest)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(f"row {row} has a label outside 0 to {highest} (-1 pads): {labels[row, column]}")
    behind = (padding[:, :-1] & ~padding[:, 1:]).any(axis=1)
    if behind.any():
        row = int(behind.argmax())
        raise ValueError(f"row {row} has a label behind the padding: {labels[row].tolist()}")
    return labels.astype(np.int16)


def sound_classes(names: list[str]) -> list[str]:
    """The same class names; ValueError where there are more than labels can tell apart."""
    if len(names) > LARGEST + 1:
        raise ValueError(f"there are {len(names):,} classes, and a label is at most {LARGEST:,}")
    return names


def sound_boxes(boxes: np.ndarray, labels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The boxes of a split as int16, once they are checked.

    Args:
        boxes: (N, L, 4) x0, y0, x1, y1 in px, half-open; what stands beside padding does not count.
        labels: (N, L), padded with -1, checked.
        image_size: height and width, px.

    Raises:
        ValueError: not integers of that shape, or a box that is empty, leaves the image, or lies beyond 32,767 px; names row and box.
    """
    if boxes.dtype.kind not in "iu":
        raise ValueError(f"boxes have type {boxes.dtype}, not integers")
    if boxes.shape != (*labels.shape, 4):
        raise ValueError(f"boxes have shape {boxes.shape}, not {(*labels.shape, 4)}")
    height, width = image_size
    x0, y0, x1, y1 = np.moveaxis(boxes, 2, 0)
    wrong = (x0 < 0) | (y0 < 0) | (x1 <= x0) | (y1 <= y0) | (x1 > min(width, LARGEST)) | (y1 > min(height, LARGEST))
    wrong &= labels >= 0
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        box = boxes[row, column].tolist()
        beyond = f", or lies beyond the {LARGEST:,} px that boxes may have" if max(image_size) > LARGEST else ""
        raise ValueError(f"row {row} has a box that is empty or leaves the image of {width}x{height} px{beyond}: {box}")
    # Only what stands beside padding can be cut off here.
    return boxes.astype(np.int64).clip(np.iinfo(np.int16).min, LARGEST).astype(np.int16)
