"""Trivial baselines: what is reached without looking at the images, from the training labels alone."""

from __future__ import annotations

import numpy as np

from hsal_cli.evaluation.metrics import exact_match_and_f1


def trivial_baselines(train: np.ndarray, true: np.ndarray) -> dict[str, dict[str, float]]:
    """Scores two predictors that never see an image.

    Args:
        train: (N, K) label counts of the training split, N >= 1.
        true: (M, K) label counts of the split that is evaluated.

    Returns:
        name -> `exact_match`, `macro_f1`, in [0, 1], of
        `most_frequent_multiset`: always the multiset that most training images have;
        `count_only`: the one that most training images with the true number of objects have (of all training images where none
        has that number): as far as counting alone can get. Of multisets equally frequent, the first in lexicographic order of counts.
    """
    overall = _most_frequent(train)
    sizes, wanted = train.sum(1), true.sum(1)
    counted = np.tile(overall, (len(true), 1))
    for size in np.unique(wanted):
        if (sizes == size).any():
            counted[wanted == size] = _most_frequent(train[sizes == size])
    guesses = {"most_frequent_multiset": np.tile(overall, (len(true), 1)), "count_only": counted}
    return {name: dict(zip(("exact_match", "macro_f1"), exact_match_and_f1(true, guess), strict=True)) for name, guess in guesses.items()}


def _most_frequent(counts: np.ndarray) -> np.ndarray:
    multisets, times = np.unique(counts, axis=0, return_counts=True)
    return multisets[times.argmax()]
