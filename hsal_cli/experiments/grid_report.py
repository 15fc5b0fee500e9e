"""The report of a reproduction: Table 1 beside the paper's figures, curves over training (figures 5 and 6), trajectories of test images
chosen by rule (figures 2 and 12), and what each number rests on, in Markdown, JSON and PNG.

FOLDER/
    summary.md, summary.json
    macro-f1.png, attn-saliency.png    figures 6 and 5, a panel a data set
    attention.png                      glimpse_hit, mask_mass and visits over training
    trajectories.DATASET.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsal_cli import __version__
from hsal_cli.evaluation.examples import ChosenExample
from hsal_cli.evaluation.metrics import mean_of_runs
from hsal_cli.experiments.grid import GridRun
from hsal_cli.pictures.charts.panels import Curves, draw_panels
from hsal_cli.pictures.trajectory import trajectories
from hsal_cli.pictures.writing import encoded
from hsal_cli.progress import clock
from hsal_cli.report.markdown import cell, rendered
from hsal_cli.runs.documents import predictor
from hsal_cli.storage.atomic import json_bytes, write_together
from hsal_cli.storage.files import remove_pictures

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

DATASETS = {"mnist-set": "MNIST Set", "mnist-multiset": "MNIST Multiset", "svhn-multiset": "SVHN Multiset"}
DATASETS["street-numbers"] = "Street numbers (synthetic)"
OBJECTIVES = {
    "rl": "HSAL-RL",
    "cross-entropy": "Cross-entropy",
    "multiset": "Multiset loss",
    "count": "Count classifier",
    "set": "Set predictor",
}
FIGURES = {"macro-f1.png": ("macro_f1",), "attn-saliency.png": ("attn_saliency",)}
FIGURES["attention.png"] = ("glimpse_hit", "mask_mass", "digits_once", "repeat_visits")
LABELS = {  # score -> what its axis says, and whether it is a share
    "macro_f1": ("macro-F1, held-out images", True),
    "attn_saliency": ("attn_saliency, held-out images", False),
    "glimpse_hit": ("glimpses on the named digit", True),
    "mask_mass": ("covert mask on the named digit", True),
    "digits_once": ("digits visited exactly once", True),
    "repeat_visits": ("meta-steps that visit a digit again", True),
}
SAID = {
    "macro-f1.png": "Macro-F1 over training, on held-out training images (figure 6)",
    "attn-saliency.png": "attn_saliency over training, raw scale (figure 5)",
    "attention.png": "Attention over training",
}
CONTROLS = ("random", "center", "saliency", "area", "attn_saliency_normalized", "attn_saliency_random", "attn_saliency_best")
SIDE, ACROSS = 120, 2  # px of a trajectory's panels; trajectories beside each other
LEARNED = 0.9  # the exact match whose epoch is reported


def write_report(
    folder: Path, runs: Sequence[GridRun], provenance: dict[str, Any], examples: Mapping[str, Sequence[ChosenExample]], command: str
) -> dict[str, Any]:
    """Writes the report folder, and returns what summary.json holds; of an earlier report, pictures that are not drawn again go last.

    Args:
        runs: every policy of the grid.
        provenance: what the scores rest on, in plain JSON types (see `grid_run.provenance`).
        examples: name of a run, one a data set -> test images chosen by rule.
        command: what makes the report again.

    Raises:
        FileError: the folder cannot be written.
    """
    pictures: dict[str, bytes] = {}
    for name, scores in FIGURES.items():
        panels = curve_panels(runs, scores)
        if panels:
            pictures[name] = draw_panels(panels)
    dataset_of = {run.name: run.dataset for run in runs}
    for run_name, chosen in examples.items():
        if chosen:
            name = f"trajectories.{dataset_of[run_name]}.png"
            looks = [example.look for example in chosen]
            drawn = trajectories(looks, [example.truth for example in chosen], min(ACROSS, len(chosen)), SIDE)
            pictures[name] = encoded(drawn)
    summary = {
        "hsal": __version__,
        "command": command,
        "table": table_rows(runs),
        "runs": [_run_document(run) for run in runs],
        "examples": [
            {
                "dataset": dataset_of[run_name],
                "run": run_name,
                "rule": example.rule,
                "row": example.row,
                "true": sorted(example.truth),
                "predicted": sorted(example.look.labels),
            }
            for run_name, chosen in examples.items()
            for example in chosen
        ],
        "pictures": list(pictures),
        **provenance,
    }
    documents = {"summary.json": json_bytes(summary), "summary.md": markdown(summary, runs).encode()}
    write_together({folder / name: content for name, content in (pictures | documents).items()})
    remove_pictures(folder, list(pictures))
    return summary


def curve_panels(runs: Sequence[GridRun], scores: Sequence[str]) -> list[Curves]:
    """One panel a score and data set, with a series an objective; objectives and panels that have no such score are left out."""
    panels = []
    for score in scores:
        label, is_share = LABELS[score]
        for dataset in dict.fromkeys(run.dataset for run in runs):
            series: dict[str, list[list[tuple[float, float]]]] = {}
            for run in runs:
                curve = [(float(row["epoch"]), float(row[score])) for row in run.rows if isinstance(row.get(score), (int, float))]
                if run.dataset == dataset and curve:
                    series.setdefault(OBJECTIVES.get(run.objective, run.objective), []).append(curve)
            if series:
                low, high = (0.0, 1.0) if is_share else (0.0, None)
                panels.append(Curves(DATASETS.get(dataset, dataset), "epoch", label, series, low, high))
    return panels


def markdown(summary: dict[str, Any], runs: Sequence[GridRun]) -> str:
    """summary.md (see summary.md.jinja), from what summary.json holds and the runs' evaluations."""
    table, backbone = summary["table"], summary["backbone"]
    kinds = {score["interval"] for row in table for score in row["scores"].values()}
    said = ["After ± stands half the 95% interval of the mean over seeds (Student's t)."] if "seeds" in kinds else []
    said += ["In brackets stands the 95% interval over test images (bootstrap), for a single seed."] if "images" in kinds else []
    said += ["Seeds differ in the policy alone: data, backbone and features are shared."]
    baselines: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.evaluation is not None and run.evaluation.get("baselines"):
            baselines.setdefault(run.dataset, run.evaluation["baselines"])
    filters = {
        "dataset": lambda name: cell(DATASETS.get(name, name)),
        "objective": lambda name: cell(OBJECTIVES.get(name, name)),
        "score": shown_score,
        "predictor": predictor,
        "number": lambda value, without="-": f"{value:.3f}" if value or value == 0 else without,
        "clock": lambda seconds: clock(seconds) if seconds or seconds == 0 else "-",
        "span": lambda epochs: "-".join(str(count) for count in dict.fromkeys((min(epochs), max(epochs)))) if epochs else "-",
    }
    known = [f"{backbone[name]:.2%} of {text}" for name, text in (("accuracy", "held-out"), ("test_accuracy", "test")) if name in backbone]
    return rendered(
        "experiments",
        "summary.md.jinja",
        filters,
        **summary,
        said=" ".join(said),
        fell=any(row["last_scores"] != row["scores"] for row in table),
        baselines=baselines,
        looking=[row for row in table if row["scores"].keys() & {*FIGURES["attention.png"], "attn_saliency"}],
        controls=CONTROLS,
        controlled=[row for row in table if row["scores"].keys() & set(CONTROLS)],
        figures=SAID,
        known=known,
    )


