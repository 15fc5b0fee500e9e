"""Saliency maps from files: any model's output as PNG, NPY or HDF5.

A scene file's maps: a folder with one stack a split (PATH/test.npy) or one file an image (PATH/test/17.png or .npy, leading zeros
allowed), or an HDF5 file with a dataset a split (PATH[test], or PATH[test/saliency]). Stacks are (N, H, W), in the order of the images.
A picture's map: PATH/NAME.png or .npy in the folder, NAME being the picture's without its ending; or PATH itself, a .png or .npy file.
Maps may have any size; they are averaged over cells.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from hsal_cli.errors import FileError
from hsal_cli.features.saliency.cells import to_cells
from hsal_cli.storage.files import digest_of, digest_of_file, regular
from hsal_cli.storage.hdf5 import check_filters, opened
from hsal_cli.vision.images import read_image

ENDINGS = (".png", ".npy")
HINT = "maps are a folder with SPLIT.npy, SPLIT/ROW.png or PICTURE.png, a .png or .npy file, or an .h5 file with a dataset a split"


class FileSaliency:
    """The model behind `--saliency file:PATH`: a folder, or a .png, .npy, .h5 or .hdf5 file; FileError where there is none of these."""

    def __init__(self, path: Path):
        self.path = path
        self.name = f"file:{path}"
        if not path.exists():
            raise FileError(f"there are no saliency maps at {path}", HINT)
        if not path.is_dir() and path.suffix.lower() not in (*ENDINGS, ".h5", ".hdf5"):
            raise FileError(f"{path} is neither a folder nor a .png, .npy or .h5 file", HINT)
        self._stack, self._numbered = functools.cache(self._open_stack), functools.cache(self._number)

    @functools.cached_property
    def digest(self) -> str:
        """ "file:" and a sha256 of all maps, so that other maps at the same place are told apart."""
        if not self.path.is_dir():
            return f"file:{digest_of_file(self.path)}"
        files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        return f"file:{digest_of([[str(file.relative_to(self.path)), digest_of_file(file)] for file in files])}"

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        maps = []
        for name in names:
            found, where = self._find(name)
            if found.ndim != 2 or 0 in found.shape:
                raise FileError(f"{where} has shape {found.shape}: a saliency map has rows and columns", HINT)
            if not np.isfinite(found).all() or found.min() < 0:
                raise FileError(f"{where} has values that are negative or not finite", "write maps of numbers from 0 up")
            maps.append(to_cells(torch.from_numpy(np.array(found))[None], tuple(volumes.shape[2:])))
        return torch.cat(maps).to(volumes.device)

    def _find(self, name: str) -> tuple[np.ndarray, str]:
        """The map of one image, float32, and where it stands."""
        split, _, number = name.rpartition("/")
        row = int(number) if split and "/" not in split and number.isdigit() else None  # of a scene file; else the name is a picture's
        if self.path.suffix.lower() in ENDINGS and not self.path.is_dir():
            if row is not None:
                raise FileError(f"{self.path} is one map, and {split} holds many images", HINT)
            return read_map(self.path), str(self.path)
        stack = self.path / f"{split}.npy" if self.path.is_dir() else self.path
        if row is None and not self.path.is_dir():
            raise FileError(f"{self.path} holds maps by split and row, none for the picture {name}", HINT)
        if row is None:
            stem = Path(name).stem
            files = [file for file in (self.path / f"{stem}{ending}" for ending in ENDINGS) if file.is_file()]
            if not files:
                raise FileError(f"{self.path} has no map of {name}: no {stem}.png or {stem}.npy", "put the picture's map there")
            return read_map(files[0]), str(files[0])
        if stack.is_file():
            maps, where = self._stack(split), f"{stack}{f', {split}' * (stack == self.path)}"
            if maps.ndim != 3:
                raise FileError(f"{where} has shape {maps.shape}, not (N, H, W)", HINT)
            if row >= len(maps):
                raise FileError(f"{where} holds {len(maps)} maps, none for image {row}", "make one map for each image, in their order")
            return np.asarray(maps[row], np.float32), f"{where}, map {row}"
        if row not in self._numbered(split):
            raise FileError(f"{self.path} has no map of {split} image {row}: no {split}.npy, no {split}/{row}.png or .npy", HINT)
        return read_map(self._numbered(split)[row]), str(self._numbered(split)[row])

    def _open_stack(self, split: str) -> np.ndarray | h5py.Dataset:
        """A split's maps, opened once and read row by row."""
        if self.path.is_dir():
            return _load_npy(self.path / f"{split}.npy")
        try:
            found = opened(self.path).get(split)
            found = found.get("saliency") if isinstance(found, h5py.Group) else found
        except OSError as error:
            raise FileError(f"{self.path} is not a readable HDF5 file: {str(error).splitlines()[0]}", HINT) from error
        if not isinstance(found, h5py.Dataset):
            raise FileError(f"{self.path} has no dataset {split} or {split}/saliency", HINT)
        check_filters(found.name.lstrip("/"), found)
        return found

    def _number(self, split: str) -> dict[int, Path]:
        """Row -> file, of a split with one file an image."""
        files = sorted((self.path / split).iterdir()) if (self.path / split).is_dir() else []
        return {int(file.stem): file for file in files if file.stem.isdigit() and file.suffix.lower() in ENDINGS}


def read_map(file: Path) -> np.ndarray:
    """One map, float32 (H, W) for a PNG, in [0, 255]; of a NPY file whatever it holds; FileError where it is missing or damaged."""
    if file.suffix.lower() == ".npy":
        return np.asarray(_load_npy(file), np.float32)
    return np.asarray(read_image(file).convert("L"), np.float32)


def _load_npy(file: Path) -> np.ndarray:
    try:
        found = np.load(regular(file), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{file} is not a readable NPY file: {str(error).splitlines()[0]}", HINT) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        raise FileError(f"{file} does not hold an array of numbers", HINT)
    return found
