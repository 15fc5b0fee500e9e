"""Means over seeds with their uncertainty: Student's t intervals, which hold for the few runs that one can afford."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class MeanOfRuns:
    """A score over independent runs.

    Attributes:
        mean: of the runs.
        half: half the width of the 95% interval of the mean; None with one run, which says nothing of its spread.
        runs: how many there are.
    """

    mean: float
    half: float | None
    runs: int


def mean_of_runs(values: Sequence[float]) -> MeanOfRuns:
    """Mean and 95% t interval over runs that differ by their seed.

    Args:
        values: one a run, at least one.
    """
    from scipy.stats import t  # half a second to import

    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return MeanOfRuns(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return MeanOfRuns(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), count)
