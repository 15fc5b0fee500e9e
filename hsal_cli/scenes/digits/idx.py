"""Reading IDX files, the format of MNIST and of the sets that share its shape (Fashion-MNIST, KMNIST, EMNIST, QMNIST)."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.storage.download import opened

MOST_BYTES = 1 << 32  # of images; the largest set, EMNIST by class, has 0.5 GB
HEADER = 16  # bytes of the longest header, of three dimensions
GLYPH = 28  # side of a glyph, px
SPLIT_WORDS = {"train": "train", "t10k": "test", "test": "test"}
HINT = "name a folder of whole IDX files with --mnist-dir, or draw digits with --digits strokes"
TYPES = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}  # the third byte of a file; QMNIST's labels are of the second kind
QMNIST_COLUMNS = 8  # of its labels: the class, then who wrote it, where and when
BEGINNINGS = {b"<": "a web page", b"PK\x03\x04": "a ZIP archive; unpack it", b"\xfd7zXZ": "packed by xz; unpack it"}
NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)-(?P<what>images|labels)[-.]idx[123]-(?:ubyte|int)(?P<packed>\.gz)?", re.IGNORECASE
)


def find_idx(folder: Path, split: str, what: str) -> Path | None:
    """Finds the images or the labels of a split, "train" or "test" (called t10k by MNIST); None where there are none.

    `folder` is where to look, not below it; or a folder and the beginning of the files' names, as in emnist/emnist-letters. Hidden files
    are passed over, such as the `._` companions of macOS; a folder that has a file's name, as Kaggle and 7-Zip make it, is looked into.
    Plain files go before gzipped ones, and plain labels before QMNIST's. FileError: several sets lie in the folder.
    """
    root, start = (folder, "") if folder.is_dir() else (folder.parent, folder.name)
    sets: dict[str, list[Path]] = {}
    for path in _shown(root):
        if path.name.startswith(start) and (name := _named(path, split, what)):
            files = [inner for inner in _shown(path) if _named(inner, split, what)] if path.is_dir() else [path]
            if files:
                sets.setdefault(name["set"].lower(), []).extend(files)
    if len(sets) > 1:
        raise FileError(
            f"{folder} holds several sets: {', '.join(files[0].name for files in sets.values())}",
            f"say which, by the beginning of its files' names: --mnist-dir {root / next(filter(None, sets)).rstrip('-')}",
        )
    ranked = sorted(
        (file for files in sets.values() for file in files), key=lambda file: (file.suffix.lower() == ".gz", "idx2" in file.name)
    )
    return ranked[0] if ranked else None


def find_folder(folder: Path) -> Path:
    """The folder of a set's training images: this one, or the only one below it that has some, as in MNIST/raw of torchvision.

    Raises:
        FileError: there is no such folder, or there are several; names what is there.
    """
    if find_idx(folder, "train", "images"):
        return folder
    if not folder.is_dir():
        raise FileError(f"the digit folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}", HINT)
    below = [place for place in _shown(folder) if place.is_dir()]
    places = [place for place in (*below, *(place / "raw" for place in below)) if find_idx(place, "train", "images")]
    if len(places) > 1:
        raise FileError(f"{folder} holds several sets: {', '.join(map(str, places))}", f"say which: --mnist-dir {places[0]}")
    return places[0] if places else needed(folder, "train", "images")


def needed(folder: Path, split: str, what: str) -> Path:
    """What `find_idx` finds; FileError where there is none, which says what is there instead."""
    if found := find_idx(folder, split, what):
        return found
    stem = f"{'train' if split == 'train' else 't10k'}-{what}-idx{3 if what == 'images' else 1}-ubyte"
    held = [path.name for path in _shown(folder) if split == "train" and not NAME.fullmatch(path.name)]
    instead = f"; it holds {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}" if held else ""
    hint = HINT if split == "train" else "put the test files there too, or make training images alone with --test 0"
    if any(name.lower().endswith(".csv") for name in held):
        hint = (
            "hsal reads no CSV of pixels: name a folder of the same set's IDX files with --mnist-dir, or draw digits with --digits strokes"
        )
    raise FileError(f"{folder} has no {stem} or {stem}.gz{instead}", hint)


def _shown(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without what macOS and Windows put beside it."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith((".", "__MACOSX")) and path.name.lower() not in ("thumbs.db", "desktop.ini")]


def _named(path: Path, split: str, what: str) -> re.Match[str] | None:
    """A file's name taken apart, if it is that of images or labels of a split."""
    name = NAME.fullmatch(path.name)
    return name if name and SPLIT_WORDS[name["split"].lower()] == split and name["what"].lower() == what else None


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads an IDX file, gzipped or not, whatever its name says, of 3 dimensions (images) or 1 (labels).

    Returns:
        Images uint8 (N, H, W), or labels uint8 or int32 (N,); of QMNIST's extended labels the first column, the class.

    Raises:
        FileError: unreadable, not an IDX file of that kind, or its length is not what its header says.
    """
    try:
        with opened(path) as stream:
            return _read(path, stream, rank)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", HINT) from error


def _read(path: Path, stream: BinaryIO, rank: int) -> np.ndarray:
    """What follows the header, and of a file that unpacks to more one byte more than the header says."""
    data = stream.read(HEADER)
    kind, found = (data[2], data[3]) if data[:2] == b"\0\0" and len(data) >= 4 else (0, 0)
    header = 4 + 4 * found
    wanted = kind == 8 and found == 3 if rank == 3 else kind in TYPES and found in ((1, 2) if kind == 12 else (1,))
    if not wanted or len(data) < header:
        said = next((what for beginning, what in BEGINNINGS.items() if data.startswith(beginning)), None)
        said = f"it is {said}" if said else f"it begins with {data[:4].hex() or 'nothing'}"
        raise FileError(f"{path} is not an IDX file of {'images' if rank == 3 else 'labels'}: {said}", HINT)
    shape = tuple(int.from_bytes(data[place : place + 4], "big") for place in range(4, header, 4))
    size = math.prod(shape) * TYPES[kind].itemsize
    if size > MOST_BYTES:
        raise FileError(f"cannot read {path}: its header says that it holds {size:,} bytes, more than {MOST_BYTES:,} bytes", HINT)
    data += stream.read(max(header + size + 1 - len(data), 0))
    held = len(data) - header
    if held != size:
        raise FileError(f"{path} is damaged: {'more' if held > size else f'{held:,}'} bytes of data where its header says {size:,}", HINT)
    values = np.frombuffer(data, TYPES[kind], offset=header).reshape(shape)
    if values.ndim == 2:
        if shape[1] != QMNIST_COLUMNS:
            raise FileError(f"{path} holds labels of {shape[1]} columns, and only QMNIST's, of {QMNIST_COLUMNS}, are known", HINT)
        values = values[:, 0]
    return values.astype(values.dtype.newbyteorder("="))


def read_pair(folder: Path, split: str, transpose: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Reads the images uint8 (N, 28, 28) and labels uint8 or int32 (N,) of a split; folder and split as in `find_idx`.

    Args:
        transpose: "yes", "no", or "auto": whether the files are EMNIST's, whose glyphs lie on their side.

    Raises:
        FileError: a file is missing or damaged, glyphs are not 28x28, or the two do not belong together.
    """
    shown, named = (needed(folder, split, what) for what in ("images", "labels"))
    images, labels = read_idx(shown, 3), read_idx(named, 1)
    if images.shape[1:] != (GLYPH, GLYPH):
        raise FileError(f"{shown} holds glyphs of {images.shape[1]}x{images.shape[2]} px, not {GLYPH}x{GLYPH}", HINT)
    if len(images) != len(labels) or not len(images):
        raise FileError(f"{shown} holds {len(images):,} glyphs, {named.name} {len(labels):,} labels", HINT)
    if transpose == "yes" or (transpose == "auto" and shown.name.startswith("emnist-")):
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, labels
