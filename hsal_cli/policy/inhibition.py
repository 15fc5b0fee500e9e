"""Inhibition of return (section 3, "Update Mechanism", figure 9): what was attended to loses its saliency.

S_{t+1} = 0 at glimpsed cells, max(S_t - M_t, 0) elsewhere
"""

from __future__ import annotations

import torch
from torch import Tensor


def inhibit(saliency: Tensor, mask: Tensor, glimpses: Tensor, normalized: bool) -> Tensor:
    """The saliency map of the next meta-step; differentiable in the mask.

    Args:
        saliency: (B, h, w), S_t.
        mask: (B, h, w), M_t, or wider (`Variant.inhibition_width`).
        glimpses: (B, k) cells, row * w + column, from 0.
        normalized: subtract M_t / max M_t instead of M_t. A mixture spread over several centres has a maximum well below 1, and
            would leave most of the saliency of what it attended to standing.

    Returns:
        (B, h, w), S_{t+1}.
    """
    if normalized:
        mask = mask / mask.amax((1, 2), keepdim=True).clamp(min=torch.finfo(mask.dtype).tiny)
    standing = torch.ones_like(saliency).flatten(1).scatter(1, glimpses, 0.0).view_as(saliency)
    return (saliency - mask).clamp(min=0) * standing
