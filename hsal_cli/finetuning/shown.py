"""What a step of fine-tuning shows the network, and what its answers are worth: shared by images of one object and of many."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli import distributed

WHOLE = 0.85  # share of an object that must be in view for it to be asked for


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a step shows the network of B images.

    Attributes:
        inputs: (B, 3, s, s).
        labels: (B,), or (B, M) padded with -1 where there are regions, or counts (B, K).
        regions: (B, M, h, w), the cells that each object is named from; None: all.
        objects: (B, h, w), 1 for cells on an object, 0 for background; None where no boxes are known.
    """

    inputs: Tensor
    labels: Tensor
    regions: Tensor | None = None
    objects: Tensor | None = None

    def first(self, rows: int, device: torch.device) -> Shown:
        """The first rows of it, on a device."""
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Shown(*(None if part is None else part[:rows].to(device) for part in parts))


@dataclasses.dataclass(frozen=True)
class LossSums:
    """A loss and an accuracy before they are averaged, so that those of several workers can be added up.

    Attributes:
        loss: the sum, with its gradient.
        terms: how many terms it has.
        right: the sum of what the accuracy averages.
        cases: how many those are.
    """

    loss: Tensor
    terms: int
    right: Tensor
    cases: int


def in_view(labels: Tensor, shares: Tensor) -> Tensor:
    """Labels (B, M) with -1 for objects too much of which is cut off, by how much of each is in view, (B, M)."""
    return labels.masked_fill(shares < WHOLE, -1)


def naming_loss(logits: Tensor, labels: Tensor) -> LossSums:
    """Cross-entropy of logits (N, K) and labels (N,), and how many are named rightly."""
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return LossSums(loss, len(labels), (logits.argmax(1) == labels).sum(), len(labels))


def share_of(right: float, cases: int) -> float:
    """The share of what all workers have scored that is right."""
    right, cases = distributed.all_reduce(torch.tensor([right, cases], dtype=torch.float64)).tolist()
    return right / max(cases, 1)
