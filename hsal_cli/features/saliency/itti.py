"""Itti, Koch and Niebur's saliency model ("A Model of Saliency-Based Visual Attention for Rapid Scene Analysis", PAMI 1998).

Colour, intensity and orientation in pyramids, each level against a coarser one (centre and surround), and the operator N, which
promotes maps with one strong peak over maps with many. The symbols are the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.features.saliency.cells import as_channels, proportional, to_cells

# The paper's image of about 256 px has centres at levels 2 to 4 of its pyramid, 64 to 16 px, and surrounds 3 and 4 levels coarser. What
# lies below level 2 is never read, so that pyramids start there, whatever the image's size.
LONGEST = 64
CENTRES, SURROUNDS, LEVELS = (0, 1, 2), (3, 4), 7
MAP = 32  # longest side of the map, px; one level finer than the paper's, which could not tell 28 x 28 cells apart
ANGLES = (0, 45, 90, 135)  # degrees
# px of the pyramid. With the period of 7 px of Walther and Koch (2006) an odd orientation did not pop out of a display of 4 x 4 bars at
# this size: one filter saw two bars.
GABOR_SIDE, PERIOD, SPREAD = 7, 4.0, 1.5
DARK = 0.1  # hue is not perceived below this share of the image's highest intensity
PEAK = 0.1  # of a map in [0, 1]; lower local maxima do not count
FLAT = 1e-4  # maps that vary less than this, for intensities in [0, 1], say nothing


class IttiSaliency:
    """The model behind `--saliency itti`."""

    name = digest = "itti"

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        return to_cells(itti_saliency(images), tuple(volumes.shape[2:]))


def itti_saliency(images: Tensor) -> Tensor:
    """The saliency map of uint8 images (B, H, W) or (B, H, W, 3) at the model's own resolution.

    Returns:
        (B, h, w) float32 in [0, 3], the longer side 32 px; zeros for an image without contrast.
    """
    x = as_channels(images)
    size = tuple(x.shape[2:])
    levels = [proportional(size, max(1, LONGEST >> level)) for level in range(LEVELS)]
    pyramid = [_early_features(_resize(x, levels[0]))]  # (B, 1 or 3, h, w): intensity, red-green, blue-yellow
    for level in levels[1:]:
        pyramid.append(_resize(pyramid[-1], level))
    colours = pyramid[0].shape[1] - 1
    pyramid = [torch.cat([features, _orientations(features[:, :1])], 1) for features in pyramid]
    final = proportional(size, MAP)
    total = torch.zeros((), device=x.device)
    for centre in CENTRES:
        for surround in SURROUNDS:
            contrast = (pyramid[centre] - _resize(pyramid[centre + surround], levels[centre])).abs()
            total = total + _resize(promote(contrast), final)
    intensity = total[:, :1]
    colour = total[:, 1 : 1 + colours].sum(1, keepdim=True)
    orientation = promote(total[:, 1 + colours :]).sum(1, keepdim=True)
    return promote(torch.cat([intensity, colour, orientation], 1)).mean(1)


def promote(maps: Tensor) -> Tensor:
    """The operator N on maps (B, n, h, w): scaled to [0, 1], times (1 - the mean of its local maxima but the highest)^2; 0 if flat."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    x = (maps - low) / (high - low).clamp(min=FLAT)
    x = x * (high - low > FLAT)
    around = F.pad(x, (1, 1, 1, 1), value=-1.0)
    height, width = x.shape[2:]
    views = [around[:, :, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    # Of equal neighbours, the first in reading order is the maximum: a peak two pixels wide is one peak.
    before, after = (torch.stack(part).amax(0) for part in (views[:4], views[5:]))
    peaks = (x > before) & (x >= after) & (x > PEAK)
    others = (peaks.sum((2, 3)) - 1).clamp(min=1)
    mean = ((x * peaks).sum((2, 3)) - 1).clamp(min=0) / others  # the highest peak is 1
    return x * (1 - mean).square()[:, :, None, None]


def _early_features(x: Tensor) -> Tensor:
    """Intensity and, for colour images, the two opponent pairs: (B, 1 or 3, h, w)."""
    if x.shape[1] == 1:
        return x
    intensity = x.mean(1, keepdim=True)
    seen = intensity > DARK * intensity.amax((2, 3), keepdim=True)
    r, g, b = (x / intensity.clamp(min=1e-6) * seen).split(1, 1)
    red, green, blue = ((one - (two + three) / 2).clamp(min=0) for one, two, three in ((r, g, b), (g, r, b), (b, r, g)))
    yellow = ((r + g) / 2 - (r - g).abs() / 2 - b).clamp(min=0)
    return torch.cat([intensity, red - green, blue - yellow], 1)


def _orientations(intensity: Tensor) -> Tensor:
    """(B, 4, h, w): the local strength of each orientation, whatever its phase."""
    pad = GABOR_SIDE // 2
    filtered = F.conv2d(F.pad(intensity, (pad, pad, pad, pad), mode="replicate"), _gabors().to(intensity.device))
    even, odd = filtered.split(len(ANGLES), 1)
    return torch.sqrt(even.square() + odd.square() + 1e-12) - 1e-6


def _gabors() -> Tensor:
    """(8, 1, side, side): four orientations of even, then of odd phase; each without a response to a constant, and of unit sum of |w|."""
    place = torch.arange(GABOR_SIDE) - GABOR_SIDE // 2.0
    y, x = torch.meshgrid(place, place, indexing="ij")
    window = torch.exp(-(x.square() + y.square()) / (2 * SPREAD**2))
    kernels = []
    for wave in (torch.cos, torch.sin):
        for angle in ANGLES:
            across = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
            kernel = window * wave(2 * math.pi * across / PERIOD)
            kernel = kernel - window * kernel.sum() / window.sum()
            kernels.append(kernel / kernel.abs().sum())
    return torch.stack(kernels)[:, None]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; where it shrinks, with the triangle filter that by a factor of 2 is the kernel (1, 3, 3, 1) / 8."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=size[0] < x.shape[2] or size[1] < x.shape[3])
