"""Reading SVHN, format 1, as it is published: PNGs and digitStruct.mat, in folders or in .tar.gz archives that stay packed.

digitStruct.mat is a MATLAB v7.3 file, an HDF5 file of object references: `digitStruct/name` refers to strings, `digitStruct/bbox` to groups
of `label`, `left`, `top`, `width` and `height`, each of which holds its value itself where there is one digit, and references where there
are several. Label 10 is the digit 0.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from PIL import Image

from hsal_cli.errors import FileError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.gather import Example, parts_of
from hsal_cli.scenes.scene_file import write_scenes
from hsal_cli.scenes.settings import SvhnSettings
from hsal_cli.scenes.street.frames import Finder, framed
from hsal_cli.settings import as_dict
from hsal_cli.storage.download import GZIP, fetch
from hsal_cli.storage.files import digest_of_file, is_plain_name, named, regular
from hsal_cli.storage.hdf5 import in_file, open_plain, own

SIZES = {"train.tar.gz": 404_141_560, "test.tar.gz": 276_555_967, "extra.tar.gz": 1_955_489_752}  # of SVHN's archives, bytes
FIELDS = ("label", "left", "top", "width", "height")
UNPACK = "unpack it, and name the folder that holds train/ and test/ with --svhn-dir"
HINT = "name the folder of SVHN's train.tar.gz and test.tar.gz, or of what they hold, with --svhn-dir; --download fetches them"
MOST_IMAGES = 1_000_000  # of a split; "extra", the largest, has 202,353
MOST_VALUES = 256  # letters of a name, or digits of an image
MOST_BYTES = {".png": 1 << 26, ".mat": 1 << 32, "": 1 << 20}  # of a member of an archive by its ending; "": of tar's own headers
MOST_WAITING = 1 << 32  # bytes of images that come before their turn
Reader = Callable[..., Image.Image]
DIGITS = [str(digit) for digit in range(10)]


@dataclasses.dataclass(frozen=True)
class House:
    """One image's line in digitStruct.mat.

    Attributes:
        name: "1.png" and so on.
        digits: 0 to 9, as they stand there: mostly from left to right.
        boxes: float (n, 4) x0, y0, x1, y1 in px; a few leave their image.
    """

    name: str
    digits: list[int]
    boxes: np.ndarray


def read_structure(source: BinaryIO | Path, where: str, reporter: Reporter = SILENT, most: int | None = None) -> list[House]:
    """Reads digitStruct.mat.

    Args:
        source: the file, or its bytes.
        where: what it is called in messages.
        reporter: progress.
        most: read only so many images, those of the lowest numbers.

    Returns:
        The images in the order of their numbers.

    Raises:
        FileError: not such a file, or something in it is not as it must be; names the image.
    """
    try:
        with open_plain(regular(source) if isinstance(source, Path) else source) as file:
            lists = own(file, "digitStruct", where)
            names, groups = (_values(own(lists, name, where), where, MOST_IMAGES) for name in ("name", "bbox"))
            if len(names) != len(groups):
                raise FileError(f"{where}: {len(names)} names for {len(groups)} images", HINT)
            texts = [_values(file[reference], where).astype(np.uint16).tobytes().decode("utf-16-le") for reference in names]
            odd = next((text for text in texts if not is_plain_name(text)), None)
            if odd is not None:
                raise FileError(f"{where} names the image {odd!r}, which is not a plain name", HINT)
            order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), texts[place]))[:most]
            found = []
            with reporter.track(f"Reading {where}", len(order), "images") as advance:
                for place in order:
                    found.append(_house(file, texts[place], file[groups[place]], where))
                    advance(1)
                    reporter.check_stop("nothing was written; run the same command again")
            return found
    except (OSError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise FileError(f"{where} is not SVHN's digitStruct.mat: {str(error).splitlines()[0]}", HINT) from error


def _values(data: h5py.Dataset, where: str, most: int = MOST_VALUES) -> np.ndarray:
    """A small dataset of the file itself, flat.

    Raises:
        FileError: it lies in another file, or is larger than any of SVHN's.
    """
    if in_file(data, where).size > most:
        raise FileError(f"{where}: {data.name or 'a dataset'} holds {data.size:,} values, more than {most:,}", HINT)
    return data[()].ravel()


def _house(file: h5py.File, name: str, group: h5py.Group, where: str) -> House:
    columns = []
    for field in FIELDS:
        data = own(group, field, where)
        held = _values(data, where)
        if held.dtype == object or h5py.check_ref_dtype(data.dtype) is not None:
            held = np.array([_values(file[reference], where)[0] for reference in held])
        columns.append(held.astype(np.float64))
    if len({len(column) for column in columns}) > 1 or not len(columns[0]):
        raise FileError(f"{where}: {name} has {[len(column) for column in columns]} values of {', '.join(FIELDS)}", HINT)
    labels, left, top, width, height = columns
    if not np.isfinite(columns).all() or not np.isin(labels, np.arange(1, 11)).all() or (width <= 0).any() or (height <= 0).any():
        raise FileError(f"{where}: {name} has a label, width or height that cannot be: {np.stack(columns).tolist()}", HINT)
    return House(name, [int(label) % 10 for label in labels], np.stack([left, top, left + width, top + height], axis=1))


class Split:
    """One of train, test and extra, as a folder or as an archive that is read from its beginning.

    Args:
        folder: where `name` or `name`.tar.gz lies; a folder comes first.
        name: "train", "test" or "extra".
        most: take only so many images.
        read_image: reads a picture as RGB, or raises FileError: `vision.images.read_image`.
        reporter: progress.

    Raises:
        FileError: neither is there, or it cannot be read.
    """

    def __init__(self, folder: Path, name: str, most: int | None, read_image: Reader, reporter: Reporter):
        self.read_image = read_image
        self.folder, self.archive, self.name = folder / name, folder / f"{name}.tar.gz", name
        self.packed = not (self.folder / "digitStruct.mat").is_file()
        if not self.packed:
            source: Any = self.folder / "digitStruct.mat"
        elif self.archive.is_file():
            reporter.say(f"Looking for the labels in {self.archive}")
            source = next((data for path, data in self._members() if path == "digitStruct.mat"), None)
            if source is None:
                raise FileError(f"{self.archive} has no digitStruct.mat", HINT)
        else:
            raise FileError(f"{folder} has neither {name}/digitStruct.mat nor {name}.tar.gz", HINT)
        self.houses = read_structure(source, f"{name}/digitStruct.mat", reporter, most)
        if not self.houses:
            raise FileError(f"{folder}: its {name} holds no image", HINT)

    def examples(self) -> Iterator[Example]:
        """The images, in the order of their numbers; of an archive each is kept, packed as it is, until its turn has come."""
        if not self.packed:
            for house in self.houses:
                yield Example(
                    f"{self.name}/{house.name}",
                    functools.partial(self.read_image, named(self.folder, house.name)),
                    house.digits,
                    house.boxes,
                )
            return
        early: dict[str, io.BytesIO] = {}
        wanted, place = {house.name for house in self.houses}, 0
        for path, data in self._members():
            if path in wanted:
                early[path] = data
                if sum(len(held.getbuffer()) for held in early.values()) > MOST_WAITING:
                    raise FileError(f"{self.archive} is not in an order that it can be read in: too much comes too early", UNPACK)
            while place < len(self.houses) and self.houses[place].name in early:
                house = self.houses[place]
                load = functools.partial(self.read_image, Path(self.name, house.name), early.pop(house.name))
                yield Example(f"{self.name}/{house.name}", load, house.digits, house.boxes)
                place += 1
            if place == len(self.houses):
                return
        raise FileError(f"{self.archive} has no {self.houses[place].name}, which its digitStruct.mat names", HINT)

    def _members(self) -> Iterator[tuple[str, io.BytesIO]]:
        """The archive's images and labels, as they come: (name without folders, bytes)."""
        try:
            with regular(self.archive).open("rb") as plain:
                packed = plain.read(len(GZIP)) == GZIP  # a browser may have unpacked it and kept the name
            with _Unpacked(self.archive) if packed else _Plain(self.archive) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # which tarfile keeps, though they are not asked for again
                    path = Path(member.name)
                    if member.isfile() and path.parent.name == self.name and path.suffix in (".png", ".mat"):
                        stream.most = MOST_BYTES[path.suffix]
                        if member.size > stream.most:
                            raise tarfile.ReadError(f"{path.name} is {member.size:,} bytes long, more than {stream.most:,}")
                        yield path.name, io.BytesIO(archive.extractfile(member).read())
                        stream.most = MOST_BYTES[""]
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise FileError(f"{self.archive} is damaged: {error}", "fetch it again: remove it, and add --download") from error


