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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.policy.shared import Linear, linear

# How many times as large as torch's usual weights those of freely learned centres start: the usual ones put all centres on one spot, and a
# policy whose centres start apart learns several times faster. Anchored ones start at the maximum.
SPREAD = 8.0
# On a CPU a mask's values below this are 0: far from its centre a Gaussian falls under 1.2e-38, the smallest number that float32 keeps in
# full, and a product with one of those takes a CPU many times as long. This is so much above it that P_t has none either.
FAINT = 1e-30


def gaussian_masks(gaussians: Tensor, height: int, width: int, widths: Sequence[float]) -> Tensor:
    """The covert attention mask M of a mixture of Gaussians, and the same with its Gaussians wider.

    Args:
        gaussians: (B, G, 5), alpha, beta of rows and of columns (1/cells^2), kappa row and kappa column (cells, the first one is 1).
        height, width: cells of the map.
        widths: how many times as wide the Gaussians are, of each mask.

    Returns:
        One (B, height, width) for each of `widths`, values in [0, sum of alpha].
    """
    return _Masks.apply(gaussians, height, width, tuple(widths))


class _Masks(torch.autograd.Function):
    """M = sum_k alpha_k d_k a_k^T, of d = exp(-beta_1 (kappa_1 - i)^2) down and a = exp(-beta_2 (kappa_2 - j)^2) across.

    A Gaussian of two coordinates is a product of two of one: h + w exponentials a component instead of h * w.
    """

    @staticmethod
    def forward(ctx: Any, gaussians: Tensor, height: int, width: int, widths: tuple[float, ...]) -> tuple[Tensor, ...]:
        alpha, beta, kappa = gaussians.split([1, 2, 2], 2)
        off = kappa[..., None] - _axis(max(height, width), gaussians)  # (B, G, 2, cells)
        # One `times` as wide has its betas over times^2.
        scale = numbers(tuple(-(times**-2) for times in widths), gaussians)
        waves = (beta[..., None] * off.square() * scale.view(-1, 1, 1, 1, 1)).exp_()  # (W, B, G, 2, cells)
        down, across = waves[..., 0, :height], waves[..., 1, :width]
        weighted = alpha * down
        ctx.save_for_backward(alpha, beta, off, scale, down, across, weighted)
        masks = weighted.transpose(2, 3) @ across
        if masks.device.type == "cpu":
            F.threshold_(masks, FAINT, 0.0)
        return masks.unbind()

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None, None]:
        alpha, beta, off, scale, down, across, weighted = ctx.saved_tensors
        each = torch.stack(above).to(across.dtype)  # (W, B, h, w); under autocast they were multiplied in another type
        by_down = (across @ each.transpose(2, 3)).mul_(down)  # (W, B, G, h), times d, over alpha
        by_across = (weighted @ each).mul_(across)  # (W, B, G, w), times a
        by_alpha = by_down.sum((0, 3))
        by_exponents = [by_down * alpha, by_across]
        if down.shape != across.shape:
            by_exponents = [F.pad(part, (0, off.shape[3] - part.shape[3])) for part in by_exponents]
        by_far = (scale[None] @ torch.stack(by_exponents, 3).flatten(1)).view_as(off)  # over beta, (B, G, 2, cells)
        by_off = by_far * off
        by_beta = (by_off * off).sum(3)
        return torch.cat([by_alpha[..., None], by_beta, by_off.sum(3) * beta * 2], 2), None, None, None


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


def one_hot(places: Tensor, count: int, like: Tensor) -> Tensor:
    """Rows (n, count) with a one at places (n,), of the type of another tensor."""
    return _rows("ones", count, count, like.device, like.dtype)[places]


def zeros(count: int, width: int, like: Tensor) -> Tensor:
    """Zeros (count, width), where another tensor is and of its type; not to be changed."""
    return _rows("zeros", count, width, like.device, like.dtype)


