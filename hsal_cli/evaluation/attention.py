"""Attention scores: how salient the glimpses are (attn_saliency, section 5) and whether they fall on the object that is named.

Everything is a mean over meta-steps or objects; a `Tally` adds up batches, so that a data set of any size is scored in one pass.
Only meta-steps that name a label count; the last one, which names stop, looks at nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hsal_cli import distributed

if TYPE_CHECKING:
    import torch

    from hsal_cli.policy.episode import Episode


class Tally:
    """Running means of named values."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        """Adds an array of values (numbers or truth values) of any shape."""
        self._sums[name] = self._sums.get(name, 0.0) + float(values.sum(dtype=np.float64))
        self._counts[name] = self._counts.get(name, 0) + values.size

    def together(self) -> Tally:
        """The tally of what all workers have added."""
        found = Tally()
        for tally in distributed.all_gather(self):
            for name, count in tally._counts.items():
                found._sums[name] = found._sums.get(name, 0.0) + tally._sums[name]
                found._counts[name] = found._counts.get(name, 0) + count
        return found

    def means(self) -> dict[str, float | None]:
        """name -> mean of all values added; None where there was none."""
        return {name: self._sums[name] / count if count else None for name, count in self._counts.items()}

    def counts(self) -> dict[str, int]:
        """name -> how many values were added."""
        return dict(self._counts)


def naming_steps(episode: Episode) -> np.ndarray:
    """Which meta-steps name a label: active, and not stop; (T, B) bool."""
    labels = _numpy(episode.labels)
    return _numpy(episode.active) & (labels >= 0) & (labels < episode.logits.shape[-1] - 1)


def add_attn_saliency(tally: Tally, episode: Episode, raw_saliency: torch.Tensor) -> None:
    """Adds attn_saliency, the mean of S_t over the k glimpses of a meta-step, on two scales and with two controls.

    Args:
        tally: gets, for each meta-step that names a label,
            `raw`: the scale of the paper's figure 5: the raw map sum_c V_c^2, never transformed, at the glimpsed cells, and 0 where
            inhibition of return (an earlier glimpse or mask) has brought S_t to 0;
            `normalized`: the episode's S_t, in [0, 1], at the glimpsed cells;
            `random`: the same for uniformly random cells, the mean of S_t;
            `best`: the same for the k highest cells of S_t (glimpses that share one cell can exceed it).
            Without glimpses (k = 0) there is nothing to add.
        episode: a roll-out of B images.
        raw_saliency: (B, h, w), raw.
    """
    named = naming_steps(episode)
    cells = _numpy(episode.glimpses)[named]  # (n, k)
    rows = np.nonzero(named)[1]
    saliency = _flat(episode.saliency)
    now, first, raw = saliency[named], saliency[0][rows], _flat(raw_saliency)[rows]  # (n, h*w)
    inhibited = (now == 0) & (first > 0)
    glimpses = cells.shape[1]
    best = -np.sort(-now, axis=1)[:, :glimpses]
    tally.add("raw", np.take_along_axis(np.where(inhibited, 0, raw), cells, 1))
    tally.add("normalized", np.take_along_axis(now, cells, 1))
    tally.add("random", now if glimpses else now[:0])
    tally.add("best", best)


def add_localization(tally: Tally, episode: Episode, labels: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]) -> None:
    """Adds localization scores: a meta-step counts if it names a label that is still in the remaining multiset.

    A glimpse or cell lies in a box if the cell's centre does; cell (r, c) of an h x w map has its centre at ((c + 0.5) W / w,
    (r + 0.5) H / h) px, since images are squashed to a square. Scores are taken over the boxes of the named label, at the one
    that fits best (the maximum of the score).

    Args:
        tally: gets, for each such meta-step,
            `glimpse_hit`: the share of its k glimpses that lie in the box; `mask_mass`: the share of M_t in it;
            and controls: `area`: the box's share of the image's area; and, for one glimpse in place of the k,
            `random`: a uniformly random cell, `center`: the cell in the middle, `saliency`: the maximum of S_t, `reachable`: the
            best cell there is, which misses an object so small or thin that no cell's centre lies in its box;
            for each object of the images `digits_once`: whether it was visited at exactly one meta-step, and for each meta-step
            that names a label, right or wrong, of an image that has an object, `repeat_visits`: whether it visited one visited
            before. The object visited is the one, of any class, whose box holds most glimpses, at least one; on a tie, the box of
            the earlier glimpse.
        episode: a roll-out of B images.
        labels: (B, L), padded with -1.
        boxes: (B, L, 4) x0, y0, x1, y1 in px, half-open, aligned with the labels.
        image_size: (H, W) in px.
    """
    labels, boxes = _numpy(labels), _numpy(boxes).astype(np.float64)
    height, width = episode.masks.shape[-2:]
    inside = cells_inside(boxes, image_size, (height, width)) & (labels >= 0)[..., None]  # (B, L, h*w)
    _add_fit(tally, episode, labels, boxes, inside, image_size)
    if episode.glimpses.shape[-1]:
        _add_visits(tally, episode, labels, inside)


def cells_inside(boxes: np.ndarray, image_size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Which cells of a grid have their centre in which box.

    Args:
        boxes: (..., 4) x0, y0, x1, y1 in px, half-open.
        image_size, grid: (H, W) in px, and (h, w) in cells.

    Returns:
        (..., h*w) bool.
    """
    y = (np.arange(grid[0]) + 0.5) * image_size[0] / grid[0]
    x = (np.arange(grid[1]) + 0.5) * image_size[1] / grid[1]
    x0, y0, x1, y1 = (boxes[..., side, None] for side in range(4))
    inside = ((y >= y0) & (y < y1))[..., :, None] & ((x >= x0) & (x < x1))[..., None, :]
    return inside.reshape(*boxes.shape[:-1], grid[0] * grid[1])


