"""Table 1 from evaluated runs: means and intervals over seeds, beside the figures of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hsal_cli.evaluation.metrics import mean_of_runs

# Table 1 of the paper: (data set, objective) -> macro-F1 and exact match on the test set.
PAPER = {
    ("mnist-set", "rl"): {"macro_f1": 0.990, "exact_match": 0.960},
    ("mnist-set", "cross-entropy"): {"macro_f1": 0.735, "exact_match": 0.478},
    ("mnist-multiset", "rl"): {"macro_f1": 0.978, "exact_match": 0.935},
    ("mnist-multiset", "cross-entropy"): {"macro_f1": 0.726, "exact_match": 0.477},
    ("svhn-multiset", "rl"): {"macro_f1": 0.973, "exact_match": 0.947},
    ("svhn-multiset", "cross-entropy"): {"macro_f1": 0.589, "exact_match": 0.307},
}

# Where the scores of the summary stand in an evaluation.
SCORES = {
    "macro_f1": ("macro_f1",),
    "exact_match": ("exact_match",),
    "glimpse_hit": ("localization", "glimpse_hit"),
    "mask_mass": ("localization", "mask_mass"),
    "digits_once": ("localization", "digits_once"),
    "repeat_visits": ("localization", "repeat_visits"),
    "random": ("localization", "random"),
    "center": ("localization", "center"),
    "saliency": ("localization", "saliency"),
    "area": ("localization", "area"),
    "attn_saliency": ("attn_saliency", "raw"),
    "attn_saliency_normalized": ("attn_saliency", "normalized"),
    "attn_saliency_random": ("attn_saliency", "random"),
    "attn_saliency_best": ("attn_saliency", "best"),
}


@dataclasses.dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Attributes:
        name: the run's.
        dataset, objective, seed: its place in the grid.
        path: its directory.
        evaluation: what `evaluate_file` gave; None where the run failed.
        rows: its metrics, one row an epoch.
        seconds: of training and evaluation, as far as they are known.
        digest: sha256 of the weights that were evaluated.
        commands: what makes the run and its scores alone.
        failure: why there is no evaluation, else "".
        last: what `evaluate_file` gave of the last epoch, where `evaluation` is of another one, the best; else None.
    """

    name: str
    dataset: str
    objective: str
    seed: int
    path: str
    evaluation: dict[str, Any] | None
    rows: list[dict[str, Any]]
    seconds: float | None
    digest: str
    commands: list[str]
    failure: str = ""
    last: dict[str, Any] | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the summary that this run has."""
        return scores_of(self.evaluation)


def scores_of(evaluation: dict[str, Any] | None) -> dict[str, float]:
    """The scores of the summary that an evaluation has."""
    found = {}
    for name, path in SCORES.items():
        value: Any = evaluation
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def table_rows(runs: Sequence[GridRun]) -> list[dict[str, Any]]:
    """One row for each data set and objective, in the order of the runs.

    Returns:
        Rows of `dataset`, `objective`, `seeds`, `failed` (seeds of runs without scores), `epochs` (of each run that has scores), `paper`
        (its figures, or None), and `scores`: name -> `mean`, `values` (one a seed), `low`, `high` and `interval`; `last_scores`: the same
        after the last epoch, where `scores` are of the best. The interval is Student's over seeds ("seeds"); with one seed that of the
        bootstrap over test images ("images") where the evaluation has one, else `low`, `high` and `interval` are None.
    """
    groups: dict[tuple[str, str], list[GridRun]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.objective), []).append(run)
    rows = []
    for (dataset, objective), members in groups.items():
        done = [run for run in members if run.evaluation is not None]
        best = [run.evaluation for run in done]
        last = [run.last or run.evaluation for run in done]
        rows.append(
            {
                "dataset": dataset,
                "objective": objective,
                "seeds": [run.seed for run in done],
                "failed": [run.seed for run in members if run.evaluation is None],
                "epochs": [len(run.rows) for run in done],
                "paper": PAPER.get((dataset, objective)),
                "scores": _scores(best),
                "last_scores": _scores(last),
            }
        )
    return rows


def _scores(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    found = [scores_of(evaluation) for evaluation in evaluations]
    return {
        name: _score(name, [scores[name] for scores in found if name in scores], evaluations)
        for name in SCORES
        if any(name in scores for scores in found)
    }


def _score(name: str, values: list[float], evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    found = mean_of_runs(values)
    low = high = interval = None
    if found.half is not None:
        low, high, interval = found.mean - found.half, found.mean + found.half, "seeds"
    else:
        over_images = evaluations[0].get("ci95", {}).get(name)
        if over_images is not None:
            (low, high), interval = over_images, "images"
    return {"mean": found.mean, "low": low, "high": high, "interval": interval, "values": values}


def curve_of(run: GridRun, score: str) -> list[tuple[float, float]]:
    """(epoch, value) of a score over a run's training; epochs that do not have it are left out."""
    return [(float(row["epoch"]), float(row[score])) for row in run.rows if isinstance(row.get(score), (int, float))]
