"""Reading IDX files, the format of MNIST and of the sets that share its shape (Fashion-MNIST, KMNIST, EMNIST)."""

from __future__ import annotations

import glob
import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.storage.files import regular

MOST_BYTES = 1 << 32  # of images; the largest set, EMNIST by class, has 0.5 GB
GLYPH = 28  # side of a glyph, px
SPLIT_WORDS = {"train": ("train",), "test": ("t10k", "test")}
HINT = "name a folder of whole IDX files with --mnist-dir, or draw digits with --digits strokes"


def find_idx(folder: Path, split: str, what: str) -> Path | None:
    """Finds the images or the labels of a split.

    Args:
        folder: where to look, not below it; or a folder and the beginning of the files' names, as in emnist/emnist-letters.
        split: "train" or "test" (called t10k by MNIST).
        what: "images" or "labels".

    Returns:
        The file, plain before gzipped; None where there is none.

    Raises:
        FileError: several sets lie in the folder.
    """
    rank = 3 if what == "images" else 1
    root, start = (folder, "") if folder.is_dir() else (folder.parent, glob.escape(folder.name))
    for ending in ("", ".gz"):
        names = [f"{start}*{word}-{what}{mark}idx{rank}-ubyte{ending}" for word in SPLIT_WORDS[split] for mark in "-."]
        found = sorted({path for name in names for path in root.glob(name)})
        if len(found) > 1:
            raise FileError(
                f"{folder} holds several sets: {', '.join(path.name for path in found)}",
                f"say which, by the beginning of its files' names: --mnist-dir {root / found[0].name.split('-train')[0].split('-test')[0]}",
            )
        if found:
            return found[0]
    return None


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads an IDX file of bytes.

    Args:
        path: the file, gzipped if its name ends in .gz.
        rank: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8 array of that many dimensions.

    Raises:
        FileError: unreadable, not an IDX file of that kind, or its length is not what its header says.
    """
    try:
        with gzip.open(regular(path), "rb") if path.suffix == ".gz" else regular(path).open("rb") as stream:
            data = _bounded(stream, rank)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", HINT) from error
    if data is None:
        raise FileError(f"{path} says that it holds more than {MOST_BYTES:,} bytes", HINT)
    header = 4 + 4 * rank
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) < header:
        raise FileError(
            f"{path} is not an IDX file of {'images' if rank == 3 else 'labels'}: it begins with {data[:4].hex() or 'nothing'}", HINT
        )
    shape = tuple(int.from_bytes(data[place : place + 4], "big") for place in range(4, header, 4))
    if len(data) - header != math.prod(shape):
        held = f"{len(data) - header:,}" if len(data) - header < math.prod(shape) else "more"
        raise FileError(f"{path} is damaged: {held} bytes of data where its header says {math.prod(shape):,}", HINT)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _bounded(stream: BinaryIO, rank: int) -> bytes | None:
    """The header and the data that it announces, and a byte more if there is one; None where it announces too much to be believed."""
    header = stream.read(4 + 4 * rank)
    announced = math.prod(int.from_bytes(header[place : place + 4], "big") for place in range(4, 4 + 4 * rank, 4))
    return None if announced > MOST_BYTES else header + stream.read(announced + 1)


def read_pair(folder: Path, split: str, transpose: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Reads the images and labels of a split.

    Args:
        folder: as in `find_idx`.
        split: "train" or "test".
        transpose: "yes", "no", or "auto": whether the files are EMNIST's, whose glyphs lie on their side.

    Returns:
        images uint8 (N, 28, 28) and labels uint8 (N,).

    Raises:
        FileError: a file is missing or damaged, glyphs are not 28x28, or the two do not belong together.
    """
    found = {what: find_idx(folder, split, what) for what in ("images", "labels")}
    for what, path in found.items():
        if path is None:
            stem = f"{SPLIT_WORDS[split][0]}-{what}-idx{3 if what == 'images' else 1}-ubyte"
            raise FileError(f"{folder} has no {stem} or {stem}.gz", HINT)
    images, labels = read_idx(found["images"], 3), read_idx(found["labels"], 1)
    if images.shape[1:] != (GLYPH, GLYPH):
        raise FileError(f"{found['images']} holds glyphs of {images.shape[1]}x{images.shape[2]} px, not {GLYPH}x{GLYPH}", HINT)
    if len(images) != len(labels) or not len(images):
        raise FileError(f"{found['images']} holds {len(images):,} glyphs, {found['labels'].name} {len(labels):,} labels", HINT)
    if transpose == "yes" or (transpose == "auto" and found["images"].name.startswith("emnist-")):
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, labels
