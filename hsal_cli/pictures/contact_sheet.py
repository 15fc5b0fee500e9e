"""Contact sheets: many images of a scene file on one page, with their boxes and label multisets."""

from __future__ import annotations

from collections import Counter

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hsal_cli.pictures.palette import INK, PAPER
from hsal_cli.pictures.palette import ORANGE as BOX
from hsal_cli.pictures.palette import font as font_of
from hsal_cli.words import brief

TILE = 200  # side that an image is enlarged or reduced to, px, about
GAP = 12
TEXT = 16
LINES = 2  # of a caption at most


def contact_sheet(images: np.ndarray, labels: np.ndarray, boxes: np.ndarray | None, classes: list[str], columns: int = 6) -> Image.Image:
    """Draws a tidy grid of images.

    Args:
        images: uint8 (n, H, W) or (n, H, W, 3), n >= 1.
        labels: (n, L), index into classes, padded with -1; the multiset stands under its image in the order of the classes, {} for none.
        boxes: (n, L, 4) x0, y0, x1, y1 in px, half-open, padded with -1; None where unknown.
        classes: the class names.
        columns: images in a row.

    Returns:
        An RGB image.
    """
    height, width = images.shape[1:3]
    scale = TILE / max(height, width)
    # Whole factors keep pixels square; an image that is larger than its place is reduced smoothly.
    scale = float(round(scale)) if scale >= 1 else scale
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    font = font_of(TEXT)
    step_x = max(tile[0], TEXT * 4) + GAP
    captions = [_caption(own, classes, font, step_x - GAP) for own in labels]
    step_y = tile[1] + max(map(len, captions)) * TEXT + 2 * GAP
    sheet = Image.new("RGB", (GAP + columns * step_x, GAP + rows * step_y), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (image, own) in enumerate(zip(images, labels, strict=True)):
        left, top = GAP + number % columns * step_x, GAP + number // columns * step_y
        resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(image).convert("RGB").resize(tile, resample), (left, top))
        for box in [] if boxes is None else boxes[number][own >= 0]:
            x0, y0, x1, y1 = (float(side) * scale for side in box)
            corners = [left + x0 - 1, top + y0 - 1, left + x1, top + y1]
            limits = (left, top, left + tile[0] - 1, top + tile[1] - 1)
            x0, y0, x1, y1 = (min(max(round(c), limits[place % 2]), limits[place % 2 + 2]) for place, c in enumerate(corners))
            # A dark line around it, for images that are light or orange themselves.
            around = (max(x0 - 1, left), max(y0 - 1, top), min(x1 + 1, limits[2]), min(y1 + 1, limits[3]))
            draw.rectangle(around, outline=INK)
            draw.rectangle((x0, y0, x1, y1), outline=BOX, width=1 if scale < 1 else 2)
        for line, text in enumerate(captions[number]):
            draw.text((left, top + tile[1] + GAP // 3 + line * TEXT), text, fill=INK, font=font)
    return sheet


def _caption(labels: np.ndarray, classes: list[str], font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """The label multiset in the order of the classes, each with how often it occurs, in as few lines of that room as it takes.

    Of what two lines do not hold it is said how many labels it is.

    Classes of one sign are repeated, which is as short: 3, 3, 5.
    """
    counts = Counter(sorted(labels[labels >= 0].tolist()))
    if all(len(name) == 1 for name in classes):
        parts = [(brief(classes[label]), 1) for label in counts.elements()]
    else:
        parts = [(brief(classes[label]) + (f" x{count}" if count > 1 else ""), count) for label, count in counts.items()]
    for shown in range(len(parts), -1, -1):
        left = sum(count for _, count in parts[shown:])
        lines = _lines([*(name for name, _ in parts[:shown]), *([f"+{left}"] if left else [])] or ["{}"], font, room)
        if len(lines) <= LINES and all(font.getlength(line) <= room for line in lines):
            break
    return lines


def _lines(parts: list[str], font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """Texts with commas between them, broken behind a comma where a line would be longer than the room."""
    lines = [parts[0]]
    for part in parts[1:]:
        if font.getlength(f"{lines[-1]}, {part},") <= room:
            lines[-1] += f", {part}"
        else:
            lines[-1] += ","
            lines.append(part)
    return lines
