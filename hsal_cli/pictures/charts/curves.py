"""Curves over training (figures 5 and 6): a line a series, the mean over its runs, in a band of its 95% interval.

Sizes are those of a paper's column: a panel is 3.4 x 2.8 inches with letters of 8 points, and stays legible at that size, in grey, and
to colour-blind eyes: series differ by colour, dash and marker.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hsal_cli import __version__
from hsal_cli.evaluation.intervals import MeanOfRuns, mean_of_runs
from hsal_cli.words import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]

# Okabe and Ito's palette without its yellow, which is too light for a line; dark and light take turns.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))
LEVELS, GREY = ((0, (1, 1.6)), (0, (4, 2)), (0, (4, 2, 1, 2))), "#555555"  # of the lines drawn across
WIDTH, HEIGHT, DPI = 3.4, 2.8, 200  # of a panel, inches; dots an inch
WORDS, SMALL = 8.0, 7.0  # points
MARKED = 15  # markers on a line, about
TICKS = 6
AS_WRITTEN = {"text.parse_math": False}  # dollar signs in names are no formulas


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of curves.

    Attributes:
        title: what is shown, in words.
        y_label: the score, with its unit.
        series: name, in words -> its runs, each a list of (x, value), x rising; runs may be of different length, or empty.
        x_label: what x is.
        low, high: limits of the score where it has some, such as 0 and 1; they bound the bands, and the axis where it comes near them.
        levels: name -> a level drawn across as a thin line, such as chance or the paper's figure.
    """

    title: str
    y_label: str
    series: Mapping[str, Sequence[Curve]]
    x_label: str = "epoch"
    low: float | None = None
    high: float | None = None
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)


def mean_curve(runs: Sequence[Curve]) -> list[tuple[float, MeanOfRuns]]:
    """The mean over runs at each x that any of them has, of those that have it; values that are not finite are left out."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for x, value in run:
            if math.isfinite(value):
                values.setdefault(x, []).append(value)
    return [(x, mean_of_runs(values[x])) for x in sorted(values)]


def draw_curves(panels: Sequence[Panel], columns: int = 2) -> bytes:
    """Draws panels into one PNG.

    Args:
        panels: at least one. A series has the same colour in each panel that shows it.
        columns: panels beside each other, at most.

    Returns:
        The bytes of the PNG, the same for the same panels.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    style = {"font.family": "DejaVu Sans", "font.size": WORDS, "axes.linewidth": 0.6, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL}
    with rc_context(style | AS_WRITTEN):
        figure: Figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), dpi=DPI, layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False)
        order = list(dict.fromkeys(name for panel in panels for name in panel.series))
        for place, axes in enumerate(places.flat):
            if place < len(panels):
                _draw_panel(axes, panels[place], order)
            else:
                axes.set_axis_off()
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": f"hsal {__version__}"})
    return stream.getvalue()


def _draw_panel(axes: Axes, panel: Panel, order: list[str]) -> None:
    for name, runs in panel.series.items():
        _draw_series(axes, panel, name, runs, order.index(name))
    for number, (name, level) in enumerate(panel.levels.items()):
        axes.axhline(level, color=GREY, linewidth=0.9, linestyle=LEVELS[number % len(LEVELS)], zorder=1, label=brief(name))
    axes.set_title(brief(panel.title), fontsize=WORDS + 0.5, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    _limit(axes, panel)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        # Below the panel, where it hides no line however the lines run.
        said = "bands: 95% interval of the mean" if axes.collections else None
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
        axes.legend(fontsize=SMALL, title=said, title_fontsize=SMALL, frameon=False, handlelength=2.6, columnspacing=1.2, **below)


def _draw_series(axes: Axes, panel: Panel, name: str, runs: Sequence[Curve], number: int) -> None:
    curve = mean_curve(runs)
    if not curve:
        return
    colour = COLOURS[number % len(COLOURS)]
    x, means = [at for at, _ in curve], [found.mean for _, found in curve]
    for pieces in _banded(curve):
        low = [_bounded(found.mean - found.half, panel) for _, found in pieces]
        high = [_bounded(found.mean + found.half, panel) for _, found in pieces]
        axes.fill_between([at for at, _ in pieces], low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    several = sum(1 for run in runs if len(run)) > 1
    axes.plot(
        x,
        means,
        color=colour,
        linestyle=DASHES[number % len(DASHES)],
        linewidth=1.4,
        marker=MARKERS[number % len(MARKERS)],
        markersize=3.2,
        markevery=max(1, round(len(x) / MARKED)),
        label=f"{brief(name)} ({len(runs)} runs)" if several else brief(name),
        zorder=3,
    )


def _banded(curve: list[tuple[float, MeanOfRuns]]) -> Iterator[list[tuple[float, MeanOfRuns]]]:
    """The stretches of a curve where several runs give an interval."""
    stretch: list[tuple[float, MeanOfRuns]] = []
    for point in curve:
        if point[1].half is not None:
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _bounded(value: float, panel: Panel) -> float:
    value = value if panel.low is None else max(value, panel.low)
    return value if panel.high is None else min(value, panel.high)


def _limit(axes: Axes, panel: Panel) -> None:
    """Whole numbers on the x axis, and no room beyond the limits of the score, but for half a marker."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    places = {float(x) for runs in panel.series.values() for run in runs for x, _ in run}
    axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=all(x.is_integer() for x in places)))
    if len(places) == 1:  # one epoch has no range that ticks could divide
        axes.set_xticks(list(places))
    axes.yaxis.set_major_locator(MaxNLocator(TICKS))
    if max(map(abs, axes.get_ylim())) >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bottom, top = axes.get_ylim()
    if panel.low is not None and panel.high is not None:
        room = 0.02 * (panel.high - panel.low)
        axes.set_ylim(max(bottom, panel.low - room), min(top, panel.high + room))
