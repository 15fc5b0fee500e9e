"""The figures of `hsal report`: curves of every metric (figures 5 and 6), exact match by count, reliability, confusion, and galleries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from hsal_cli.evaluation.attention import Tally
from hsal_cli.evaluation.calibration import add_choices, reliability
from hsal_cli.evaluation.metrics import MeanOfRuns, mean_of_runs
from hsal_cli.pictures.charts.panels import Bars, Curve, Curves, Heat, draw_panels
from hsal_cli.pictures.charts.reliability import reliability_diagram
from hsal_cli.pictures.trajectory import trajectories
from hsal_cli.pictures.writing import encoded
from hsal_cli.report.report_page import PageFigure
from hsal_cli.report.tested import Detail, confusion

if TYPE_CHECKING:
    from hsal_cli.models.seen import Look

ACROSS = 2  # trajectories beside each other
SIDE = 126  # of their panels, px
LOOKED = {  # what `hsal eval` reads in place of a glimpse or a mask, in words short enough for an axis
    "glimpses": {"random": "random", "center": "middle", "saliency": "saliency", "second": "second best", "none": "blind"},
    "masks": {"uniform": "uniform", "center": "middle", "saliency": "saliency", "turned": "turned"},
}
BY_COUNT, CONFUSION, LOOKING = (4.4, 3.0), (5.2, 4.4), (4.0, 2.8)  # inches


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric's curve is drawn: its title, the words on its axis, its limits, and a sentence on what it is."""

    title: str
    axis: str
    low: float | None
    high: float | None
    caption: str


METRICS = {
    "policy": {
        "exact_match": Metric("Exact match", "exact match", 0, 1, "Share of held-out images whose multiset is named without a fault."),
        "macro_f1": Metric("Macro-F1", "macro-F1", 0, 1, "On held-out images, as in figure 6 of the paper."),
        "reward": Metric("Reward", "reward a label", -1, 1, "In training, with sampled labels: 1 if it is still in the multiset, else -1."),
        "attn_saliency": Metric(
            "attn_saliency", "raw saliency at the glimpses", 0, None, "On held-out images, on the scale of figure 5 of the paper."
        ),
        "attn_saliency_normalized": Metric(
            "attn_saliency, normalised", "saliency at the glimpses", 0, 1, "The same on maps scaled to [0, 1], which compares backbones."
        ),
        "glimpse_hit": Metric(
            "Glimpses on the object", "glimpse_hit", 0, 1, "Share of glimpses in the box of the object that is named, held-out images."
        ),
        "mask_mass": Metric(
            "Mask on the object", "mask_mass", 0, 1, "Share of the covert mask on the object that is named, held-out images."
        ),
        "location_reward": Metric("Priority at the glimpses", "priority", 0, 1, "What the location policy is rewarded by, in training."),
        "label_entropy": Metric("Entropy of labels", "nats", 0, None, "How much the policy still explores labels, in training."),
        "location_entropy": Metric("Entropy of glimpses", "nats", 0, None, "How much it still explores places, in training."),
        "early_stops": Metric("Early stops", "share of steps", 0, 1, "Steps at which stop is chosen, or would be, too early."),
        "explained_variance": Metric(
            "Explained variance", "1 - Var(R - V) / Var(R)", None, 1, "How much of the reward the baseline V foresees: 1 is all, 0 nothing."
        ),
        "loss": Metric(
            "Loss", "loss", None, None, "The sum of all terms, in training; of a policy gradient only its course means something."
        ),
    },
    "count": {
        "exact_match": Metric("Exact match", "exact match", 0, 1, "Share of held-out images whose counts are all right."),
        "macro_f1": Metric("Macro-F1", "macro-F1", 0, 1, "On held-out images."),
        "train_exact_match": Metric("Exact match in training", "exact match", 0, 1, "On the training images, with dropout."),
        "loss": Metric("Loss", "cross-entropy", 0, None, "In training, summed over the classes."),
    },
    "backbone": {
        "accuracy": Metric("Accuracy", "accuracy", 0, 1, "On held-out images of one object, shown in full."),
        "train_accuracy": Metric("Accuracy in training", "accuracy", 0, 1, "On the augmented views that it is trained on."),
        "loss": Metric("Loss", "cross-entropy", 0, None, "In training."),
    },
}


