"""The feature file: volumes and raw saliency maps of a scene file, computed once by a fine-tuned activation model.

Root attributes: those of `hdf5.stamp` and `hdf5.seal`, `classes` (JSON list), `backbone_digest`, `scenes_digest`, `image_size`
(H, W in px, of the first split), `input_size` (px), `volume_shape` (C, h, w), `fine` (how many of the C
are a finer stage's or a window's; absent in older files), `fine_side` (cells of that stage along a side of one of the volume; 1: a
window's; absent in older files: 2), `saliency` and `saliency_digest` (see
`saliency.SaliencyModel`; absent in files of before there was a choice). A group a split, with attribute `image_size` and
    volumes   float16 (N, C, h, w)
    saliency  float32 (N, h, w), raw: for "activation" the sum of squares of the volume before it was rounded to float16; (N, 2h, 2w) and of
              the finer stage, where there is one
    labels    int16 (N, L), padded with -1, copied from the scene file
    boxes     int16 (N, L, 4) x0, y0, x1, y1 in px, half-open, padded with -1, copied; absent where the scene file has none
A group `train-views` holds the other views of the training images, where there are any (see `features.views`), without boxes. Each has an
attribute `cut_off`, how many activations were above the most that float16 holds, which they were cut off at (absent in older files).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import h5py
import numpy as np
import torch
from torch import Tensor

from hsal_cli.errors import FileError
from hsal_cli.features.settings import FORMAT, kind_in, made_with
from hsal_cli.scenes.scene_file import sound_boxes, sound_labels
from hsal_cli.storage.files import digest_of, digest_of_array
from hsal_cli.storage.hdf5 import FORMAT_VERSION, OpenedFile, attribute, described, open_hdf5, reading, train_first
from hsal_cli.typed import Document

MADE_BY = "hsal precompute"
AGAIN = f"make it again with: {MADE_BY} --overwrite --data SCENES --backbone RUN"
BLOCK_ROWS = 512  # rows read at a time when scattered rows are picked


class FeatureRows(Protocol):
    """Features that are read some rows at a time, wherever they lie: in memory, in a file that does not fit there, or yet to be computed.

    Attributes:
        labels: int64 (N, L), padded with -1.
        boxes: int64 (N, L, 4) x0, y0, x1, y1 in px of the image, padded with -1; None where unknown.
        image_size: height and width of the images, px.
        fine: channels of a finer stage in the volumes, the last ones.
    """

    labels: Tensor
    boxes: Tensor | None
    image_size: tuple[int, int]
    fine: int

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor | slice) -> FeatureTable:
        """The table of some rows, in their order: a slice, or the next ones of an order that `shuffled` gave."""

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A random order of some rows, to be selected one after the other."""
        return rows[torch.randperm(len(rows), generator=generator)]

    def labelled(self, labels: Tensor, boxes: Tensor) -> Self:
        """The same with its labels, and boxes, in another order."""
        other = copy.copy(self)
        other.labels, other.boxes = labels, boxes
        return other

    def parts(self) -> Iterator[Tensor]:
        """The volumes, a block at a time."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self.select(slice(start, start + BLOCK_ROWS)).volumes

    def close(self) -> None:
        """Closes what is open."""


@dataclasses.dataclass
class FeatureTable(FeatureRows):
    """Features in memory, with the labels to learn from; `select` takes indices in any order, a mask or a slice.

    Attributes:
        volumes: float16 (N, C, h, w), as the activation model gave them.
        saliency: float32 (N, h, w), with a finer stage (N, 2h, 2w), raw, >= 0.
        labels, boxes, image_size, fine: as in `FeatureRows`.
    """

    volumes: Tensor
    saliency: Tensor
    labels: Tensor
    boxes: Tensor | None
    image_size: tuple[int, int]
    fine: int = 0

    def followed_by(self, other: FeatureTable) -> FeatureTable:
        """These rows and those of another table, of which no boxes are known."""
        parts = zip((self.volumes, self.saliency, self.labels), (other.volumes, other.saliency, other.labels), strict=True)
        return FeatureTable(*map(torch.cat, parts), None, self.image_size, self.fine)

    def select(self, rows: Tensor | slice) -> FeatureTable:
        boxes = None if self.boxes is None else self.boxes[rows]
        return FeatureTable(self.volumes[rows], self.saliency[rows], self.labels[rows], boxes, self.image_size, self.fine)


@dataclasses.dataclass(frozen=True)
class FeatureConfig(Document):
    """Every setting that a feature file was made with.

    Attributes:
        scenes, scenes_config: the scene file's place, and the settings that that one was made with.
        views: of each training image; None is one.
        mirror: whether views are mirrored and turned by right angles.
    """

    scenes: str | None = None
    views: int | None = None
    mirror: bool = True
    scenes_config: dict[str, Any] = dataclasses.field(default_factory=dict)


class FeatureFile(OpenedFile):
    """An open feature file; a context manager.

    Attributes:
        path: the file.
        classes: the class names; labels index them.
        splits: the names of the splits in it, train and test first.
        volume_shape: (C, h, w).
        fine: how many of the C are a finer stage's or a window's, the last ones (`precompute --resolution fine`, `window`).
        map_shape: rows and columns of the saliency maps: (h, w), or twice as many with a finer stage.
        image_size: height and width of the scene file's images, px, in its first split.
        input_size: side that they were resized to, px.
        digest: sha256 of what the features were made from.
        backbone_digest, scenes_digest: of the activation model and of the scene file.
        config: what it was made with.
        saliency, saliency_digest: name of the saliency model, and what tells it from others (see `saliency.SaliencyModel`).

    Raises:
        FileError: something in it is not as it must be.
    """

    def __init__(self, path: Path, file: h5py.File):
        super().__init__(path, file)
        self._known: dict[str, tuple[Tensor, Tensor | None]] = {}  # labels and boxes of the splits that were asked for
        with reading(path, "its description", AGAIN):
            try:
                self._describe(file)
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise FileError(f"{path} is not a whole feature file: {error}", AGAIN) from error

    def _describe(self, file: h5py.File) -> None:
        self.classes = described(file, "classes", list[str])
        if not self.classes:
            raise ValueError("its classes are an empty list")
        self.digest, self.backbone_digest, self.scenes_digest = (
            str(attribute(file, name)) for name in ("digest", "backbone_digest", "scenes_digest")
        )
        self.config = described(file, "config", FeatureConfig, "{}")
        # Files older than the choice of saliency models have the activation model's own.
        self.saliency = str(attribute(file, "saliency", "activation"))
        self.saliency_digest = str(attribute(file, "saliency_digest", self.saliency))
        channels, height, width = (int(side) for side in file.attrs["volume_shape"])
        rows, columns = (int(side) for side in file.attrs["image_size"])
        self.input_size = int(file.attrs["input_size"])
        self.volume_shape, self.image_size = (channels, height, width), (rows, columns)
        self.fine = int(attribute(file, "fine", 0))
        self.map_shape = map_shape(self.volume_shape, self.fine, int(attribute(file, "fine_side", 2)))
        self.splits = train_first(file)
        for name, group in file.items():
            count, longest = group["labels"].shape
            shapes = {"volumes": (count, *self.volume_shape), "saliency": (count, *self.map_shape), "boxes": (count, longest, 4)}
            for part, shape in shapes.items():
                if (part in group or part != "boxes") and group[part].shape != shape:
                    raise ValueError(f"{name}/{part} has shape {group[part].shape}, not {shape}")

    def __len__(self) -> int:
        return sum(map(self.rows, self.splits))

    def table(self, split: str, rows: slice | Tensor | None = None) -> FeatureTable:
        """Reads a split, or some rows of it, into memory.

        Args:
            split: its name.
            rows: a slice, or a tensor of row indices in any order, repeats allowed; all rows if None.

        Raises:
            FileError: there is no such split, or the data does not fit its checksums.
            IndexError: a row that the split does not have.
        """
        volumes, saliency = self.maps(split, rows)
        labels, boxes = self.labels(split), self.boxes(split)
        if rows is not None:
            chosen = torch.from_numpy(self._places(split, rows))
            labels, boxes = labels[chosen], None if boxes is None else boxes[chosen]
        return FeatureTable(volumes, saliency, labels, boxes, self.size_of(split), self.fine)

    def maps(self, split: str, rows: slice | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The volumes, float16 (n, C, h, w), and saliency maps, float32 (n, h, w), of a split or of some rows; else as `table`."""
        group, places = self._group(split), self._places(split, rows)
        with reading(self.path, split, AGAIN):
            volumes, saliency = _read(group["volumes"], places), _read(group["saliency"], places)
            self._check_finite(split, volumes, saliency, places)
            return torch.from_numpy(volumes).to(torch.float16), torch.from_numpy(saliency).to(torch.float32)

    def cut_off(self, split: str) -> int:
        """How many activations of a split were cut off at what float16 holds; 0 where it was not counted."""
        return int(attribute(self._group(split), "cut_off", 0))

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        return len(self._group(split)["labels"])

    def labels(self, split: str) -> Tensor:
        """A split's labels alone, int64 (N, L), padded with -1; errors as `table`."""
        return self._labels_and_boxes(split)[0]

    def boxes(self, split: str) -> Tensor | None:
        """A split's boxes alone, int64 (N, L, 4) in px, padded with -1, None where unknown; errors as `table`."""
        return self._labels_and_boxes(split)[1]

    def size_of(self, split: str) -> tuple[int, int]:
        """Height and width of a split's images, px."""
        height, width = (int(side) for side in self._group(split).attrs.get("image_size", self.image_size))
        return height, width

    def _places(self, split: str, rows: slice | Tensor | None) -> np.ndarray:
        places = np.arange(self.rows(split))
        if rows is not None:  # a copy, for torch takes no negative strides
            places = places[rows if isinstance(rows, slice) else rows.cpu().numpy()].copy()
        return places

    def _group(self, split: str) -> h5py.Group:
        if split not in self.splits:
            raise FileError(f"{self.path} has no split {split!r}", f"it has: {', '.join(self.splits)}")
        return self._file[split]

    def _labels_and_boxes(self, split: str) -> tuple[Tensor, Tensor | None]:
        group = self._group(split)
        if split not in self._known:
            labels = self._copied(split, "labels", lambda values: sound_labels(values, len(self.classes), len(values)))
            boxes = None
            if "boxes" in group:
                boxes = self._copied(split, "boxes", lambda values: sound_boxes(values, labels.numpy(), self.size_of(split)))
            self._known[split] = labels, boxes
        return self._known[split]

    def _copied(self, split: str, part: str, check: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """Labels or boxes of a split, checked, and of the digest that was noted when they were copied from the scene file."""
        with reading(self.path, f"{split}/{part}", AGAIN):
            values, noted = self._file[split][part][()], attribute(self._file[split], f"{part}_digest")
            if noted is not None and values.dtype.kind in "iu" and noted != digest_of_array(values):
                raise FileError(f"{self.path} is damaged: {split}/{part} does not have the digest noted when it was written", AGAIN)
            try:
                return torch.from_numpy(check(values)).to(torch.int64)
            except ValueError as error:
                raise FileError(f"{self.path}: {split}: {error}", AGAIN) from None

    def _check_finite(self, split: str, volumes: np.ndarray, saliency: np.ndarray, rows: np.ndarray) -> None:
        """Refuses values that are not finite, and saliency below 0, which has no meaning: the policy reads where it is highest.

        `hsal precompute` writes none, so of its volumes one a row tells that the row was written.
        """
        sealed = "attributes_digest" in self._file.attrs
        for part, values in (("volumes", volumes[:, 0, 0, 0] if sealed else volumes), ("saliency", saliency)):
            for start in range(0, len(values), BLOCK_ROWS):
                finite = finite_rows(values[start : start + BLOCK_ROWS])
                if not finite.all():
                    row = rows[start + int(finite.argmin())]
                    raise FileError(f"{self.path}: {split}: row {row} of {part} has values that are not finite", AGAIN)
        below = (saliency < 0).any((1, 2))
        if below.any():
            raise FileError(
                f"{self.path}: {split}: row {rows[int(below.argmax())]} of saliency has values below 0",
                f"write maps of numbers from 0 up, or {AGAIN}",
            )


def map_shape(volume_shape: tuple[int, int, int], fine: int, fine_side: int) -> tuple[int, int]:
    """Rows and columns of the maps: those of the volume, or of its finer stage."""
    times = fine_side if fine else 1
    return times * volume_shape[1], times * volume_shape[2]


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Which rows hold finite numbers only."""
    if values.dtype == np.float16:  # NumPy's own test is an order of magnitude slower here
        return (np.ascontiguousarray(values).view(np.uint16) & 0x7C00).reshape(len(values), -1).max(1) < 0x7C00
    return np.isfinite(values).reshape(len(values), -1).all(1)


def features_digest(
    scenes_digest: str,
    backbone_digest: str,
    saliency_digest: str = "activation",
    resolution: int | str | None = None,
    views: int | None = None,
    mirror: bool = True,
) -> str:
    """The digest of features: of what they are made from.

    Args:
        resolution: cells along a side, where not the backbone's own, "fine" or "window".
        views: of each training image; None is one.
        mirror: whether they are mirrored and turned by right angles.
    """
    made_from: dict[str, Any] = {"scenes": scenes_digest, "backbone": backbone_digest, "format_version": FORMAT_VERSION}
    if saliency_digest != "activation":  # left out there, so that features made before there was a choice keep their digest
        made_from["saliency"] = saliency_digest
    if resolution is not None:
        made_from["resolution"] = resolution
    if (views or 1) > 1:
        made_from |= {"views": views} if mirror else {"views": views, "mirror": False}
    return digest_of(made_from)


def open_features(path: Path) -> FeatureFile:
    """Opens a feature file.

    Raises:
        FileError: missing, not a feature file, not complete, or damaged.
    """
    return open_hdf5(Path(path), FORMAT, made_with(Path(path)), FeatureFile)


def check_match(
    features: FeatureFile,
    scenes_digest: str | None = None,
    backbone_digest: str | None = None,
    saliency_digest: str | None = None,
    scenes: Path | None = None,
    backbone: Path | None = None,
) -> None:
    """Refuses features that were made from other scenes, by another backbone or with another saliency model.

    Args:
        features: the file to be used.
        scenes_digest, backbone_digest, saliency_digest: what it should have been made from; None: whatever it was.
        scenes, backbone: where these are, for the command that makes it anew; None: where they were when it was made.

    Raises:
        FileError: it is stale; names the file and both digests.
    """
    made_from = {"scene file": (features.scenes_digest, scenes_digest), "backbone": (features.backbone_digest, backbone_digest)}
    named = {"--data": scenes or features.config.scenes or "SCENES", "--backbone": backbone or features.config.raw.get("backbone") or "RUN"}
    words = [word for option, value in named.items() for word in (option, str(value))]
    again = shlex.join([*MADE_BY.split(), "--overwrite", *words, "--out", str(features.path)])
    for what, (found, wanted) in made_from.items():
        if wanted is not None and found != wanted:
            raise FileError(
                f"{features.path} holds features of another {what}: digest {found[:12]}, not {wanted[:12]}",
                f"make them again with: {again}",
            )
    if saliency_digest is not None and features.saliency_digest != saliency_digest:
        kind, _, made_of = saliency_digest.partition(":")  # of maps from files and of a user's own model, what they are made of
        wanted = f"{kind}:{made_of[:12]}" if made_of else kind
        others = {"file": " of other files"}.get(kind, " of another version") if kind == kind_in(features.saliency) else ""
        raise FileError(
            f"{features.path} holds features of another saliency model: {features.saliency}{others}, not {wanted}",
            f"name another file, or make them again with: {again} --saliency {'file:PATH' if kind == 'file' else kind}",
        )


def _read(data: h5py.Dataset, wanted: np.ndarray) -> np.ndarray:
    """Reads rows along the first axis, each stretch of the file once and in order."""
    found = np.empty((len(wanted), *data.shape[1:]), data.dtype)
    if len(wanted) and (np.diff(wanted) == 1).all():
        data.read_direct(found, np.s_[wanted[0] : wanted[-1] + 1])
        return found
    order = np.argsort(wanted, kind="stable")
    edges = np.arange(0, len(data) + BLOCK_ROWS, BLOCK_ROWS)
    places = np.searchsorted(wanted[order], edges)
    for low, high in itertools.pairwise(places):
        if low < high:
            some = order[low:high]
            first = wanted[some[0]]
            found[some] = data[first : wanted[some[-1]] + 1][wanted[some] - first]
    return found
