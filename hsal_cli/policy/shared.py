"""Weights that a roll-out uses many times: their gradient is one matrix product over all uses.

Left to autograd, every use multiplies out a gradient as large as the weights and adds it to those before: at k = 2 and five meta-steps
fifteen times for the controller. What is multiplied is the same, in another order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""linear(x (n, inputs), weight (outputs, inputs), bias (outputs,) or None) -> (n, outputs), as `torch.nn.functional.linear`"""


class SharedWeights:
    """A `Linear` for one roll-out; each weight comes with the same bias every time."""

    def __init__(self) -> None:
        self._used: dict[Tensor, tuple[Tensor, Tensor | None, _Left]] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return F.linear(x, weight, bias)
        if weight not in self._used:
            left = _Left()
            self._used[weight] = (*_Whole.apply(weight, bias, left), left)
        return _Use.apply(x, *self._used[weight])


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
        ctx.left, ctx.has_bias = left, bias is not None
        ctx.set_materialize_grads(False)  # the uses give none, for they leave theirs
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        pairs = ctx.left.take()
        if not pairs:
            return None, None, None
        x, above = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pairs, strict=True))
        return above.t() @ x, above.sum(0) if ctx.has_bias else None, None


class _Use(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, left: _Left) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.left = left
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = (saved.to(above.dtype) for saved in ctx.saved_tensors)  # under autocast they were multiplied in its type
        ctx.left.leave(x, above)
        return above @ weight if ctx.needs_input_grad[0] else None, None, None, None
