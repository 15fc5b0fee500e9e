"""Pictures of what a policy looked at, in the form of the paper's figures 2 and 12: a column a meta-step.

From top to bottom: the image with numbered glimpses and the outline of the covert mask; the saliency map S_t; the covert attention
mask M_t with the centres of its Gaussians; the priority map P_t; the likeliest classes; the label that is named, with its probability.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from hsal_cli.pictures.marks import BAR, Box, draw_centres, draw_classes, draw_glimpses, draw_map, outlined, shortened, to_maximum
from hsal_cli.pictures.palette import FAINT, GREEN, INK, ORANGE, PAPER, RED, SKY, Colour, font, heat

if TYPE_CHECKING:
    from hsal_cli.evaluation.look import Look, LookStep

ROWS = (("image", "and glimpses", ""), ("saliency", "map", "S"), ("covert", "mask", "M"), ("priority", "map", "P"))
MARGIN, GAP = 16, 10  # px
LEFT = 96  # width of the row labels
TITLE, STEP, NAMED, LEGEND = 52, 20, 62, 30  # heights of the lines of text
CLASSES = 5  # at most, in a column
LONGEST = 1.6  # a panel's longest side, in sides of the square panel of equal area


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the panels of one trajectory stand, px from its upper left corner.

    Attributes:
        panel: (width, height) of a panel; its proportions are the image's.
        steps: columns, at least 1.
        classes: how many class probabilities a column shows.
    """

    panel: tuple[int, int]
    steps: int
    classes: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole trajectory."""
        return LEFT + self.steps * (self.column + GAP) - GAP, self.bars(0)[3] + NAMED

    @property
    def column(self) -> int:
        """Width of a column: a panel, or what labels and bars need."""
        return max(self.panel[0], 112)

    def box(self, row: int, step: int) -> Box:
        """The panel of a row (0 to 3) and a step: x0, y0, x1, y1, half-open."""
        width, height = self.panel
        x = LEFT + step * (self.column + GAP) + (self.column - width) // 2
        y = TITLE + STEP + row * (height + GAP)
        return x, y, x + width, y + height

    def bars(self, step: int) -> Box:
        """Where the class probabilities of a step stand."""
        x, y = LEFT + step * (self.column + GAP), self.box(len(ROWS) - 1, step)[3] + GAP
        return x, y, x + self.column, y + self.classes * BAR


def layout_of(look: Look, side: int = 168) -> Layout:
    """The layout of a trajectory whose panels have the area of a square of this side, px."""
    height, width = look.image.shape[:2]
    scale = min(side / math.sqrt(width * height), LONGEST * side / max(width, height))
    classes = min(CLASSES, len(look.steps[0].classes)) if look.steps else 0
    return Layout((max(1, round(width * scale)), max(1, round(height * scale))), max(1, len(look.steps)), classes)


def remaining(labels: Sequence[str], truth: Sequence[str]) -> list[list[str]]:
    """The multiset that is still to be named before each label, and after the last (A_t of section 4.2), in the order of the truth."""
    left = [list(truth)]
    for label in labels:
        left.append(list(left[-1]))
        if label in left[-1]:
            left[-1].remove(label)
    return left


def hits(labels: Sequence[str], truth: Sequence[str]) -> list[bool]:
    """Whether each label named was still in the remaining multiset."""
    return [label in left for label, left in zip(labels, remaining(labels, truth), strict=False)]


def draw_trajectory(look: Look, truth: Sequence[str] | None = None) -> Image.Image:
    """Draws one trajectory.

    Args:
        look: what the policy did.
        truth: the true multiset, where it is known; labels are then marked as hit or miss.
    """
    return trajectories([look], [truth])


def trajectories(
    looks: Sequence[Look], truths: Sequence[Sequence[str] | None] | None = None, columns: int = 1, side: int = 168
) -> Image.Image:
    """Draws several trajectories into one picture, row by row, with one legend.

    Args:
        looks: at least one.
        truths: the true multisets, or None for those not known.
        columns: trajectories beside each other.
        side: of a square panel, px.
    """
    truths = [None] * len(looks) if truths is None else truths
    blocks = [_draw_block(look, truth, layout_of(look, side)) for look, truth in zip(looks, truths, strict=True)]
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    widths = [max(row[place].width for row in rows if place < len(row)) for place in range(len(rows[0]))]
    legend = _legend()
    width = max(sum(widths) + 2 * GAP * (len(widths) - 1), legend.width) + 2 * MARGIN
    height = sum(max(block.height for block in row) + GAP for row in rows) + LEGEND + 2 * MARGIN
    picture = Image.new("RGB", (width, height), PAPER)
    y = MARGIN
    for row in rows:
        x = MARGIN
        for block, room in zip(row, widths, strict=False):
            picture.paste(block, (x, y))
            x += room + 2 * GAP
        y += max(block.height for block in row) + GAP
    picture.paste(legend, (MARGIN, y))
    return picture


def _draw_block(look: Look, truth: Sequence[str] | None, layout: Layout) -> Image.Image:
    title, subtitle = titles(look, truth)
    width = max(layout.size[0], *(round(font(size).getlength(text)) for text, size in ((title, 20), (subtitle, 14))))
    picture = Image.new("RGB", (width, layout.size[1]), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), title, INK, font(20))
    draw.text((0, 27), subtitle, FAINT, font(14))
    for row, (first, second, symbol) in enumerate(ROWS):
        _row_label(draw, layout.box(row, 0)[1] + layout.panel[1] // 2, first, second, symbol)
    photo = Image.fromarray(look.image).resize(layout.panel, Image.Resampling.LANCZOS)
    picture.paste(photo, layout.box(0, 0)[:2])
    right = hits(look.labels, truth) if truth is not None else [None] * len(look.steps)
    for place, (step, is_hit) in enumerate(zip(look.steps, right, strict=True)):
        _draw_step(picture, draw, layout, place, photo, step, is_hit)
    if look.steps:
        _, y0, _, y1 = layout.bars(0)
        if layout.classes:
            _row_label(draw, (y0 + y1) // 2, "class", "probability", "")
        _row_label(draw, y1 + 22, "named", "", "")
    return picture


def titles(look: Look, truth: Sequence[str] | None) -> tuple[str, str]:
    """The predicted multiset, and the true one where known; the image's name, and what was missed or wrong."""
    title, name, end = f"predicted {_multiset(look.labels)}", Path(look.name).name, f"stop {look.stop_probability:.2f} at the end"
    if truth is None:
        return title, f"{name}, {end}"
    missed, wrong = Counter(truth) - Counter(look.labels), Counter(look.labels) - Counter(truth)
    faults = [f"{what} {_multiset(which.elements())}" for what, which in (("missed", missed), ("wrong", wrong)) if which]
    return f"{title}, true {_multiset(truth)}", f"{name}, {', '.join(faults) or 'exact match'}, {end}"


