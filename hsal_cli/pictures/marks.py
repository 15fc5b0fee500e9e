"""What is drawn on a panel of figures 2 and 12: a map's cells, glimpses, the covert mask's outline, its centres, class probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from hsal_cli.pictures.palette import FAINT, INK, ORANGE, PALE, PAPER, SKY, font, heat
from hsal_cli.words import CELL, brief

if TYPE_CHECKING:
    from hsal_cli.models.seen import Look, LookStep

PLATE = 14  # height of a glimpse's number, px
BAR = 17  # height of a class probability, px
SMALL = 13  # of letters beside the panels, px
LONGEST = 1.6  # a panel's longest side, in sides of the square panel of equal area
SHORTEST = 24  # a panel's shortest side, px; a thinner image is drawn thicker than it is
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in px, half-open


def panel_size(image: np.ndarray, side: int) -> tuple[int, int]:
    """(width, height) of an image's panel, px: its proportions, the area of a square of this side, no side too long or too short."""
    height, width = image.shape[:2]
    scale = min(side / math.sqrt(width * height), LONGEST * side / max(width, height))
    least = min(SHORTEST, side)
    return max(least, round(width * scale)), max(least, round(height * scale))


def draw_ring(draw: ImageDraw.ImageDraw, box: Box, width: int = 2) -> None:
    """Outlines a box in orange, on a dark line so that it shows on any ground."""
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=width + 2)
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=ORANGE, width=width)


def draw_legend(parts: Sequence[tuple[Callable[[Image.Image, int], None] | None, int, str]], height: int) -> Image.Image:
    """What marks mean, on one line.

    Args:
        parts: for each (draw it into the picture at x, its width in px, the words behind it).
        height: of the line, px; marks stand 7 to 20 px from its top.
    """
    picture, small, x = Image.new("RGB", (1000, height), PAPER), font(SMALL), 0
    for mark, width, text in parts:
        if mark is not None:
            mark(picture, x)
        ImageDraw.Draw(picture).text((x + width, 18), text, FAINT, small, anchor="ls")
        x += width + round(small.getlength(text)) + 16
    return picture.crop((0, 0, x - 14, height))


def cell_box(box: Box, cell: tuple[int, int], grid: tuple[int, int]) -> Box:
    """Where a cell (row, column) of an h x w grid lies in a panel; a pixel at least."""
    x0, y0, x1, y1 = box
    (row, column), (height, width) = cell, grid
    xs = [x0 + round((x1 - x0) * place / width) for place in (column, column + 1)]
    ys = [y0 + round((y1 - y0) * place / height) for place in (row, row + 1)]
    return xs[0], ys[0], max(xs[0] + 1, xs[1]), max(ys[0] + 1, ys[1])


def seen_in(box: Box, look: Look) -> Box:
    """The part of the image's panel that shows what the policy saw: all of it, or the region that was found."""
    if look.region is None:
        return box
    (height, width), (x0, y0, x1, y1) = look.image.shape[:2], box
    left, top, right, bottom = look.region
    xs = [x0 + round((x1 - x0) * place / width) for place in (left, right)]
    ys = [y0 + round((y1 - y0) * place / height) for place in (top, bottom)]
    xs, ys = (([min(low, end - 1), max(high, low + 1)]) for (low, high), end in ((xs, x1), (ys, y1)))
    return xs[0], ys[0], xs[1], ys[1]


def part_seen(look: Look) -> Image.Image:
    """What the policy saw of the image: all of it, or the region that was found."""
    whole = Image.fromarray(look.image)
    return whole if look.region is None else whole.crop(look.region)


def to_maximum(mask: np.ndarray) -> np.ndarray:
    """A mask in units of its maximum, as it is coloured."""
    top = mask.max()
    return mask / top if top > 0 else mask


def draw_map(draw: ImageDraw.ImageDraw, box: Box, values: np.ndarray) -> None:
    """Colours the cells of a panel by a map (h, w) in [0, 1]."""
    colours = heat(values)
    for cell in np.ndindex(*values.shape):
        x0, y0, x1, y1 = cell_box(box, cell, values.shape)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), tuple(int(part) for part in colours[cell]))


