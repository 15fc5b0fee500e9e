"""An episode as an animation: the mask, then glimpse after glimpse, then the label, meta-step by meta-step; at the end the multiset.

Where the policy saw a region alone, that is the image; what it was cut out of comes first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from hsal_cli.pictures.marks import (
    BAR,
    SMALL,
    Box,
    cell_box,
    draw_centres,
    draw_classes,
    draw_glimpses,
    draw_map,
    draw_plate,
    fitted,
    marked_part,
    outlined,
    panel_size,
    part_seen,
    seen_in,
    shortened,
    to_maximum,
)
from hsal_cli.pictures.palette import FAINT, GREEN, INK, ORANGE, PAPER, RED, Colour, font
from hsal_cli.pictures.trajectory import HEADING, hits, titles
from hsal_cli.pictures.writing import gif
from hsal_cli.words import brief

if TYPE_CHECKING:
    from hsal_cli.models.seen import Look, LookStep

MASK, GLIMPSE, NAME, LAST = 800, 700, 1400, 4000  # how long a frame is shown, ms
MARGIN, GAP, HEAD, CAPTION, LINE = 14, 12, 48, 20, 30  # px
NARROW, LEAST = 132, 360  # least width of a small panel's place, and of a frame, px
CLASSES = 5  # there is room for so many at least
NAMES = 60  # px that the labels named at a cell may take at least
BYTES = 1_000_000  # animations stay below this size
SIDES = (300, 220, 160)  # of the image, px; smaller ones are taken where an animation grows too large
MAPS = (("saliency map", "S"), ("covert mask", "M"), ("priority map", "P"))


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where things stand in a frame, px: the image, and beside it (below it where it is wide) three maps and the class probabilities.

    Attributes:
        photo: (width, height) of the image; its proportions are the original's.
        classes: how many class probabilities there is room for at least.
    """

    photo: tuple[int, int]
    classes: int

    @property
    def map(self) -> tuple[int, int]:
        """(width, height) of a map; two of them fit beside and below each other into the image's place."""
        width, height = self.photo
        scale = min((width - GAP) / width, (height - CAPTION) / height) / 2
        return max(1, round(width * scale)), max(1, round(height * scale))

    @property
    def below(self) -> bool:
        """Whether the maps stand below the image."""
        return self.photo[0] > 1.5 * self.photo[1]

    @property
    def image(self) -> Box:
        """The image's panel."""
        return MARGIN, MARGIN + HEAD + CAPTION, MARGIN + self.photo[0], MARGIN + HEAD + CAPTION + self.photo[1]

    def place(self, number: int) -> Box:
        """The place of a map (0 to 2: S, M, P) or of the class probabilities (3), which takes what its column has."""
        width = max(self.map[0], NARROW)
        height = max(self.map[1], self.classes * BAR) if number >= 2 else self.map[1]
        x0, y0 = (MARGIN, self.image[3] + CAPTION + GAP // 2) if self.below else (self.image[2] + 2 * GAP, self.image[1])
        x, y = x0 + number % 2 * (width + GAP), y0 + number // 2 * (self.map[1] + CAPTION)
        return x, y, x + width, y + height

    def panel(self, number: int) -> Box:
        """The panel of a map (0 to 2), in the middle of its place."""
        x0, y0, x1, _ = self.place(number)
        x = x0 + (x1 - x0 - self.map[0]) // 2
        return x, y0, x + self.map[0], y0 + self.map[1]

    @property
    def foot(self) -> int:
        """Where the labels named so far begin."""
        return max(self.image[3], self.place(3)[3]) + GAP

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a frame."""
        return max(self.image[2], self.place(1)[2]) + MARGIN, self.foot + LINE + MARGIN


def frame_of(look: Look, side: int = SIDES[0]) -> Frame:
    """The frame for an image whose area is a square's of this side, px."""
    classes = max((min(CLASSES, len(step.classes)) for step in (*look.steps, look.end) if step is not None), default=0)
    return Frame(panel_size(np.asarray(part_seen(look)), side), classes)


def film(looks: Sequence[Look], truths: Sequence[Sequence[str] | None] | None = None) -> bytes:
    """Encodes episodes, one after the other, as one GIF that repeats for ever and stays below 1 MB where it can.

    Args:
        looks: at least one.
        truths: the true multisets, or None for those not known; labels are then marked as hit or miss.
    """
    truths = [None] * len(looks) if truths is None else truths
    encoded = b""
    for side in SIDES:
        shown = [pair for look, truth in zip(looks, truths, strict=True) for pair in frames(look, truth, side)]
        size = max(picture.width for picture, _ in shown), max(picture.height for picture, _ in shown)
        pages = [ImageOps.expand(page, (0, 0, size[0] - page.width, size[1] - page.height), PAPER) for page, _ in shown]
        encoded = gif(pages, [duration for _, duration in shown])
        if len(encoded) < BYTES:
            break
    return encoded


def frames(look: Look, truth: Sequence[str] | None, side: int = SIDES[0]) -> Iterator[tuple[Image.Image, int]]:
    """Draws an episode: a frame for each meta-step's mask, each glimpse and each label; the last one holds the predicted multiset.

    Yields:
        (RGB image, how long it is shown in ms).
    """
    frame = frame_of(look, side)
    photo = part_seen(look).resize(frame.photo, Image.Resampling.LANCZOS)
    right = hits(look.labels, truth) if truth is not None else [None] * len(look.steps)
    title, subtitle = titles(look, truth)
    name = brief(Path(look.name).name)
    needed = max(math.ceil(font(size).getlength(text)) for text, size in ((title, 20), (subtitle, 14)))
    width = max(frame.size[0], LEAST, 2 * MARGIN + min(needed, HEADING))
    named = list(zip(map(brief, look.labels), right, strict=True))

    def page(head: tuple[str, str], shown: Image.Image, step: LookStep | None, labels: Sequence[tuple[str, bool | None]]) -> Image.Image:
        picture = Image.new("RGB", (width, frame.size[1]), PAPER)
        draw = ImageDraw.Draw(picture)
        for text, y, most, colour in ((head[0], 19, 20, INK), (head[1], 40, 14, FAINT)):
            text, size = fitted(text, most, width - 2 * MARGIN)
            draw.text((MARGIN, MARGIN + y), text, colour, font(size), anchor="ls")
        picture.paste(shown, frame.image[:2])
        if step is not None:
            _draw_maps(draw, frame, step)
        _draw_labels(draw, (MARGIN, frame.foot), width - 2 * MARGIN, labels)
        return picture

    if look.region is not None:
        whole = ImageOps.contain(Image.fromarray(look.image), frame.photo, Image.Resampling.LANCZOS)
        marked = marked_part(whole, seen_in((0, 0, *whole.size), look))
        yield page(("a first look finds a region", name), ImageOps.pad(marked, frame.photo, color=PAPER), None, []), NAME
    for place, step in enumerate(look.steps):
        outline = outlined(photo, step)
        for taken in range(len(step.glimpses) + 1):
            row, column = step.glimpses[taken - 1] if taken else (0, 0)
            said = f"glimpse {taken} at row {row}, column {column}" if taken else "the covert mask"
            picture = page((f"step {place + 1}: {said}", name), outline, step, named[:place])
            _draw_glimpses(picture, frame, step, taken, photo)
            yield picture, GLIMPSE if taken else MASK
        verdict = {None: "", True: ", a hit", False: ", a miss"}[right[place]]
        picture = page((f"step {place + 1}: names {brief(step.label)}{verdict}", name), outline, step, named[: place + 1])
        _draw_glimpses(picture, frame, step, None, photo)
        _draw_bars(picture, frame, step)
        yield picture, NAME
    picture = page((title, subtitle), photo, look.end, named)
    if look.end is not None:
        _draw_bars(picture, frame, look.end)
    _draw_all(picture, frame, look, photo)
    yield picture, LAST


def _draw_maps(draw: ImageDraw.ImageDraw, frame: Frame, step: LookStep) -> None:
    """The maps of a meta-step under their names."""
    for number, (text, symbol) in enumerate(MAPS):
        _draw_name(draw, frame, number, f"{text} {symbol}")
    for number, values in enumerate((step.saliency, to_maximum(step.mask), step.priority)):
        draw_map(draw, frame.panel(number), values)
    draw_centres(draw, frame.panel(1), step)


def _draw_name(draw: ImageDraw.ImageDraw, frame: Frame, number: int, name: str) -> None:
    draw.text((frame.place(number)[0], frame.place(number)[1] - 5), name, FAINT, font(13), anchor="ls")


def _draw_bars(picture: Image.Image, frame: Frame, step: LookStep) -> None:
    draw = ImageDraw.Draw(picture)
    _draw_name(draw, frame, 3, "class probability")
    draw_classes(draw, frame.place(3), step.classes)


def _draw_glimpses(picture: Image.Image, frame: Frame, step: LookStep, taken: int | None, photo: Image.Image) -> None:
    for box, shown in ((frame.image, photo), (frame.panel(2), None)):
        draw_glimpses(ImageDraw.Draw(picture), box, step, taken, shown)


def _draw_all(picture: Image.Image, frame: Frame, look: Look, photo: Image.Image) -> None:
    """Every glimpsed cell, and each label once, at the first cell that was glimpsed for it."""
    labels: dict[tuple[int, int], list[str]] = {}
    for step in look.steps:
        cells = list(dict.fromkeys(map(tuple, step.glimpses)))
        for cell in cells:
            labels.setdefault(cell, []).extend([step.label] * (cell == cells[0]))
    draw = ImageDraw.Draw(picture)
    for cell, names in labels.items():
        x0, y0, x1, y1 = cell_box(frame.image, cell, look.steps[0].mask.shape)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=ORANGE, width=2)
        if names:
            text = shortened(", ".join(map(brief, names)), SMALL, max(NAMES, 2 * (x1 - x0)))
            draw_plate(draw, frame.image, (x0, y0, x1, y1), text, photo)


def _draw_labels(draw: ImageDraw.ImageDraw, corner: tuple[int, int], room: int, labels: Sequence[tuple[str, bool | None]]) -> None:
    """The labels named so far on one line, hits and misses in their colours; where there is no room, the latest ones."""
    x, y = corner
    large, small = font(22), font(14)
    draw.text((x, y + 24), "named", FAINT, small, anchor="ls")
    start = x + round(small.getlength("named ")) + 6
    words: list[tuple[str, Colour, str]] = []
    left = room - (start - x)
    for label, is_hit in reversed(labels):
        verdict = "miss" if is_hit is False else ""
        left -= round(large.getlength(label) + small.getlength(verdict)) + GAP + 2
        if left < 0:
            words.append(("…", FAINT, ""))
            break
        words.append((label, INK if is_hit is None else GREEN if is_hit else RED, verdict))
    for text, colour, verdict in reversed(words):
        draw.text((start, y + 24), text, colour, large, anchor="ls")
        start += round(large.getlength(text)) + 2
        draw.text((start, y + 24), verdict, colour, small, anchor="ls")
        start += round(small.getlength(verdict)) + GAP
