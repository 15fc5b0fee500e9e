"""Images from elsewhere become a split of a scene file: read, brought to one size with their boxes, a few at a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image

from hsal_cli.progress import Reporter

T, R = TypeVar("T"), TypeVar("R")
PART = 64  # images written at a time
THREADS = 4  # Pillow decodes and resizes outside of Python's lock


@dataclasses.dataclass
class Example:
    """One image and what is known of it.

    Attributes:
        name: what it is called in messages.
        load: reads it, as RGB; may raise FileError.
        labels: index into the classes, one an object, in any order.
        boxes: float (n, 4) x0, y0, x1, y1 in px of the image, which they may leave; None where unknown.
    """

    name: str
    load: Callable[[], Image.Image]
    labels: list[int]
    boxes: np.ndarray | None


def fitted(image: Image.Image, boxes: np.ndarray | None, side: int, fit: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Brings an RGB image to a square, and its boxes (n, 4) in px along.

    Args:
        side: of the square, px.
        fit: "squash": the aspect ratio gives way; "pad": it is kept, and the image's mean colour fills the rest.

    Returns:
        uint8 (side, side, 3), and int64 (n, 4), half-open, inside the square, never empty: a box outside becomes a pixel at the border.
    """
    scale = np.array([side / image.width, side / image.height])
    shift = np.zeros(2)
    if fit == "pad":
        scale[:] = scale.min()
        size = tuple(max(1, round(length * scale[0])) for length in image.size)
        small = image.resize(size, Image.Resampling.BILINEAR)
        mean = tuple(int(value) for value in np.asarray(small).reshape(-1, 3).mean(axis=0).round())
        square = Image.new("RGB", (side, side), mean)
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        square.paste(small, (left, top))
        scale, shift = np.array(size) / np.array(image.size), np.array([left, top])
    else:
        square = image.resize((side, side), Image.Resampling.BILINEAR)
    if boxes is None:
        return np.asarray(square), None
    low = np.floor(boxes[:, :2] * scale + shift + 1e-6).clip(0, side - 1)
    high = np.ceil(boxes[:, 2:] * scale + shift - 1e-6).clip(1, side)
    return np.asarray(square), np.concatenate([low, np.maximum(high, low + 1)], axis=1).astype(np.int64)


def parts_of(
    examples: Iterator[Example] | list[Example],
    side: int,
    fit: str,
    most: int,
    boxed: bool,
    reporter: Reporter,
    advance: Callable[..., None],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Reads and resizes examples on several threads, in order; `side` and `fit` as in `fitted`; errors of reading, or Interrupted.

    Args:
        most: L, the largest number of labels of an image; one column is written where that is 0.
        boxed: every example has boxes, and they are wanted.
        advance: told how many are done.

    Yields:
        images uint8 (n, side, side, 3), labels int64 (n, L) and boxes int64 (n, L, 4) or None.
    """

    def read(example: Example) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
        pixels, boxes = fitted(example.load(), example.boxes if boxed else None, side, fit)
        return pixels, boxes, example.labels

    def packed(rows: list[tuple[np.ndarray, np.ndarray | None, list[int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        labels = np.full((len(rows), max(1, most)), -1, np.int64)
        boxes = np.full((*labels.shape, 4), -1, np.int64) if boxed else None
        for place, (_, corners, own) in enumerate(rows):
            labels[place, : len(own)] = own
            if boxes is not None:
                boxes[place, : len(own)] = corners
        return np.stack([pixels for pixels, _, _ in rows]), labels, boxes

    with concurrent.futures.ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        rows = in_order(pool, read, examples, 4 * THREADS)
        while some := list(itertools.islice(rows, PART)):
            reporter.check_stop("nothing was written; run the same command again")
            yield packed(some)
            advance(len(some))


def in_order(pool: concurrent.futures.Executor, call: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """call(item) of each item, in their order, worked out by a pool, of which never more than `ahead` wait to be taken."""
    waiting: deque[concurrent.futures.Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