def draw_glimpses(
    draw: ImageDraw.ImageDraw,
    box: Box,
    step: LookStep,
    taken: int | None = None,
    photo: Image.Image | None = None,
) -> None:
    """Outlines glimpses and numbers them beside their outline, which may be small; glimpses of one cell share a plate.

    Args:
        taken: only the first so many glimpses; None: all.
        photo: what the panel shows, of its size, so that plates hide little of it, and all that a glimpse reads is outlined; None: a map,
            of which the glimpsed cell is.
    """
    numbers: dict[tuple[int, int], list[int]] = {}
    for number, cell in enumerate(step.glimpses[:taken]):
        numbers.setdefault(tuple(cell), []).append(number + 1)
    places = {cell: read_box(box, cell, step) if photo is not None else cell_box(box, cell, step.mask.shape) for cell in numbers}
    thin = photo is not None and step.reads > 1  # such outlines lie on what is seen, and on each other
    for place in places.values():
        draw_ring(draw, place, 1 if thin else 2)
    plates: list[Box] = []
    for cell, place in places.items():
        plates.append(draw_plate(draw, box, place, ",".join(map(str, numbers[cell])), photo, [*places.values(), *plates]))


def read_box(box: Box, cell: tuple[int, int], step: LookStep) -> Box:
    """Where what a glimpse at a cell reads lies in a panel, as far as it lies in it."""
    beside = step.reads // 2
    (row, column), (height, width) = cell, step.mask.shape
    first, last = (max(0, row - beside), max(0, column - beside)), (min(height - 1, row + beside), min(width - 1, column + beside))
    return (*cell_box(box, first, step.mask.shape)[:2], *cell_box(box, last, step.mask.shape)[2:])


def draw_plate(
    draw: ImageDraw.ImageDraw, box: Box, cell: Box, text: str, photo: Image.Image | None = None, kept: Sequence[Box] = ()
) -> Box:
    """A word on a plate above a cell, else below, left or right of it: where the panel has room, and where it hides none of `kept` and
    least of the photo. Returns where it is.
    """
    x0, y0, x1, y1 = cell
    width = 5 + round(font(SMALL).getlength(text))
    along = max(box[0], min(x0, box[2] - width))
    corners = [(along, y0 - PLATE), (along, y1), (x0 - width, y0), (x1, y0)]
    inside = [(x, y) for x, y in corners if box[0] <= x <= box[2] - width and box[1] <= y <= box[3] - PLATE]

    def hidden(corner: tuple[int, int]) -> tuple[int, float]:
        x, y = corner
        over = sum(x < right and left < x + width and y < bottom and top < y + PLATE for left, top, right, bottom in kept)
        x, y = x - box[0], y - box[1]
        return over, 0.0 if photo is None else float(np.asarray(photo.crop((x, y, x + width, y + PLATE)).convert("L")).std())

    x, y = min(inside, key=hidden, default=(along, y1))
    draw.rectangle((x, y, x + width - 1, y + PLATE - 1), ORANGE)
    draw.text((x + 3, y + 12), text, INK, font(SMALL), anchor="ls")
    return x, y, x + width, y + PLATE


def draw_centres(draw: ImageDraw.ImageDraw, box: Box, step: LookStep) -> None:
    """A ring at each Gaussian's centre, its area as alpha."""
    x0, y0, x1, y1 = box
    height, width = step.mask.shape
    for alpha, _, _, row, column in step.gaussians:
        # Coordinates count cells from 1 at their centres, so the centre of the first one is half a cell from the edge.
        x = x0 + (column - 0.5) / width * (x1 - x0)
        y = y0 + (row - 0.5) / height * (y1 - y0)
        radius = 2 + 5 * math.sqrt(min(max(alpha, 0), 1))
        x, y = (min(max(value, low + radius), high - 1 - radius) for value, low, high in ((x, x0, x1), (y, y0, y1)))
        draw.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), outline=INK, width=3)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=PAPER, width=2)


