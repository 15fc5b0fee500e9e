"""Typefaces for street numbers: Pillow's own, the embedded pen strokes drawn with a broad pen, and the system's TrueType fonts."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hsal_cli.errors import FileError
from hsal_cli.scenes.digits.stroke_shapes import WAYS
from hsal_cli.scenes.digits.strokes import parse_way
from hsal_cli.storage.files import regular

HEIGHT = 64  # of the largest drawing of a digit, px; the smaller ones are halved from it
LEVELS = 4
FILES_LOOKED_AT, FILES_TAKEN = 400, 60
LIKENESS = 7  # of a font's ten digits that must look most like their own among the reference's: symbol fonts do not
PENS = (0.062, 0.085, 0.115)  # radius of the pen, as a share of the digit's height
STROKE_FACES = 4
LETTERS = "ABCDEFHKLMNPRSTUVWY"

Levels = tuple[Image.Image, ...]


@dataclasses.dataclass(frozen=True)
class Typeface:
    """Ten digits of one hand.

    Attributes:
        name: what it is called in the scene file's record.
        source: sha256 of the font file; "pillow" or "hsal" for what comes along.
        digits: for each digit its ink in grey, tight, 64 px high, and ever halved.
    """

    name: str
    source: str
    digits: tuple[Levels, ...]


def find_typefaces(system: bool) -> list[Typeface]:
    """All typefaces at hand, in an order that depends on the font files alone.

    Args:
        system: take the system's fonts too.
    """
    faces = [*_pillow_faces(), *_stroke_faces()]
    if system:
        faces += _system_faces(faces[0])
    return faces


def letters() -> list[Levels]:
    """Capital letters, which stand beside numbers without being asked for."""
    font = _pillow_font()
    if font is None:
        return []
    return [levels for letter in LETTERS if (levels := _drawn(font, letter, 0)) is not None]


def _pillow_font() -> ImageFont.FreeTypeFont | None:
    try:
        font = ImageFont.load_default(size=2 * HEIGHT)
    except (TypeError, OSError, ImportError):  # Pillow before 10.1, or built without FreeType
        return None
    return font if isinstance(font, ImageFont.FreeTypeFont) else None


def _pillow_faces() -> list[Typeface]:
    font = _pillow_font()
    return [] if font is None else _weights(font, "pillow", "pillow", (0, 4, 9))


def _weights(font: ImageFont.FreeTypeFont, name: str, source: str, strokes: tuple[int, ...]) -> list[Typeface]:
    """A font's digits, as they are and with their outlines thickened by so many px."""
    faces = []
    for stroke in strokes:
        digits = [_drawn(font, str(digit), stroke) for digit in range(10)]
        if all(digit is not None for digit in digits):
            faces.append(Typeface(f"{name}+{stroke}" if stroke else name, source, tuple(digits)))
    return faces


def _drawn(font: ImageFont.FreeTypeFont, text: str, stroke: int) -> Levels | None:
    """Draws a character; None where the font has no ink for it."""
    canvas = Image.new("L", (6 * HEIGHT, 4 * HEIGHT))
    ImageDraw.Draw(canvas).text((HEIGHT, HEIGHT // 2), text, 255, font, stroke_width=stroke)
    return _levels(canvas)


def _levels(canvas: Image.Image) -> Levels | None:
    """Cuts a drawing to its ink, and halves it again and again."""
    bounds = canvas.point(lambda grey: 255 * (grey >= 64)).getbbox()
    if bounds is None:
        return None
    ink = canvas.crop(bounds)
    ink = ink.resize((max(4, round(ink.width * HEIGHT / ink.height)), HEIGHT), Image.Resampling.LANCZOS)
    levels = [ink]
    for _ in range(LEVELS - 1):
        last = levels[-1]
        levels.append(last.resize((max(2, (last.width + 1) // 2), last.height // 2), Image.Resampling.BOX))
    return tuple(levels)


def _stroke_faces() -> list[Typeface]:
    """Faces of the pen strokes: the ways of writing a digit, each drawn with three pens."""
    grid = (np.arange(HEIGHT * 2) + 0.5) / HEIGHT - 0.5  # the unit square and half of it around
    y, x = np.meshgrid(grid, grid, indexing="ij")
    drawn: dict[tuple[int, int], np.ndarray] = {}
    for digit, ways in enumerate(WAYS):
        for way in range(min(STROKE_FACES, len(ways))):
            points, curve, _ = parse_way(ways[way][1])
            path = curve @ (points * (0.62, 1.0))  # numbers on houses are slim
            square = np.full(x.shape, np.inf)
            for place_x, place_y in path:
                np.minimum(square, (x - place_x) ** 2 + (y - place_y) ** 2, out=square)
            drawn[digit, way] = np.sqrt(square)
    faces = []
    for face in range(STROKE_FACES):
        for pen in PENS:
            digits = []
            for digit, ways in enumerate(WAYS):
                distance = drawn[digit, face % min(STROKE_FACES, len(ways))]
                ink = np.clip((pen - distance) * HEIGHT + 0.5, 0, 1)
                digits.append(_levels(Image.fromarray(np.rint(255 * ink).astype(np.uint8))))
            faces.append(Typeface(f"strokes-{face}-{pen}", "hsal", tuple(digits)))
    return faces


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]


def _system_faces(reference: Typeface) -> list[Typeface]:
    """The system's fonts whose digits look like digits, each file's first face, regular and thickened."""
    files: dict[str, Path] = {}
    for folder in _font_folders():
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.suffix.lower() in (".ttf", ".otf"):
                files.setdefault(path.name, path)
    names = sorted(files)[:FILES_LOOKED_AT]
    shapes = _shapes(reference)
    taken: list[tuple[str, ImageFont.FreeTypeFont, str]] = []
    for name in names:
        try:
            source = hashlib.sha256(regular(files[name]).read_bytes()).hexdigest()
            font = ImageFont.truetype(str(files[name]), 2 * HEIGHT)
            faces = _weights(font, name, source, (0,))
        except (FileError, OSError, ValueError, ImportError):
            continue
        if faces and _alike(_shapes(faces[0]), shapes) >= LIKENESS:
            taken.append((name, font, source))
    if len(taken) > FILES_TAKEN:
        taken = [taken[place * len(taken) // FILES_TAKEN] for place in range(FILES_TAKEN)]
    return [face for name, font, source in taken for face in _weights(font, name, source, (0, 4))]


def _shapes(face: Typeface) -> np.ndarray:
    """The ten digits in 16x16 px, centred and of length 1, (10, 256)."""
    small = np.stack([np.asarray(digit[0].resize((16, 16), Image.Resampling.BOX), np.float64).ravel() for digit in face.digits])
    small -= small.mean(axis=1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-9)


def _alike(shapes: np.ndarray, reference: np.ndarray) -> int:
    return int((np.argmax(shapes @ reference.T, axis=1) == np.arange(10)).sum())
