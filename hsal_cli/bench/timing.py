"""Timing a stage and its floor in turns, so that whatever else the machine does slows both alike; and clocks: of work on a device, of a
room's own progress, of a process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import hsal_cli
from hsal_cli.errors import HsalError
from hsal_cli.progress import Reporter

STOPPED_HINT = "run the same command again"
Piece = Callable[[], tuple[float, float]]
"""piece() does a part of some work, and times it -> (units of work done, seconds they took)"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is measured.

    Attributes:
        work, floor: do a part of the stage, and of what sets its limit, in the same units.
        floor_is: what the floor is, in words.
        goal: the goal, in words.
        reached: (rate, floor) -> whether the goal is reached.
        unit: of the rates.
    """

    work: Piece
    floor: Piece
    floor_is: str
    goal: str
    reached: Callable[[float, float], bool]
    unit: str = "images/s"


def lap(piece: Piece, seconds: float, reporter: Reporter) -> float:
    """Units a second over at least so many seconds, and at least one piece; a signal stops it between pieces."""
    units = spent = 0.0
    while not units or spent < seconds:
        reporter.check_stop(STOPPED_HINT)
        done, took = piece()
        units, spent = units + done, spent + took
    return units / spent


def measure(stage: Stage, seconds: float, laps: int, reporter: Reporter, advance: Callable[[int], None]) -> tuple[list[float], list[float]]:
    """Times a stage and its floor, in so many laps of at least so many seconds each; `advance` is told of each lap.

    Returns:
        Units a second of each lap of the stage, and of its floor, in the order in which they were taken.
    """
    pieces = (stage.work, stage.floor)
    for piece in pieces:  # the first of all is slower: caches, compiled kernels, memory not yet allocated
        reporter.check_stop(STOPPED_HINT)
        piece()
    found: dict[Piece, list[float]] = {piece: [] for piece in pieces}
    for number in range(laps):
        # Each goes first every other time, so that a machine that gets slower favours neither.
        for piece in pieces if number % 2 == 0 else reversed(pieces):
            found[piece].append(lap(piece, seconds, reporter))
            advance(1)
    return found[stage.work], found[stage.floor]


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], float], device: torch.device) -> Piece:
    """A piece from work that returns how many units it did."""

    def piece() -> tuple[float, float]:
        wait_for(device)
        start = time.perf_counter()
        units = work()
        wait_for(device)
        return units, time.perf_counter() - start

    return piece


class Clock(Reporter):
    """Times the work that a room tracks: from when it says how much there is, to when the block ends.

    Reading inputs and starting processes is done once, however much work there is, and is timed apart. Hears nothing but whether to stop.

    Attributes:
        start_s, work_s: seconds before the tracked work began, and from then to the end of the block.
        units: what was tracked.
    """

    def __init__(self, parent: Reporter):
        self._parent = parent
        self.start_s = self.work_s = self.units = self._tracked = 0.0

    def check_stop(self, hint: str) -> None:
        self._parent.check_stop(STOPPED_HINT)

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        self._tracked, self.units = time.perf_counter(), float(total)
        yield lambda n, note="": None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The block that is timed."""
        begun = time.perf_counter()
        yield
        self.start_s, self.work_s = self._tracked - begun, time.perf_counter() - self._tracked


def call(words: Sequence[str], folder: Path, reporter: Reporter) -> Piece:
    """A piece that runs `python WORDS` in a folder, in a process of its own; the unit is a call.

    Raises:
        HsalError: when called, the process fails; Interrupted where Ctrl-C, which reaches it too, was why.
    """
    # The package may not be installed, but lie in the folder that the benchmark was started from.
    paths = [str(Path(hsal_cli.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def piece() -> tuple[float, float]:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            cwd=folder,
        )
        took = time.perf_counter() - start
        if done.returncode:
            reporter.check_stop(STOPPED_HINT)
            said = (done.stderr.strip().splitlines() or ["nothing was said"])[0]
            shown = " ".join(["python", *words[:3]]).partition("\n")[0]
            raise HsalError(f"{shown} ended with {done.returncode}: {said}", "see what `hsal doctor` finds")
        return 1, took

    return piece
