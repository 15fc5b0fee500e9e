"""The making of data sets that `hsal bench` has no stage for, as work to be told before it starts: pictures painted, or read from files.

A piece of it is done with a few of the pictures that are to come, one at a time; several cores do more.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hsal_cli.bench.estimate import Work
from hsal_cli.bench.timing import Piece
from hsal_cli.scenes.gather import THREADS, Example, fitted
from hsal_cli.scenes.readers.names import Pictures
from hsal_cli.scenes.settings import FolderSettings, StreetSettings, SvhnSettings
from hsal_cli.scenes.street.frames import Finder, framed
from hsal_cli.scenes.street.street import StreetPainter
from hsal_cli.scenes.street.typefaces import find_typefaces, letters
from hsal_cli.vision.images import FORMATS, read_image

SAMPLE, SAMPLE_S = 16, 0.5  # pictures of a piece, at most, and how long it lasts, about
PACKED = 1.2  # bytes that a pixel of a scene file takes, measured on photographs and painted walls, which hardly pack
SVHN_IMAGES = {"train": 33_402, "test": 13_068, "extra": 202_353}
SVHN_SIZE = 128, 57  # of its average picture, px


def painting(out: Path, settings: StreetSettings, workers: int | None, finder: Finder | None) -> Work:
    """Painting street numbers."""
    count = settings.train * max(1, settings.frame_jitter) + settings.test
    processes = 1 if finder else workers or os.cpu_count() or 1

    def examples() -> Iterator[Example]:
        painter = StreetPainter(settings, "test", find_typefaces(system=settings.typefaces == "auto"), letters(), None)
        return map(painter.example, itertools.count())

    piece = functools.partial(_some, examples, settings, finder, 1)
    return _work(f"painting {out}", "paint", count, settings.image_size, lambda: _times(processes, piece()))


def reading(out: Path, settings: FolderSettings, finder: Finder | None) -> Work:
    """Reading a user's images: each is decoded twice, to be checked and to be brought to its size.

    Raises:
        FileError: there are none.
    """
    folders = [settings.images, *([settings.test_images] if settings.test_images else [])]
    paths = [path for folder in folders for path in Pictures(Path(str(folder)).expanduser(), FORMATS).paths]
    examples = [Example(path.name, functools.partial(read_image, path), [], None) for path in paths[:: max(1, len(paths) // SAMPLE)]]

    def piece() -> tuple[float, float]:
        count, took = _some(lambda: iter(examples), settings, finder, settings.frame_jitter)
        return count, took * (1 + 1 / _threads())  # the first pass is one thread's

    return _work(f"reading {len(paths):,} images", "read", len(paths), settings.image_size, piece, settings.frame_jitter)


def reading_svhn(out: Path, settings: SvhnSettings, finder: Finder | None) -> Work:
    """Reading SVHN, whose pictures are small; what is to be fetched takes the time that it takes."""
    counts = [SVHN_IMAGES[split] if wanted is None else wanted for split, wanted in (("train", settings.train), ("test", settings.test))]
    count = sum(counts) + (SVHN_IMAGES["extra"] if settings.extra else 0)
    noise, stored = np.random.default_rng(0).integers(0, 256, (*SVHN_SIZE[::-1], 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(stored, "png")
    example = Example("", lambda: Image.open(io.BytesIO(stored.getvalue()), formats=["PNG"]).convert("RGB"), [], None)

    def piece() -> tuple[float, float]:
        return _times(_threads(), _some(lambda: itertools.repeat(example), settings, finder, settings.frame_jitter))

    return _work(f"reading {count:,} images of SVHN", "read", count, settings.image_size, piece, settings.frame_jitter)


def _work(what: str, stage: str, count: int, side: int, piece: Piece, jitter: int = 0) -> Work:
    return Work(what, {stage: count}, count * max(1, jitter) * PACKED * side**2, pieces={stage: piece})


def _times(count: int, measured: tuple[float, float]) -> tuple[float, float]:
    return count * measured[0], measured[1]


def _threads() -> int:
    return min(THREADS, os.cpu_count() or 1)


def _some(
    examples: Callable[[], Iterator[Example]], settings: StreetSettings | SvhnSettings | FolderSettings, finder: Finder | None, views: int
) -> tuple[int, float]:
    """Reads some examples, finds their frames and brings them to their size, in `views`: how many, and the seconds they took.

    A number's frame needs its boxes, and is not cut: what is brought to its size is larger, and takes a little longer.
    """
    shown = itertools.islice(examples(), SAMPLE)
    shown = framed(shown, settings, "test", finder, {}) if finder else shown
    fit = getattr(settings, "fit", "squash")
    start, count = time.perf_counter(), 0
    for example in shown:
        image = example.load()
        for _ in range(max(1, views)):
            fitted(image, None, settings.image_size, fit)
        count += 1
        if time.perf_counter() - start > SAMPLE_S:
            break
    return count, time.perf_counter() - start
