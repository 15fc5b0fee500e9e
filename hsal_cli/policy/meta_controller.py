"""The meta-controller (section 3, figure 8): places the covert attention mask, once a meta-step.

x_t = [S_t, y_{t-1}],   e_t = W_encode x_t,   h_t = GRU(e_t, h_{t-1}),   M_t = attn(h_t)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hsal_cli.policy.gaussian import GaussianAttention, gaussian_mask, highest_cell
from hsal_cli.policy.gru import GRU
from hsal_cli.policy.variant import Variant


class MetaController(nn.Module):
    """The learned meta-controller.

    Args:
        variant: as it is on the map.
        labels: width of the label memory, K + 1.
        height, width: cells of the maps.
    """

    def __init__(self, variant: Variant, labels: int, height: int, width: int) -> None:
        super().__init__()
        self.encode = nn.Linear(height * width + labels, variant.meta_encode)
        self.gru = GRU(variant.meta_encode, variant.meta_hidden)
        reach = variant.reach if variant.mask == "anchored" else None
        self.attention = GaussianAttention(variant.meta_hidden, variant.gaussians, height, width, variant.beta, reach)

    def forward(self, saliency: Tensor, memory: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """One meta-step.

        Args:
            saliency: (B, h, w), S_t.
            memory: (B, K + 1), y_{t-1}.
            state: (B, hidden), h_{t-1}, or None for zeros.

        Returns:
            M_t (B, h, w), its Gaussians (B, G, 4), and h_t.
        """
        state = self.gru(self.encode(torch.cat([saliency.flatten(1), memory], 1)), state)
        gaussians = self.attention(state, saliency)
        return gaussian_mask(gaussians, *saliency.shape[1:]), gaussians, state


class WinnerTakeAll(nn.Module):
    """The control that learns nothing: one Gaussian of a fixed width at the maximum of S_t, as in Itti's model.

    Args:
        variant: as it is on the map; the width is the middle of its `beta`.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        low, high = variant.beta
        self.beta = (low + high) / 2

    def forward(self, saliency: Tensor, memory: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """One meta-step; arguments and results as of `MetaController`, with G = 1. The state stays as it is."""
        alpha = saliency.new_ones(len(saliency), 1)
        gaussians = torch.cat([alpha, self.beta * alpha, highest_cell(saliency)], 1)[:, None]  # (B, 1, 4)
        return gaussian_mask(gaussians, *saliency.shape[1:]), gaussians, state
