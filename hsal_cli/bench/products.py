"""The matrix products of a piece of work: which ones it takes, how many FLOPs they are, and how long they take alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hsal_cli.bench.timing import wait_for

# operator -> where its two matrices stand among its arguments
OPERANDS = {torch.ops.aten.mm.default: 0, torch.ops.aten.bmm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.baddbmm.default: 1}
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides and type of a matrix, or of a batch of them


class MatrixProducts(TorchDispatchMode):
    """While its block runs, notes every matrix product, backward passes included, in `found`: layouts of both factors -> how often."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        place = OPERANDS.get(func)
        if place is None:
            with self:  # in inference mode, operators arrive here before they are taken apart
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        self.found[_layout(args[place]), _layout(args[place + 1])] += 1
        return func(*args, **kwargs)

    @property
    def flops(self) -> int:
        """Floating-point operations of all products: 2 for each multiplication and addition."""
        total = 0
        for (((*batch, rows, inner), *_), (right, *_)), times in self.found.items():  # (rows, inner) times (inner, columns)
            total += times * 2 * rows * inner * right[-1] * (batch[0] if batch else 1)
        return total


def replay(products: MatrixProducts, device: torch.device) -> Callable[[], None]:
    """The products alone, on resident matrices of the same shapes and strides: run() takes all, as often as found, and waits.

    They are of single precision, where the work has half of it too: a floor is the same whichever way the work takes.
    """
    prepared: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor, int]] = []
    for (left, right), times in products.found.items():
        a, b = _filled(left, device), _filled(right, device)
        take = torch.mm if a.dim() == 2 else torch.bmm
        prepared.append((take, a, b, take(a, b), times))

    def run() -> None:
        for take, a, b, result, times in prepared:
            for _ in range(times):
                take(a, b, out=result)
        wait_for(device)

    return run


def _layout(matrix: Tensor) -> Layout:
    return tuple(matrix.shape), matrix.stride(), matrix.dtype


def _filled(layout: Layout, device: torch.device) -> Tensor:
    shape, strides, dtype = layout
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    if 0 in strides:  # expanded: several elements in one place, which cannot be filled
        return torch.randn(shape, device=device, dtype=dtype)
    return torch.empty_strided(shape, strides, device=device, dtype=dtype).normal_()