@functools.cache
def _rows(what: str, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Tables: the "ones" of one-hot codes, "zeros", or the row and column of each of the "cells" of a map, from 1."""
    with torch.inference_mode(False):
        if what == "zeros":
            return torch.zeros(height, width, device=device, dtype=dtype)
        if what == "ones":
            return torch.eye(height, width, dtype=dtype).to(device)
        return torch.cartesian_prod(torch.arange(1, height + 1), torch.arange(1, width + 1)).to(device, dtype)


def highest_cell(saliency: Tensor) -> Tensor:
    """Where a map is highest; of equals, the first in reading order.

    Args:
        saliency: (B, h, w).

    Returns:
        (B, 2), row and column in cells, the first one is 1.
    """
    return _rows("cells", *saliency.shape[1:], saliency.device, saliency.dtype)[saliency.flatten(1).argmax(1)]


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
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden, 4 * gaussians)
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
        found = linear(hidden, self.layer.weight, self.layer.bias).view(-1, self.shape[0], 4)
        alpha, beta, centre = found.split([1, 1, 2], dim=2)
        low, high = self.beta
        beta = torch.add(numbers((low,), found), torch.sigmoid(beta), alpha=high - low)
        if self.reach is None:
            kappa = torch.sigmoid(centre) * self.size
        else:
            kappa = torch.add(highest_cell(saliency)[:, None], torch.tanh(centre), alpha=self.reach)
        of_rows = beta if self.aspect == 1 else beta / self.aspect**2
        return torch.cat([F.softmax(alpha, dim=1), of_rows, beta, kappa], dim=2)


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
    return _MinMax.apply(maps, flat)


class _MinMax(torch.autograd.Function):
    """y = (x - low) / max(high - low, flat), with the gradient of an extreme shared by the cells that have it, as torch shares it.

    dy / dlow = (y - 1) / range, dy / dhigh = -y / range; where the range is `flat`, it is no function of either.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, flat: float) -> Tensor:
        low, high = (extreme[..., None] for extreme in maps.flatten(1).aminmax(dim=1, keepdim=True))
        found = high - low
        spread = found.clamp(min=flat)
        scaled = (maps - low).div_(spread)
        ctx.save_for_backward(maps, low, high, found, spread, scaled)
        ctx.flat = flat
        return scaled

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        maps, low, high, found, spread, scaled = ctx.saved_tensors
        varies = found == spread
        down = (above * varies if ctx.flat < FLAT else above) / spread  # of an empty raw map it would be infinite
        by_spread = (down * scaled).sum((1, 2), keepdim=True).mul_(varies)
        by_low = by_spread - down.sum((1, 2), keepdim=True)
        return _shared(_shared(down, maps, low, by_low, 1), maps, high, by_spread, -1), None


def _shared(down: Tensor, maps: Tensor, extreme: Tensor, above: Tensor, sign: int) -> Tensor:
    """A gradient (B, h, w) and, added to it, that of the maps' extreme (B, 1, 1), which the cells that have it share alike."""
    there = maps == extreme
    return down.addcmul_(there, above / there.sum((1, 2), keepdim=True), value=sign)


def priority_map(mask: Tensor, saliency: Tensor) -> Tensor:
    """The priority map P_t = M_t * S_t, scaled to [0, 1].

    Args:
        mask: (B, h, w), M_t.
        saliency: (B, h, w), S_t.
    """
    return min_max(mask * saliency, FLAT)


