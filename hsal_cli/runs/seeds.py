"""Random numbers of a batch: those of a row depend on the seed, the step and the row's place alone, not on which worker computes it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hsal_cli import distributed


def seeded(seed: int, number: int) -> torch.Generator:
    """A generator of its own for a step or an epoch, so that what is resumed draws what an uninterrupted training would."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number * 7_919) % 2**63)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws for a whole batch, and gives those of some of its rows.

    Attributes:
        generator: on the CPU, so that a GPU gets the same numbers; one in the same state everywhere the batch is computed.
        size: rows of the batch, B.
        places: (n,) int64, those of them that this worker computes.
    """

    generator: torch.Generator
    size: int
    places: Tensor

    @classmethod
    def shared(cls, seed: int, step: int, size: int) -> Draws:
        """Those of a step, for this worker's share of the batch."""
        return cls(seeded(seed, step), size, torch.tensor(distributed.share(size), dtype=torch.long))

    @classmethod
    def all(cls, generator: torch.Generator, size: int) -> Draws:
        """For all rows of a batch."""
        return cls(generator, size, torch.arange(size))

    def at_least_one(self) -> Draws:
        """The same, but for the first row where a small batch has none for this worker; it must count for nothing."""
        return self if len(self.places) else dataclasses.replace(self, places=torch.zeros(1, dtype=torch.long))

    def rand(self, *shape: int) -> Tensor:
        """(n, *shape) uniform in [0, 1)."""
        return torch.rand(self.size, *shape, generator=self.generator)[self.places]

    def randint(self, end: int, *shape: int) -> Tensor:
        """(n, *shape) int64, uniform in 0..end-1."""
        return torch.randint(end, (self.size, *shape), generator=self.generator)[self.places]

    def clocks(self, rows: Tensor, actions: int) -> Tensor:
        """Exponential clocks (len(rows), actions) for some of the n rows, as `policy.episode.draw` takes them."""
        places = self.places if self.places.device == rows.device else self.places.to(rows.device)
        drawn = torch.empty(self.size, actions).exponential_(generator=self.generator)
        return drawn.to(rows.device)[places[rows]]
