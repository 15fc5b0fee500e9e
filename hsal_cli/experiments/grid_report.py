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
from hsal_cli.experiments.summary import GridRun, curve_of, scores_of, table_rows
from hsal_cli.pictures.charts.curves import Panel, draw_curves
from hsal_cli.pictures.trajectory import trajectories
from hsal_cli.pictures.writing import encoded
from hsal_cli.progress import clock
from hsal_cli.report.markdown import markdown_table
from hsal_cli.storage.atomic import json_bytes, write_together
from hsal_cli.storage.files import remove_pictures

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
SIDE, ACROSS = 120, 2  # px of a trajectory's panels; trajectories beside each other
LEARNED = 0.9  # the exact match whose epoch is reported


def write_report(
    folder: Path, runs: Sequence[GridRun], provenance: dict[str, Any], examples: Mapping[str, Sequence[ChosenExample]], command: str
) -> dict[str, Any]:
    """Writes the report folder; what an earlier report left there is replaced, and its pictures that are not drawn again are removed last.

    Args:
        folder: where; made if missing.
        runs: every policy of the grid.
        provenance: what the scores rest on, in plain JSON types (see `grid_run.provenance`).
        examples: name of a run, one a data set -> test images chosen by rule.
        command: what makes the report again.

    Returns:
        What summary.json holds.

    Raises:
        FileError: the folder cannot be written.
    """
    pictures: dict[str, bytes] = {}
    for name, scores in FIGURES.items():
        panels = curve_panels(runs, scores)
        if panels:
            pictures[name] = draw_curves(panels)
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


def curve_panels(runs: Sequence[GridRun], scores: Sequence[str]) -> list[Panel]:
    """One panel a score and data set, with a series an objective; objectives and panels that have no such score are left out."""
    panels = []
    for score in scores:
        label, is_share = LABELS[score]
        for dataset in dict.fromkeys(run.dataset for run in runs):
            series: dict[str, list[list[tuple[float, float]]]] = {}
            for run in runs:
                curve = curve_of(run, score)
                if run.dataset == dataset and curve:
                    series.setdefault(OBJECTIVES.get(run.objective, run.objective), []).append(curve)
            if series:
                low, high = (0.0, 1.0) if is_share else (0.0, None)
                panels.append(Panel(DATASETS.get(dataset, dataset), label, series, low=low, high=high))
    return panels


def markdown(summary: dict[str, Any], runs: Sequence[GridRun]) -> str:
    """summary.md, from what summary.json holds and the runs' evaluations."""
    lines = ["# Table 1, reproduced", "", f"Made by `{summary['command']}` with hsal {summary['hsal']}.", ""]
    lines += [*_table_1(summary), *_last_epochs(summary), *_baselines(runs), *_attention(summary), *_controls(summary), *_pictures(summary)]
    lines += [*_runs(summary), *_made_from(summary), *_commands(summary)]
    return "\n".join(lines).rstrip() + "\n"


def shown_score(score: dict[str, Any] | None, decimals: int = 3) -> str:
    """A score of the table: mean ± half the interval over seeds, or with one seed the interval over test images in brackets."""
    if score is None:
        return "-"
    mean = f"{score['mean']:,.{decimals}f}"
    if score["interval"] == "seeds":
        return f"{mean} ± {score['high'] - score['mean']:,.{decimals}f}"
    return f"{mean} ({score['low']:,.{decimals}f} to {score['high']:,.{decimals}f})" if score["interval"] else mean


def _names(row: dict[str, Any]) -> list[str]:
    return [DATASETS.get(row["dataset"], row["dataset"]), OBJECTIVES.get(row["objective"], row["objective"])]


