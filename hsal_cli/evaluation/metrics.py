"""Multiset metrics (section 5, "Evaluation Metrics"): exact match, precision, recall and F1 on counts, with bootstrap intervals; means over
seeds; and what is reached without looking.

With n_ic the true and p_ic the predicted count of class c in image i, hits_ic = min(n_ic, p_ic). On sets, where every count is 0
or 1, all of these are the usual multi-label metrics. A ratio 0/0 counts as 0, but where nothing is there and nothing is named, all is
right and every score is 1: so it is for the example F1 of an image without an object.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CHUNK_DRAWS = 2_000_000  # image indices drawn at a time by the bootstrap, which bounds its memory to some 50 MB


def label_counts(labels: Any, classes: int) -> np.ndarray:
    """Counts how often each class is named.

    Args:
        labels: (N, L) integer tensor or array; anything outside 0..classes-1, such as padding (-1) or the stop label, is not counted.
        classes: K.

    Returns:
        (N, K) int64.
    """
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels).astype(np.int64)
    examples = labels.shape[0]
    named = (labels >= 0) & (labels < classes)
    cells = (np.arange(examples)[:, None] * classes + labels)[named]
    return np.bincount(cells, minlength=examples * classes).reshape(examples, classes)


def exact_match_and_f1(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Exact match (0-1) and macro-F1 of true and predicted counts (N, K), in [0, 1], 0 for no examples; cheap enough for every epoch."""
    if not len(true):
        return 0.0, 0.0
    hits = np.minimum(true, predicted).sum(0)
    return float((true == predicted).all(1).mean()), float(_macro_f1(hits, true.sum(0), predicted.sum(0)))


def multiset_metrics(
    true: np.ndarray, predicted: np.ndarray, class_names: list[str], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All multiset metrics of a set of predictions.

    Args:
        true, predicted: (N, K) counts, N >= 1.
        class_names: K names.
        resamples: bootstrap resamples for the intervals.
        seed: of the bootstrap; the same seed gives the same intervals.

    Returns:
        Plain JSON types; every share lies in [0, 1]:
        `examples` · `exact_match` · `macro_precision`, `macro_recall`, `macro_f1` (means over the classes that are present or
        predicted) · `micro_precision`, `micro_recall`, `micro_f1` · `example_f1` · `cardinality_error` (mean |sum n - sum p|, in
        objects) · `ci95`: {"exact_match": [low, high], "macro_f1": [low, high]} · `by_count`: true number of objects (as text) ->
        `examples`, `exact_match`, `macro_f1` · `by_class`: name -> `precision`, `recall`, `f1`, `support`.

    Raises:
        ValueError: shapes differ, or there is no example.
    """
    if true.shape != predicted.shape or true.shape[1] != len(class_names) or not len(true):
        raise ValueError(f"counts of shapes {true.shape} and {predicted.shape} with {len(class_names)} classes")
    hits = np.minimum(true, predicted)
    n, p, h = true.sum(0), predicted.sum(0), hits.sum(0)
    occurs = (n > 0) | (p > 0)
    precision, recall, f1 = _ratio(h, p), _ratio(h, n), _ratio(2 * h, n + p)
    exact, macro_f1 = exact_match_and_f1(true, predicted)
    cardinality, named = true.sum(1), predicted.sum(1)
    nothing = float(not occurs.any())  # then all that is averaged over classes or objects is 1
    example_f1 = np.where(cardinality + named > 0, _ratio(2 * hits.sum(1), cardinality + named), 1.0)
    return {
        "examples": len(true),
        "exact_match": exact,
        "macro_f1": macro_f1,
        "macro_precision": _mean(precision[occurs]) + nothing,
        "macro_recall": _mean(recall[occurs]) + nothing,
        "micro_f1": float(_ratio(2 * h.sum(), n.sum() + p.sum())) + nothing,
        "micro_precision": float(_ratio(h.sum(), p.sum())) + nothing,
        "micro_recall": float(_ratio(h.sum(), n.sum())) + nothing,
        "example_f1": float(example_f1.mean()),
        "cardinality_error": float(np.abs(cardinality - named).mean()),
        "ci95": _intervals(true, predicted, resamples, seed),
        "by_count": scores_by_count(true, predicted),
        "by_class": {
            name: {"precision": float(precision[c]), "recall": float(recall[c]), "f1": float(f1[c]), "support": int(n[c])}
            for c, name in enumerate(class_names)
        },
    }


def scores_by_count(true: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, Any]]:
    """True number of objects, as text -> `examples`, `exact_match`, `macro_f1` of the images (N, K) that have so many."""
    found, sizes = {}, true.sum(1)
    for size in np.unique(sizes).tolist():
        exact, macro_f1 = exact_match_and_f1(true[sizes == size], predicted[sizes == size])
        found[str(size)] = {"examples": int((sizes == size).sum()), "exact_match": exact, "macro_f1": macro_f1}
    return found


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
    return np.asarray(multisets[times.argmax()])


@dataclasses.dataclass(frozen=True)
class MeanOfRuns:
    """The mean of independent runs; `half`: half the width of its 95% interval, None with one run, which says nothing of its spread."""

    mean: float
    half: float | None
    runs: int


def mean_of_runs(values: Sequence[float]) -> MeanOfRuns:
    """Mean and 95% interval (Student's t, which holds for few runs) of values, one a run, at least one; the runs differ by their seed."""
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]  # half a second to import

    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return MeanOfRuns(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return MeanOfRuns(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), count)


def _intervals(true: np.ndarray, predicted: np.ndarray, resamples: int, seed: int) -> dict[str, list[float]]:
    """95% percentile intervals by resampling images with replacement: each resample is a vector of multiplicities times per-image sums."""
    examples = len(true)
    exact = (true == predicted).all(1)
    sums = np.concatenate([exact[:, None], np.minimum(true, predicted), true, predicted], axis=1).astype(np.float64)
    generator = np.random.default_rng(seed)
    exacts, macros = [], []
    chunk = max(1, CHUNK_DRAWS // examples)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = generator.integers(0, examples, (size, examples)) + np.arange(size)[:, None] * examples
        multiplicity = np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples)
        totals = multiplicity.astype(np.float64) @ sums
        exacts.append(totals[:, 0] / examples)
        macros.append(_macro_f1(*np.split(totals[:, 1:], 3, axis=1)))
    return {
        name: [float(bound) for bound in np.percentile(np.concatenate(values), [2.5, 97.5])]
        for name, values in (("exact_match", exacts), ("macro_f1", macros))
    }


def _macro_f1(hits: np.ndarray, n: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Macro-F1 of sums over images (..., K), over the classes that occur; 1 where none does, for then nothing is missed or wrong."""
    occurring = ((n > 0) | (p > 0)).sum(-1)
    return np.where(occurring > 0, _ratio(_ratio(2 * hits, n + p).sum(-1), occurring), 1.0)


def _ratio(above: Any, below: Any) -> np.ndarray:
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
