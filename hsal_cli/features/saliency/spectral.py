"""The spectral residual (Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007).

What an image's log amplitude spectrum has beyond its own smooth course is new in it; back in space, that is where it stands out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.features.saliency.cells import as_channels, proportional, to_cells

LONGEST = 64  # side that images are brought to, px, as in the paper
SMOOTHING, REACH = 2.5, 5  # standard deviation and reach of the last blur, px, as in the authors' code
FLAT = 1e-4  # an image that varies less, in [0, 1], has nothing salient


class SpectralResidual:
    """The model behind `--saliency spectral-residual`."""

    name = digest = "spectral-residual"

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        return to_cells(spectral_residual(images), tuple(volumes.shape[2:]))


def spectral_residual(images: Tensor) -> Tensor:
    """The saliency map of uint8 images (B, H, W) or (B, H, W, 3).

    Returns:
        (B, h, w) float32, >= 0, the longer side 64 px; zeros for an image without contrast.
    """
    grey = as_channels(images).mean(1, keepdim=True)
    size = proportional(tuple(grey.shape[2:]), LONGEST)
    if tuple(grey.shape[2:]) != size:
        grey = F.interpolate(grey, size, mode="bilinear", align_corners=False, antialias=max(grey.shape[2:]) > LONGEST)
    spectrum = torch.fft.fft2(grey)
    amplitude = torch.log(spectrum.abs().clamp(min=1e-6))
    # A spectrum is periodic, so its mean over 3 x 3 frequencies goes round the edges.
    smooth = F.avg_pool2d(F.pad(amplitude, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    residual = torch.polar(torch.exp(amplitude - smooth), spectrum.angle())
    maps = _blur(torch.fft.ifft2(residual).abs().square())
    contrast = grey.amax((2, 3), keepdim=True) - grey.amin((2, 3), keepdim=True)
    return (maps * (contrast > FLAT)).squeeze(1)


def _blur(maps: Tensor) -> Tensor:
    """A Gaussian blur of (B, 1, h, w), zero beyond the edges."""
    place = torch.arange(-REACH, REACH + 1, device=maps.device)
    kernel = torch.exp(-(place.square()) / (2 * SMOOTHING**2))
    kernel = kernel / kernel.sum()
    maps = F.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(REACH, 0))
    return F.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, REACH))
