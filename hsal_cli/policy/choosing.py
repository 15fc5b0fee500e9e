"""Ways of choosing among actions: greedily, or by drawing from the softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[int, Tensor, Tensor], Tensor]
"""choose(t, rows (n,), logits (n, K + 1)) -> labels (n,): names a label for each active example at meta-step t (from 0)."""


def greedy(t: int, rows: Tensor, logits: Tensor) -> Tensor:
    """Names the likeliest label; of equals, the first."""
    return logits.argmax(1)


def sampling(generator: torch.Generator | None = None) -> Choose:
    """A `choose` that draws labels from the softmax, stop included.

    Args:
        generator: where the randomness comes from, on any device; None: torch's own.
    """

    def choose(t: int, rows: Tensor, logits: Tensor) -> Tensor:
        return draw(logits, generator)

    return choose


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws one action a row from softmax(logits).

    Args:
        logits: (B, actions).
        generator: on any device, so that one on the CPU gives a GPU the same randomness; None: torch's own.

    Returns:
        (B,) actions.
    """
    place = logits.device if generator is None else generator.device
    # The smallest of exponential clocks that run at rates p wins with probability p. Unlike torch.multinomial, this never waits for a GPU.
    clock = torch.empty(logits.shape, device=place, dtype=torch.float32).exponential_(generator=generator).to(logits.device)
    return (logits.detach() - clock.clamp(min=torch.finfo(torch.float32).tiny).log()).argmax(1)
