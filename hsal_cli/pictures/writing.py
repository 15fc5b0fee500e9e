"""Writing pictures, animations and pages, each marked as made by hsal, so that only those are ever replaced."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hsal_cli import __version__
from hsal_cli.pictures.palette import FAINT, GREEN, INK, ORANGE, PALE, PAPER, RED, SKY, heat
from hsal_cli.storage.atomic import atomic_write
from hsal_cli.storage.files import refuse_foreign

FIXED, HEATS = (PAPER, INK, FAINT, PALE, ORANGE, SKY, GREEN, RED), 48  # colours that an animation keeps exactly, and those of maps
MARK = f"hsal {__version__}"


def write_picture(picture: Image.Image, target: Path) -> None:
    """Writes a PNG whole or not at all.

    Raises:
        FileError: the place cannot be written.
    """
    write_bytes(encoded(picture), target)


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG, in all its colours."""
    stream, said = io.BytesIO(), PngInfo()
    said.add_text("Software", MARK)
    picture.save(stream, "PNG", optimize=True, pnginfo=said)
    return stream.getvalue()


def write_bytes(content: bytes, target: Path) -> None:
    """Writes a picture, an animation or a page whole or not at all; one is replaced where hsal made it.

    Raises:
        FileError: the place cannot be written, or holds somebody else's file.
    """
    refuse_foreign(target)
    with atomic_write(target) as temporary:
        temporary.write_bytes(content)


def gif(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """An endless GIF of at least one RGB frame, all of one size, each shown for so many ms.

    Frames share one palette, so that what stands still costs nothing and marks have their exact colours.
    """
    # What the fixed colours leave of the palette is taken from frames spread over the whole; undithered, so that still parts stay the same.
    fixed = [*FIXED, *(tuple(colour) for colour in heat(np.linspace(0, 1, HEATS)).tolist())]
    some = frames[:: max(1, len(frames) // 6)]
    strip = np.concatenate([np.asarray(frame) for frame in some], axis=1)
    free = Image.fromarray(strip).quantize(256 - len(fixed)).getpalette()[: 3 * (256 - len(fixed))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(part for colour in fixed for part in colour), *free])
    reduced = [_reduced(frame, palette, fixed) for frame in frames]
    stream = io.BytesIO()
    reduced[0].save(stream, "GIF", save_all=True, append_images=reduced[1:], duration=list(durations), loop=0, comment=MARK.encode())
    return stream.getvalue()


def _reduced(frame: Image.Image, palette: Image.Image, fixed: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A frame in a palette that begins with the fixed colours; Pillow finds near colours, here exact ones stay exact."""
    found = frame.quantize(palette=palette, dither=Image.Dither.NONE)
    places = np.array(found)
    wanted, codes = (np.asarray(colours, dtype=np.int64) @ (65536, 256, 1) for colours in (fixed, np.asarray(frame)))
    order = np.argsort(wanted)
    nearest = order[np.searchsorted(wanted[order], codes).clip(max=len(order) - 1)]
    exact = wanted[nearest] == codes
    places[exact] = nearest[exact]
    found.frombytes(places.tobytes())
    return found
