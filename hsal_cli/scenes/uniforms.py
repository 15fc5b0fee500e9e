"""Uniform random numbers in a stream of each image's own, cheap to start and to draw from."""

from __future__ import annotations

import numpy as np

AHEAD = 64  # drawn at a time; an image of 4 digits takes about 60


class Uniforms:
    """Uniform numbers of stream after stream, each the same as `Generator(Philox(key)).random()` gives one by one.

    A counter-based generator needs no seeding, and a key never meets another: (seed, stream). NumPy keeps what `random` gives from version
    to version. A generator costs far more to make than to set back, and a number far more to draw alone than among others.

    Args:
        seed: the first half of every key, 0 to 2**64 - 1.
    """

    def __init__(self, seed: int):
        self._bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state
        self._ahead: list[float] = []  # the next one last

    def start(self, stream: int) -> None:
        """Begins stream number `stream`, 0 to 2**64 - 1."""
        self._fresh["state"]["key"][1] = stream
        self._bits.state = self._fresh
        self._ahead = []

    def below(self, limit: int) -> int:
        """A uniform integer in [0, limit)."""
        if not self._ahead:
            self._ahead = self._generator.random(AHEAD)[::-1].tolist()
        return int(self._ahead.pop() * limit)
