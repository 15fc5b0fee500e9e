"""The frame: what is cut out of an image before it is resized.

Section 5 says no more than "resized to 224x224". The field cuts the number out of SVHN's images first, by its boxes (Goodfellow et al.
2014, and DRAM after them), which at test time is an oracle.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from hsal_cli.errors import FileError
from hsal_cli.scenes.gather import Example

ENLARGED = 0.3  # of the boxes' union, in width and in height: half of it on either side
JITTERED = (0.1, 0.5)  # the same of a frame that is shifted and scaled, from and to

Frame = tuple[int, int, int, int]


def number_frame(boxes: np.ndarray, rng: np.random.Generator | None = None) -> Frame | None:
    """The frame of a number: the union of its boxes, enlarged.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in px; they may leave the image.
        rng: draws another frame: enlarged by 10% to 50%, width and height each on its own, of which a random share lies on the left, or
            above. So the frame is shifted and scaled, and the boxes stay within it.

    Returns:
        x0, y0, x1, y1 in whole px, widened to them, none below 0; its right and lower edge may lie outside of the image (see `cut`). None
        where there is no box: the frame is the whole image.
    """
    if not len(boxes):
        return None
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    more, before = (np.full(2, ENLARGED), np.full(2, 0.5)) if rng is None else (rng.uniform(*JITTERED, 2), rng.random(2))
    more = more * (high - low)
    x0, y0 = (max(0, int(value)) for value in np.floor(low - before * more))
    x1, y1 = (int(value) for value in np.ceil(high + (1 - before) * more))
    return x0, y0, x1, y1


def drawing(*key: object) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode(errors="surrogateescape")).digest()[:16]))


def cut(image: Image.Image, frame: Frame, name: str) -> Image.Image:
    """The part of an image that lies in a frame.

    Args:
        name: what the image is called in messages.

    Raises:
        FileError: none does.
    """
    x0, y0, x1, y1 = frame[0], frame[1], min(frame[2], image.width), min(frame[3], image.height)
    if x0 >= x1 or y0 >= y1:
        raise FileError(f"{name}: its boxes lie outside of it, so there is no number to cut out", "mend its boxes, or take --frame image")
    return image.crop((x0, y0, x1, y1))


def framed(examples: Iterable[Example], jitter: int = 0, seed: int = 0) -> Iterator[Example]:
    """Examples cut to the frame of their number, their boxes along.

    Args:
        examples: with boxes, all of them.
        jitter: how many frames of each, shifted and scaled; 0: the one that is not.
        seed: of those.
    """
    for example in examples:
        if not jitter:
            yield _framed(example, number_frame(example.boxes))
            continue
        image = example.load()  # read once: frames of one image lie side by side
        read = dataclasses.replace(example, load=lambda image=image: image)
        for variant in range(jitter):
            yield _framed(read, number_frame(example.boxes, drawing(seed, example.name, variant)))


def _framed(example: Example, frame: Frame | None) -> Example:
    if frame is None:
        return example
    moved = example.boxes - np.array([*frame[:2], *frame[:2]])
    return dataclasses.replace(example, load=lambda: cut(example.load(), frame, example.name), boxes=moved)
