"""What a policy did with an image, in the form that pictures, pages and JSON are made from (figure 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DIGITS = 5  # decimals of numbers in JSON


@dataclasses.dataclass(frozen=True)
class LookStep:
    """One meta-step, which names a label, or stop.

    Attributes:
        label: its name.
        probability: of that label, in [0, 1].
        glimpses: k pairs (row, column), in cells from 0, in the order they were taken.
        mask, priority, saliency: (h, w) float64: M_t, and P_t and S_t in [0, 1].
        gaussians: (G, 5) float64: alpha, beta of rows and of columns (1/cells^2), kappa row, kappa column (cells, the first one is 1).
        classes: (name, probability) of every class in their order, then of stop; empty where not known.
        reads: cells along a side of the square around a glimpse's cell that the glimpse reads.
    """

    label: str
    probability: float
    glimpses: list[tuple[int, int]]
    mask: np.ndarray
    priority: np.ndarray
    saliency: np.ndarray
    gaussians: np.ndarray
    classes: Sequence[tuple[str, float]] = ()
    reads: int = 1


@dataclasses.dataclass(frozen=True)
class Look:
    """What a policy did with one image, in T meta-steps that each took k glimpses at a map of h x w cells and named a label.

    Commands, pictures and `hsal.load` all read it. The meta-step that named stop is not among the T.

    Attributes:
        name: the image's file name or another name for it.
        image: uint8 (H, W, 3).
        steps: the meta-steps that name a label, in order.
        stop_probability: of stop at the last meta-step, which names it unless the cap on meta-steps came first; nan of a direct baseline.
        end: the meta-step that named stop; None where the cap came first.
        region: x0, y0, x1, y1 in px, the part of the image that the policy saw, in whose cells all maps and glimpses are; None: all of it.
        within: x0, y0, x1, y1 in px, where the picture lies in `image`, a square padded around it (`--fit pad`); None: it is all of it.
        unlike: how the image differs from all that the policy knows (see `trust.Trust`); empty where it does not, or nothing is known.
        counts: of a direct baseline, which takes no meta-steps: name of each class -> how often it named it; None: a policy looked.
    """

    name: str
    image: np.ndarray
    steps: list[LookStep]
    stop_probability: float
    end: LookStep | None = None
    region: tuple[int, int, int, int] | None = None
    within: tuple[int, int, int, int] | None = None
    unlike: Sequence[str] = ()
    counts: Mapping[str, int] | None = None

    @property
    def lowest(self) -> float:
        """The lowest probability among the labels named and stop, in [0, 1]: the choice that it is least sure of; nan: it made none."""
        return min([*(step.probability for step in self.steps), self.stop_probability])

    @property
    def capped(self) -> bool:
        """Whether the cap on meta-steps came before stop."""
        return self.end is None and self.counts is None

    @property
    def warnings(self) -> list[str]:
        """Why what was named may be wrong, a sentence each."""
        found = []
        if self.unlike:
            found.append(f"unlike the images of training: {', '.join(self.unlike)}; the labels may mean nothing")
        if self.capped:
            found.append(f"the cap of {len(self.steps)} meta-steps came before stop: there may be more to name")
        return found

    @property
    def labels(self) -> list[str]:
        """The names of the predicted multiset, in the order they were named; of a direct baseline, in that of the classes."""
        if self.counts is not None:
            return [name for name, count in self.counts.items() for _ in range(count)]
        return [step.label for step in self.steps]

    @property
    def known(self) -> list[str]:
        """The K names of all classes that can be named; none where a policy took no meta-step."""
        if self.counts is not None:
            return list(self.counts)
        step = self.steps[0] if self.steps else self.end
        return [] if step is None else [name for name, _ in step.classes][:-1]  # the last one is stop

    @property
    def probabilities(self) -> np.ndarray:
        """float64 (T,), of each label named, in [0, 1]."""
        return np.array([step.probability for step in self.steps], dtype=np.float64)

    @property
    def glimpses(self) -> np.ndarray:
        """int64 (T, k, 2), row and column of each glimpse in cells from 0, in the order they were taken; of a direct baseline (0, 0, 0)."""
        return self._together("glimpses", np.int64)

    @property
    def masks(self) -> np.ndarray:
        """float64 (T, h, w), the covert attention masks M_t; of a direct baseline (0, 0, 0)."""
        return self._together("mask", np.float64)

    @property
    def priority(self) -> np.ndarray:
        """float64 (T, h, w), the priority maps P_t in [0, 1]; of a direct baseline (0, 0, 0)."""
        return self._together("priority", np.float64)

    @property
    def saliency(self) -> np.ndarray:
        """float64 (T, h, w), the saliency maps S_t before each meta-step, in [0, 1]; of a direct baseline (0, 0, 0)."""
        return self._together("saliency", np.float64)

    def _together(self, name: str, dtype: type) -> np.ndarray:
        every: list[np.ndarray] = [np.asarray(getattr(step, name), dtype=dtype) for step in self.steps]
        if every:
            return np.stack(every)
        return np.zeros((0, *(np.shape(getattr(self.end, name)) if self.end else (0, 0))), dtype=dtype)


def to_json(look: Look) -> dict[str, Any]:
    """A look in the form of the contract: `image`, its `size` (height, width in px), `labels`, `steps`, `stop_probability`,
    `lowest_probability` and `warnings`.

    Each step has `label`, `probability`, `glimpses` (k pairs of row and column, cells from 0), `glimpses_px` (the middle of each such
    cell, y and x in px of the image), `boxes_px` (the cell's x0, y0, x1, y1, half-open), and `mask`, `priority`, `saliency`, h rows of w
    numbers. `region` is there where the policy saw no more than that part of the image, and cells are those of it. Where the image was
    padded, px are those of the image alone, and a cell of the padding is empty, at the border.

    Of a direct baseline `steps` is empty, there are no probabilities, and `counts` has how often it named each class.
    """
    (height, width), (x0, y0, x1, y1) = look.image.shape[:2], look.within or (0, 0, *look.image.shape[1::-1])
    size = y1 - y0, x1 - x0
    left, top, right, bottom = look.region or (-x0, -y0, width - x0, height - y0)

    def box(cell: tuple[int, int], grid: tuple[int, ...]) -> list[float]:
        spans = zip((top, left), (bottom - top, right - left), cell, grid, strict=True)
        rows, columns = ([start + side * (place + edge) / count for edge in (0, 1)] for start, side, place, count in spans)
        edges = zip((columns[0], rows[0], columns[1], rows[1]), (size[1], size[0]) * 2, strict=True)
        return [round(min(max(edge, 0.0), most), 1) for edge, most in edges]

    def middle(box: list[float]) -> list[float]:
        return [round((box[1] + box[3]) / 2, 1), round((box[0] + box[2]) / 2, 1)]

    steps = [
        {
            "label": step.label,
            "probability": round(step.probability, DIGITS),
            "glimpses": [list(cell) for cell in step.glimpses],
            "glimpses_px": [middle(box(cell, step.mask.shape)) for cell in step.glimpses],
            "boxes_px": [box(cell, step.mask.shape) for cell in step.glimpses],
            **{name: getattr(step, name).round(DIGITS).tolist() for name in ("mask", "priority", "saliency")},
        }
        for step in look.steps
    ]
    region = {} if look.region is None else {"region": list(look.region)}
    named = {"image": look.name, "size": list(size), "labels": look.labels}
    told: dict[str, Any] = {"stop_probability": round(look.stop_probability, DIGITS), "lowest_probability": round(look.lowest, DIGITS)}
    if look.counts is not None:
        told = {"counts": dict(look.counts)}
    return {**named, **region, "steps": steps, **told, "warnings": look.warnings}