def shown_score(score: dict[str, Any] | None, decimals: int = 3) -> str:
    """A score of the table: mean ± half the interval over seeds, or with one seed the interval over test images in brackets."""
    if not score:
        return "-"
    mean = f"{score['mean']:,.{decimals}f}"
    if score["interval"] == "seeds":
        return f"{mean} ± {score['high'] - score['mean']:,.{decimals}f}"
    return f"{mean} ({score['low']:,.{decimals}f} to {score['high']:,.{decimals}f})" if score["interval"] else mean


def _run_document(run: GridRun) -> dict[str, Any]:
    held_out = [row["exact_match"] for row in run.rows if "exact_match" in row]
    learned = (row["epoch"] for row in run.rows if row.get("exact_match", 0) >= LEARNED)
    evaluation = run.evaluation or {}
    return {
        "name": run.name,
        "dataset": run.dataset,
        "objective": run.objective,
        "seed": run.seed,
        "run": run.path,
        "failure": run.failure,
        "epochs": len(run.rows),
        "epochs_to_0.9": next(learned, None),
        "held_out_exact_match": {"best": max(held_out), "last": held_out[-1]} if held_out else None,
        "seconds": run.seconds,
        "weights_digest": run.digest,
        "parameters": evaluation.get("parameters"),
        "examples": evaluation.get("examples"),
        "scores": scores_of(run.evaluation),
        "last_scores": None if run.last is None else scores_of(run.last),
        "ci95": evaluation.get("ci95"),
        "commands": run.commands,
    }


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