def outlined(photo: Image.Image, step: LookStep, part: Box | None = None) -> Image.Image:
    """The image with a line where the covert mask, as a function of place, has half its maximum.

    Args:
        photo: the image.
        step: the meta-step.
        part: px of the photo that the cells divide; None: all of it.
    """
    if part is not None and part != (0, 0, *photo.size):
        photo = marked_part(photo, part)
        photo.paste(outlined(photo.crop(part), step), part[:2])
        return photo
    width, height = photo.size
    rows = (np.arange(height) + 0.5) / height * step.mask.shape[0] + 0.5
    columns = (np.arange(width) + 0.5) / width * step.mask.shape[1] + 0.5
    mask = np.zeros((height, width))
    for alpha, tall, wide, row, column in step.gaussians:
        mask += alpha * np.exp(-tall * ((rows - row) ** 2))[:, None] * np.exp(-wide * ((columns - column) ** 2))
    if min(mask.shape) < 2 or mask.max() <= 0:
        return photo
    slope = np.hypot(*np.gradient(mask))
    distance = np.abs(mask - mask.max() / 2) / np.maximum(slope, mask.max() * 1e-4)  # px from the line, to first order
    pixels = np.asarray(photo, dtype=np.float64)
    for colour, reach in ((INK, 2.6), (SKY, 1.6)):
        cover = np.clip(reach - distance, 0, 1)[..., None]
        pixels = pixels * (1 - cover) + np.array(colour) * cover
    return Image.fromarray(pixels.round().astype(np.uint8))


def marked_part(photo: Image.Image, part: Box) -> Image.Image:
    """The image with a line around a part of it."""
    photo = photo.copy()
    draw = ImageDraw.Draw(photo)
    for colour, reach in ((INK, 3), (PAPER, 1)):
        draw.rectangle((part[0] - reach, part[1] - reach, part[2] + reach - 1, part[3] + reach - 1), outline=colour, width=reach)
    return photo


def likeliest(classes: Sequence[tuple[str, float]], most: int) -> list[tuple[str, float]]:
    """The classes of the highest probabilities, highest first; of equals, the first."""
    return sorted(classes, key=lambda scored: -scored[1])[:most]


def draw_classes(draw: ImageDraw.ImageDraw, box: Box, classes: Sequence[tuple[str, float]]) -> None:
    """The likeliest classes as bars from 0 to 1, as many as there is room for: name, bar, probability."""
    x0, y0, x1, y1 = box
    shown = likeliest(classes, (y1 - y0) // BAR)
    small = font(SMALL)
    figures = round(small.getlength("0.00"))
    # The room for all names, not those shown alone, so that the bars of all steps begin at one place.
    names = min(max((round(small.getlength(brief(name))) for name, _ in classes), default=0), (x1 - x0) // 2)
    left, right = x0 + names + 6, x1 - figures - 6
    for place, (name, probability) in enumerate(shown):
        y = y0 + place * BAR
        colour = INK if place == 0 else FAINT
        draw.text((x0 + names, y + 13), shortened(name, SMALL, names), colour, small, anchor="rs")
        draw.rectangle((left, y + 3, right - 1, y + 13), PALE)
        if (length := round((right - left) * probability)) > 0:
            draw.rectangle((left, y + 3, left + length - 1, y + 13), colour)
        draw.text((x1, y + 13), f"{probability:.2f}", colour, small, anchor="rs")


def fitted(text: str, size: int, room: float) -> tuple[str, int]:
    """A word in the largest letters that fit into so many px, down to SMALL, its end cut where even these do not; and their size, px."""
    text = brief(text, CELL)
    while size > SMALL and font(size).getlength(text) > room:
        size -= 1
    return shortened(text, size, room), size


def shortened(text: str, size: int, room: float) -> str:
    """A word that fits into so many px, its end cut where it must be."""
    text = brief(text, CELL)
    while font(size).getlength(text) > room and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text
