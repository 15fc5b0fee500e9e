"""Where a view of an image looks: shifted, turned and zoomed a little, mirrored or turned by right angles."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE, TURN, SHIFT, GAIN = 0.12, 12.0, 0.06, 0.25  # largest change: relative size, degrees, share of half the side, log of the contrast


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
