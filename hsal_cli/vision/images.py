"""From pictures to the input of the activation model (section 5: 224 x 224 px, ImageNet's mean and standard deviation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, for intensities in [0, 1]
STD = (0.229, 0.224, 0.225)


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
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    std = 255 * torch.tensor(STD, device=x.device)
    mean = 255 * torch.tensor(MEAN, device=x.device)
    # Channels last, so that one grey channel spreads to three straight into the memory order of the convolutions.
    return ((x.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
