"""Colours that colour-blind readers can tell apart, one scale for all maps, and the font."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageFont

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

INK: Colour = (32, 32, 36)
FAINT: Colour = (120, 120, 126)
PALE: Colour = (228, 228, 232)
PAPER: Colour = (255, 255, 255)
ORANGE: Colour = (240, 160, 0)
SKY: Colour = (90, 190, 250)
GREEN: Colour = (0, 128, 96)
RED: Colour = (205, 75, 0)

# Dark to bright in nearly even steps of lightness, from violet over teal to yellow: read alike in colour, in grey and by colour-blind eyes.
SCALE = np.array([(38, 12, 72), (55, 58, 132), (40, 104, 142), (32, 148, 134), (104, 192, 92), (250, 228, 54)], dtype=np.float64)


def heat(values: np.ndarray) -> np.ndarray:
    """Colours of a map.

    Args:
        values: (...), clipped to [0, 1].

    Returns:
        (..., 3) uint8.
    """
    place = np.clip(values, 0, 1) * (len(SCALE) - 1)
    marks = np.arange(len(SCALE))
    return np.stack([np.interp(place, marks, SCALE[:, channel]) for channel in range(3)], axis=-1).round().astype(np.uint8)


def font(size: int) -> FreeTypeFont:
    """Pillow's own font, size in px."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # Pillow before 10.1, or without FreeType, has one size only
        return ImageFont.load_default()
