"""A reporter that stops after some steps, comparisons at zero tolerance, and an easy synthetic problem, for the tests of learning."""

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor

from hsal_cli.console import Reporter
from hsal_cli.policy.settings import PolicySettings
from hsal_cli.vision.feature_file import FeatureTable

SMALL = PolicySettings(glimpses=1, gaussians=2, meta_encode=8, meta_hidden=8, controller_encode=24, controller_hidden=24, location_hidden=8)
TIMES = {"seconds", "examples_per_s"}


class StoppingReporter(Reporter):
    """Remembers what was said, and asks to stop after some steps, as a signal would."""

    def __init__(self, after: int | None = None):
        self.after, self.steps, self.said, self.warned = after, 0, [], []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str, done: int = 0):
        self.total, self.done = total, done

        def advance(n: int, note: str = "") -> None:
            self.steps += n
            if self.steps == self.after:
                self.stop_signal = 15

        yield advance


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Compares nested states at zero tolerance."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key not in TIMES:
                assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for place, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    else:
        assert left == right, where


def easy_table(count: int, classes: int = 2, least: int = 1, most: int = 2, seed: int = 0, side: int = 3) -> FeatureTable:
    """Images of `least` to `most` objects, each in a cell of its own whose column is the one-hot code of its class; the rest is empty."""
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.zeros(count, classes, side * side)
    labels = torch.randint(0, classes, (count, most), generator=generator)
    sizes = torch.randint(least, most + 1, (count, 1), generator=generator)
    labels = torch.where(torch.arange(most) < sizes, labels, -1)
    boxes = torch.full((count, most, 4), -1)
    for row in range(count):
        cells = torch.randperm(side * side, generator=generator)[:most]
        for place in range(int(sizes[row])):
            cell = int(cells[place])
            volumes[row, labels[row, place], cell] = 1 + 0.1 * float(torch.rand((), generator=generator))
            x, y = 10 * (cell % side), 10 * (cell // side)
            boxes[row, place] = torch.tensor([x, y, x + 10, y + 10])
    volumes = volumes.view(count, classes, side, side).half()
    return FeatureTable(volumes, volumes.float().square().sum(1), labels, boxes, (10 * side, 10 * side))


def without(row: dict[str, Any], names: set[str] = TIMES) -> dict[str, Any]:
    """A row of metrics without what depends on the clock."""
    return {key: value for key, value in row.items() if key not in names}


def small(**changes: Any) -> PolicySettings:
    """The small policy, changed."""
    return dataclasses.replace(SMALL, **changes)
