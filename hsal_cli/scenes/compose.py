"""Composing one scene: labels, digits of random size at random places, clutter under them (section 5, "Datasets")."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hsal_cli.scenes.glyphs import Glyphs
from hsal_cli.scenes.idx import GLYPH
from hsal_cli.scenes.settings import SceneSettings, board_side

INK = 32  # pixels below this grey value are the resized glyph's faint rim, not its ink
TRIES = 40  # places tried for one digit before its image starts over
FRESH_STARTS = 8  # times an image starts over with sizes from the full range
SHRINKING_STARTS = 8  # times after that, with an ever lower largest size, before the grid is taken

Box = tuple[int, int, int, int]


class Composer:
    """Composes image i of a split from (seed, stream, i) alone.

    Args:
        glyphs: the split's glyphs.
        settings: the recipe.
        distinct: whether an image's labels differ from each other (MNIST Set) or may repeat (MNIST Multiset).
        stream: a number below 2**20 that tells data sets and splits apart.
    """

    def __init__(self, glyphs: Glyphs, settings: SceneSettings, distinct: bool, stream: int):
        self.glyphs = glyphs
        self.settings = settings
        self.distinct = distinct
        self.stream = stream
        self.shape: tuple[int, ...] = (settings.image_size, settings.image_size)
        self.most = settings.count[1]

    def compose(self, index: int) -> tuple[np.ndarray, list[int], list[Box]]:
        """Composes one image.

        Returns:
            The image, uint8 (H, W); its labels in random order; for each the box tight around its ink: x0, y0, x1, y1 in px, half-open.
        """
        # A counter-based generator needs no seeding, and a key never meets another: (seed, stream and index).
        key = np.array([self.settings.seed, self.stream << 40 | index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        low, high = self.settings.count
        labels = self._labels(rng, low + _below(rng, high - low + 1))
        rows = [int(members[_below(rng, len(members))]) for members in (self.glyphs.members[label] for label in labels)]
        patches, boxes = self._place(rng, rows)
        side = self.settings.image_size
        image = np.zeros((side, side), np.uint8)
        if self.settings.clutter:
            self._strew(rng, image, rows)
        for patch, (x0, y0, x1, y1) in zip(patches, boxes, strict=True):
            window = image[y0:y1, x0:x1]
            np.maximum(window, patch, out=window)
        return image, labels, boxes

    def _labels(self, rng: np.random.Generator, count: int) -> list[int]:
        classes = list(range(len(self.glyphs.classes)))
        if not self.distinct:
            return [_below(rng, len(classes)) for _ in range(count)]
        return [classes.pop(_below(rng, len(classes))) for _ in range(count)]

    def _place(self, rng: np.random.Generator, rows: list[int]) -> tuple[list[np.ndarray], list[Box]]:
        """Draws sizes and places: patches cut to their ink, and the boxes they fill."""
        low, high = self.settings.digit_size
        if self.settings.placement != "grid":
            for start in range(FRESH_STARTS + SHRINKING_STARTS):
                # A crowded image starts over; if that does not help, with smaller digits.
                left = min(1.0, (FRESH_STARTS + SHRINKING_STARTS - start) / (SHRINKING_STARTS + 1))
                top = low + round((high - low) * left)
                placed = self._scatter(rng, rows, [low + _below(rng, top - low + 1) for _ in rows])
                if placed is not None:
                    return placed
        return self._on_grid(rng, rows)

    def _scatter(self, rng: np.random.Generator, rows: list[int], sizes: list[int]) -> tuple[list[np.ndarray], list[Box]] | None:
        """Uniform places at which no two glyphs overlap, or with `tight` no two boxes of ink; None if a digit finds none."""
        side = self.settings.image_size
        patches: list[np.ndarray] = []
        boxes: list[Box] = []
        taken: list[Box] = []
        for row, size in zip(rows, sizes, strict=True):
            patch, dx, dy = self._patch(row, size)
            height, width = patch.shape
            if self.settings.placement == "free":
                across = down = size
            else:
                across, down, dx, dy = width, height, 0, 0
            for _ in range(TRIES):
                x0, y0 = _below(rng, side - across + 1), _below(rng, side - down + 1)
                x1, y1 = x0 + across, y0 + down
                if all(x0 >= b[2] or b[0] >= x1 or y0 >= b[3] or b[1] >= y1 for b in taken):
                    taken.append((x0, y0, x1, y1))
                    patches.append(patch)
                    boxes.append((x0 + dx, y0 + dy, x0 + dx + width, y0 + dy + height))
                    break
            else:
                return None
        return patches, boxes

    def _on_grid(self, rng: np.random.Generator, rows: list[int]) -> tuple[list[np.ndarray], list[Box]]:
        """One digit a cell at a random offset; cells are as large as the image's largest digit, the board sits anywhere in the image."""
        side = self.settings.image_size
        low, high = self.settings.digit_size
        high = min(high, side // board_side(len(rows)))
        sizes = [low + _below(rng, high - low + 1) for _ in rows]
        cell = max(sizes)
        cells = list(range((side // cell) ** 2))
        left, top = _below(rng, side % cell + 1), _below(rng, side % cell + 1)
        patches, boxes = [], []
        for row, size in zip(rows, sizes, strict=True):
            line, column = divmod(cells.pop(_below(rng, len(cells))), side // cell)
            patch, dx, dy = self._patch(row, size)
            x0 = left + column * cell + _below(rng, cell - size + 1) + dx
            y0 = top + line * cell + _below(rng, cell - size + 1) + dy
            patches.append(patch)
            boxes.append((x0, y0, x0 + patch.shape[1], y0 + patch.shape[0]))
        return patches, boxes

    def _patch(self, row: int, size: int) -> tuple[np.ndarray, int, int]:
        """A glyph resized to size x size px and cut to its ink, and the ink's place (x, y) in that square."""
        glyph = np.asarray(Image.fromarray(self.glyphs.images[row]).resize((size, size), Image.Resampling.BICUBIC))
        ink = glyph >= max(1, min(INK, int(glyph.max())))
        columns, lines = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
        if not len(columns):  # a few faint pixels can vanish when a glyph is made small
            return glyph, 0, 0
        x0, y0 = int(columns[0]), int(lines[0])
        return glyph[y0 : int(lines[-1]) + 1, x0 : int(columns[-1]) + 1], x0, y0

    def _strew(self, rng: np.random.Generator, image: np.ndarray, rows: list[int]) -> None:
        """Strews clutter: squares cut from other digits, each around a pixel of ink so that none is blank."""
        side, piece = image.shape[0], self.settings.clutter_size
        pool = self.glyphs.images
        for _ in range(self.settings.clutter):
            row = _below(rng, len(pool))
            while row in rows and len(pool) > len(rows):
                row = (row + 1) % len(pool)
            ink = np.flatnonzero(pool[row] >= INK)
            line, column = divmod(int(ink[_below(rng, len(ink))]) if len(ink) else GLYPH * GLYPH // 2, GLYPH)
            y, x = (min(max(place - piece // 2, 0), GLYPH - piece) for place in (line, column))
            to_y, to_x = _below(rng, side - piece + 1), _below(rng, side - piece + 1)
            window = image[to_y : to_y + piece, to_x : to_x + piece]
            np.maximum(window, pool[row, y : y + piece, x : x + piece], out=window)


def _below(rng: np.random.Generator, limit: int) -> int:
    """A uniform integer in [0, limit); by `random`, whose stream NumPy keeps from version to version."""
    return int(rng.random() * limit)