def _add_fit(
    tally: Tally, episode: Episode, labels: np.ndarray, boxes: np.ndarray, inside: np.ndarray, image_size: tuple[int, int]
) -> None:
    steps, rows = np.nonzero(still_to_name(episode, labels))
    named = _numpy(episode.labels)[steps, rows]
    mine = labels[rows] == named[:, None]  # (n, L): the boxes of the named label
    candidates = inside[rows] & mine[..., None]  # (n, L, h*w)
    sides = boxes[rows]
    share = (sides[..., 2] - sides[..., 0]) * (sides[..., 3] - sides[..., 1]) / (image_size[0] * image_size[1])
    mask, saliency = _flat(episode.masks)[steps, rows], _flat(episode.saliency)[steps, rows]
    mass = np.einsum("nlc,nc->nl", candidates, mask).max(1, initial=0)
    anywhere = candidates.any(1)  # one glimpse hits the box that fits it best if it lies in any of them
    cells = _numpy(episode.glimpses)[steps, rows]  # (n, k)
    height, width = episode.masks.shape[-2:]
    middle = height // 2 * width + width // 2
    if cells.shape[1]:
        hits = np.take_along_axis(candidates, cells[:, None, :], 2)  # (n, L, k)
        tally.add("glimpse_hit", hits.mean(2).max(1, initial=0))
    else:
        tally.add("glimpse_hit", np.zeros(0))
    total = mask.sum(1)  # M_t is a mixture of unnormalised Gaussians, so its sum is not 1
    tally.add("mask_mass", np.divide(mass, total, out=np.zeros_like(mass), where=total > 0))
    tally.add("random", anywhere)
    tally.add("reachable", anywhere.any(1))
    tally.add("area", (share * mine).max(1, initial=0))
    tally.add("center", anywhere[:, middle])
    tally.add("saliency", np.take_along_axis(anywhere, saliency.argmax(1)[:, None], 1))


def still_to_name(episode: Episode, labels: np.ndarray) -> np.ndarray:
    """Which meta-steps name a label still in the remaining multiset; (T, B) bool."""
    named = naming_steps(episode)
    right = np.zeros_like(named)
    remaining = labels.copy()
    for step, said in enumerate(_numpy(episode.labels)):
        match = (remaining == said[:, None]) & named[step][:, None]
        right[step] = match.any(1)
        rows = np.nonzero(right[step])[0]
        remaining[rows, match[rows].argmax(1)] = -1  # named objects leave the multiset
    return right


def _add_visits(tally: Tally, episode: Episode, labels: np.ndarray, inside: np.ndarray) -> None:
    # In an image without an object there is none to visit twice.
    named, cells = naming_steps(episode) & (labels >= 0).any(axis=1), _numpy(episode.glimpses)
    glimpses = cells.shape[2]
    # Counts decide; the small parts only order boxes with equal counts by their earliest glimpse.
    weights = 1 + 0.5 ** np.arange(2, glimpses + 2)
    visits = np.zeros(labels.shape, dtype=np.int64)
    for step in range(len(named)):
        held = np.take_along_axis(inside, cells[step][:, None, :], 2) @ weights  # (B, L)
        most = held.argmax(1)
        rows = np.nonzero(named[step] & (held.max(1) > 0))[0]
        again = np.zeros(len(labels), dtype=bool)
        again[rows] = visits[rows, most[rows]] > 0
        visits[rows, most[rows]] += 1
        tally.add("repeat_visits", again[named[step]])
    tally.add("digits_once", visits[labels >= 0] == 1)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _flat(maps: torch.Tensor) -> np.ndarray:
    """(..., h, w) as (..., h*w) float64."""
    return _numpy(maps.flatten(-2)).astype(np.float64)
