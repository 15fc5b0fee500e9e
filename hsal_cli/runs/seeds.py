"""Random numbers of a batch: those of a row depend on the seed, the step and the row's place alone, not on which worker computes it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.policy.episode import Rows, log_clocks

AHEAD = 16  # draws of a kind that a GPU makes at once


def seeded(seed: int, number: int, generator: torch.Generator | None = None) -> torch.Generator:
    """A generator of its own for a step or an epoch, so that what is resumed draws what an uninterrupted training would.

    Args:
        seed, number: of the training, and of the step or epoch.
        generator: one that is to be begun anew, on any device; None: a new one on the CPU.
    """
    return (torch.Generator() if generator is None else generator).manual_seed((seed * 1_000_003 + number * 7_919) % 2**63)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws for a whole batch, and gives those of some of its rows.

    Attributes:
        generator: in the same state everywhere the batch is computed. One on the CPU gives every device the same numbers; one on a GPU
            gives others, and nothing waits for them to be copied there.
        size: rows of the batch, B.
        places: those of them that this worker computes.
    """

    generator: torch.Generator
    size: int
    places: slice
    _ahead: dict[int, list[Tensor]] = dataclasses.field(default_factory=dict)

    @classmethod
    def shared(cls, seed: int, step: int, size: int, generator: torch.Generator | None = None) -> Draws:
        """Those of a step, for this worker's share of the batch; `generator` as of `seeded`."""
        own = distributed.share(size)
        return cls(seeded(seed, step, generator), size, slice(own.start, own.stop))

    @classmethod
    def all(cls, generator: torch.Generator, size: int) -> Draws:
        """For all rows of a batch."""
        return cls(generator, size, slice(0, size))

    @property
    def own(self) -> int:
        """How many rows this worker computes, n."""
        return self.places.stop - self.places.start

    def at_least_one(self) -> Draws:
        """The same, but for the first row where a small batch has none for this worker; it must count for nothing."""
        return self if self.own else dataclasses.replace(self, places=slice(0, 1))

    def rand(self, *shape: int) -> Tensor:
        """(n, *shape) uniform in [0, 1), on the generator's device."""
        return torch.rand(self.size, *shape, generator=self.generator, device=self.generator.device)[self.places]

    def randint(self, end: int, *shape: int) -> Tensor:
        """(n, *shape) int64, uniform in 0..end-1, on the generator's device."""
        return torch.randint(end, (self.size, *shape), generator=self.generator, device=self.generator.device)[self.places]

    def clocks(self, rows: Rows, actions: int) -> Tensor:
        """The logarithms of exponential clocks for some of the n rows, as `policy.episode.draw` takes them, on the generator's device."""
        device = self.generator.device
        if device.type == "cpu":
            drawn = log_clocks((self.size, actions), device, self.generator)
        else:  # each call costs a few launches, however much is drawn
            waiting = self._ahead.setdefault(actions, [])
            if not waiting:
                waiting += log_clocks((AHEAD, self.size, actions), device, self.generator).unbind()
            drawn = waiting.pop()
        return drawn[self.places][rows if isinstance(rows, slice) else rows.to(device)]