def _multiset(labels: Iterable[str]) -> str:
    return "{" + ", ".join(sorted(labels)) + "}"


def _row_label(draw: ImageDraw.ImageDraw, middle: int, first: str, second: str, symbol: str) -> None:
    draw.text((0, middle - 9 * (2 if second else 1)), first, INK, font(15))
    draw.text((0, middle), second, INK, font(15))
    if symbol:
        x = font(15).getlength(second + " ")
        draw.text((x, middle), symbol, INK, font(15))
        draw.text((x + font(15).getlength(symbol), middle + 6), "t", INK, font(11))


def _draw_step(
    picture: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout, place: int, photo: Image.Image, step: LookStep, is_hit: bool | None
) -> None:
    boxes = [layout.box(row, place) for row in range(len(ROWS))]
    middle = (boxes[0][0] + boxes[0][2]) // 2
    draw.text((middle, boxes[0][1] - 4), f"step {place + 1}", FAINT, font(14), anchor="ms")
    picture.paste(outlined(photo, step), boxes[0][:2])
    for box, values in zip(boxes[1:], (step.saliency, to_maximum(step.mask), step.priority), strict=True):
        draw_map(draw, box, values)
    draw_centres(draw, boxes[2], step)
    for box in (boxes[0], boxes[3]):
        draw_glimpses(draw, box, step)
    draw_classes(draw, layout.bars(place), step.classes)
    _draw_named(draw, layout.column, (middle, layout.bars(place)[3]), step, is_hit)


def _draw_named(draw: ImageDraw.ImageDraw, room: int, top: tuple[int, int], step: LookStep, is_hit: bool | None) -> None:
    """The label that is named, with its probability, and hit or miss where that is known.

    Args:
        draw: of the picture.
        room: width, px.
        top: middle and upper edge, px; NAMED px are written on.
        step: the meta-step.
        is_hit: whether the label was still in the multiset; None: not known.
    """
    x, y = top
    colour = INK if is_hit is None else GREEN if is_hit else RED
    size = 28
    while font(size).getlength(step.label) > room and size > 13:
        size -= 1
    draw.text((x, y + 26), shortened(step.label, size, room), colour, font(size), anchor="ms")
    verdict = "" if is_hit is None else " hit" if is_hit else " miss"
    draw.text((x, y + 46), f"{step.probability:.2f}{verdict}", colour, font(14), anchor="ms")


def _legend() -> Image.Image:
    """What the marks mean, on one line."""
    small = font(13)
    parts: list[tuple[str, Colour | None]] = [("glimpse", ORANGE), ("half of the mask's maximum", SKY), ("Gaussian centres", None)]
    picture = Image.new("RGB", (700, LEGEND), PAPER)
    draw = ImageDraw.Draw(picture)
    x = 0
    for text, colour in parts:
        if colour == ORANGE:
            draw.rectangle((x, 6, x + 13, 19), outline=INK, width=4)
            draw.rectangle((x + 1, 7, x + 12, 18), outline=ORANGE, width=2)
        elif colour == SKY:
            draw.line((x, 13, x + 14, 13), INK, 5)
            draw.line((x, 13, x + 14, 13), SKY, 3)
        else:
            draw.ellipse((x + 1, 7, x + 12, 18), outline=INK, width=3)
        draw.text((x + 20, 18), text, FAINT, small, anchor="ls")
        x += 20 + round(small.getlength(text)) + 16
    draw.text((x, 18), "0", FAINT, small, anchor="ls")
    x += 12
    bar = Image.fromarray(np.repeat(heat(np.linspace(0, 1, 90))[None], 12, axis=0))
    picture.paste(bar, (x, 7))
    draw.text((x + 96, 18), "1 (mask: its maximum)", FAINT, small, anchor="ls")
    return picture.crop((0, 0, x + 96 + round(small.getlength("1 (mask: its maximum)")) + 2, LEGEND))
