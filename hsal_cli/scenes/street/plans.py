"""What street numbers show and where: SVHN's own labels, boxes and image sizes where they are at hand, else a small model of them."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from pathlib import Path

import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.storage.download import gunzipped

MOST_DIGITS = 6
MOST_BYTES = 1 << 28  # of the labels, unpacked; those of all of SVHN have 30 MB
# Published totals of SVHN, format 1: how many numbers have 1, 2, ... 6 digits.
LENGTHS = {"train": (5137, 18130, 8691, 1434, 9, 1), "test": (2483, 8356, 2081, 146, 2, 0)}
DIGITS = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)  # of the training split, 0 to 9
ASPECT = (2.0, 2.2, 2.4, 2.9, 3.2, 3.5)  # median width over height of an image with 1, 2, ... digits
# Mean of the logarithm of an image's height in px; mean and standard deviation of the digits' share of it.
HEIGHT = {"train": (3.88, 0.66, 0.15), "test": (4.08, 0.47, 0.17)}


@dataclasses.dataclass(frozen=True)
class NumberPlan:
    """One number to draw.

    Attributes:
        size: width and height of the image, px.
        digits: 0 to 9.
        boxes: (n, 4) x0, y0, x1, y1 in px; they may leave the image.
    """

    size: tuple[int, int]
    digits: list[int]
    boxes: np.ndarray


def read_plans(path: Path) -> dict[str, list[NumberPlan]]:
    """Reads SVHN's labels from JSON: split -> "N.png" -> `digits`, `boxes_xyxy`, `size_wh`.

    Returns:
        split -> plans, in the order of the images' numbers.

    Raises:
        FileError: unreadable, or not of that form; names the image.
    """
    hint = "give a file of SVHN's labels, or leave --svhn-labels out"
    try:
        document = json.loads(gunzipped(path, MOST_BYTES))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise FileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint) from error
    if not isinstance(document, dict) or not {"train", "test"} <= set(document):
        raise FileError(f"{path} has no labels of the splits train and test", hint)
    found = {}
    for split in ("train", "test"):
        plans = []
        try:
            for name in sorted(document[split], key=lambda name: (len(name), name)):
                row = document[split][name]
                boxes = np.array(row["boxes_xyxy"], np.float64).reshape(len(row["digits"]), 4)
                width, height = (int(side) for side in row["size_wh"])
                digits = [int(digit) for digit in row["digits"]]
                flat = not (boxes[:, 2:] > boxes[:, :2]).all() or not np.isfinite(boxes).all()
                if min(width, height) < 1 or flat or not digits or not all(0 <= digit <= 9 for digit in digits):
                    raise ValueError("a size, box or digit that cannot be")
                plans.append(NumberPlan((width, height), digits, boxes))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = f"{split}, {name}" if document[split] else split
            raise FileError(f"{path}: {where}: {type(error).__name__}: {error}", hint) from error
        if not plans:
            raise FileError(f"{path}: {split} names no image", hint)
        found[split] = plans
    return found


def draw_plan(rng: np.random.Generator, split: str) -> NumberPlan:
    """Draws a number and its place as they are distributed in SVHN, about."""
    count = 1 + _choose(rng, LENGTHS[split])
    digits = [_choose(rng, DIGITS) for _ in range(count)]
    mean, share, spread = HEIGHT[split]
    height = min(max(round(math.exp(mean + 0.56 * rng.standard_normal())), 14), 400)
    width = max(16, round(height * ASPECT[count - 1] * math.exp(0.14 * rng.standard_normal())))
    tall = height * min(max(share + spread * rng.standard_normal(), 0.2), 0.95)
    wide = tall * (0.52 if split == "train" else 0.58) * math.exp(0.2 * rng.standard_normal())
    widths = [wide * (0.74 if digit == 1 else 1.0) * math.exp(0.08 * rng.standard_normal()) for digit in digits]
    gaps = [0.08 * tall * rng.standard_normal() for _ in digits[1:]]
    total = sum(widths) + sum(gaps)
    shrunk = min(1.0, 0.92 * width / total)
    tall, widths, gaps = tall * shrunk, [value * shrunk for value in widths], [value * shrunk for value in gaps]
    x = (width - total * shrunk) * (0.5 + 0.08 * rng.standard_normal())
    y = (height - tall) * min(max(0.5 + 0.15 * rng.standard_normal(), 0.05), 0.95)
    slope, boxes = 0.06 * rng.standard_normal(), []
    for place, across in enumerate(widths):
        down = tall * math.exp(0.03 * rng.standard_normal())
        top = y + slope * (x - width / 2) + 0.03 * tall * rng.standard_normal()
        boxes.append((x, top, x + across, top + down))
        x += across + (gaps[place] if place < len(gaps) else 0)
    return NumberPlan((width, height), digits, np.array(boxes))


def _choose(rng: np.random.Generator, weights: tuple[int, ...]) -> int:
    return int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))
