"""Ways of choosing among actions, greedily or by drawing from the softmax, and the record of a roll-out that all of hsal reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Rows = Tensor | slice
"""Places in the batch: (n,) int64, or a slice where they follow each other."""

Choose = Callable[[int, Rows, Tensor], Tensor]
"""choose(t, rows (n,), logits (n, K + 1)) -> labels (n,): names a label for each active example at meta-step t (from 0)."""


class Clocks(Protocol):
    """A source of randomness that knows the rows of the batch: what a row draws does not depend on which others are still active."""

    def clocks(self, rows: Rows, actions: int) -> Tensor:
        """The logarithms of exponential clocks (n, actions), float32, for some rows (n,) of the batch, on any device."""


Source = torch.Generator | Clocks
"""Where randomness comes from: a generator on any device, or clocks for the rows of a batch."""


def greedy(t: int, rows: Rows, logits: Tensor) -> Tensor:
    """Names the likeliest label; of equals, the first."""
    return logits.argmax(1)


def until(threshold: float | None, temperature: float = 1.0) -> Choose:
    """A `choose` that names stop once its probability, at a temperature, exceeds a threshold, and else the likeliest label.

    Args:
        threshold: in [0, 1]; None: `greedy`, which names stop where it is likelier than each label.
    """
    if threshold is None:
        return greedy

    def choose(t: int, rows: Rows, logits: Tensor) -> Tensor:
        stops = (logits / temperature).softmax(1)[:, -1] > threshold
        return logits[:, :-1].argmax(1).masked_fill(stops, logits.shape[1] - 1)

    return choose


def sampling(source: Source | None = None) -> Choose:
    """A `choose` that draws labels from the softmax, stop included.

    Args:
        source: where the randomness comes from; None: torch's own.
    """

    def choose(t: int, rows: Rows, logits: Tensor) -> Tensor:
        return draw(logits, source, rows)

    return choose


def draw(logits: Tensor, source: Source | None = None, rows: Rows | None = None) -> Tensor:
    """Draws one action a row from softmax(logits).

    Args:
        logits: (n, actions).
        source: one on the CPU gives a GPU the same randomness, for which it waits; None: torch's own.
        rows: (n,) places of the rows in the batch, which clocks ask for.

    Returns:
        (n,) actions.
    """
    # The smallest of exponential clocks that run at rates p wins with probability p. Unlike torch.multinomial, this never waits for a GPU.
    if source is None or isinstance(source, torch.Generator):
        place = logits.device if source is None else source.device
        clock = log_clocks(logits.shape, place, source)
    else:
        clock = source.clocks(rows, logits.shape[1])
    return (logits.detach() - clock.to(logits.device)).argmax(1)


def log_clocks(shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """The logarithms of exponential clocks, float32."""
    drawn = torch.empty(shape, device=device, dtype=torch.float32).exponential_(generator=generator)
    return drawn.clamp_(min=torch.finfo(torch.float32).tiny).log_()


@dataclasses.dataclass(frozen=True)
class Episode:
    """What the policy did with a batch of B images in T meta-steps of k + 1 controller steps each.

    Examples stand in the order of the batch. Where an example is no longer active, labels are -1 and all else is zero.
    `logits` carry gradients to the whole policy except the location and value heads, `location_logits` and `values` to their own
    head only; the maps carry gradients too, so detach them where they serve as a reward.

    Args:
        active: (T, B) bool, whether the example takes meta-step t.
        labels: (T, B) int64, the label named, 0 to K (K is stop), or -1.
        logits: (T, B, K + 1), scores of the labels from the controller's state.
        stop_shift: (T, B), what the head that reads the saliency map adds to the score of stop; carries gradients to that head alone.
            0 without such a head.
        glimpses: (T, B, k) int64, cells row * w + column, from 0.
        location_logits: (T, B, k, h * w), scores of the cells.
        values: (T, B, k + 1), the baseline V(s_{t,i}); the last one is of the step that names the label.
        masks: (T, B, h, w), the covert attention mask M_t.
        priority: (T, B, h, w), the priority map P_t in [0, 1].
        saliency: (T, B, h, w), the saliency map S_t before meta-step t, in [0, 1].
        gaussians: (T, B, G, 5), alpha, beta of rows and of columns (1/cells^2), kappa row, kappa column (cells, the first one is 1) of M_t.
    """

    active: Tensor
    labels: Tensor
    logits: Tensor
    stop_shift: Tensor
    glimpses: Tensor
    location_logits: Tensor
    values: Tensor
    masks: Tensor
    priority: Tensor
    saliency: Tensor
    gaussians: Tensor

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, how many meta-steps each example took."""
        return self.active.sum(0)

    @property
    def scores(self) -> Tensor:
        """(T, B, K + 1), what labels are chosen by: the logits, with stop as both heads score it. Gradients go to the second one alone."""
        return with_shift(self.logits.detach(), self.stop_shift)


def with_shift(logits: Tensor, stop_shift: Tensor) -> Tensor:
    """Scores (..., K + 1) of which the last one, that of stop, is shifted by (...)."""
    return torch.cat([logits[..., :-1], logits[..., -1:] + stop_shift[..., None]], -1)
