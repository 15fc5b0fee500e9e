"""Pictures of what a policy looked at, in the form of the paper's figures 2 and 12: a column a meta-step.

From top to bottom: the image with numbered glimpses and the outline of the covert mask; the saliency map S_t; the covert attention
mask M_t with the centres of its Gaussians; the priority map P_t; the label that is named, with its probability.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from hsal_cli import __version__
from hsal_cli.files import whole
from hsal_cli.pictures.palette import FAINT, GREEN, INK, ORANGE, PAPER, RED, SKY, Colour, font, heat

if TYPE_CHECKING:
    from hsal_cli.evaluation.look import Look, LookStep

ROWS = (("image", "and glimpses", ""), ("saliency", "map", "S"), ("covert", "mask", "M"), ("priority", "map", "P"))
MARGIN, GAP = 16, 10  # px
LEFT = 96  # width of the row labels
TITLE, STEP, NAMED, LEGEND = 52, 20, 62, 30  # heights of the lines of text
PLATE = 13  # height of a glimpse's number
LONGEST = 1.6  # a panel's longest side, in sides of the square panel of equal area
BYTES = 300_000  # pictures above this size are reduced to 256 colours
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the panels of one trajectory stand, px from its upper left corner.

    Attributes:
        panel: (width, height) of a panel; its proportions are the image's.
        steps: columns, at least 1.
    """

    panel: tuple[int, int]
    steps: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole trajectory."""
        return LEFT + self.steps * (self.column + GAP) - GAP, TITLE + STEP + len(ROWS) * (self.panel[1] + GAP) + NAMED

    @property
    def column(self) -> int:
        """Width of a column: a panel, or what a label needs."""
        return max(self.panel[0], 84)

    def box(self, row: int, step: int) -> Box:
        """The panel of a row (0 to 3) and a step: x0, y0, x1, y1, half-open."""
        width, height = self.panel
        x = LEFT + step * (self.column + GAP) + (self.column - width) // 2
        y = TITLE + STEP + row * (height + GAP)
        return x, y, x + width, y + height


def layout_of(look: Look, side: int = 168) -> Layout:
    """The layout of a trajectory whose panels have the area of a square of this side, px."""
    height, width = look.image.shape[:2]
    scale = min(side / math.sqrt(width * height), LONGEST * side / max(width, height))
    return Layout((max(1, round(width * scale)), max(1, round(height * scale))), max(1, len(look.steps)))


def cell_box(box: Box, cell: tuple[int, int], grid: tuple[int, int]) -> Box:
    """Where a cell (row, column) of an h x w grid lies in a panel."""
    x0, y0, x1, y1 = box
    (row, column), (height, width) = cell, grid
    xs = [x0 + round((x1 - x0) * place / width) for place in (column, column + 1)]
    ys = [y0 + round((y1 - y0) * place / height) for place in (row, row + 1)]
    return xs[0], ys[0], xs[1], ys[1]


def hits(labels: Sequence[str], truth: Sequence[str]) -> list[bool]:
    """Whether each label named was still in the remaining multiset."""
    remaining, right = Counter(truth), []
    for label in labels:
        right.append(remaining[label] > 0)
        remaining[label] -= 1
    return right


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


def write_picture(picture: Image.Image, target: Path) -> None:
    """Writes a PNG whole or not at all, with 256 colours if it would be larger than 300 kB.

    Raises:
        FileError: the place cannot be written.
    """
    write_png(encoded(picture), target)


def write_png(png: bytes, target: Path) -> None:
    """Writes an encoded picture whole or not at all.

    Raises:
        FileError: the place cannot be written.
    """
    with whole(target) as temporary:
        temporary.write_bytes(png)


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG, with 256 colours if it would be larger than 300 kB."""
    png = _png(picture)
    return _png(picture.quantize(256, dither=Image.Dither.NONE)) if len(png) > BYTES else png


def is_ours(target: Path) -> bool:
    """Whether a file is a picture that `write_picture` made, and so may be replaced."""
    try:
        with Image.open(target) as picture:
            return str(picture.info.get("Software", "")).startswith("hsal ")
    except (OSError, ValueError, SyntaxError):
        return False


def _png(picture: Image.Image) -> bytes:
    stream, said = io.BytesIO(), PngInfo()
    said.add_text("Software", f"hsal {__version__}")
    picture.save(stream, "PNG", optimize=True, pnginfo=said)
    return stream.getvalue()


def _draw_block(look: Look, truth: Sequence[str] | None, layout: Layout) -> Image.Image:
    title, subtitle = _titles(look, truth)
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
        y = layout.box(len(ROWS) - 1, 0)[3] + GAP
        _row_label(draw, y + 22, "named", "", "")
    return picture


