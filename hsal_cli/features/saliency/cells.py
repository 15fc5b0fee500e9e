"""Bringing images and maps to the cells of a volume."""

from __future__ import annotations

import torch
from torch import Tensor


def to_cells(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """Averages maps (B, H, W) over the area of each of (h, w) equal cells: (B, h, w), of the same mean; border pixels count by share."""
    down, across = (_shares(size, count, maps) for size, count in zip(maps.shape[1:], cells, strict=True))
    return down @ maps @ across.T


def _shares(size: int, count: int, like: Tensor) -> Tensor:
    """(count, size): how much of a cell's length each pixel fills; rows add up to 1."""
    pixels = torch.arange(size, device=like.device, dtype=like.dtype)
    cells = torch.arange(count, device=like.device, dtype=like.dtype)[:, None] * size / count
    overlap = torch.minimum(cells + size / count, pixels + 1) - torch.maximum(cells, pixels)
    return overlap.clamp(min=0) * count / size


def as_channels(images: Tensor) -> Tensor:
    """uint8 (B, H, W) or (B, H, W, 3) as float32 (B, 1 or 3, H, W) in [0, 1]."""
    return (images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)).float() / 255


def proportional(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The (height, width) of an image whose longest side is brought to `longest` px."""
    height, width = (max(1, round(side * longest / max(size))) for side in size)
    return height, width
