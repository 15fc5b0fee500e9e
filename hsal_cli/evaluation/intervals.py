"""Means over seeds with their uncertainty: Student's t intervals, which hold for the few runs that one can afford."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

NORMAL = 1.959963984540054  # 97.5% quantile of the normal distribution
# 97.5% quantiles of Student's t for 1 to 12 degrees of freedom; beyond, the expansion below is right to 1e-5.
T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139, 2.200985, 2.178813)


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
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return MeanOfRuns(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return MeanOfRuns(mean, t_quantile(count - 1) * deviation / math.sqrt(count), count)


def t_quantile(freedom: int) -> float:
    """97.5% quantile of Student's t, by table and then by Cornish and Fisher's expansion around the normal quantile.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    if freedom <= len(T):
        return T[freedom - 1]
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
