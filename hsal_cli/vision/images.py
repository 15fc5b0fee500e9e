"""From pictures to the activation model's input (section 5: 224 x 224 px, ImageNet's mean and deviation), and where a view of one looks."""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hsal_cli.errors import FileError
from hsal_cli.storage.files import did_you_mean, regular

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, for intensities in [0, 1]
STD = (0.229, 0.224, 0.225)
# Largest change of a view: relative size, degrees, share of half the side, log of the contrast.
SCALE, TURN, SHIFT, GAIN = 0.12, 12.0, 0.06, 0.25
MOST_PIXELS = 100_000_000


def to_input(images: Tensor, size: int) -> Tensor:
    """Resizes and normalises images as the activation model wants them.

    Bilinear, with antialiasing where it shrinks; the aspect ratio gives way to the square. Grey is repeated to RGB.

    Args:
        images: uint8 (B, H, W) or (B, H, W, 3), on any device.
        size: side of the square output, px.

    Returns:
        float32 (B, 3, size, size) in channels_last order, on the same device.
    """
    x = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    x = x.float()
    if x.shape[-2:] != (size, size):
        # Where nothing shrinks, antialiasing changes nothing, and not every device has it.
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=max(x.shape[-2:]) > size)
    mean, std = _scale(x.device)
    # Channels last, so that one grey channel spreads to three straight into the memory order of the convolutions.
    return ((x.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)


@functools.cache
def _scale(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of bytes, on a device, which is waited for but once."""
    with torch.inference_mode(False):
        return (255 * torch.tensor(MEAN)).to(device), (255 * torch.tensor(STD)).to(device)


def from_pil(image: Image.Image) -> Tensor:
    """A picture as the one-image batch that `to_input` takes: uint8 (1, H, W, 3)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).unsqueeze(0)


def read_image(path: Path, data: BinaryIO | None = None) -> Image.Image:
    """Reads a picture in one of `FORMATS`, whatever its name ends in, upright and as RGB; of an animation, the first frame.

    The one place where hsal opens a picture. Pillow reads more formats, some of them by starting other programs (EPS: Ghostscript).

    Args:
        path: the file.
        data: its bytes, where it does not lie on the disk; `path` then names it in messages.

    - Rotation noted in EXIF is applied.
    - Palettes, CMYK, bilevel and other modes are converted by Pillow.
    - Transparent pixels are shown on black, the background of the data sets here.
    - 16-bit and 32-bit integers: 65535 is white. Floats: 1 is white if none exceeds 1, else 255 is. What lies outside is clipped.

    Raises:
        FileError: a web address, missing, a folder, a pipe or device, empty, no picture, truncated or otherwise damaged, or above 100
            megapixels.
    """
    hint = "give a picture in a format such as PNG, JPEG, TIFF, WebP or GIF"
    if data is None:
        _check_file(path, hint)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures at a bound of its own (ours is checked below, before any pixel is read) and of odd tags.
            warnings.simplefilter("ignore")
            Image.init()
            with Image.open(data or path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise _too_large(path, f"{image.width} x {image.height} px")
                return _as_rgb(ImageOps.exif_transpose(image))
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"picture {path} is missing", f"check the path{did_you_mean(path)}") from error
    except PermissionError as error:
        raise FileError(f"picture {path} may not be read: {error.strerror}", "check its permissions") from error
    except UnidentifiedImageError as error:
        raise FileError(f"{path} is not a picture that can be read", hint) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data: SyntaxError, struct.error, IndexError ...
        raise FileError(f"picture {path} is damaged or cannot be converted: {str(error) or type(error).__name__}", hint) from error


def _check_file(path: Path, hint: str) -> None:
    """Refuses what cannot be a picture by what kind of path it is."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(path)):
        raise FileError(f"{path} is a web address, not a file", "download the picture first, and give its path")
    if path.is_dir():
        raise FileError(f"{path} is a folder, not a picture", "give the pictures in it, such as FOLDER/*.png")
    if regular(path, "give the picture as a file").exists() and path.stat().st_size == 0:
        raise FileError(f"{path} is empty", hint)


def _too_large(path: Path, size: str) -> FileError:
    return FileError(f"picture {path} is too large: {size}, above {MOST_PIXELS // 1_000_000} megapixels", "make it smaller first")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not finite")
        white = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255
        return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow only converts these to their plain form
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def placed(share: Tensor | float, turn: Tensor, centre: Tensor, ways: Tensor | None = None) -> Tensor:
    """The affine maps from a place in a view to the place in its image that is seen there, both in [-1, 1], x before y.

    Args:
        share: (B,) the view's side over the image's; above 1 where it looks beyond.
        turn: (B,) radians.
        centre: (B, 2) where the view's middle looks.
        ways: (B,) of 0..7; by bits: columns reversed, rows reversed, and the two exchanged; None: none of these.

    Returns:
        (B, 2, 3).
    """
    cosine, sine = torch.cos(turn) * share, torch.sin(turn) * share
    across, down = torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)  # where a step in the view leads in the image
    if ways is not None:
        across, down = (torch.where((ways & bit > 0)[:, None], -step, step) for bit, step in ((1, across), (2, down)))
        exchanged = (ways & 4 > 0)[:, None]
        across, down = torch.where(exchanged, down, across), torch.where(exchanged, across, down)
    return torch.stack([across, down, centre], 2)
