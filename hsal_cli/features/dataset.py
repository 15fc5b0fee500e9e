"""A feature file as a torch dataset, for training loops of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hsal_cli.features.table import FeatureFile, open_features
from hsal_cli.storage.hdf5 import EachProcess


class FeatureRow(NamedTuple):
    """What is known of one image; rows of one dataset stack as they are, so that a `DataLoader` needs no collate function.

    Attributes:
        volume: float16 (C, h, w), the activation model's volume; behind it in C its finer stage, where the file has one.
        saliency: float32 (h, w), raw, at least 0; of a finer stage (2h, 2w).
        labels: int64 (L,), padded with -1 behind the labels; L is the split's largest number of labels.
    """

    volume: Tensor
    saliency: Tensor
    labels: Tensor


class Features(Dataset[FeatureRow]):
    """A split of a feature file, such as `hsal precompute` writes, as a torch dataset of `FeatureRow`s.

    Each process that reads it opens the file for itself, so that a `DataLoader` may have workers; a batch is read at once.

    Args:
        path: the feature file.
        split: its name: "train" or "test".

    Attributes:
        classes: names of the classes; labels index them.
        labels: int64 (N, L), padded with -1.
        boxes: int64 (N, L, 4) x0, y0, x1, y1 in px of the image, half-open, padded with -1; None where unknown.
        volume_shape: (C, h, w).

    Raises:
        FileError: the file is missing or damaged, or has no such split.
    """

    def __init__(self, path: str | Path, split: str = "train"):
        self.path, self.split = Path(path), split
        self._file: EachProcess[FeatureFile] = EachProcess(open_features, self.path)
        with open_features(self.path) as file:
            self.classes: list[str] = file.classes
            self.labels, self.boxes = file.labels(split), file.boxes(split)
            self.volume_shape: tuple[int, int, int] = file.volume_shape

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> FeatureRow:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[FeatureRow]:
        """The rows of a batch; each stretch of the file is read once. IndexError, by which a loop over a dataset ends: no such row."""
        rows = torch.as_tensor([int(index) for index in indices], dtype=torch.long)
        volumes, saliency = self._file.get().maps(self.split, rows)
        return [FeatureRow(*parts) for parts in zip(volumes, saliency, self.labels[rows], strict=True)]
