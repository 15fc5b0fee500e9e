"""Writes small IDX sets for tests."""

import gzip
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of bytes in the IDX format."""
    return bytes((0, 0, 8, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape) + array.astype(np.uint8).tobytes()


def write_idx_set(folder: Path, grey: dict[str, int] | None = None, zipped: bool = True, dots: bool = False, first: int = 0) -> Path:
    """Writes train and test files of square glyphs in ten classes.

    Args:
        grey: split -> the grey value of its ink.
        first: the number of the first class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grey = grey or {"train": 100, "t10k": 250}
    mark, ending = "." if dots else "-", ".gz" if zipped else ""
    for split, rows in (("train", 40), ("t10k", 20)):
        images = np.zeros((rows, 28, 28), np.uint8)
        images[:, 4:24, 6:22] = grey[split]
        labels = np.arange(rows) % 10 + first
        for what, rank, array in (("images", 3, images), ("labels", 1, labels)):
            data = idx_bytes(array)
            (folder / f"{split}-{what}{mark}idx{rank}-ubyte{ending}").write_bytes(gzip.compress(data) if zipped else data)
    return folder
