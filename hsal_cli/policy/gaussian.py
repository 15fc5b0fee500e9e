"""The Gaussian attention mechanism (section 3, "Gaussian Attention Mechanism"): a mixture of Gaussians over the cells of a map.

M_ij = sum_k alpha_k exp(-beta_k [(kappa1_k - i)^2 + (kappa2_k - j)^2]),   1 <= i <= h, 1 <= j <= w
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How many times as large as torch's usual weights those of freely learned centres start: the usual ones put all centres on one spot, and a
# policy whose centres start apart learns several times faster. Anchored ones start at the maximum.
SPREAD = 8.0


def gaussian_mask(gaussians: Tensor, height: int, width: int) -> Tensor:
    """The covert attention mask M of a mixture of Gaussians.

    Args:
        gaussians: (B, G, 4), alpha, beta (1/cells^2), kappa row and kappa column (cells, the first one is 1).
        height, width: cells of the map.

    Returns:
        (B, height, width), values in [0, sum of alpha].
    """
    alpha, beta, row, column = gaussians.unbind(2)  # each (B, G)
    rows = torch.arange(1, height + 1, device=gaussians.device, dtype=gaussians.dtype)
    columns = torch.arange(1, width + 1, device=gaussians.device, dtype=gaussians.dtype)
    # A Gaussian of two coordinates is a product of two of one: h + w exponentials a component instead of h * w.
    down = alpha[..., None] * torch.exp(-beta[..., None] * (row[..., None] - rows) ** 2)  # (B, G, h)
    across = torch.exp(-beta[..., None] * (column[..., None] - columns) ** 2)  # (B, G, w)
    return down.transpose(1, 2) @ across


def widened(gaussians: Tensor, times: float) -> Tensor:
    """The same mixture, (B, G, 4), each Gaussian `times` as wide: its beta over times^2."""
    alpha, beta, centre = gaussians.split([1, 1, 2], dim=2)
    return torch.cat([alpha, beta / times**2, centre], dim=2)


def highest_cell(saliency: Tensor) -> Tensor:
    """Where a map is highest; of equals, the first in reading order.

    Args:
        saliency: (B, h, w).

    Returns:
        (B, 2), row and column in cells, the first one is 1.
    """
    cell = saliency.flatten(1).argmax(1)
    width = saliency.shape[2]
    return torch.stack([cell // width, cell % width], 1).to(saliency.dtype) + 1


class GaussianAttention(nn.Module):
    """attn(h_t): a linear layer whose outputs become a mixture's parameters, each brought into its range.

    alpha = softmax(.), beta = low + (high - low) sigmoid(.) (appendix A bounds beta), and the centres are
    kappa = sigmoid(.) * (h, w) or, anchored, (maximum of S_t) + reach * tanh(.).

    Args:
        hidden: units of the meta-controller.
        gaussians: components of the mixture, G.
        height, width: cells of the map.
        beta: lowest and highest beta, 1/cells^2.
        reach: largest offset of a centre from the maximum of S_t in cells; None: centres are learned freely, as in the paper.
    """

    def __init__(self, hidden: int, gaussians: int, height: int, width: int, beta: tuple[float, float], reach: float | None) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden, 4 * gaussians)
        if reach is None:
            with torch.no_grad():
                self.layer.weight.mul_(SPREAD)
        self.shape = (gaussians, height, width)
        self.beta = beta
        self.reach = reach
        self.register_buffer("size", torch.tensor([height, width], dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, hidden: Tensor, saliency: Tensor) -> Tensor:
        """The mixture for a state.

        Args:
            hidden: (B, hidden), h_t.
            saliency: (B, h, w), S_t; only anchored centres look at it, at its maximum.

        Returns:
            (B, G, 4), alpha, beta, kappa row, kappa column.
        """
        alpha, beta, centre = self.layer(hidden).view(-1, self.shape[0], 4).split([1, 1, 2], dim=2)
        low, high = self.beta
        if self.reach is None:
            kappa = torch.sigmoid(centre) * self.size
        else:
            kappa = highest_cell(saliency)[:, None] + self.reach * torch.tanh(centre)
        return torch.cat([F.softmax(alpha, dim=1), low + (high - low) * torch.sigmoid(beta), kappa], dim=2)
