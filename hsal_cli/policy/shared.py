"""Weights that a roll-out uses many times: their gradient is one matrix product over all uses, or they are brought to half precision once.

Left to autograd, every use multiplies out a gradient as large as the weights and adds it to those before: at k = 2 and five meta-steps
fifteen times for the controller. What is multiplied is the same, in another order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 65_536  # numbers of a weight from which on half precision gains more than converting what it is multiplied by costs


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias.

    Args:
        x: (n, inputs), or (n,) int64, the places of the ones in one-hot rows.
        weight: (outputs, inputs); for places (inputs, outputs), as `nn.Embedding` keeps it.
        bias: (outputs,), (n, outputs) or None.

    Returns:
        (n, outputs).
    """
    if not x.is_floating_point():
        looked_up = F.embedding(x, weight)
        return looked_up if bias is None else looked_up + bias
    return torch.addmm(bias, x, weight.t()) if bias is not None and bias.dim() == 2 else F.linear(x, weight, bias)


Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""As `linear`."""


class SharedWeights:
    """A `linear` for one roll-out; a bias (outputs,) comes with the same weight every time."""

    def __init__(self) -> None:
        self._used: dict[Tensor, tuple[Tensor, Tensor | None, _Left]] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return linear(x, weight, bias)
        of_rows = bias is not None and bias.dim() == 2
        if weight not in self._used:
            left = _Left()
            self._used[weight] = (*_Whole.apply(weight, None if of_rows else bias, left), left)
        shared, shared_bias, left = self._used[weight]
        return _Use.apply(x, shared, bias if of_rows else shared_bias, left)


class HalfPrecision:
    """A `linear` for one roll-out without gradients: products by large weights are made in bfloat16, to which each is brought once."""

    def __init__(self) -> None:
        self._weights: dict[Tensor, Tensor] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.numel() < LARGE or not x.is_floating_point():
            return linear(x, weight, bias)
        if weight not in self._weights:
            self._weights[weight] = weight.bfloat16()
        product = (x.bfloat16() @ self._weights[weight].t()).to(x.dtype)
        return product if bias is None else product.add_(bias)


class _Left:
    """What the backward passes of the uses of a weight leave for its gradient."""

    def __init__(self) -> None:
        self._pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def leave(self, x: Tensor, above: Tensor) -> None:
        """Notes the input of a use and the gradient of its output, for the backward pass that is under way."""
        self._pairs.setdefault(torch._C._current_graph_task_id(), []).append((x, above))

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """What this backward pass has left. Others, which did not come as far as the weight, are forgotten."""
        found = self._pairs.get(torch._C._current_graph_task_id(), [])
        self._pairs.clear()
        return found


class _Whole(torch.autograd.Function):
    """Stands between a weight and its uses: its backward pass comes when those of all uses are through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, left: _Left) -> tuple[Tensor, Tensor | None]:
        ctx.left, ctx.has_bias, ctx.shape = left, bias is not None, weight.shape
        ctx.set_materialize_grads(False)  # the uses give none, for they leave theirs
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        pairs = ctx.left.take()
        if not pairs:
            return None, None, None
        x, above = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pairs, strict=True))
        by_weight = above.t() @ x if x.is_floating_point() else above.new_zeros(ctx.shape).index_add_(0, x, above)
        return by_weight, above.sum(0) if ctx.has_bias else None, None


class _Use(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, left: _Left) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.left, ctx.of_rows = left, bias is not None and bias.dim() == 2
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        weight = weight.to(above.dtype)  # under autocast they were multiplied in its type
        ctx.left.leave(x.to(above.dtype) if x.is_floating_point() else x, above)
        return above @ weight if ctx.needs_input_grad[0] else None, None, above if ctx.of_rows else None, None
