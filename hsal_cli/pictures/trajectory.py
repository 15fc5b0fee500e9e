"""Pictures of what a policy looked at, in the form of the paper's figures 2 and 12: a column a meta-step.

From top to bottom: the image with numbered glimpses and the outline of the covert mask; the saliency map S_t; the covert attention
mask M_t with the centres of its Gaussians; the priority map P_t; the likeliest classes; the label that is named, with its probability.
A picture gets no wider than a page bears: long episodes go on below, in strips of as many steps as fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from hsal_cli.pictures.marks import (
    BAR,
    Box,
    draw_centres,
    draw_classes,
    draw_glimpses,
    draw_legend,
    draw_map,
    draw_ring,
    fitted,
    outlined,
    panel_size,
    part_seen,
    read_box,
    seen_in,
    shortened,
    to_maximum,
)
from hsal_cli.pictures.palette import FAINT, GREEN, INK, RED, SKY, Colour, font, heat
from hsal_cli.pictures.vector import Raster, Vector
from hsal_cli.words import brief

if TYPE_CHECKING:
    from hsal_cli.models.seen import Look, LookStep

Sheet = TypeVar("Sheet", Raster, Vector)
ROWS = (("image", "and glimpses", ""), ("saliency", "map", "S"), ("covert", "mask", "M"), ("priority", "map", "P"))
REGION = ("region", "enlarged", "")  # the row below the image, where the policy saw no more than that
MARGIN, GAP, APART = 16, 10, 30  # px; the last between trajectories
LEFT = 96  # width of the row labels
LABEL = 44  # least height of a row, px: a wide image's panels are lower than the two lines of words beside them
TITLE, STEP, NAMED, LEGEND = 52, 20, 62, 30  # heights of the lines of text
CLASSES = 5  # at most, in a column
WIDEST = 1000  # px; printed across a page of 17 cm, letters of 13 px are then 6 points high
HEADING, NAME = 480, 270  # px that a title, and the image's name in it, may take where the panels are narrower


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the panels of one trajectory stand, px from its upper left corner.

    Attributes:
        panel: (width, height) of the first row's panels; its proportions are the image's.
        part: the same of the other rows, whose proportions are those of what the policy saw of the image.
        steps: columns, at least 1.
        classes: how many class probabilities a column shows.
        rows: of panels: two lines of words and a symbol.
    """

    panel: tuple[int, int]
    part: tuple[int, int]
    steps: int
    classes: int = 0
    rows: tuple[tuple[str, str, str], ...] = ROWS

    @property
    def across(self) -> int:
        """Columns beside each other; the other steps go on below."""
        return side_by_side(self.steps, self.column + GAP, WIDEST - LEFT)

    @property
    def strip(self) -> int:
        """Height of the columns, from the step's number to the label that is named."""
        return STEP + sum(self._row(len(self.rows) - 1)) + GAP + self.classes * BAR + NAMED

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole trajectory."""
        return LEFT + self.across * (self.column + GAP) - GAP, self.bars(self.steps - 1)[3] + NAMED

    @property
    def column(self) -> int:
        """Width of a column: a panel, or what labels and bars need."""
        return max(self.panel[0], self.part[0], 112)

    def box(self, row: int, step: int) -> Box:
        """The panel of a row, from 0, and a step: x0, y0, x1, y1, half-open."""
        width, height = self.part if row else self.panel
        below, beside = divmod(step, self.across)
        top, room = self._row(row)
        x = LEFT + beside * (self.column + GAP) + (self.column - width) // 2
        y = TITLE + below * self.strip + STEP + top + (room - height) // 2
        return x, y, x + width, y + height

    def _row(self, row: int) -> tuple[int, int]:
        """(from the top of a strip's first row, height) of a row, px."""
        first, other = max(self.panel[1], LABEL), max(self.part[1], LABEL)
        return (first + GAP + (row - 1) * (other + GAP), other) if row else (0, first)

    def bars(self, step: int) -> Box:
        """Where the class probabilities of a step stand."""
        below, beside = divmod(step, self.across)
        x, y = LEFT + beside * (self.column + GAP), TITLE + (below + 1) * self.strip - NAMED - self.classes * BAR
        return x, y, x + self.column, y + self.classes * BAR


def layout_of(look: Look, side: int = 168) -> Layout:
    """The layout of a trajectory whose panels have the area of a square of this side, px."""
    steps = shown_steps(look)
    classes = min(CLASSES, len(steps[0].classes)) if steps else 0
    rows = ROWS if look.region is None else (ROWS[0], REGION, *ROWS[1:])
    return Layout(panel_size(look.image, side), panel_size(np.asarray(part_seen(look)), side), max(1, len(steps)), classes, rows)


def side_by_side(count: int, width: int, room: int) -> int:
    """How many of so many columns of a width, px, stand beside each other: those that fit, spread evenly over the rows."""
    rows = -(-count // max(1, room // width))
    return -(-count // rows)


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


def trajectories(
    looks: Sequence[Look], truths: Sequence[Sequence[str] | None] | None = None, columns: int | None = None, side: int = 168
) -> Image.Image:
    """Several trajectories as one picture of pixels (see `draw_trajectories`)."""
    return draw_trajectories(Raster, looks, truths, columns, side).image


def draw_trajectories(
    sheet: type[Sheet],
    looks: Sequence[Look],
    truths: Sequence[Sequence[str] | None] | None = None,
    columns: int | None = None,
    side: int = 168,
) -> Sheet:
    """Draws several trajectories into one picture, row by row, with one legend.

    Args:
        sheet: what is drawn on, `Raster` or `Vector`.
        looks: at least one.
        truths: the true multisets, or None for those not known.
        columns: trajectories beside each other; None: as many as a page bears.
        side: of a square panel, px.
    """
    truths = [None] * len(looks) if truths is None else truths
    blocks = [_draw_block(sheet, look, truth, layout_of(look, side)) for look, truth in zip(looks, truths, strict=True)]
    widths = _widths(blocks, columns or len(blocks))
    while columns is None and len(widths) > 1 and sum(widths) + APART * (len(widths) - 1) > WIDEST:
        widths = _widths(blocks, len(widths) - 1)
    rows = [blocks[start : start + len(widths)] for start in range(0, len(blocks), len(widths))]
    legend = _legend()
    width = max(sum(widths) + APART * (len(widths) - 1), legend.size[0]) + 2 * MARGIN
    height = sum(max(block.size[1] for block in row) + GAP for row in rows) + LEGEND + 2 * MARGIN
    picture = sheet((width, height))
    y = MARGIN
    for row in rows:
        x = MARGIN
        for block, room in zip(row, widths, strict=False):
            picture.paste(block, (x, y))
            x += room + APART
        y += max(block.size[1] for block in row) + GAP
    picture.paste(legend, (MARGIN, y))
    return picture


def _widths(blocks: Sequence[Raster | Vector], columns: int) -> list[int]:
    """How wide each of so many columns of blocks is, px."""
    return [max(block.size[0] for block in blocks[place::columns]) for place in range(min(columns, len(blocks)))]


def _draw_block(sheet: type[Sheet], look: Look, truth: Sequence[str] | None, layout: Layout) -> Sheet:
    heading = _heading(*titles(look, truth), room=max(layout.size[0], HEADING))
    width = max(layout.size[0], *(math.ceil(font(size).getlength(text)) for text, size, *_ in heading))
    picture = sheet((width, layout.size[1]))
    draw = picture.draw
    for text, size, y, colour in heading:
        draw.text((0, y), text, colour, font(size), anchor="ls")
    photo = Image.fromarray(look.image).resize(layout.panel, Image.Resampling.LANCZOS)
    zoomed = None if look.region is None else part_seen(look).resize(layout.part, Image.Resampling.LANCZOS)
    steps = shown_steps(look)
    for first in range(0, max(1, len(steps)), layout.across):
        _draw_labels(draw, layout, first, bool(steps))
    if not steps:
        picture.paste(photo, layout.box(0, 0)[:2])
    right = hits(look.labels, truth) if truth is not None and look.steps else [None] * len(steps)
    for place, (step, is_hit) in enumerate(zip(steps, right, strict=True)):
        if zoomed is not None:
            box = layout.box(0, place)
            picture.paste(outlined(photo, step, seen_in((0, 0, *photo.size), look)), box[:2])
            for cell in step.glimpses:
                draw_ring(draw, read_box(seen_in(box, look), cell, step))
        seen, box = (photo, layout.box(0, place)) if zoomed is None else (zoomed, layout.box(1, place))
        picture.paste(outlined(seen, step), box[:2])
        draw_glimpses(draw, box, step, photo=seen)
        _draw_step(draw, layout, place, step, is_hit)
    return picture


def _heading(title: str, subtitle: str, room: float) -> list[tuple[str, int, int, Colour]]:
    """The lines above a trajectory: text, size, base line, colour; a long title takes two lines, the true multiset on the second."""
    if font(15).getlength(title) <= room:
        return [(*fitted(title, 20, room), 19, INK), (*fitted(subtitle, 14, room), 40, FAINT)]
    predicted, comma, true = title.partition(", true ")
    lines = [(predicted, INK), (f"true {true}", INK), (subtitle, FAINT)] if comma else [(predicted, INK), (subtitle, FAINT)]
    return [(*fitted(text, 14, room), 12 + 17 * place, colour) for place, (text, colour) in enumerate(lines)]


def shown_steps(look: Look) -> list[LookStep]:
    """The meta-steps that have a column: those that name a label; where there is none, the one that named stop."""
    return look.steps or ([look.end] if look.end is not None else [])


def _draw_labels(draw: ImageDraw.ImageDraw, layout: Layout, step: int, named: bool) -> None:
    """The words at the left of the strip that begins with a step; without any meta-step, of the image alone."""
    for row, (first, second, symbol) in enumerate(layout.rows if named else layout.rows[:1]):
        _, top, _, bottom = layout.box(row, step)
        _row_label(draw, (top + bottom) // 2, first, second, symbol)
    if named:
        _, y0, _, y1 = layout.bars(step)
        if layout.classes:
            _row_label(draw, (y0 + y1) // 2, "class", "probability", "")
        _row_label(draw, y1 + 22, "named", "", "")


def titles(look: Look, truth: Sequence[str] | None) -> tuple[str, str]:
    """The predicted multiset, and the true one where known; the image's name, what was missed or wrong, whether it is like none known."""
    title, end = f"predicted {_multiset(look.labels)}", f"stop {look.stop_probability:.2f} at the end"
    end += ", unlike the images of training" if look.unlike else ""
    name = shortened(Path(look.name).name, 14, NAME)
    if truth is None:
        return title, f"{name}, {end}"
    missed, wrong = Counter(truth) - Counter(look.labels), Counter(look.labels) - Counter(truth)
    faults = [f"{what} {_multiset(which.elements())}" for what, which in (("missed", missed), ("wrong", wrong)) if which]
    return f"{title}, true {_multiset(truth)}", f"{name}, {', '.join(faults) or 'exact match'}, {end}"


def _multiset(labels: Iterable[str]) -> str:
    return "{" + ", ".join(map(brief, sorted(labels))) + "}"


def _row_label(draw: ImageDraw.ImageDraw, middle: int, first: str, second: str, symbol: str) -> None:
    draw.text((0, middle - 9 * (2 if second else 1)), first, INK, font(15))
    draw.text((0, middle), second, INK, font(15))
    if symbol:
        x = font(15).getlength(second + " ")
        draw.text((x, middle), symbol, INK, font(15))
        draw.text((x + font(15).getlength(symbol), middle + 6), "t", INK, font(11))


def _draw_step(draw: ImageDraw.ImageDraw, layout: Layout, place: int, step: LookStep, is_hit: bool | None) -> None:
    """Draws a column but for its image."""
    boxes = [layout.box(row, place) for row in range(len(layout.rows))]
    middle = (boxes[0][0] + boxes[0][2]) // 2
    draw.text((middle, boxes[0][1] - 4), f"step {place + 1}", FAINT, font(14), anchor="ms")
    for box, values in zip(boxes[-3:], (step.saliency, to_maximum(step.mask), step.priority), strict=True):
        draw_map(draw, box, values)
    draw_centres(draw, boxes[-2], step)
    draw_glimpses(draw, boxes[-1], step)
    draw_classes(draw, layout.bars(place), step.classes)
    _draw_named(draw, layout.column, (middle, layout.bars(place)[3]), step, is_hit)


def _draw_named(draw: ImageDraw.ImageDraw, room: int, top: tuple[int, int], step: LookStep, is_hit: bool | None) -> None:
    """The label that is named, with its probability, and hit or miss where that is known, in NAMED px below a point and so much room."""
    x, y = top
    colour = INK if is_hit is None else GREEN if is_hit else RED
    label, size = fitted(step.label, 28, room)
    draw.text((x, y + 26), label, colour, font(size), anchor="ms")
    verdict = "" if is_hit is None else " hit" if is_hit else " miss"
    draw.text((x, y + 46), f"{step.probability:.2f}{verdict}", colour, font(14), anchor="ms")


def _legend() -> Image.Image:
    """What the marks mean."""

    def line(picture: Image.Image, x: int) -> None:
        ImageDraw.Draw(picture).line((x, 13, x + 14, 13), INK, 5)
        ImageDraw.Draw(picture).line((x, 13, x + 14, 13), SKY, 3)

    bar = Image.fromarray(np.repeat(heat(np.linspace(0, 1, 90))[None], 12, axis=0))
    parts = [
        (lambda picture, x: draw_ring(ImageDraw.Draw(picture), (x + 1, 7, x + 13, 19)), 20, "glimpse"),
        (line, 20, "half of the mask's maximum"),
        (lambda picture, x: ImageDraw.Draw(picture).ellipse((x + 1, 7, x + 12, 18), outline=INK, width=3), 20, "Gaussian centre"),
        (None, 0, "0"),
        (lambda picture, x: picture.paste(bar, (x - 6, 7)), 90, "1 (mask: its maximum)"),
    ]
    return draw_legend(parts, LEGEND)