def curve_name(kind: str, metric: str) -> str:
    """The name of a metric's figure."""
    return f"{kind}-{metric.replace('_', '-')}"


def curve_figures(kind: str, curves: Mapping[str, Mapping[str, Sequence[Curve]]], names: Sequence[str] = ()) -> list[PageFigure]:
    """Draws the curves of runs of one kind.

    Args:
        kind: "policy", "count" or "backbone".
        curves: metric -> group of runs that differ by their seed -> a curve a run. Metrics without any point are left out.
        names: of all groups of the report, in whose order colours are given.
    """
    figures = []
    for name, metric in METRICS[kind].items():
        series = {group: [run for run in runs if run] for group, runs in curves.get(name, {}).items()}
        series = {group: runs for group, runs in series.items() if runs}
        if series:
            panel = Curves(metric.title, "epoch", metric.axis, series, metric.low, metric.high)
            figures.append(PageFigure(curve_name(kind, name), metric.title + ".", metric.caption, draw_panels([panel], names=names)))
    return figures


def count_figure(found: Mapping[str, Sequence[Mapping[str, dict[str, Any]]]], names: Sequence[str] = ()) -> PageFigure:
    """Exact match by the true number of objects, with 95% intervals: over runs where there are several, else over images.

    Args:
        found: group of runs that differ by their seed -> of each run what `scores_by_count` gives.
        names: as in `curve_figures`.
    """
    counts = sorted({count for runs in found.values() for run in runs for count in run}, key=int)
    heights: dict[str, list[float | None]] = {}
    halves: dict[str, list[float | None]] = {}
    for group, runs in found.items():
        cells = [[run[count] for run in runs if count in run] for count in counts]
        means = [mean_of_runs([part["exact_match"] for part in cell]) if cell else None for cell in cells]
        heights[group] = [mean and mean.mean for mean in means]
        halves[group] = [mean and _half(mean, cell[0]["examples"]) for mean, cell in zip(means, cells, strict=True)]
    bars = Bars("Exact match by number of objects", "objects in the image", "exact match", counts, heights, halves, top=1.0)
    caption = "On the test split. Bars: 95% interval, over seeds where there are several runs, else over images."
    return PageFigure("by-count", bars.title + ".", caption, draw_panels([bars], size=BY_COUNT, names=names))


def _half(mean: MeanOfRuns, images: int) -> float:
    """Half the 95% interval over runs; of one run over its images."""
    return NormalDist().inv_cdf(0.975) * (mean.mean * (1 - mean.mean) / images) ** 0.5 if mean.half is None else mean.half


def confusion_figure(name: str, group: str, runs: Sequence[Detail], classes: list[str]) -> PageFigure:
    """Named against true labels of one or more runs, added up, as shares of each class's objects."""
    found = np.sum([confusion(one.true, one.named) for one in runs], axis=0)
    objects = found[:-1].sum(axis=1)
    # Labels named for no object are compared with how many objects of that class there are.
    per_row = np.concatenate([objects, [1]])[:, None]
    shares = found / np.maximum(per_row, 1)
    shares[-1, :-1] = found[-1, :-1] / np.maximum(objects, 1)
    heat = Heat(
        f"Named against true labels: {group}",
        "named label",
        "true label",
        shares,
        "share of the class's objects",
        x_names=[*classes, "missed"],
        y_names=[*classes, "extra"],
        percent=True,
    )
    caption = (
        "Percent of the objects of a class, on the test split. A multiset does not say which label was meant for which object: those on "
        "both sides are right, the others of an image are paired evenly. Missed: no label was named for the object. Extra: labels named "
        "for no object, as a share of the objects of the class that was named."
    )
    return PageFigure(name, "Confusion.", caption, draw_panels([heat], size=CONFUSION))


