"""The saliency model: a map of how active the activation model is at each cell (section 3, "Saliency Model")."""

from __future__ import annotations

from torch import Tensor


def activation_saliency(volumes: Tensor) -> Tensor:
    """The raw saliency map of each volume, F(V) = sum_c V_c^2 (section 5, "Implementation Details").

    Args:
        volumes: (B, C, h, w), any float type.

    Returns:
        (B, h, w) float32, >= 0; summed in float32, since squares of half-precision activations overflow.
    """
    return volumes.float().square().sum(dim=1)
