"""The interface layer (section 3, figure 10): what the mask makes of the saliency map and of the volume.

P_t = M_t * S_t,   g_0 = sum_ij M_ij V_:ij
"""

from __future__ import annotations

from torch import Tensor

# S is in [0, 1] and single precision: differences below this are the rounding noise of S_t - M_t, and scaling them up to 1 would
# show noise to the controller and multiply gradients by as much.
FLAT = 1e-6


def min_max(maps: Tensor, flat: float) -> Tensor:
    """Scales every map to minimum 0 and maximum 1 (appendix A).

    Args:
        maps: (B, h, w).
        flat: a map whose range is below this is divided by it, so that a constant map becomes zeros.

    Returns:
        (B, h, w) in [0, 1].
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=flat)


def priority_map(mask: Tensor, saliency: Tensor) -> Tensor:
    """The priority map P_t = M_t * S_t, scaled to [0, 1].

    Args:
        mask: (B, h, w), M_t.
        saliency: (B, h, w), S_t.
    """
    return min_max(mask * saliency, FLAT)


def initial_glimpse(mask: Tensor, volumes: Tensor) -> Tensor:
    """The initial glimpse g_0: the volume's columns, weighted by the mask.

    Args:
        mask: (B, h, w), M_t.
        volumes: (B, C, h * w).

    Returns:
        (B, C).
    """
    # As a row times a matrix: on a CPU, torch takes ten times as long for the same product of a matrix and a column.
    return (mask.flatten(1)[:, None] @ volumes.transpose(1, 2)).squeeze(1)


def column(volumes: Tensor, cell: Tensor) -> Tensor:
    """The glimpse at a cell: the volume's column there.

    Args:
        volumes: (B, C, h * w).
        cell: (B,), row * w + column, from 0.

    Returns:
        (B, C).
    """
    return volumes.gather(2, cell[:, None, None].expand(-1, volumes.shape[1], 1)).squeeze(2)
