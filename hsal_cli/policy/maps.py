"""Maps (section 3): the covert attention mask, what it makes of saliency and volume, and what inhibition of return leaves of the saliency.

Gaussian attention mechanism:
    M_ij = sum_k alpha_k exp(-beta_k [(kappa1_k - i)^2 + (kappa2_k - j)^2]),   1 <= i <= h, 1 <= j <= w
    (here with a beta for rows and one for columns, which in the paper are the same)
Interface layer (figure 10):
    P_t = M_t * S_t,   g_0 = sum_ij M_ij V_:ij
Update mechanism, inhibition of return (figure 9):
    S_{t+1} = 0 at glimpsed cells, max(S_t - M_t, 0) elsewhere
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.policy.shared import Linear, linear

# How many times as large as torch's usual weights those of freely learned centres start: the usual ones put all centres on one spot, and a
# policy whose centres start apart learns several times faster. Anchored ones start at the maximum.
SPREAD = 8.0


def gaussian_masks(gaussians: Tensor, height: int, width: int, widths: Sequence[float]) -> Tensor:
    """The covert attention mask M of a mixture of Gaussians, and the same with its Gaussians wider.

    Args:
        gaussians: (B, G, 5), alpha, beta of rows and of columns (1/cells^2), kappa row and kappa column (cells, the first one is 1).
        height, width: cells of the map.
        widths: how many times as wide the Gaussians are, of each mask.

    Returns:
        (len(widths), B, height, width), values in [0, sum of alpha].
    """
    alpha, beta, kappa = gaussians.split([1, 2, 2], 2)
    far = (kappa[..., None] - _axis(max(height, width), gaussians)).square()  # (B, G, 2, cells)
    # One `times` as wide has its betas over times^2.
    exponents = beta[..., None] * far * numbers(tuple(-(times**-2) for times in widths), gaussians).view(-1, 1, 1, 1, 1)
    # A Gaussian of two coordinates is a product of two of one: h + w exponentials a component instead of h * w.
    down, across = exponents.exp().unbind(3)  # (W, B, G, cells)
    if height != width:
        down, across = down[..., :height], across[..., :width]
    return (alpha * down).transpose(2, 3) @ across


def _axis(count: int, like: Tensor) -> Tensor:
    """1 to `count`, as another tensor is."""
    return numbers(tuple(range(1, count + 1)), like)


def numbers(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Constants (n,), where another tensor is and of its type; not to be changed."""
    return _constant(values, like.device, like.dtype)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers on a device, which is waited for but once."""
    with torch.inference_mode(False):  # or those of a first call for evaluation could not be trained with
        return torch.tensor(values, dtype=dtype).to(device)


def highest_cell(saliency: Tensor) -> Tensor:
    """Where a map is highest; of equals, the first in reading order.

    Args:
        saliency: (B, h, w).

    Returns:
        (B, 2), row and column in cells, the first one is 1.
    """
    _, height, width = saliency.shape
    places = numbers(tuple(float(1 + place) for cell in range(height * width) for place in divmod(cell, width)), saliency)
    return places.view(-1, 2)[saliency.flatten(1).argmax(1)]


class GaussianAttention(nn.Module):
    """attn(h_t): a linear layer whose outputs become a mixture's parameters, each brought into its range.

    alpha = softmax(.), beta = low + (high - low) sigmoid(.) (appendix A bounds beta), and the centres are
    kappa = sigmoid(.) * (h, w) or, anchored, (maximum of S_t) + reach * tanh(.).

    Args:
        hidden: units of the meta-controller.
        gaussians: components of the mixture, G.
        height, width: cells of the map.
        beta: lowest and highest beta of the columns, 1/cells^2.
        aspect: height over width of a Gaussian of equal outputs; the betas of rows are in `beta` / aspect^2.
        elliptic: rows have a beta of their own, not that of the columns.
        reach: largest offset of a centre from the maximum of S_t in cells; None: centres are learned freely, as in the paper.
    """

    def __init__(
        self,
        hidden: int,
        gaussians: int,
        height: int,
        width: int,
        beta: tuple[float, float],
        reach: float | None,
        aspect: float = 1.0,
        elliptic: bool = False,
    ) -> None:
        super().__init__()
        self.betas = 2 if elliptic else 1
        self.layer = nn.Linear(hidden, (3 + self.betas) * gaussians)
        if reach is None:
            with torch.no_grad():
                self.layer.weight.mul_(SPREAD)
        self.shape = (gaussians, height, width)
        self.beta = beta
        self.reach = reach
        self.aspect = aspect
        self.register_buffer("size", torch.tensor([height, width], dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, hidden: Tensor, saliency: Tensor, linear: Linear = linear) -> Tensor:
        """The mixture for a state.

        Args:
            hidden: (B, hidden), h_t.
            saliency: (B, h, w), S_t; only anchored centres look at it, at its maximum.
            linear: multiplies by the weights.

        Returns:
            (B, G, 5), alpha, beta of rows, beta of columns, kappa row, kappa column.
        """
        alpha, beta, centre = linear(hidden, self.layer.weight, self.layer.bias).view(-1, self.shape[0], 3 + self.betas).split([1, self.betas, 2], dim=2)
        low, high = self.beta
        beta = low + (high - low) * torch.sigmoid(beta)
        if self.reach is None:
            kappa = torch.sigmoid(centre) * self.size
        else:
            kappa = torch.add(highest_cell(saliency)[:, None], torch.tanh(centre), alpha=self.reach)
        of_rows, of_columns = beta.split(1, 2) if self.betas == 2 else (beta, beta)
        if self.aspect != 1:
            of_rows = of_rows / self.aspect**2
        return torch.cat([F.softmax(alpha, dim=1), of_rows, of_columns, kappa], dim=2)


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
        volumes: (B, h * w, C).

    Returns:
        (B, C).
    """
    # As a row times a matrix: on a CPU, torch takes ten times as long for the same product of a matrix and a column.
    return (mask.flatten(1)[:, None] @ volumes).squeeze(1)


def column(volumes: Tensor, cell: Tensor) -> Tensor:
    """The glimpse at a cell: the volume's column there.

    Args:
        volumes: (B, h * w, C).
        cell: (B,), row * w + column, from 0.

    Returns:
        (B, C).
    """
    return volumes.gather(1, cell[:, None, None].expand(-1, 1, volumes.shape[2])).squeeze(1)


def inhibit(saliency: Tensor, mask: Tensor, glimpses: Tensor, normalized: bool) -> Tensor:
    """The saliency map of the next meta-step; differentiable in the mask.

    Args:
        saliency: (B, h, w), S_t, or the raw map (`Variant.update`).
        mask: (B, h, w), M_t, or wider (`Variant.inhibition_width`).
        glimpses: (B, k) cells, row * w + column, from 0.
        normalized: subtract M_t / max M_t instead of M_t. A mixture spread over several centres has a maximum well below 1, and
            would leave most of the saliency of what it attended to standing.

    Returns:
        (B, h, w), S_{t+1}.
    """
    if normalized:
        mask = mask / mask.amax((1, 2), keepdim=True).clamp(min=torch.finfo(mask.dtype).tiny)
    return (saliency - mask).clamp(min=0).flatten(1).scatter(1, glimpses, 0.0).view_as(saliency)
