"""Writes SVHN's format 1 as MATLAB v7.3 stores it: object references, one digit's values direct, several by reference."""

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from hsal_cli.scenes.settings import SvhnSettings
from hsal_cli.scenes.street.svhn import make_svhn
from hsal_cli.vision.images import read_image

House = tuple[str, tuple[int, int], list[tuple[int, float, float, float, float]]]
HOUSES: list[House] = [  # name, width and height, (label, left, top, width, height) of each digit; label 10 is the digit 0
    ("1.png", (60, 30), [(1, 10, 5, 10, 20), (10, 25, 6, 12, 20)]),
    ("2.png", (40, 40), [(5, 8, 8, 16, 24)]),
    ("3.png", (90, 20), [(7, -2, 2, 12, 16), (7, 30, 2, 12, 16), (3, 80, 2, 14, 22)]),
    ("10.png", (50, 25), [(10, 20, 4, 10, 18)]),
]


def write_structure(path: Path, houses: list[House]) -> None:
    """Writes digitStruct.mat."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")

        def refer(array: np.ndarray) -> h5py.Reference:
            return refs.create_dataset(f"r{len(refs)}", data=array).ref

        names = [refer(np.array([[ord(letter)] for letter in name], np.uint16)) for name, _, _ in houses]
        groups = []
        for _, _, digits in houses:
            group = refs.create_group(f"r{len(refs)}")
            for column, field in enumerate(("label", "left", "top", "width", "height")):
                values = [np.array([[float(digit[column])]]) for digit in digits]
                if len(values) == 1:
                    group.create_dataset(field, data=values[0])
                else:
                    group.create_dataset(field, data=np.array([[refer(value)] for value in values], h5py.ref_dtype), dtype=h5py.ref_dtype)
            groups.append(group.ref)
        for name, references in (("name", names), ("bbox", groups)):
            file.create_dataset(f"digitStruct/{name}", data=np.array([[ref] for ref in references], h5py.ref_dtype), dtype=h5py.ref_dtype)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file")


def write_svhn(folder: Path, split: str, houses: list[House] = HOUSES) -> Path:
    """Writes a split as it is unpacked; every digit's box is filled with the grey 20 * label, the rest is a ramp of blue."""
    (folder / split).mkdir(parents=True)
    for name, (width, height), digits in houses:
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 2] = np.linspace(0, 200, width).astype(np.uint8)
        for label, left, top, across, down in digits:
            pixels[max(int(top), 0) : int(top + down), max(int(left), 0) : int(left + across)] = 20 * label
        Image.fromarray(pixels).save(folder / split / name)
    write_structure(folder / split / "digitStruct.mat", houses)
    return folder


def pack(folder: Path, split: str, target: Path, order: list[str] | None = None) -> Path:
    """Packs a split as split.tar.gz, its members in this order, with what else lies in the published archives."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target / f"{split}.tar.gz", "w:gz") as archive:
        for name in order or sorted(path.name for path in (folder / split).iterdir()):
            archive.add(folder / split / name, f"{split}/{name}")
        text = b"% MATLAB code"
        information = tarfile.TarInfo(f"{split}/see_bboxes.m")
        information.size = len(text)
        archive.addfile(information, io.BytesIO(text))
    return target


def made(folder: Path, out: Path, **changes) -> Path:
    """The scene file of a folder in SVHN's format 1, images of 64 px."""
    make_svhn(SvhnSettings(svhn_dir=str(folder), image_size=64, **changes), out, read_image)
    return out