class _Plain(io.FileIO):
    """An archive that is not packed: nothing in it is longer than the file itself."""

    most = 0


class _Unpacked(gzip.GzipFile):
    """An unpacked archive of which only so much is read at a time: a few kB of gzip may hold a header of many GB."""

    most = MOST_BYTES[""]

    def read(self, size: int | None = -1) -> bytes:
        """As gzip does.

        Raises:
            tarfile.ReadError: that is more than `most` bytes.
        """
        if size is None or not 0 <= size <= self.most:
            raise tarfile.ReadError(f"one of its headers is longer than {self.most:,} bytes")
        return super().read(size)


def make_svhn(
    settings: SvhnSettings, out: Path, read_image: Reader, reporter: Reporter = SILENT, finder: Finder | None = None
) -> list[dict[str, str]]:
    """Makes a scene file of SVHN.

    Labels stand as digitStruct.mat has them; their order is drawn anew whenever training needs one (section 5, "SVHN Multiset").

    Args:
        settings: from where, how many, how large.
        out: the file to write; one that exists is replaced.
        reporter: progress.
        finder: finds the frames where they are to be found.

    Returns:
        What was skipped: nothing, as a damaged image is an error in a published data set.

    Raises:
        FileError: something is missing or damaged, or a download failed; Interrupted: stopped on request.
    """
    folder = Path(settings.svhn_dir).expanduser()
    wanted = {name: most for name, most in (("train", settings.train), ("test", settings.test)) if most != 0}
    if settings.extra:
        wanted["extra"] = None
    if settings.download:
        for name in wanted:
            if not (folder / name / "digitStruct.mat").is_file():
                fetch(f"{settings.url.rstrip('/')}/{name}.tar.gz", folder / f"{name}.tar.gz", SIZES.get(f"{name}.tar.gz"), reporter)
    sources = {name: Split(folder, name, most, read_image, reporter) for name, most in wanted.items()}
    splits = {name: [sources[name]] for name in ("train", "test") if name in sources}
    if "extra" in sources:
        splits = {"train": [*splits.get("train", []), sources["extra"]], **{k: v for k, v in splits.items() if k != "train"}}
    counts = {name: sum(len(source.houses) for source in parts) for name, parts in splits.items()}
    if "train" in counts:
        counts["train"] *= max(1, settings.frame_jitter)
    most = max(len(house.digits) for source in sources.values() for house in source.houses)
    config = {
        "dataset": "svhn-multiset",
        **as_dict(settings),
        "archives": {name: digest_of_file(source.archive) for name, source in sources.items() if source.packed},
        **({"found": dict(finder.config)} if finder else {}),
    }
    side = settings.image_size
    with write_scenes(out, config, DIGITS) as writer, reporter.track("Reading SVHN", sum(counts.values()), "images") as advance:
        for name, parts in splits.items():
            examples = framed((example for source in parts for example in source.examples()), settings, name, finder, config.get("found"))
            writer.write_split(name, parts_of(examples, side, settings.fit, most, True, reporter, advance), (counts[name], side, side, 3))
    return []