def _titles(look: Look, truth: Sequence[str] | None) -> tuple[str, str]:
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
    grid = step.mask.shape
    middle = (boxes[0][0] + boxes[0][2]) // 2
    draw.text((middle, boxes[0][1] - 4), f"step {place + 1}", FAINT, font(14), anchor="ms")
    picture.paste(_outlined(photo, step), boxes[0][:2])
    top = step.mask.max()
    for box, values in zip(boxes[1:], (step.saliency, step.mask / top if top > 0 else step.mask, step.priority), strict=True):
        colours = heat(values)
        for row in range(grid[0]):
            for column in range(grid[1]):
                x0, y0, x1, y1 = cell_box(box, (row, column), grid)
                draw.rectangle((x0, y0, x1 - 1, y1 - 1), tuple(int(part) for part in colours[row, column]))
    _draw_centres(draw, boxes[2], step)
    for box in (boxes[0], boxes[3]):
        _draw_glimpses(draw, box, step)
    _draw_named(draw, layout, (middle, boxes[3][3] + GAP), step, is_hit)


def _draw_named(draw: ImageDraw.ImageDraw, layout: Layout, top: tuple[int, int], step: LookStep, is_hit: bool | None) -> None:
    x, y = top
    colour = INK if is_hit is None else GREEN if is_hit else RED
    text, size = step.label, 28
    while font(size).getlength(text) > layout.column and size > 13:
        size -= 1
    while font(size).getlength(text) > layout.column and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    draw.text((x, y + 26), text, colour, font(size), anchor="ms")
    verdict = "" if is_hit is None else " hit" if is_hit else " miss"
    draw.text((x, y + 46), f"{step.probability:.2f}{verdict}", colour, font(14), anchor="ms")


def _draw_glimpses(draw: ImageDraw.ImageDraw, box: Box, step: LookStep) -> None:
    """Outlines the glimpsed cells and numbers them beside the cell, which may be small; glimpses of one cell share a plate."""
    numbers: dict[tuple[int, int], list[int]] = {}
    for number, cell in enumerate(step.glimpses):
        numbers.setdefault(tuple(cell), []).append(number + 1)
    places = {cell: cell_box(box, cell, step.mask.shape) for cell in numbers}
    for x0, y0, x1, y1 in places.values():
        draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=4)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=ORANGE, width=2)
    for cell, (x0, y0, _, y1) in places.items():
        text = ",".join(map(str, numbers[cell]))
        width = 5 + round(font(12).getlength(text))
        x = min(x0, box[2] - width)
        y = y0 - PLATE if y0 - PLATE >= box[1] else y1
        draw.rectangle((x, y, x + width - 1, y + PLATE - 1), ORANGE)
        draw.text((x + 3, y + 11), text, INK, font(12), anchor="ls")


def _draw_centres(draw: ImageDraw.ImageDraw, box: Box, step: LookStep) -> None:
    """A ring at each Gaussian's centre, its area as alpha."""
    x0, y0, x1, y1 = box
    height, width = step.mask.shape
    for alpha, _, row, column in step.gaussians:
        # Coordinates count cells from 1 at their centres, so the centre of the first one is half a cell from the edge.
        x = x0 + (column - 0.5) / width * (x1 - x0)
        y = y0 + (row - 0.5) / height * (y1 - y0)
        radius = 2 + 5 * math.sqrt(min(max(alpha, 0), 1))
        x, y = (min(max(value, low + radius), high - 1 - radius) for value, low, high in ((x, x0, x1), (y, y0, y1)))
        draw.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), outline=INK, width=3)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=PAPER, width=2)


def _outlined(photo: Image.Image, step: LookStep) -> Image.Image:
    """The image with a line where the covert mask, as a function of place, has half its maximum."""
    width, height = photo.size
    rows = (np.arange(height) + 0.5) / height * step.mask.shape[0] + 0.5
    columns = (np.arange(width) + 0.5) / width * step.mask.shape[1] + 0.5
    mask = np.zeros((height, width))
    for alpha, beta, row, column in step.gaussians:
        mask += alpha * np.exp(-beta * ((rows - row) ** 2))[:, None] * np.exp(-beta * ((columns - column) ** 2))
    if min(mask.shape) < 2 or mask.max() <= 0:
        return photo
    slope = np.hypot(*np.gradient(mask))
    distance = np.abs(mask - mask.max() / 2) / np.maximum(slope, mask.max() * 1e-4)  # px from the line, to first order
    pixels = np.asarray(photo, dtype=np.float64)
    for colour, reach in ((INK, 2.6), (SKY, 1.6)):
        cover = np.clip(reach - distance, 0, 1)[..., None]
        pixels = pixels * (1 - cover) + np.array(colour) * cover
    return Image.fromarray(pixels.round().astype(np.uint8))


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
