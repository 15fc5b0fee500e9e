"""Composing one scene: labels, digits of random size at random places, clutter under them (section 5, "Datasets")."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hsal_cli.scenes.digits.glyphs import Glyphs
from hsal_cli.scenes.digits.idx import GLYPH
from hsal_cli.scenes.settings import SceneSettings, board_side

INK = 32  # pixels below this grey value are the resized glyph's faint rim, not its ink
TRIES = 40  # places tried for one digit before its image starts over
FRESH_STARTS = 8  # times an image starts over with sizes from the full range
SHRINKING_STARTS = 8  # times after that, with an ever lower largest size, before the grid is taken

AHEAD = 64  # random numbers drawn at a time; an image of 4 digits takes about 60

Box = tuple[int, int, int, int]


class Uniforms:
    """Uniform numbers of stream after stream, each the same as `Generator(Philox(key)).random()` gives one by one.

    A counter-based generator needs no seeding, and a key never meets another: (seed, stream), each below 2**64. NumPy keeps what `random`
    gives from version to version. A generator costs far more to make than to set back, and a number far more to draw alone.
    """

    def __init__(self, seed: int):
        self._bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state
        self._ahead: list[float] = []  # the next one last

    def start(self, stream: int) -> None:
        """Begins stream number `stream`, 0 to 2**64 - 1."""
        self._fresh["state"]["key"][1] = stream
        self._bits.state = self._fresh
        self._ahead = []

    def below(self, limit: int) -> int:
        """A uniform integer in [0, limit)."""
        if not self._ahead:
            self._ahead = self._generator.random(AHEAD)[::-1].tolist()
        return int(self._ahead.pop() * limit)


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
        self.most = max(1, settings.count[1])  # labels have a column even where no image has an object
        self._uniforms = Uniforms(settings.seed)
        if settings.clutter and settings.placement != "authors":
            self._ink = Ink(glyphs.images)

    def compose(self, index: int) -> tuple[np.ndarray, list[int], list[Box]]:
        """Composes one image.

        Returns:
            The image, uint8 (H, W); its labels in random order; for each the box tight around its ink: x0, y0, x1, y1 in px, half-open.
        """
        rng = self._uniforms
        rng.start(self.stream << 40 | index)
        low, high = self.settings.count
        labels = self._labels(rng, low + rng.below(high - low + 1))
        rows = [int(members[rng.below(len(members))]) for members in (self.glyphs.members[label] for label in labels)]
        patches, boxes = self._place(rng, rows)
        side = self.settings.image_size
        image = np.zeros((side, side), np.uint8)
        authors = self.settings.placement == "authors"
        if self.settings.clutter:
            (self._strew_on_board if authors else self._strew)(rng, image, rows)
        for patch, (x0, y0, x1, y1) in zip(patches, boxes, strict=True):
            window = image[y0:y1, x0:x1]
            if authors:
                np.copyto(window, patch, where=patch > 0)  # a digit's rim hides clutter, and is not hidden by it
            else:
                np.maximum(window, patch, out=window)
        return image, labels, boxes

    def _labels(self, rng: Uniforms, count: int) -> list[int]:
        classes = list(range(len(self.glyphs.classes)))
        if not self.distinct:
            return [rng.below(len(classes)) for _ in range(count)]
        return [classes.pop(rng.below(len(classes))) for _ in range(count)]

    def _place(self, rng: Uniforms, rows: list[int]) -> tuple[list[np.ndarray], list[Box]]:
        """Draws sizes and places: patches cut to their ink, and the boxes they fill."""
        if not rows:
            return [], []
        low, high = self.settings.digit_size
        if self.settings.placement in ("free", "tight"):
            for start in range(FRESH_STARTS + SHRINKING_STARTS):
                # A crowded image starts over; if that does not help, with smaller digits.
                left = min(1.0, (FRESH_STARTS + SHRINKING_STARTS - start) / (SHRINKING_STARTS + 1))
                top = low + round((high - low) * left)
                placed = self._scatter(rng, rows, [low + rng.below(top - low + 1) for _ in rows])
                if placed is not None:
                    return placed
        return self._on_grid(rng, rows)

    def _scatter(self, rng: Uniforms, rows: list[int], sizes: list[int]) -> tuple[list[np.ndarray], list[Box]] | None:
        """Uniform places at which no two glyphs overlap, or with `tight` no two boxes of ink; None if a digit finds none."""
        side, tight = self.settings.image_size, self.settings.placement == "tight"
        patches = [self._patch(row, size) for row, size in zip(rows, sizes, strict=True)] if tight else []
        taken: list[Box] = []
        for place, size in enumerate(sizes):
            down, across = patches[place][0].shape if tight else (size, size)
            for _ in range(TRIES):
                x0, y0 = rng.below(side - across + 1), rng.below(side - down + 1)
                x1, y1 = x0 + across, y0 + down
                if all(x0 >= b[2] or b[0] >= x1 or y0 >= b[3] or b[1] >= y1 for b in taken):
                    taken.append((x0, y0, x1, y1))
                    break
            else:
                return None
        if tight:
            return [patch for patch, _, _ in patches], taken
        boxes = []
        for row, size, (x0, y0, _, _) in zip(rows, sizes, taken, strict=True):  # only now, as many a start finds no place
            patch, dx, dy = self._patch(row, size)
            patches.append(patch)
            boxes.append((x0 + dx, y0 + dy, x0 + dx + patch.shape[1], y0 + dy + patch.shape[0]))
        return patches, boxes

    def _on_grid(self, rng: Uniforms, rows: list[int]) -> tuple[list[np.ndarray], list[Box]]:
        """One digit a cell at a random offset; cells are as large as the image's largest digit.

        The board sits anywhere in the image and its digits are small enough for one cell each; the `authors`' one begins at the top left,
        and their digits keep their sizes, for which the settings leave room.
        """
        side, anywhere = self.settings.image_size, self.settings.placement != "authors"
        low, high = self.settings.digit_size
        if anywhere:
            high = min(high, side // board_side(len(rows)))
        sizes = [low + rng.below(high - low + 1) for _ in rows]
        cell = max(sizes)
        cells = list(range((side // cell) ** 2))
        left, top = (rng.below(side % cell + 1), rng.below(side % cell + 1)) if anywhere else (0, 0)
        patches, boxes = [], []
        for row, size in zip(rows, sizes, strict=True):
            line, column = divmod(cells.pop(rng.below(len(cells))), side // cell)
            patch, dx, dy = self._patch(row, size)
            x0 = left + column * cell + rng.below(cell - size + 1) + dx
            y0 = top + line * cell + rng.below(cell - size + 1) + dy
            patches.append(patch)
            boxes.append((x0, y0, x0 + patch.shape[1], y0 + patch.shape[0]))
        return patches, boxes

    def _patch(self, row: int, size: int) -> tuple[np.ndarray, int, int]:
        """A glyph resized to size x size px and cut to its ink, and the ink's place (x, y) in that square."""
        resized = Image.frombuffer("L", (GLYPH, GLYPH), self.glyphs.images[row].tobytes()).resize((size, size), Image.Resampling.BICUBIC)
        glyph = np.frombuffer(resized.tobytes(), np.uint8).reshape(size, size)
        ink = glyph >= max(1, min(INK, int(glyph.max())))
        columns, lines = ink.any(axis=0).tobytes(), ink.any(axis=1).tobytes()
        x0, y0 = columns.find(1), lines.find(1)
        if x0 < 0:  # a few faint pixels can vanish when a glyph is made small
            return glyph, 0, 0
        return glyph[y0 : lines.rfind(1) + 1, x0 : columns.rfind(1) + 1], x0, y0

    def _strew(self, rng: Uniforms, image: np.ndarray, rows: list[int]) -> None:
        """Strews clutter: squares cut from other digits, each around a pixel of ink so that none is blank."""
        side, piece = image.shape[0], self.settings.clutter_size
        pool = self.glyphs.images
        for _ in range(self.settings.clutter):
            row = rng.below(len(pool))
            while row in rows and len(pool) > len(rows):
                row = (row + 1) % len(pool)
            ink = self._ink.of(row)
            line, column = divmod(int(ink[rng.below(len(ink))]) if len(ink) else GLYPH * GLYPH // 2, GLYPH)
            y, x = (min(max(place - piece // 2, 0), GLYPH - piece) for place in (line, column))
            to_y, to_x = rng.below(side - piece + 1), rng.below(side - piece + 1)
            window = image[to_y : to_y + piece, to_x : to_x + piece]
            np.maximum(window, pool[row, y : y + piece, x : x + piece], out=window)

    def _strew_on_board(self, rng: Uniforms, image: np.ndarray, rows: list[int]) -> None:
        """The authors' clutter: squares cut anywhere from any digits, even blank ones, each in a cell of its own of a board of squares."""
        piece = self.settings.clutter_size
        across = image.shape[0] // piece
        cells = list(range(across**2))
        for _ in range(self.settings.clutter):
            row, y, x = rng.below(len(self.glyphs.images)), rng.below(GLYPH - piece + 1), rng.below(GLYPH - piece + 1)
            line, column = divmod(cells.pop(rng.below(len(cells))), across)
            to_y, to_x = line * piece, column * piece
            image[to_y : to_y + piece, to_x : to_x + piece] = self.glyphs.images[row, y : y + piece, x : x + piece]


class Ink:
    """Where each glyph of uint8 (N, 28, 28) has ink, found for all at once."""

    def __init__(self, glyphs: np.ndarray):
        inked = (glyphs >= INK).reshape(len(glyphs), -1)
        self._ends = np.cumsum(inked.sum(axis=1)).tolist()
        self._pixels = (np.flatnonzero(inked) % (GLYPH * GLYPH)).astype(np.int16)

    def of(self, row: int) -> np.ndarray:
        """The pixels of glyph `row` that have ink, int16 (n,), ascending, counted line by line."""
        return self._pixels[self._ends[row - 1] if row else 0 : self._ends[row]]
