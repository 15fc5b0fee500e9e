"""Composes the report on training runs: the table of runs, verdicts, curves, confusion and galleries, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsal_cli.evaluation import looking
from hsal_cli.evaluation.metrics import exact_match_and_f1, scores_by_count
from hsal_cli.models.seen import Look
from hsal_cli.report.report_figures import (
    METRICS,
    calibration,
    confusion_figure,
    count_figure,
    curve_figures,
    curve_name,
    gallery_figure,
    looking_figure,
    reliability_figure,
)
from hsal_cli.report.report_page import Page, PageFinding, Section
from hsal_cli.report.tested import Detail, Tested
from hsal_cli.runs.record import Group, Record
from hsal_cli.training.verdicts import Verdict, verdicts

TITLES = {
    "policy": "Training of the policy",
    "count": "Training of direct baselines",
    "backbone": "Fine-tuning of the activation model",
}
COLUMNS = ["run", "group", "state", "epochs", "best epoch", "held-out score", "test images", "exact match", "macro-F1"]
LOOKING = "looking"  # the figure of that name
TOGETHER = ("exact_match", "macro_f1")  # metrics that direct baselines have in one picture with policies, where there are any
LEAD = "Held-out images come from the training split and choose the best epoch; test images do not. Bands and bars are 95% intervals."


def compose(
    parts: Sequence[Group],
    tested: Mapping[Path, Tested],
    shown: tuple[Path, Mapping[str, Sequence[tuple[Look, list[str]]]]] | None,
    left_out: Sequence[str],
) -> tuple[Page, dict[str, Any]]:
    """The page of a report, and its figures as JSON.

    Args:
        parts: the runs, in groups that differ by their seed; at least one run.
        tested: run -> its test images, for those where they could be had.
        shown: the run that the gallery is of, and its trajectories, a list a kind; None without a gallery.
        left_out: a sentence for all that could not be had.

    Returns:
        (page, document): document holds `runs` (each `run`, `kind`, `group`, `state`, `epochs`, `best`: the best epoch's metrics,
        `verdicts`: `text`, `kind`, `metric`, `epoch`, `looking`: as `hsal eval` wrote it, or None, and `test`: `examples`,
        `exact_match`, `macro_f1`, `by_count` and `calibration`, `ece` and `ece_at_1`, or None) and `left_out`.
    """
    records = [(group, record) for group in parts for record in group.records]
    names = _names([record for _, record in records])
    scored = {record.path: _scores(record, tested) for _, record in records}
    said = {record.path: [*verdicts(record), *_looking_verdicts(record)] for _, record in records}
    page = Page(
        title=f"Report on {names[records[0][1].path]}" if len(records) == 1 else f"Report on {len(records)} runs",
        lead=LEAD,
        columns=COLUMNS,
        rows=[[names[record.path], group.name, *_row(record, scored[record.path])] for group, record in records],
        findings={names[record.path]: [_finding(record, verdict) for verdict in said[record.path]] for _, record in records},
        sections=[*_curves(parts), *_on_test(parts, tested, scored), *_looking(parts), *_gallery(shown, names)],
        left_out=left_out,
        settings={names[record.path]: record.flat for _, record in records},
    )
    runs = [
        {
            "run": str(record.path),
            "kind": record.kind,
            "group": group.name,
            "state": record.state,
            "epochs": len(record.rows),
            "best": record.best,
            "verdicts": [dataclasses.asdict(verdict) for verdict in said[record.path]],
            "looking": _looked(record),
            "test": scored[record.path],
        }
        for group, record in records
    ]
    return page, {"runs": runs, "left_out": list(left_out)}


def _names(records: Sequence[Record]) -> dict[Path, str]:
    """What each run is called: its folder's name, or its path where two share one."""
    short = [record.path.resolve().name for record in records]
    return {record.path: name if short.count(name) == 1 else str(record.path) for record, name in zip(records, short, strict=True)}


def _looked(record: Record) -> dict[str, Any] | None:
    """What `hsal eval` found out on whether it matters where the run's policy looks (see `Looking.scores`); None where it was not asked."""
    return record.evaluation.raw.get("looking") if record.evaluation else None


def _looking_verdicts(record: Record) -> list[Verdict]:
    found = _looked(record)
    return [Verdict(text, "note", LOOKING) for text in looking.verdicts(found)] if found else []


