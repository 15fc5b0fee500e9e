"""Pen strokes as an image like those of MNIST Multiset: white ink on black, soft at its edges, as wide as the digits' own pen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 100  # px of the image, and units of the strokes
PEN = 3.6  # px: MNIST's ink is 0.135 of a digit's side, here of one of 27 px
LARGEST = 34.0  # px, of a stroke's longer side: a glyph of 50 px, the largest in training, has ink of 36
SOFT = 0.7  # px, standard deviation of the blur at the ink's edge
FINE = 8  # sub-pixels along a pixel's side

Stroke = Sequence[Sequence[float]]


def render(strokes: Sequence[Stroke]) -> np.ndarray:
    """Draws strokes; a drawing with a stroke longer than LARGEST is made smaller about the middle, as a whole.

    Args:
        strokes: points (x, y) of the pen's path each, px from the upper left corner of an image of SIDE px; what lies outside is cut off.

    Returns:
        uint8 (SIDE, SIDE).
    """
    large = Image.new("L", (SIDE * FINE, SIDE * FINE))
    draw, radius = ImageDraw.Draw(large), PEN * FINE / 2
    longest = max((float(np.ptp(np.asarray(stroke), axis=0).max()) for stroke in strokes if len(stroke)), default=0.0)
    scale = min(1.0, LARGEST / longest) if longest else 1.0
    for stroke in strokes:
        points = [tuple((SIDE / 2 + (at - SIDE / 2) * scale) * FINE for at in point) for point in stroke]
        if len(points) > 1:
            draw.line(points, fill=255, width=round(2 * radius))
        for x, y in points:  # round ends and joints
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.array(large.filter(ImageFilter.GaussianBlur(SOFT * FINE)).resize((SIDE, SIDE), Image.Resampling.BOX))
