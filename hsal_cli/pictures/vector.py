"""Pictures for papers: what is drawn as shapes and text stays shapes and text, in an SVG; images are embedded as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw

from hsal_cli.pictures.palette import PAPER, Colour
from hsal_cli.pictures.writing import MARK
from hsal_cli.words import plain

ANCHORS = {"l": "start", "m": "middle", "r": "end"}


class Raster:
    """A sheet of pixels, with the pen that draws on it.

    Args:
        size: width and height, px.
    """

    def __init__(self, size: tuple[int, int]):
        self.image = Image.new("RGB", size, PAPER)
        self.draw: Any = ImageDraw.Draw(self.image)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.image.size

    def paste(self, what: Image.Image | Raster, place: Sequence[int]) -> None:
        """Puts an image, or another sheet, with its upper left corner at a place, px."""
        self.image.paste(what.image if isinstance(what, Raster) else what, (place[0], place[1]))

    def cut(self, width: int) -> None:
        """Takes off what lies to the right of a width, px."""
        self.image = self.image.crop((0, 0, width, self.image.height))


class Vector:
    """The same as an SVG; it is its own pen, with those strokes of `ImageDraw` that pictures here are made of."""

    def __init__(self, size: tuple[int, int]):
        self.size, self.parts = size, list[str]()

    @property
    def draw(self) -> Vector:
        """What draws on it."""
        return self

    def paste(self, what: Image.Image | Vector, place: Sequence[int]) -> None:
        """Puts an image, or another sheet, with its upper left corner at a place, px."""
        if isinstance(what, Vector):
            self.parts.append(f'<g transform="translate({place[0]} {place[1]})">{"".join(what.parts)}</g>')
            return
        stream = io.BytesIO()
        what.save(stream, "PNG", optimize=True)
        data = base64.b64encode(stream.getvalue()).decode()
        size = f'width="{what.width}" height="{what.height}"'
        self.parts.append(f'<image x="{place[0]}" y="{place[1]}" {size} href="data:image/png;base64,{data}"/>')

    def cut(self, width: int) -> None:
        """Takes off what lies to the right of a width, px."""
        self.size = (width, self.size[1])

    def text(self, place: Sequence[float], text: str, fill: Colour, font: Any, anchor: str = "la") -> None:
        """A text as text, of the length that it has in pixels, whatever font the reader has."""
        ascent = font.getmetrics()[0] if anchor[1] == "a" else 0
        where = f'x="{place[0]:g}" y="{place[1] + ascent:g}" font-size="{font.size}" text-anchor="{ANCHORS[anchor[0]]}"'
        length = f'textLength="{font.getlength(text):.1f}" lengthAdjust="spacingAndGlyphs"'
        self.parts.append(f"<text {where} {length} fill={_colour(fill)}>{escape(plain(text))}</text>" if text else "")

    def rectangle(self, box: Sequence[float], fill: Colour | None = None, outline: Colour | None = None, width: int = 1) -> None:
        """A rectangle; the last pixel belongs to it, and its outline lies inside."""
        x0, y0, x1, y1 = box
        inset = width / 2 if outline else 0.0
        size = f'width="{x1 - x0 + 1 - 2 * inset:g}" height="{y1 - y0 + 1 - 2 * inset:g}"'
        crisp = "" if outline else ' shape-rendering="crispEdges"'  # else white shows between the cells of a map
        self.parts.append(f'<rect x="{x0 + inset:g}" y="{y0 + inset:g}" {size} {_painted(fill, outline, width)}{crisp}/>')

    def ellipse(self, box: Sequence[float], fill: Colour | None = None, outline: Colour | None = None, width: int = 1) -> None:
        """An ellipse in a box, likewise."""
        x0, y0, x1, y1 = box
        radii = [(high - low + 1 - (width if outline else 0)) / 2 for low, high in ((x0, x1), (y0, y1))]
        centre = f'cx="{(x0 + x1 + 1) / 2:.2f}" cy="{(y0 + y1 + 1) / 2:.2f}"'
        self.parts.append(f'<ellipse {centre} rx="{radii[0]:.2f}" ry="{radii[1]:.2f}" {_painted(fill, outline, width)}/>')

    def line(self, ends: Sequence[float], fill: Colour, width: int = 1) -> None:
        """A straight line."""
        x0, y0, x1, y1 = ends
        self.parts.append(f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" {_painted(None, fill, width)}/>')

    def svg(self) -> bytes:
        """The file."""
        width, height = self.size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        paper = f'<rect width="100%" height="100%" fill={_colour(PAPER)}/>'
        body = "\n".join(part for part in self.parts if part)
        return f'<!-- {MARK} -->\n{head} font-family="Helvetica, Arial, sans-serif">\n{paper}\n{body}\n</svg>\n'.encode()


def pdf(picture: Image.Image) -> bytes:
    """A picture as a PDF of one page; its first comment, which is Pillow's, says hsal instead."""
    stream = io.BytesIO()
    picture.save(stream, "PDF", resolution=150, quality=100, subsampling=0)  # JPEG inside: letters would get halos
    head, comment, rest = stream.getvalue().split(b"\n", 2)
    return b"\n".join([head, f"% {MARK}".encode().ljust(len(comment)), rest])


def _colour(colour: Colour) -> str:
    return f'"#{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}"'


def _painted(fill: Colour | None, outline: Colour | None, width: int) -> str:
    stroke = f' stroke={_colour(outline)} stroke-width="{width}"' if outline else ""
    return f"fill={_colour(fill) if fill else chr(34) + 'none' + chr(34)}{stroke}"
