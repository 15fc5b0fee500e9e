"""The frame: what is cut out of an image before it is resized.

Section 5 says no more than "resized to 224x224". The field cuts the number out of SVHN's images first, by its boxes (Goodfellow et al.
2014, and DRAM after them), which at test time is an oracle. Without one, a first look finds the frame (features/two_looks.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from hsal_cli.errors import FileError
from hsal_cli.scenes.gather import Example
from hsal_cli.scenes.settings import FolderSettings, StreetSettings, SvhnSettings

ENLARGED = 0.3  # of the boxes' union, in width and in height: half of it on either side
JITTERED = (0.1, 0.5)  # the same of a frame that is shifted and scaled, from and to
LOOKED_AT = 16  # images that are in memory at once, for a first look at all of them

Frame = tuple[int, int, int, int]
Region = tuple[float, float, float, float]


class Found(NamedTuple):
    """What a look found in an image.

    Attributes:
        region: the box of what stands out: x0, y0, x1, y1 in px, within the image.
        frame: that region enlarged, in whole px, within the image.
    """

    region: Region
    frame: Frame


class Finder(Protocol):
    """Finds the frames of whole images, and asks no box.

    Attributes:
        config: how, as JSON types.
    """

    config: dict[str, Any]

    def __call__(self, images: Sequence[Image.Image]) -> list[Found]: ...


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
    union = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    return enlarged(union) if rng is None else enlarged(union, rng.uniform(*JITTERED, 2), rng.random(2))


def enlarged(region: np.ndarray, more: float | np.ndarray = ENLARGED, before: float | np.ndarray = 0.5) -> Frame:
    """A region with some of what lies around it, as a frame.

    Args:
        region: (4,) x0, y0, x1, y1 in px.
        more: which share of its width and height is added, one or each its own.
        before: which share of that lies on the left, or above.

    Returns:
        As `number_frame`.
    """
    low, high = region[:2], region[2:]
    more = more * (high - low)
    x0, y0 = (max(0, int(value)) for value in np.floor(low - before * more))
    x1, y1 = (int(value) for value in np.ceil(high + (1 - before) * more))
    return x0, y0, x1, y1


def clipped(frame: Frame, size: tuple[int, int]) -> Frame:
    """The part of a frame that lies in an image of this width and height, px."""
    return frame[0], frame[1], min(frame[2], size[0]), min(frame[3], size[1])


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
    x0, y0, x1, y1 = clipped(frame, image.size)
    if x0 >= x1 or y0 >= y1:
        raise FileError(f"{name}: its boxes lie outside of it, so there is no number to cut out", "mend its boxes, or take --frame image")
    return image.crop((x0, y0, x1, y1))


def framed(
    examples: Iterable[Example],
    settings: StreetSettings | SvhnSettings | FolderSettings,
    split: str,
    finder: Finder | None = None,
    noted: dict[str, Any] | None = None,
    seed: int = 0,
) -> Iterator[Example]:
    """Examples cut to their frames, their boxes along.

    Args:
        examples: with boxes, where the frame is the number's.
        settings: which frame, and of training images how many of each, shifted and scaled; 0: the one that is not.
        split: its name.
        finder: finds the frames that are to be found.
        noted: hears, by the split's name, how well those lie, when all of them are cut.
        seed: of frames that are shifted.
    """
    if settings.frame == "found":
        assert finder is not None and noted is not None
        yield from _found(examples, finder, noted.setdefault(split, {}))
        return
    jitter = settings.frame_jitter if split == "train" else 0
    for example in examples:
        if settings.frame == "image":
            yield example
            continue
        if not jitter:
            yield _framed(example, number_frame(example.boxes))
            continue
        image = example.load()  # read once: frames of one image lie side by side
        read = dataclasses.replace(example, load=lambda image=image: image)
        for variant in range(jitter):
            yield _framed(read, number_frame(example.boxes, drawing(seed, example.name, variant)))


def _found(examples: Iterable[Example], finder: Finder, noted: dict[str, Any]) -> Iterator[Example]:
    """Examples cut to frames that are found; in the end `noted` holds `lie_of` them."""
    overlaps, inside = [], []
    waiting = iter(examples)
    while some := list(itertools.islice(waiting, LOOKED_AT)):
        images = [example.load() for example in some]
        for example, image, (region, frame) in zip(some, images, finder(images), strict=True):
            if example.boxes is not None and len(example.boxes):
                overlaps.append(overlap(region, example.boxes, image.size))
                centres = (example.boxes[:, :2] + example.boxes[:, 2:]) / 2
                inside.append(bool(((centres >= frame[:2]) & (centres <= frame[2:])).all()))
            part = cut(image, frame, example.name)  # now, so that the whole image need not be kept
            yield dataclasses.replace(_moved(example, frame), load=lambda part=part: part)
    if overlaps:
        noted |= {
            "images": len(overlaps),
            "iou": round(float(np.mean(overlaps)), 4),
            "iou_above_half": round(float(np.mean(np.array(overlaps) > 0.5)), 4),
            "all_inside": round(float(np.mean(inside)), 4),
        }


def overlap(region: Region, boxes: np.ndarray, size: tuple[int, int]) -> float:
    """Intersection over union of a region with the union of an image's boxes, as far as that lies in the image of this size."""
    union = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]).clip(0, [*size, *size])
    low, high = np.maximum(region[:2], union[:2]), np.minimum(region[2:], union[2:])
    common = float((high - low).clip(min=0).prod())
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (region, union)]
    return common / (sum(areas) - common)


def _framed(example: Example, frame: Frame | None) -> Example:
    """An example cut to a frame when it is loaded."""
    if frame is None:
        return example
    return dataclasses.replace(_moved(example, frame), load=lambda: cut(example.load(), frame, example.name))


def _moved(example: Example, frame: Frame) -> Example:
    """An example with its boxes in px of a frame."""
    return dataclasses.replace(example, boxes=None if example.boxes is None else example.boxes - np.array([*frame[:2], *frame[:2]]))
