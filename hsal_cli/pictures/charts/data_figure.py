"""The figure of `hsal inspect`: what is in a scene or feature file, as histograms and heat maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from hsal_cli.pictures.charts.panels import Bars, Heat, draw_panels, histogram
from hsal_cli.scenes.summary import Measures
from hsal_cli.words import brief

POSITIONS = 20  # cells along the longer side of the map of positions
BINS = 16  # of the sizes, about


def data_figure(splits: Mapping[str, Measures], classes: list[str], saliency: np.ndarray | None = None) -> bytes:
    """Draws labels, objects an image and, where boxes are known, sizes, positions and overlap.

    Args:
        splits: name -> what it holds, at least one.
        classes: K names.
        saliency: (h, w) the mean saliency map, for a feature file.

    Returns:
        The bytes of a PNG.
    """
    bars, heats = [_labels(splits, classes), _objects(splits)], []
    boxed = {name: part for name, part in splits.items() if part.sides is not None and len(part.sides)}
    if boxed:
        bars += [_sizes(boxed), *_overlap(boxed)]
        heats.append(_positions(boxed))
    if saliency is not None:
        height, width = next(iter(splits.values())).image_size
        title, size = "Mean saliency map", (float(width), float(height))
        heats.append(Heat(title, "x, px", "y, px", saliency, "mean of S, min-max scaled", extent=size))
    if not heats:
        return draw_panels(bars)
    # Heat maps share the last column, so that their colour bars leave no gap between the others.
    rows = itertools.zip_longest(bars[::2], bars[1::2], heats)
    return draw_panels([panel for row in rows for panel in row], columns=3)


def _labels(splits: Mapping[str, Measures], classes: list[str]) -> Bars:
    shares = {name: (part.classes / max(part.classes.sum(), 1)).tolist() for name, part in splits.items()}
    return Bars("Labels", "class", "share of the objects", classes, shares)


def _objects(splits: Mapping[str, Measures]) -> Bars:
    most = max(int(part.objects.max()) for part in splits.values())
    least = min(int(part.objects.min()) for part in splits.values())
    shares = {
        name: (np.bincount(part.objects, minlength=most + 1)[least : most + 1] / len(part.objects)).tolist()
        for name, part in splits.items()
    }
    return Bars("Objects in an image", "objects", "share of the images", [str(number) for number in range(least, most + 1)], shares)


def _sizes(splits: Mapping[str, Measures]) -> Bars:
    longer = {name: part.sides.max(axis=1) for name, part in splits.items()}
    low, high = min(part.min() for part in longer.values()), max(part.max() for part in longer.values())
    step = max(1, int(np.ceil((high - low + 1) / BINS)))
    names, shares = histogram(longer, np.arange(low, high + step + 1, step))
    wide = f", bins of {step} px" if step > 1 else ""
    return Bars("Size of the objects", f"longer side of the box, px{wide}", "share of the objects", names, shares, touching=True)


def _positions(splits: Mapping[str, Measures]) -> Heat:
    height, width = next(iter(splits.values())).image_size
    cell = max(height, width) / POSITIONS
    grid = max(1, round(height / cell)), max(1, round(width / cell))
    centres = np.concatenate([part.centres for part in splits.values()])
    counts = np.histogram2d(centres[:, 1], centres[:, 0], bins=grid, range=((0, 1), (0, 1)))[0]
    size = (float(width), float(height))
    return Heat("Positions of the objects", "x, px", "y, px", counts, "box centres in a cell", extent=size)


def _overlap(splits: Mapping[str, Measures]) -> list[Bars]:
    several = {name: part.overlap for name, part in splits.items() if len(part.overlap)}
    if not several:
        return []
    bounds = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    shares = {
        name: [float((part == 0).mean()), *(float(((part > low) & (part <= high)).mean()) for low, high in itertools.pairwise(bounds))]
        for name, part in several.items()
    }
    names = ["none", *(f"to {high:g}" for high in bounds[1:])]
    touching = ", ".join(f"{splits[name].touching.mean():.1%} of {brief(name)}" for name in several)
    label = f"largest IoU of two boxes of an image\nboxes touch: {touching}"
    return [Bars("Overlap", label, "share of images of 2 or more", names, shares, top=1.0)]
