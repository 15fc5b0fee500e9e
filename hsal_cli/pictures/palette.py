"""Colours that colour-blind readers can tell apart, one scale for all maps, and the font."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFont

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
    """Colours, uint8 (..., 3), of a map (...), clipped to [0, 1]."""
    place = np.clip(values, 0, 1) * (len(SCALE) - 1)
    marks = np.arange(len(SCALE))
    return np.stack([np.interp(place, marks, SCALE[:, channel]) for channel in range(3)], axis=-1).round().astype(np.uint8)


class Letters(ImageFont.FreeTypeFont):
    """Pillow's own font where it has all signs of a text, else DejaVu Sans, which comes with matplotlib and has most alphabets.

    A subclass, since `ImageDraw.text` asks what class a font is of; it only hands on what is asked of it.

    Attributes:
        size: px.
    """

    def __init__(self, size: int) -> None:
        self.size = size  # the faces hold all else

    def getlength(self, text: str, *args: Any, **named: Any) -> float:
        """Length of a text, px."""
        return self._face(text).getlength(text, *args, **named)

    def getbbox(self, text: str, *args: Any, **named: Any) -> tuple[float, float, float, float]:
        """Box of a text, px."""
        return self._face(text).getbbox(text, *args, **named)

    def getmetrics(self) -> tuple[int, int]:
        """Height above and depth below the line that letters stand on, px."""
        return self._face("").getmetrics()

    def getmask2(self, text: str, *args: Any, **named: Any) -> Any:
        """The text drawn, and its offset."""
        return self._face(text).getmask2(text, *args, **named)

    def _face(self, text: str) -> ImageFont.FreeTypeFont:
        return _own_face(self.size) if text.replace("…", "").isascii() else _wide_face(self.size)


@functools.cache
def _own_face(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@functools.cache
def _wide_face(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def font(size: int) -> Letters | ImageFont.ImageFont:
    """The font of all pictures, size in px."""
    try:
        _own_face(size)
    except (TypeError, OSError):  # Pillow before 10.1, or without FreeType, has one size only
        return ImageFont.load_default()
    return Letters(size)
