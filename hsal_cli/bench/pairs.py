"""Timing a stage and its floor in turns, so that whatever else the machine does slows both alike."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

Piece = Callable[[], tuple[float, float]]
"""piece() does a part of some work, and times it -> (units of work done, seconds they took)"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is measured.

    Attributes:
        name: of `settings.STAGES`.
        unit: of the rates.
        work, floor: do a part of the stage, and of what sets its limit, in the same units.
        floor_is: what the floor is, in words.
        goal: the goal, in words.
        reached: (rate, floor) -> whether the goal is reached.
    """

    name: str
    unit: str
    work: Piece
    floor: Piece
    floor_is: str
    goal: str
    reached: Callable[[float, float], bool]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Units a second of each lap, in the order in which they were taken."""

    rates: list[float]
    floors: list[float]

    @property
    def rate(self) -> float:
        """The stage's median lap."""
        return statistics.median(self.rates)

    @property
    def floor(self) -> float:
        """The floor's median lap."""
        return statistics.median(self.floors)

    @property
    def ratio(self) -> float:
        """The share of the floor that the stage reaches."""
        return self.rate / self.floor


def lap(piece: Piece, seconds: float, check_stop: Callable[[], None]) -> float:
    """Units a second over at least so many seconds, and at least one piece."""
    units = spent = 0.0
    while not units or spent < seconds:
        check_stop()
        done, took = piece()
        units, spent = units + done, spent + took
    return units / spent


def measure(stage: Stage, seconds: float, laps: int, check_stop: Callable[[], None], advance: Callable[[int], None]) -> Measured:
    """Times a stage and its floor.

    Args:
        stage: what.
        seconds: how long a lap lasts at least.
        laps: of each.
        check_stop: called between pieces; raises to stop.
        advance: told of each lap.
    """
    for piece in (stage.work, stage.floor):  # the first of all is slower: caches, compiled kernels, memory not yet allocated
        check_stop()
        piece()
    found: dict[Piece, list[float]] = {stage.work: [], stage.floor: []}
    for number in range(laps):
        # Each goes first every other time, so that a machine that gets slower favours neither.
        for piece in (stage.work, stage.floor) if number % 2 == 0 else (stage.floor, stage.work):
            found[piece].append(lap(piece, seconds, check_stop))
            advance(1)
    return Measured(found[stage.work], found[stage.floor])
