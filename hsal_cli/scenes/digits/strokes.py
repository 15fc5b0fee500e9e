"""Digits drawn by pen strokes: handwriting without a download.

Each glyph takes one of the ways of writing its digit, moves the control points, bends, slants and stretches the curve, and draws it with a
pen of slightly varying width. As in MNIST the ink fits 20x20 px and is centred by mass in 28x28.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from hsal_cli.scenes.digits.idx import GLYPH
from hsal_cli.scenes.digits.stroke_shapes import WAYS, WIDTHS

POOL = {"train": 15_000, "test": 3_000}  # glyphs drawn for a split
SAMPLES = 144  # points along a glyph's path: at most half a px apart
BATCH = 250
INK_SIDE = 20.0  # the ink's larger side, px, as in MNIST
CENTRE = 14.5  # where MNIST's centres of mass lie, px from the left and upper edge
MOST_POINTS = 32  # control points that a glyph has random numbers for
STREAM = 1 << 62  # keeps these random streams apart from the scenes'


def draw_pool(split: str, seed: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draws the glyphs of a split, "train" or "test", which share no random number; glyph i depends on (seed, split, i) alone.

    Returns:
        images uint8 (N, 28, 28), white ink on black, and labels int64 (N,), i modulo 10; N is `count`, or the split's usual number.
    """
    count = POOL[split] if count is None else count
    images = np.empty((count, GLYPH, GLYPH), np.uint8)
    for start in range(0, count, BATCH):
        # Always whole batches: vector instructions may round the tail of an array otherwise than its middle.
        images[start : start + BATCH] = _draw(seed, split, np.arange(start, start + BATCH))[: count - start]
    return images, np.arange(count) % 10


def _draw(seed: int, split: str, indices: np.ndarray) -> np.ndarray:
    """Draws the glyphs of these indices, uint8 (n, 28, 28)."""
    chance = np.empty((len(indices), 4))
    noise = np.empty((len(indices), 32 + 2 * MOST_POINTS))
    path = np.empty((len(indices), SAMPLES, 2))
    along = np.empty((len(indices), SAMPLES))
    for place, index in enumerate(indices.tolist()):
        key = np.array([seed, STREAM | (split == "test") << 40 | index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        rng.random(out=chance[place])
        rng.standard_normal(out=noise[place])
        ways, bounds = _ways(index % 10)
        points, curve, along[place] = ways[np.searchsorted(bounds, chance[place, 0])]
        loose = 0.02 + 0.04 * chance[place, 1]  # some hands are steadier than others
        moves = noise[place, 32 : 32 + points.size].reshape(points.shape)
        moves[1:-1] = (moves[:-2] + 2 * moves[1:-1] + moves[2:]) / math.sqrt(6)  # neighbours move alike, or the curve has kinks
        path[place] = curve @ (points + loose * moves)
    path = _bend(path, noise, np.array(WIDTHS)[indices % 10])
    radius, soft = _pen(noise, chance)
    widths = radius[:, None] * _pressure(along, noise)
    return _ink(_fit(path, radius, widths.max(axis=1)), widths, soft)


@functools.cache
def _ways(digit: int) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], np.ndarray]:
    """The ways of writing a digit, parsed, and the upper bounds of their shares in [0, 1]."""
    weights = np.array([weight for weight, _ in WAYS[digit]], dtype=float)
    return [parse_way(text) for _, text in WAYS[digit]], np.cumsum(weights)[:-1] / weights.sum()


