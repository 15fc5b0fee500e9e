"""What is behind and beside a street number: walls, plates, frames, pipes, screws, shadows."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]
Rect = tuple[float, float, float, float]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def colour(rng: np.random.Generator, low: float = 15, high: float = 245) -> np.ndarray:
    """A colour, float32 (3,) in 0..255, of any brightness between the two: greyish, half of them warm as brick; few are vivid."""
    grey = low + (high - low) * rng.random()
    strength = 0.22 * rng.random() if rng.random() < 0.8 else 0.75 * rng.random()
    angle = 0.2 + 0.7 * rng.random() if rng.random() < 0.5 else 2 * math.pi * rng.random()
    tint = np.array([math.cos(angle), math.cos(angle - 2.1), math.cos(angle + 2.1)], np.float32)
    return np.clip(grey + 110 * strength * tint, 0, 255).astype(np.float32)


def against(rng: np.random.Generator, ground: np.ndarray, contrast: float) -> np.ndarray:
    """A colour whose brightness is `contrast` away from the ground's, on the side where there is room."""
    base, level = colour(rng), float(ground @ LUMA)
    up = 255 - level
    brighter = rng.random() < 0.5 if min(up, level) > contrast else up > level
    wanted = min(max(level + (contrast if brighter else -contrast), 0.0), 255.0)
    return np.clip(base + (wanted - float(base @ LUMA)), 0, 255).astype(np.float32)


def clouds(rng: np.random.Generator, size: tuple[int, int], across: int, down: int) -> np.ndarray:
    """Smooth noise of standard deviation about 1, float32 (H, W)."""
    coarse = rng.standard_normal((down, across), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def wall(rng: np.random.Generator, size: tuple[int, int], ground: np.ndarray, digits: Rect) -> Image.Image:
    """Paints the wall: its colour, light and stains, courses of brick or planks, and what stands beside the number.

    Args:
        size: width and height, px.
        ground: the wall's colour.
        digits: the room that the number takes, which stays clear; x0, y0, x1, y1 in px.

    Returns:
        An RGB image.
    """
    light = clouds(rng, size, 2, 2) * (4 + 14 * rng.random()) + clouds(rng, size, 7, 4) * (9 * rng.random() ** 2)
    picture = Image.fromarray(np.clip(ground + light[..., None], 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    kind = rng.random()
    if kind < 0.3:
        _courses(rng, draw, size, ground, bricks=kind < 0.18)
    for _ in range(int(rng.random() * 3)):
        _beside(rng, draw, size, ground, digits)
    return picture


def _tone(ground: np.ndarray, change: float) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(ground + change, 0, 255))


def _courses(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], ground: np.ndarray, bricks: bool) -> None:
    """Joints between bricks or planks."""
    width, height = size
    tone = _tone(ground, (-1 if rng.random() < 0.7 else 1) * (15 + 40 * rng.random()))
    step = max(4.0, height * (0.12 + 0.25 * rng.random()))
    upright = not bricks and rng.random() < 0.5
    place, row = step * rng.random(), 0
    thick = max(1, round(step * 0.06))
    while place < (width if upright else height):
        if upright:
            draw.line((place, 0, place, height), tone, thick)
        else:
            draw.line((0, place, width, place), tone, thick)
            if bricks:
                long = 2.6 * step
                for joint in np.arange((row % 2) * long / 2 - long * 0.2, width, long):
                    draw.line((joint, place, joint, place + step), tone, thick)
        place, row = place + step, row + 1


def _beside(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], ground: np.ndarray, digits: Rect) -> None:
    """A door frame, a pipe, a ledge, a leaf or a bell, outside the room of the number."""
    width, height = size
    x0, y0, x1, y1 = digits
    tone = tuple(int(value) for value in colour(rng)) if rng.random() < 0.6 else _tone(ground, 90 * (rng.random() - 0.5))
    kind = rng.random()
    left = rng.random() < 0.5
    if kind < 0.55:  # upright, at one side, up to the edge or as a bar
        edge = (x0 - 2) * rng.random() if left else x1 + 2 + (width - x1 - 2) * rng.random()
        lean = 0.12 * width * (rng.random() - 0.5)
        lean = min(lean, max(x0 - 2 - edge, 0.0)) if left else max(lean, min(x1 + 2 - edge, 0.0))
        far = 0.0 if left else float(width)
        if rng.random() < 0.5:
            bar = (0.02 + 0.1 * rng.random()) * width
            far = edge - bar if left else edge + bar
        draw.polygon([(far, 0), (edge, 0), (edge + lean, height), (far if far in (0.0, width) else far + lean, height)], fill=tone)
    elif kind < 0.75:  # a ledge above or below
        edge = (y0 - 1) * rng.random() if left else y1 + 1 + (height - y1 - 1) * rng.random()
        draw.rectangle((0, min(edge, 0 if left else height), width, max(edge, 0 if left else height)), fill=tone)
    else:
        radius = height * (0.05 + 0.12 * rng.random())
        x = (x0 - radius) * rng.random() if left else x1 + radius + (width - x1) * rng.random()
        y = height * rng.random()
        if x + radius < x0 or x - radius > x1:
            draw.ellipse((x - radius, y - radius * (0.5 + 0.5 * rng.random()), x + radius, y + radius), fill=tone)


def plate(rng: np.random.Generator, picture: Image.Image, shade: np.ndarray, digits: Rect) -> None:
    """Paints the plate that the number stands on: round-cornered, a rim, screws."""
    draw = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = digits
    tall = y1 - y0
    dx, dy = tall * (0.15 + 0.5 * rng.random()), tall * (0.1 + 0.35 * rng.random())
    box = (x0 - dx, y0 - dy, x1 + dx, y1 + dy)
    radius = min(tall * 0.3 * rng.random() ** 2, (y1 - y0) / 2)
    fill = tuple(int(value) for value in shade)
    rim = tuple(int(value) for value in against(rng, shade, 40 + 120 * rng.random())) if rng.random() < 0.45 else None
    if rng.random() < 0.12:
        draw.ellipse((x0 - dx - tall * 0.2, y0 - dy - tall * 0.15, x1 + dx + tall * 0.2, y1 + dy + tall * 0.15), fill, rim)
        return
    draw.rounded_rectangle(box, radius, fill, rim, max(1, round(tall * 0.05)))
    if rng.random() < 0.3:
        dot, tone = max(0.6, tall * 0.035), _tone(shade, -70 if rng.random() < 0.8 else 60)
        for x in (box[0] + 0.3 * dx, box[2] - 0.3 * dx):
            y = (box[1] + box[3]) / 2 if rng.random() < 0.5 else box[1] + 0.4 * dy
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=tone)