def initial_glimpse(mask: Tensor, volumes: Tensor, rows: Tensor | None = None) -> Tensor:
    """The initial glimpse g_0: the volume's columns, weighted by the mask.

    Args:
        mask: (B, h, w), M_t; on a map of twice the cells (B, 2h, 2w), of which each of the volume's has the mean of its four.
        volumes: (B, h * w, C); with `rows` any number of them.
        rows: (B,), whose volume each mask lies on; None: they are in the same order.

    Returns:
        (B, C).
    """
    if mask[0].numel() > volumes.shape[1]:
        mask = F.avg_pool2d(mask[:, None], 2)[:, 0]
    if rows is None:
        # As a row times a matrix: on a CPU, torch takes ten times as long for the same product of a matrix and a column.
        return (mask.flatten(1)[:, None] @ volumes).squeeze(1)
    cells = volumes.shape[1]
    places = rows[:, None] * cells + torch.arange(cells, device=rows.device)
    return F.embedding_bag(places, volumes.flatten(0, 1), mode="sum", per_sample_weights=mask.flatten(1).to(volumes.dtype))


def column(volumes: Tensor, cell: Tensor, rows: Tensor | None = None) -> Tensor:
    """The glimpse at a cell: the volume's column there.

    Args:
        volumes: (B, h * w, C); with `rows` any number of them.
        cell: (B,), row * w + column, from 0; or (B, m), several cells.
        rows: (B,), whose volume each is a cell of; None: they are in the same order.

    Returns:
        (B, C); of several cells (B, m * C), one after the other.
    """
    cells = cell.view(len(cell), -1)
    if rows is None:
        return volumes.gather(1, cells[..., None].expand(-1, -1, volumes.shape[2])).flatten(1)
    places = (rows[:, None] * volumes.shape[1] + cells).flatten()
    return volumes.flatten(0, 1).index_select(0, places).view(len(cell), -1)


def of_rows(maps: Tensor, rows: Tensor) -> Tensor:
    """`maps[rows]` (n, ...) of (B, ...), in half the time on a CPU where the maps lie one after the other."""
    return maps.index_select(0, rows) if maps.is_contiguous() else maps[rows]


def finer_columns(stage: Tensor) -> Tensor:
    """The columns of a finer stage with a rim of zeros, which `patches` reads.

    Args:
        stage: (B, 4 * C, h, w), the 2 x 2 cells of each cell, as `pixel_unshuffle` orders them.

    Returns:
        (B, (2h + 2) * (2w + 2), C).
    """
    return F.pad(F.pixel_shuffle(stage, 2), (1, 1, 1, 1)).flatten(2).transpose(1, 2).contiguous()


def patches(height: int, width: int) -> Tensor:
    """Which of `finer_columns` a fine glimpse reads at each cell of a map (height, width): 3 x 3 of them, (height * width, 9)."""
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    corner = (down * (width + 2) + across).view(-1, 1)
    return corner + torch.tensor([row * (width + 2) + column for row in range(3) for column in range(3)])


def cells_above(height: int, width: int) -> Tensor:
    """The cell of the volume that holds each cell of a map (height, width) of twice its cells, (height * width, 1)."""
    down, across = torch.meshgrid(torch.arange(height) // 2, torch.arange(width) // 2, indexing="ij")
    return (down * (width // 2) + across).view(-1, 1)


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
    return _Inhibited.apply(saliency, mask, glimpses, normalized)


class _Inhibited(torch.autograd.Function):
    """max(S - M / max M, 0), or without the division, and 0 at glimpses."""

    @staticmethod
    def forward(ctx: Any, saliency: Tensor, mask: Tensor, glimpses: Tensor, normalized: bool) -> Tensor:
        most = mask.amax((1, 2), keepdim=True).clamp(min=torch.finfo(mask.dtype).tiny) if normalized else None
        taken = mask if most is None else mask / most
        left = saliency - taken
        standing = (left >= 0).flatten(1).scatter(1, glimpses, False).view_as(left)
        ctx.save_for_backward(standing, mask, most, taken)
        return left * standing

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor, None, None]:
        standing, mask, most, taken = ctx.saved_tensors
        by_saliency = above * standing
        if most is None:
            return by_saliency, -by_saliency, None, None
        by_mask = by_saliency / most  # less
        by_most = (by_mask * taken).sum((1, 2), keepdim=True)
        return by_saliency, _shared(-by_mask, mask, most, by_most, 1), None, None