def _table_1(summary: dict[str, Any]) -> list[str]:
    rows = []
    for row in summary["table"]:
        paper = row["paper"] or {}
        stated = [f"{paper[name]:.3f}" if name in paper else "-" for name in ("macro_f1", "exact_match")]
        ours = [shown_score(row["scores"].get(name)) for name in ("macro_f1", "exact_match")]
        seeds = [", ".join(map(str, row["seeds"]))] if row["seeds"] else []
        seeds += [f"failed: {', '.join(map(str, row['failed']))}"] if row["failed"] else []
        trained = "-".join(str(count) for count in dict.fromkeys((min(row["epochs"]), max(row["epochs"])))) if row["epochs"] else "-"
        rows.append([*_names(row), ours[0], stated[0], ours[1], stated[1], trained, "; ".join(seeds)])
    kinds = {score["interval"] for row in summary["table"] for score in row["scores"].values()}
    said = ["After ± stands half the 95% interval of the mean over seeds (Student's t)."] if "seeds" in kinds else []
    said += ["In brackets stands the 95% interval over test images (bootstrap), for a single seed."] if "images" in kinds else []
    columns = ["data set", "objective", "macro-F1", "paper", "0-1 (exact match)", "paper", "epochs", "seeds"]
    shared = "Seeds differ in the policy alone: data, backbone and features are shared."
    return ["## Results on the test split", "", *markdown_table(columns, rows), " ".join([*said, shared]), ""]


def _last_epochs(summary: dict[str, Any]) -> list[str]:
    names = ("macro_f1", "exact_match", "glimpse_hit", "mask_mass")
    rows = [[*_names(row), *(shown_score(row["last_scores"].get(name)) for name in names)] for row in summary["table"] if row["seeds"]]
    if all(row["last_scores"] == row["scores"] for row in summary["table"]):
        return []
    columns = ["data set", "objective", "macro-F1", "0-1 (exact match)", "glimpse_hit", "mask_mass"]
    said = "These are scores after the epoch that was best on held-out images. After the last epoch:"
    return [said, "", *markdown_table(columns, rows)]


def _baselines(runs: Sequence[GridRun]) -> list[str]:
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.evaluation is not None:
            found.setdefault(run.dataset, run.evaluation.get("baselines", {}))
    rows = [
        [DATASETS.get(dataset, dataset), name.replace("_", " "), f"{scores['macro_f1']:.3f}", f"{scores['exact_match']:.3f}"]
        for dataset, predictors in found.items()
        for name, scores in predictors.items()
    ]
    return ["Predictors that never look:", "", *markdown_table(["data set", "predictor", "macro-F1", "0-1"], rows)] if rows else []


def _attention(summary: dict[str, Any]) -> list[str]:
    names = ("glimpse_hit", "mask_mass", "digits_once", "repeat_visits")
    rows = []
    for row in summary["table"]:
        scores = [row["scores"].get(name) for name in names]
        if any(scores) or row["scores"].get("attn_saliency"):
            rows.append([*_names(row), *map(shown_score, scores), shown_score(row["scores"].get("attn_saliency"), 0)])
    if not rows:
        return []
    columns = ["data set", "objective", "glimpse_hit", "mask_mass", "digits visited once", "repeat visits", "attn_saliency"]
    return [
        "## Where it looks",
        "",
        *markdown_table(columns, rows),
        "glimpse_hit, mask_mass: share of the glimpses, and of the covert mask, on the digit that is named rightly. Digits visited once: "
        "share of all digits at which exactly one meta-step looked; repeat visits: share of meta-steps that look at a digit again. "
        "attn_saliency as in figure 5, on the raw scale of this backbone's volumes.",
        "",
    ]


def _controls(summary: dict[str, Any]) -> list[str]:
    names = ("random", "center", "saliency", "area", "attn_saliency_normalized", "attn_saliency_random", "attn_saliency_best")
    rows = [
        [*_names(row), *(shown_score(row["scores"].get(name)) for name in names)]
        for row in summary["table"]
        if row["scores"].keys() & set(names)
    ]
    columns = ["data set", "objective", "random cell", "middle cell", "saliency maximum", "area", "glimpses", "random cells", "best cells"]
    said = (
        "Controls at the same meta-steps. Glimpse_hit of one glimpse at a random cell, at the middle of the image, and at the maximum of "
        "S_t (looking by saliency alone); for mask_mass the digit's share of the image's area. Then attn_saliency on the map scaled to "
        "[0, 1]: of the glimpses, of random cells, and the largest possible."
    )
    return [said, "", *markdown_table(columns, rows)] if rows else []


