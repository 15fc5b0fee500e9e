"""Saliency on photographs (figures 3 and 4): the image, and maps laid over it, each model beside the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from hsal_cli.pictures.marks import Box, cell_box, draw_legend, draw_ring, panel_size
from hsal_cli.pictures.palette import INK, PAPER, font, heat
from hsal_cli.pictures.trajectory import GAP, MARGIN, WIDEST, side_by_side
from hsal_cli.words import brief

SIDE = 232  # side of a square panel, px; others have its area
TITLE, HEAD, LEGEND = 34, 24, 34  # heights of the lines of text, px
COVER = 0.35  # how much of its lightness a map lends to the image under it
TINT = 0.9  # and how much of its colour
BLACK = 50  # grey that black is shown as, under a map
GRID = 0.35  # how much of the paper's colour the lines between cells have
DENSE = 9  # px; cells smaller than this get no lines, which would hide what they are to show


@dataclasses.dataclass(frozen=True)
class SaliencyView:
    """One model's map of one image; `map`: (h, w) float, raw, >= 0."""

    title: str
    map: np.ndarray

    @property
    def maximum(self) -> tuple[int, int] | None:
        """Row and column of the highest cell, the first of equals; None where all are equal."""
        flat = self.map.max() <= self.map.min()
        return None if flat else tuple(int(place) for place in np.unravel_index(self.map.argmax(), self.map.shape))


def panel_boxes(image: np.ndarray, panels: int) -> list[Box]:
    """Where the panels stand, px: x0, y0, x1, y1, half-open."""
    width, height = panel_size(image, SIDE)
    column, row = max(width, 150) + GAP, height + HEAD + GAP
    across = side_by_side(panels, column, WIDEST)
    places = [divmod(place, across) for place in range(panels)]
    corners = [(MARGIN + x * column, MARGIN + TITLE + HEAD + y * row) for y, x in places]
    return [(x, y, x + width, y + height) for x, y in corners]


def draw_saliency(name: str, image: np.ndarray, views: Sequence[SaliencyView]) -> Image.Image:
    """Draws an image, uint8 (H, W, 3), and at least one map of it."""
    boxes = panel_boxes(image, len(views) + 1)
    legend = _legend()
    title = brief(Path(name).name)
    widest = max(legend.width, font(20).getlength(title))
    size = (max(max(box[2] for box in boxes), MARGIN + math.ceil(widest)) + MARGIN, boxes[-1][3] + GAP + LEGEND + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, font(20))
    photo = Image.fromarray(image).resize(panel_size(image, SIDE), Image.Resampling.LANCZOS)
    for box, heading in zip(boxes, ["image", *(view.title for view in views)], strict=True):
        draw.text((box[0], box[1] - 6), heading, INK, font(15), anchor="ls")
    picture.paste(photo, boxes[0][:2])
    for box, view in zip(boxes[1:], views, strict=True):
        picture.paste(overlay(photo, view.map), box[:2])
        if view.maximum is not None:
            draw_ring(draw, cell_box(box, view.maximum, view.map.shape), 3)
    picture.paste(legend, (MARGIN, boxes[-1][3] + GAP))
    return picture


def overlay(photo: Image.Image, map_: np.ndarray) -> Image.Image:
    """The photo in grey under the colours of a map scaled to [0, 1], with lines between the cells."""
    width, height = photo.size
    rows = np.minimum((np.arange(height) + 0.5) * map_.shape[0] / height, map_.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(width) + 0.5) * map_.shape[1] / width, map_.shape[1] - 1).astype(int)
    low, high = float(map_.min()), float(map_.max())
    values = (map_ - low) / (high - low) if high > low else np.zeros(map_.shape)
    colours = heat(values)[rows][:, columns].astype(np.float64)
    # Grey, since the colours are the map's; of full contrast, since little of it shows; brightened, since black would darken them all.
    seen = ImageOps.autocontrast(photo.convert("L"), cutoff=1)
    grey = BLACK + np.asarray(seen, dtype=np.float64)[..., None] * ((255 - BLACK) / 255)
    pixels = _under(colours, grey)
    if min(width / map_.shape[1], height / map_.shape[0]) >= DENSE:
        lines = np.zeros((height, width), bool)
        lines[np.flatnonzero(np.diff(rows)) + 1] = True
        lines[:, np.flatnonzero(np.diff(columns)) + 1] = True
        pixels[lines] = (1 - GRID) * pixels[lines] + GRID * np.array(PAPER, dtype=np.float64)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _under(colours: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """The colours of a map with an image under them, whose light and dark they hardly change, so that it can still be read."""
    light = colours @ np.array([0.299, 0.587, 0.114])
    tinted = (1 - COVER) * grey + COVER * light[..., None] + TINT * (colours - light[..., None])
    return tinted.clip(0, 255)


def _legend() -> Image.Image:
    """What the colours and the mark mean."""
    mixed = _under(heat(np.linspace(0, 1, 120))[None].astype(np.float64), np.full((1, 120, 1), 120.0))  # as over a mid-grey image
    bar = Image.fromarray(np.repeat(mixed.round().astype(np.uint8), 14, axis=0))
    parts = [
        (None, 0, "lowest"),
        (lambda picture, x: picture.paste(bar, (x - 10, 7)), 116, "highest saliency of the map"),
        (lambda picture, x: draw_ring(ImageDraw.Draw(picture), (x, 7, x + 14, 21), 3), 20, "its maximum"),
    ]
    return draw_legend(parts, LEGEND)