def _finding(record: Record, verdict: Verdict) -> PageFinding:
    if verdict.metric == LOOKING:
        return PageFinding(verdict.text, verdict.kind, LOOKING, "what other places cost", ())
    if verdict.metric not in METRICS[record.kind]:  # of its backbone, which has a report of its own
        return PageFinding(verdict.text, verdict.kind, "verdicts", "the backbone", ())
    title = METRICS[record.kind][verdict.metric].title
    return PageFinding(
        verdict.text, verdict.kind, curve_name(record.kind, verdict.metric), title, record.curve(verdict.metric), verdict.epoch
    )


def _scores(record: Record, tested: Mapping[Path, Tested]) -> dict[str, Any] | None:
    """Scores on test images: of the roll-outs for this report, else those that `hsal eval` wrote."""
    if record.path in tested:
        found: Detail = tested[record.path].detail
        exact, macro_f1 = exact_match_and_f1(found.true, found.named)
        by_count = scores_by_count(found.true, found.named)
        sure = calibration([found])
        errors = {"ece": sure["calibrated"]["ece"], "ece_at_1": sure["as trained"]["ece"]}
        return {"examples": len(found.true), "exact_match": exact, "macro_f1": macro_f1, "by_count": by_count, "calibration": errors}
    wanted, said = ("examples", "exact_match", "macro_f1", "by_count", "calibration"), record.evaluation
    return {key: said.raw[key] for key in wanted if key in said.raw} if said and said.split == "test" and said.by_count else None


def _row(record: Record, scores: dict[str, Any] | None) -> list[str]:
    best = record.best
    held_out = f"{record.score.replace('_', ' ')} {best[record.score]:.3f}" if best else "-"
    cells = [record.state, str(len(record.rows)), str(best["epoch"]) if best else "-", held_out]
    if scores is None:
        if record.status.test_accuracy is not None:
            return [*cells, "-", f"accuracy {record.status.test_accuracy:.3f}", "-"]
        return [*cells, "-", "-", "-"]
    return [*cells, f"{scores['examples']:,}", f"{scores['exact_match']:.3f}", f"{scores['macro_f1']:.3f}"]


def _curves(parts: Sequence[Group]) -> list[Section]:
    sections = []
    for kind, title in TITLES.items():
        own = [group for group in parts if group.records[0].kind == kind]
        beside = [group for group in parts if kind == "policy" and own and group.records[0].kind == "count"]
        curves = {
            name: {group.name: [run.curve(name) for run in group.records] for group in [*own, *(beside if name in TOGETHER else ())]}
            for name in METRICS[kind]
        }
        figures = curve_figures(kind, curves, [group.name for group in parts])
        if figures:
            sections.append(Section(title, "", figures))
    return sections


def _on_test(parts: Sequence[Group], tested: Mapping[Path, Tested], scored: Mapping[Path, dict[str, Any] | None]) -> list[Section]:
    counts = {group.name: [scores["by_count"] for run in group.records if (scores := scored[run.path])] for group in parts}
    counts = {name: runs for name, runs in counts.items() if runs}
    if not counts:
        return []
    found = {group.name: [tested[run.path] for run in group.records if run.path in tested] for group in parts}
    found = {name: runs for name, runs in found.items() if runs}
    confusions = [
        confusion_figure(f"confusion-{number}", name, [run.detail for run in runs], runs[0].policy.classes)
        for number, (name, runs) in enumerate(found.items(), 1)
    ]
    sure = [
        reliability_figure(f"reliability-{number}", name, [run.detail for run in runs])
        for number, (name, runs) in enumerate(found.items(), 1)
    ]
    return [Section("On test images", "", [count_figure(counts, [group.name for group in parts]), *sure, *confusions], large=True)]


def _looking(parts: Sequence[Group]) -> list[Section]:
    found = {group.name: [looked for run in group.records if (looked := _looked(run))] for group in parts}
    found = {name: runs for name, runs in found.items() if runs}
    figures = [looking_figure(found, [group.name for group in parts])] if found else []
    return [Section("Does it matter where it looks?", "", figures, wide=True)] if found else []


def _gallery(shown: tuple[Path, Mapping[str, Sequence[tuple[Look, list[str]]]]] | None, names: Mapping[Path, str]) -> list[Section]:
    if shown is None:
        return []
    run, kinds = shown
    note = f"What {names[run]} looked at, a column a meta-step, from top to bottom as each picture says at its left."
    return [Section("Gallery", note, [gallery_figure(kind, looks) for kind, looks in kinds.items()], wide=True)]
