"""Making a data set: chooses the digits, composes all images on every core, writes the scene file whole or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.compose import Composer
from hsal_cli.scenes.digits.glyphs import DigitSource, find_digits
from hsal_cli.scenes.gather import in_order
from hsal_cli.scenes.scene_file import write_scenes
from hsal_cli.scenes.settings import DATASETS, RECIPES, SceneSettings
from hsal_cli.settings import as_dict
from hsal_cli.threads import cores

PART = 250  # images that a worker composes at a time
PART_BYTES = 1 << 24  # or fewer, if they are large

Part = tuple[np.ndarray, np.ndarray, np.ndarray]


class Composes(Protocol):
    """What composes the images of a split, image i from its number alone.

    Attributes:
        shape: of an image, (H, W) or (H, W, 3).
        most: the largest number of labels in an image, at least 1.
    """

    shape: tuple[int, ...]
    most: int

    def compose(self, index: int) -> tuple[np.ndarray, list[int], list[tuple[int, int, int, int]]]:
        """Image `index`: uint8 pixels, labels, and for each a box x0, y0, x1, y1 in px, half-open."""


_composers: dict[str, Composes] = {}  # a worker's own, set when it starts


def make_dataset(name: str, settings: SceneSettings, out: Path, workers: int | None = None, reporter: Reporter = SILENT) -> Path:
    """Makes a scene file.

    Args:
        name: "mnist-single" (one digit an image), "mnist-set" (labels differ) or "mnist-multiset" (labels may repeat); "single", "set"
            and "multiset" are the same under a name that fits any digit source.
        settings: the recipe.
        out: the file to write; one that exists is replaced.
        workers: processes that compose; None: one a core. What is composed does not depend on it.
        reporter: hears which digits are taken, and the progress; asked to stop, nothing is left behind.

    Returns:
        `out`.

    Raises:
        UsageError: no such data set, or the settings ask for more different labels than there are.
        FileError: the digits cannot be had, or the file cannot be written.
        Interrupted: stopped on request.
    """
    settings, source = settle(name, settings, reporter)
    reporter.say(f"Digits: {source.name}{f' from {source.folder}' if source.folder else ''}")
    sizes = {split: count for split, count in (("train", settings.train), ("test", settings.test)) if count}
    composers = {split: composer_of(name, split, settings, source) for split in sizes}
    classes = next(iter(composers.values())).glyphs.classes
    return write_composed(out, {"dataset": name, **as_dict(settings)}, classes, composers, sizes, workers, reporter)


def settle(name: str, settings: SceneSettings, reporter: Reporter = SILENT) -> tuple[SceneSettings, DigitSource]:
    """The settings of a data set with no open value, and where its digits come from; arguments and errors are those of `make_dataset`."""
    if name not in RECIPES:
        raise UsageError(f"there is no data set {name!r}", f"take one of: {', '.join(RECIPES)}")
    if RECIPES[name] == "mnist-single":
        settings = dataclasses.replace(settings, count=(1, 1))
    source = find_digits(settings, reporter)
    folder = str(source.folder) if source.folder else None
    return dataclasses.replace(settings, digits=source.name, mnist_dir=folder), source


def composer_of(name: str, split: str, settings: SceneSettings, source: DigitSource) -> Composer:
    """What composes the images of a split, "train" or "test", from digits of that split alone; errors as `make_dataset`."""
    recipe, glyphs = RECIPES[name], source.glyphs(split, settings.seed)
    if recipe == "mnist-set" and settings.count[1] > len(glyphs.classes):
        raise UsageError(
            f"count = {settings.count[0]}-{settings.count[1]}: a set of different labels has at most {len(glyphs.classes)}",
            "take fewer digits an image, or a multiset",
        )
    stream = 2 * DATASETS.index(recipe) + (split == "test")
    return Composer(glyphs, settings, recipe == "mnist-set", stream)


def write_composed(
    out: Path,
    config: dict[str, Any],
    classes: list[str],
    composers: Mapping[str, Composes],
    sizes: dict[str, int],
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Composes all images and writes them to a scene file, which takes the place of an older one; returns its path.

    Args:
        config: every setting, as JSON types; "dataset" is the data set's name.
        composers, sizes: split -> what composes its images, and how many.
        workers: processes; None: one a core.
        reporter: progress; asked to stop, nothing is left behind.

    Raises:
        FileError: the file cannot be written, or a worker died; Interrupted: stopped on request.
    """
    parts_most = max(len(_ranges(count, composers[split].shape)) for split, count in sizes.items())
    with (
        crew(composers, min(workers or cores(), parts_most)) as compose,
        write_scenes(out, config, classes) as writer,
        reporter.track(f"Composing {config['dataset']}", sum(sizes.values()), "images") as advance,
    ):
        for split, count in sizes.items():

            def counted(parts: Iterator[Part]) -> Iterator[Part]:
                for part in parts:
                    reporter.check_stop("nothing was written; run the same command again")
                    yield part
                    advance(len(part[0]))

            writer.write_split(split, counted(compose(split, count)), (count, *composers[split].shape))
    return out


@contextlib.contextmanager
def crew(composers: Mapping[str, Composes], workers: int) -> Iterator[Callable[[str, int], Iterator[Part]]]:
    """Starts the processes that compose, and ends them with the block; of one, this process composes. FileError: a worker died.

    Yields:
        compose(split, count): composes images 0 to count in order and yields images uint8 (n, H, W), labels int64 (n, L) and
        boxes int64 (n, L, 4), in parts.
    """
    if workers == 1:
        yield lambda split, count: (compose_part(composers[split], *bounds) for bounds in _ranges(count, composers[split].shape))
        return
    # A fork shares the glyphs without a copy; elsewhere each worker is sent them once.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(composers,))

    def compose(split: str, count: int) -> Iterator[Part]:
        return in_order(pool, functools.partial(_work, split), _ranges(count, composers[split].shape), 3 * workers)

    try:
        pool.submit(cores).result()  # forks now, before progress bars and open files are there to be inherited
        yield compose
    except concurrent.futures.process.BrokenProcessPool as error:
        raise FileError("a worker process died, likely for want of memory", "run again with fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ranges(count: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    step = max(1, min(PART, PART_BYTES // math.prod(shape)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def compose_part(composer: Composes, start: int, stop: int) -> Part:
    """Composes images start to stop (exclusive) into arrays, labels and boxes padded with -1."""
    images = np.empty((stop - start, *composer.shape), np.uint8)
    labels = np.full((stop - start, composer.most), -1, np.int64)
    boxes = np.full((stop - start, composer.most, 4), -1, np.int64)
    for place in range(stop - start):
        images[place], names, found = composer.compose(start + place)
        labels[place, : len(names)] = names
        boxes[place, : len(found)] = np.reshape(found, (-1, 4))
    return images, labels, boxes


def _start_worker(composers: Mapping[str, Composes]) -> None:
    _composers.update(composers)
    # Ctrl-C reaches the whole group; only the parent decides what to do about it.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone, however it went; else it would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(split: str, bounds: tuple[int, int]) -> Part:
    return compose_part(_composers[split], *bounds)