def _pictures(summary: dict[str, Any]) -> list[str]:
    said = {
        "macro-f1.png": "Macro-F1 over training, on held-out training images (figure 6)",
        "attn-saliency.png": "attn_saliency over training, raw scale (figure 5)",
        "attention.png": "Attention over training",
    }
    lines = ["## Over training", ""]
    for name in summary["pictures"]:
        if name in said:
            lines += [f"{said[name]}:", "", f"![{said[name]}]({name})", ""]
    if summary["examples"]:
        lines += ["## Test images chosen by rule (figures 2 and 12)", ""]
    for name in summary["pictures"]:
        if name.startswith("trajectories."):
            dataset = name.split(".")[1]
            title = DATASETS.get(dataset, dataset)
            chosen = [example for example in summary["examples"] if example["dataset"] == dataset]
            rules = "; ".join(f"{example['rule']}: image {example['row']}" for example in chosen)
            lines += [f"{title}, run {chosen[0]['run']}. Of the test split: {rules}.", ""]
            lines += [f"![Trajectories on {title}]({name})", ""]
    return lines


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
        "scores": run.scores,
        "last_scores": None if run.last is None else scores_of(run.last),
        "ci95": evaluation.get("ci95"),
        "commands": run.commands,
    }


def _runs(summary: dict[str, Any]) -> list[str]:
    rows = []
    for run in summary["runs"]:
        scores = [f"{run['scores'][name]:.3f}" if name in run["scores"] else "failed" for name in ("macro_f1", "exact_match")]
        spent = "-" if run["seconds"] is None else clock(run["seconds"])
        reached = run["epochs_to_0.9"]
        held_out = run["held_out_exact_match"]
        kept = ["-", "-"] if held_out is None else [f"{held_out[which]:.3f}" for which in ("best", "last")]
        rows.append([run["name"], *scores, str(run["epochs"]), str(reached or "-"), *kept, spent, f"`{run['weights_digest'][:12]}`"])
    failures = [f"- {run['name']}: {run['failure']}" for run in summary["runs"] if run["failure"]]
    columns = ["run", "macro-F1", "0-1", "epochs", "epochs to 0.9", "held-out, best", "last", "time", "weights (sha256)"]
    said = "Held-out: exact match on held-out training images after the best epoch, whose weights are what all tables evaluate, and after "
    said += "the last; epochs to 0.9: the first at which it is at least 0.9. "
    said += "Time: training and evaluation; of a run trained by itself, by hsal train, its epochs alone."
    return ["## Runs", "", *markdown_table(columns, rows, left=1), said, "", *failures, *([""] if failures else [])]


def _made_from(summary: dict[str, Any]) -> list[str]:
    backbone, seconds = summary["backbone"], summary["seconds"]
    rows = []
    for dataset, made in summary["data"].items():
        images = " + ".join(f"{count:,} {split}" for split, count in made["images"].items())
        for what, file, digest in (("data", "scenes", "scenes_digest"), ("features", "features", "features_digest")):
            rows.append([made[file], images, f"`{made[digest][:12]}`", _spent(seconds, f"{what} {dataset}")])
    known = [f"{backbone[name]:.2%} of {text}" for name, text in (("accuracy", "held-out"), ("test_accuracy", "test")) if name in backbone]
    right = f", names {' and '.join(known)} images of one object rightly" if known else ""
    built = f"{backbone['arch']} at {backbone['input_size']} px{right}"
    rows.append([backbone["run"], built, f"`{backbone['digest'][:12]}`", _spent(seconds, "backbone")])
    environment = ", ".join(f"{key} {value}" for key, value in summary["environment"].items() if value is not None)
    said = f"A dash for the time: it was there before. All steps together: {clock(sum(seconds.values()))}. Full digests: summary.json."
    return ["## Made from", "", *markdown_table(["file", "holds", "digest", "time"], rows), said, "", f"Environment: {environment}.", ""]


def _spent(seconds: dict[str, float], what: str) -> str:
    return clock(seconds[what]) if what in seconds else "-"


def _commands(summary: dict[str, Any]) -> list[str]:
    steps = [*summary.get("commands", []), *(command for run in summary["runs"] for command in run["commands"])]
    return [
        "## Commands",
        "",
        "Each number alone, by the commands that `hsal reproduce` stands for:",
        "",
        *(f"    {step}" for step in steps),
    ]
