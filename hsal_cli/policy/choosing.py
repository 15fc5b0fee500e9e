"""Ways of choosing among actions: greedily, or by drawing from the softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Choose = Callable[[int, Tensor, Tensor], Tensor]
"""choose(t, rows (n,), logits (n, K + 1)) -> labels (n,): names a label for each active example at meta-step t (from 0)."""


class Clocks(Protocol):
    """A source of randomness that knows the rows of the batch: what a row draws does not depend on which others are still active."""

    def clocks(self, rows: Tensor, actions: int) -> Tensor:
        """Exponential clocks (n, actions), float32, for some rows (n,) of the batch, on the rows' device."""


Source = torch.Generator | Clocks
"""Where randomness comes from: a generator on any device, or clocks for the rows of a batch."""


def greedy(t: int, rows: Tensor, logits: Tensor) -> Tensor:
    """Names the likeliest label; of equals, the first."""
    return logits.argmax(1)


def sampling(source: Source | None = None) -> Choose:
    """A `choose` that draws labels from the softmax, stop included.

    Args:
        source: where the randomness comes from; None: torch's own.
    """

    def choose(t: int, rows: Tensor, logits: Tensor) -> Tensor:
        return draw(logits, source, rows)

    return choose


def draw(logits: Tensor, source: Source | None = None, rows: Tensor | None = None) -> Tensor:
    """Draws one action a row from softmax(logits).

    Args:
        logits: (n, actions).
        source: a generator on the CPU gives a GPU the same randomness; None: torch's own.
        rows: (n,) places of the rows in the batch, which clocks ask for.

    Returns:
        (n,) actions.
    """
    # The smallest of exponential clocks that run at rates p wins with probability p. Unlike torch.multinomial, this never waits for a GPU.
    if source is None or isinstance(source, torch.Generator):
        place = logits.device if source is None else source.device
        clock = torch.empty(logits.shape, device=place, dtype=torch.float32).exponential_(generator=source).to(logits.device)
    else:
        clock = source.clocks(rows, logits.shape[1])
    return (logits.detach() - clock.clamp(min=torch.finfo(torch.float32).tiny).log()).argmax(1)
