"""What a split holds: labels, objects an image, sizes, positions and overlap of its objects (section 5, "Datasets")."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from hsal_cli.words import brief, slip

MOST_CLASSES, ENDS = 12, 5  # classes that a line lists all of; of more, so many of the most frequent and of the rarest
FAR = 10  # times as frequent as a class is another, of which it may be a slip
RAREST = 100  # classes that are looked at for slips


@dataclasses.dataclass(frozen=True)
class Measures:
    """Every object of a split, measured; of M objects in N images, n of them with two objects or more.

    Attributes:
        image_size: (H, W), px.
        classes: (K,) how many objects there are of each class.
        objects: (N,) objects an image.
        repeats: (N,) bool, whether a label occurs twice or more in the image.
        sides: (M, 2) width and height of the objects' boxes, px; None where boxes are unknown.
        centres: (M, 2) x, y of the boxes' centres, in [0, 1] of the image's width and height; None where boxes are unknown.
        overlap: (n,) largest intersection over union of two boxes of an image, in [0, 1]; None where boxes are unknown.
        touching: (n,) bool, whether two boxes of an image overlap or share an edge; None where boxes are unknown.
    """

    image_size: tuple[int, int]
    classes: np.ndarray
    objects: np.ndarray
    repeats: np.ndarray
    sides: np.ndarray | None = None
    centres: np.ndarray | None = None
    overlap: np.ndarray | None = None
    touching: np.ndarray | None = None


def measure(labels: np.ndarray, boxes: np.ndarray | None, classes: int, image_size: tuple[int, int]) -> Measures:
    """Measures a split: labels (N, L) of K classes, padded with -1; boxes (N, L, 4) in px, half-open, or None; images of (H, W) px."""
    real = labels >= 0
    counts = np.bincount(labels[real], minlength=classes)
    ordered = np.sort(labels, axis=1)
    repeats = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    objects = real.sum(axis=1)
    if boxes is None:
        return Measures(image_size, counts, objects, repeats)
    boxes = boxes.astype(np.float64)
    known = boxes[real]
    sides = known[:, 2:] - known[:, :2]
    centres = (known[:, 2:] + known[:, :2]) / 2 / (image_size[1], image_size[0])
    overlap, touching = _overlap(boxes, real)
    several = objects > 1
    return Measures(image_size, counts, objects, repeats, sides, centres, overlap[several], touching[several])


def _overlap(boxes: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the largest IoU of two boxes of each image, and whether two of them touch."""
    overlap, touching = np.zeros(len(boxes)), np.zeros(len(boxes), dtype=bool)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    for one, two in itertools.combinations(range(boxes.shape[1]), 2):  # pair by pair, so that memory does not grow with their number
        both = real[:, one] & real[:, two]
        shared = np.minimum(boxes[:, one, 2:], boxes[:, two, 2:]) - np.maximum(boxes[:, one, :2], boxes[:, two, :2])
        common = np.where(both, shared.clip(min=0).prod(axis=1), 0)
        union = areas[:, one] + areas[:, two] - common
        overlap = np.maximum(overlap, np.divide(common, union, out=np.zeros_like(union), where=both & (union > 0)))
        touching |= both & (shared >= 0).all(axis=1)
    return overlap, touching


def summary(measures: Measures, classes: list[str]) -> dict[str, Any]:
    """Measures in figures.

    Args:
        measures: of a split.
        classes: K names.

    Returns:
        Plain JSON types: `images` · `image_size` [H, W] in px · `objects` · `labels`: name -> objects · `objects_per_image`: number (as
        text) -> images · `repeats`: share of images in which a label repeats · `boxes`: None, or `width`, `height`, `longer_side`
        (each `min`, `mean`, `max`, px), `area` (mean share of the image), and over images of two objects or more `touching`,
        `overlapping` (shares; boxes that share an edge touch, but do not overlap), `mean_iou`, `max_iou` (of an image's most overlapping
        pair); None where there is no such image.
    """
    numbers, images = np.unique(measures.objects, return_counts=True)
    found: dict[str, Any] = {
        "images": len(measures.objects),
        "image_size": [int(side) for side in measures.image_size],
        "objects": int(measures.classes.sum()),
        "labels": {name: int(count) for name, count in zip(classes, measures.classes, strict=True)},
        "objects_per_image": {str(number): int(count) for number, count in zip(numbers, images, strict=True)},
        "repeats": _mean(measures.repeats),
        "boxes": None,
    }
    if measures.sides is None or not len(measures.sides):
        return found
    height, width = measures.image_size
    sizes = {"width": measures.sides[:, 0], "height": measures.sides[:, 1], "longer_side": measures.sides.max(axis=1)}
    found["boxes"] = {
        **{name: {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())} for name, values in sizes.items()},
        "area": float(measures.sides.prod(axis=1).mean() / (height * width)),
        "touching": _mean(measures.touching),
        "overlapping": _mean(measures.overlap > 0),
        "mean_iou": _mean(measures.overlap),
        "max_iou": float(measures.overlap.max()) if len(measures.overlap) else None,
    }
    return found


def mistyped(splits: dict[str, dict[str, int]]) -> dict[str, str]:
    """Classes that may be slips of far more frequent ones, and those; `splits` as in `classes_told`."""
    objects = _totals(splits)
    by_count = sorted(objects, key=lambda name: -objects[name])
    meant = {}
    for name in by_count[-RAREST:]:
        frequent = [other for other in by_count if objects[other] >= FAR * objects[name] > 0]
        if other := next((other for other in frequent if slip(name, other)), None):
            meant[name] = other
    return meant


def classes_told(splits: dict[str, dict[str, int]], meant: dict[str, str]) -> str:
    """One line on how many objects there are of each class, the most frequent first; what only some splits have is marked.

    Args:
        splits: of each split, name -> objects, of the same names.
        meant: those that may be slips, see `mistyped`.
    """
    objects = _totals(splits)
    only = {name: [split for split, its in splits.items() if its[name]] for name in objects}
    partly = {name for name, its in only.items() if len(its) < len(splits)}

    def told(name: str) -> str:
        marks = [f"in {only[name][0]} alone" if only[name] else "in none"] if name in partly else []
        marks += [f"did you mean {brief(meant[name])}?"] if name in meant else []
        return f"{brief(name)} {objects[name]:,}" + (f" ({', '.join(marks)})" if marks else "")

    order = sorted(objects, key=lambda name: -objects[name])
    said = [told(name) for name in order]
    if len(order) > MOST_CLASSES:
        left = order[ENDS:-ENDS]
        odd = [f"{sum(name in partly for name in left)} of them not in every split"] if partly.intersection(left) else []
        odd += [told(name) for name in left if name in meant]
        said[ENDS:-ENDS] = [f"{len(left)} more" + (f" ({', '.join(odd)})" if odd else "")]
    return f"{len(order)} class{'es' if len(order) != 1 else ''}: {', '.join(said)}"


def _totals(splits: dict[str, dict[str, int]]) -> dict[str, int]:
    return {name: sum(split[name] for split in splits.values()) for name in next(iter(splits.values()))}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