def looking_figure(looking: Mapping[str, Sequence[dict[str, Any]]], names: Sequence[str] = ()) -> PageFigure:
    """Exact match with what a glimpse or the covert mask reads replaced at test time.

    Args:
        looking: group of runs that differ by their seed -> of each run, what `Looking.scores` gives; at least one.
        names: as in `curve_figures`.
    """
    panels = []
    for part, title in (("glimpses", "Glimpses elsewhere"), ("masks", "Another covert mask")):
        ways = [way for way in LOOKED[part] if any(way in one[part] for runs in looking.values() for one in runs)]
        heights: dict[str, list[float | None]] = {}
        halves: dict[str, list[float | None]] = {}
        for group, runs in looking.items():
            cells = [[one["exact_match"] for one in runs]]
            cells += [[one[part][way]["exact_match"] for one in runs if way in one[part]] for way in ways]
            means = [mean_of_runs(cell) if cell else None for cell in cells]
            heights[group] = [mean and mean.mean for mean in means]
            halves[group] = [mean and _half(mean, runs[0]["images"]) for mean in means]
        if ways:
            under = ["as it looks", *(LOOKED[part][way] for way in ways)]
            panels.append(Bars(title, "read in its place", "exact match", under, heights, halves, top=1.0))
    caption = (
        "Test images, the same weights; what is read at a glimpse, or through the covert mask, is replaced. Random: cells drawn evenly. "
        "Middle: the middle cell. Saliency: the maximum of the saliency map as it is then. Second best: the cell that is liked second "
        "best. Blind: its own cells, but nothing is seen there. Uniform: the same everywhere. Turned: its own mask by half a turn. "
        "Bars: 95% interval, over seeds where there are several runs, else over images."
    )
    return PageFigure("looking", "What is lost elsewhere.", caption, draw_panels(panels, size=LOOKING, names=names))


def calibration(runs: Sequence[Detail]) -> dict[str, dict[str, Any]]:
    """Whose probabilities (see `Detail.sure`) -> the reliability of all choices of one or more runs (see `calibration.reliability`)."""
    found = {}
    for way in runs[0].sure:
        tally = Tally()
        for one in runs:
            add_choices(tally, one.sure[way], one.right)
        found[way] = reliability(tally, runs[0].temperature if way == "calibrated" else 1.0)
    return found


def reliability_figure(name: str, group: str, runs: Sequence[Detail]) -> PageFigure:
    """Whether a policy is as sure as it is right, with its calibrated probabilities and without: one run, or several added up."""
    found = calibration(runs)
    temperatures = " and ".join(dict.fromkeys(f"{one.temperature:.2f}" for one in runs))
    titles = {"calibrated": f"calibrated (temperature {temperatures})", "as trained": "as trained (temperature 1)"}
    series = {f"{titles[way]}: ECE {part['ece']:.4f}": part["bins"] for way, part in found.items()}
    caption = (
        "Test split: all choices of labels and of stop, in ten bins by the probability of what was named; one is right if its label is "
        "still in the remaining multiset, or if nothing is left at stop. ECE: the expected calibration error, the mean distance from the "
        "dotted line, weighted by the choices; above the line a policy is less sure than it is right. The temperature comes from held-out "
        "training images. Bars: 95% intervals (Wilson)."
    )
    return PageFigure(name, "Reliability.", caption, reliability_diagram(f"Reliability: {group}", series))


GALLERY = {
    "best": ("Best.", "Exact matches with the most objects, the surest first."),
    "worst": ("Worst.", "Most labels missed or wrongly named, the surest first."),
    "repeats": ("Repeats.", "The first test images in which a label repeats, right or wrong."),
    "uncertain": ("Most uncertain.", "Images with the least probable choice, right or wrong."),
}


def gallery_figure(kind: str, looks: Sequence[tuple[Look, list[str]]]) -> PageFigure:
    """Trajectories of chosen test images (figures 2 and 12) of a kind of `tested.choose`, with their true labels."""
    title, caption = GALLERY[kind]
    picture = trajectories([look for look, _ in looks], [truth for _, truth in looks], columns=min(ACROSS, len(looks)), side=SIDE)
    return PageFigure(f"gallery-{kind}", title, caption, encoded(picture))