def parse_way(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes a way of writing ready to draw.

    Returns:
        points (n, 2), the control points in a unit square; curve (SAMPLES, n), by which the points become places along the
        Catmull-Rom path, evenly spaced; along (SAMPLES,), each place's share in [0, 1] of its stroke.
    """
    strokes = [[word.split(",") for word in stroke.split()] for stroke in text.split("|")]
    points = np.array([[float(x), float(y.rstrip("!"))] for stroke in strokes for x, y in stroke]) / 100
    segments, first = [], 0  # the four control points and the length of each piece of the path; which stroke it is in
    for number, stroke in enumerate(strokes):
        corners = {0, len(stroke) - 1} | {place for place, (_, y) in enumerate(stroke) if y.endswith("!")}
        for place in range(len(stroke) - 1):
            # At a corner or an end the curve does not know what lies beyond.
            before = place if place in corners else place - 1
            after = place + 1 if place + 1 in corners else place + 2
            knots = [first + knot for knot in (before, place, place + 1, after)]
            segments.append((knots, math.dist(points[first + place], points[first + place + 1]), number))
        first += len(stroke)
    ends = np.cumsum([length for _, length, _ in segments])
    curve, along = np.zeros((SAMPLES, len(points))), np.zeros(SAMPLES)
    for sample, distance in enumerate(np.linspace(0, ends[-1], SAMPLES)):
        piece = min(int(np.searchsorted(ends, distance)), len(segments) - 1)
        knots, length, number = segments[piece]
        t = 1 - (ends[piece] - distance) / length
        weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
        for knot, weight in zip(knots, weights, strict=True):
            curve[sample, knot] += weight / 2
        own = [end for end, segment in zip(ends, segments, strict=True) if segment[2] == number]
        start = own[0] - next(length for _, length, stroke in segments if stroke == number)
        along[sample] = (distance - start) / (own[-1] - start)
    return points, curve, along


def _bend(path: np.ndarray, noise: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Bends paths in the unit square: an elastic wobble, the balance of top and bottom, then width, rotation and slant."""

    def of(column: int, scale: float, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * noise[:, column])[:, None]

    x, y = path[..., 0] - 0.5, path[..., 1] - 0.5
    waves = [(0, 4), (8, 12)]
    x, y = (
        value
        + of(a, 0.022) * np.sin(2.4 * (x * of(a + 1, 1) + y * of(a + 2, 1)) + of(a + 3, 3))
        + of(b, 0.012) * np.sin(7 * y + of(b + 1, 3))
        for value, (a, b) in zip((x, y), waves, strict=True)
    )
    y = y + of(16, 0.055) * np.cos(math.pi * y)  # moves the waist up or down
    x = x * (1 + of(17, 0.32) * y) * width[:, None] * np.exp(of(18, 0.24))  # wider above or below; slim or wide
    turn = of(19, 0.1)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    x = x - of(20, 0.24, 0.18) * y  # most hands slant to the right
    return np.stack([x, y], axis=-1)


def _pen(noise: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pen's radius and the width of the ink's soft edge, both (n,) in px."""
    return np.clip(1.35 * np.exp(0.3 * noise[:, 21]), 0.7, 2.6), 0.9 + 0.7 * chance[:, 2]


def _pressure(along: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The pen's width along the path as a share of its usual width: it swells and thins slowly, and thins at the ends."""
    swell = 0.12 * np.sin(5 * along + 3 * noise[:, 22:23]) + 0.05 * noise[:, 23:24] * (2 * along - 1)
    ends = 0.2 * np.exp(-along / 0.05) + 0.2 * np.exp(-(1 - along) / 0.05)
    return np.clip(1 + swell - ends, 0.5, 1.5)


def _fit(path: np.ndarray, radius: np.ndarray, widest: np.ndarray) -> np.ndarray:
    """Scales paths so that the ink fits 20x20 px, and puts its centre of mass where MNIST has it."""
    room = INK_SIDE - 2 * radius
    path = path * (room / np.ptp(path, axis=1).max(axis=1))[:, None, None]
    path = path - path.mean(axis=1, keepdims=True) + CENTRE
    # Lopsided digits may leave the square; then it is the ink that stays inside.
    margin = (widest + 1.5)[:, None]
    low, high = path.min(axis=1) - margin, path.max(axis=1) + margin
    return path + (np.maximum(-low, 0) - np.maximum(high - GLYPH, 0))[:, None, :]


def _ink(path: np.ndarray, widths: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Draws paths (n, SAMPLES, 2) in px as uint8 (n, 28, 28), anti-aliased by the distance of a pixel's centre from the edge of the ink.

    `widths` is the pen's radius at each place, (n, SAMPLES), `soft` how far the ink takes to fade at its edge, (n,), both in px.
    """
    centres = np.arange(GLYPH) + 0.5
    x, y = (axis.ravel() for axis in np.meshgrid(centres, centres))
    pixels = np.stack([x, y, np.ones_like(x)]).astype(np.float32)  # (3, 784)
    # |p - q|^2 - r^2 = |p|^2 + (-2q, |q|^2 - r^2) . (p, 1): one product gives all pixels against all places of the path.
    places = np.concatenate([-2 * path, (path**2).sum(axis=2, keepdims=True) - widths[..., None] ** 2], axis=2).astype(np.float32)
    power, product = np.empty((len(path), GLYPH * GLYPH), np.float32), np.empty((SAMPLES, GLYPH * GLYPH), np.float32)
    for row, place in enumerate(places):
        np.matmul(place, pixels, out=product).min(axis=0, out=power[row])
    usual = widths.mean(axis=1, keepdims=True)
    distance = np.sqrt(np.maximum(power + (x**2 + y**2) + usual**2, 0)) - usual  # from the ink's edge, px, negative inside
    return np.round(255 * np.clip(0.5 - distance / soft[:, None], 0, 1)).astype(np.uint8).reshape(-1, GLYPH, GLYPH)
