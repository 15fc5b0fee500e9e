"""Charts as panels of one PNG: curves over training (figures 5 and 6), bars, heat maps.

Sizes are those of a paper's column: a panel is 3.4 x 2.8 inches with letters of 8 points, and stays legible at that size, in grey, and
to colour-blind eyes: series differ by colour, dash and marker.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hsal_cli import __version__
from hsal_cli.evaluation.metrics import MeanOfRuns, mean_of_runs
from hsal_cli.pictures.palette import INK, PAPER, SCALE
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
BANDED = 3  # runs from which on their mean has a band: the interval of two is 12.7 times its standard error
MARKED = 15  # markers on a line, about
TICKS = 6
NUMBERED = 12  # rows up to which a heat map's numbers are legible
NAMED, BINS = 30, 8  # bars or rows up to which each has its name; of a histogram
BRIGHT = 0.6  # of the scale, from where dark numbers read better than light ones
KEYS, ON_A_LINE = 2, 44  # names of series on a line below curves or above bars, and their letters below curves
LONG, ROOM = 18, 55  # letters of a name that are shown, and of all names that stand beside each other
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": WORDS,
    "axes.linewidth": 0.6,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "text.parse_math": False,  # dollar signs in names are no formulas
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """What every panel has: its `title`, and what its axes are, units included."""

    title: str
    x_label: str
    y_label: str


@dataclasses.dataclass(frozen=True)
class Curves(Panel):
    """A line a series, the mean over its runs, in a band of its 95% interval; of two runs, whose interval says little, each a thin line.

    Attributes:
        series: name, in words -> its runs, each a list of (x, value), x rising; runs may be of different length, or empty.
        low, high: limits of the score where it has some, such as 0 and 1; the axis ends at them, and the bands do.
        levels: name -> a level drawn across as a thin line, such as chance or the paper's figure.
    """

    series: Mapping[str, Sequence[Curve]]
    low: float | None = None
    high: float | None = None
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bars(Panel):
    """Bars side by side.

    Attributes:
        names: what stands under each group of bars.
        series: name -> one height a group; None leaves the place empty.
        halves: name -> half the width of each bar's interval, None where there is none.
        top: upper end of the y axis; None: as high as the bars.
        touching: the bars of one series touch, as those of a histogram do.
    """

    names: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    halves: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    top: float | None = None
    touching: bool = False


@dataclasses.dataclass(frozen=True)
class Heat(Panel):
    """A heat map.

    Attributes:
        values: (rows, columns), >= 0; row 0 is at the top.
        colour_label: what a colour stands for, with its unit.
        x_names, y_names: of columns and rows; None: the axes count in `extent`.
        extent: (width, height) of the map in the unit of its axes; None with names.
        percent: write each cell's value into it as a percentage, and give small values more of the scale.
    """

    values: np.ndarray
    colour_label: str
    x_names: Sequence[str] | None = None
    y_names: Sequence[str] | None = None
    extent: tuple[float, float] | None = None
    percent: bool = False


def draw_panels(
    panels: Sequence[Panel | None], columns: int = 2, size: tuple[float, float] = (WIDTH, HEIGHT), names: Sequence[str] = ()
) -> bytes:
    """Draws panels into one PNG.

    Args:
        panels: at least one; None leaves its place empty. A series of curves has the same colour in each panel that shows it.
        columns: panels beside each other, at most.
        size: of a panel, inches.

    Returns:
        The bytes of the PNG, the same for the same panels.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    order = list(dict.fromkeys([*names, *(name for panel in panels if isinstance(panel, Curves) for name in panel.series)]))
    with rc_context(STYLE):
        figure: Figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=DPI, layout="constrained")
        for panel, axes in itertools.zip_longest(panels, figure.subplots(rows, columns, squeeze=False).flat):
            if panel is None:
                axes.set_axis_off()
            else:
                draw_panel(figure, axes, panel, order)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": f"hsal {__version__}"})
    return stream.getvalue()


def draw_panel(figure: Figure, axes: Axes, panel: Panel, order: Sequence[str]) -> None:
    """Draws a panel on matplotlib's axes; `order` gives the series of curves their colours, and those of bars that are among them."""
    keys = len(panel.series) if isinstance(panel, Bars) and len(panel.series) > 1 else 0
    axes.set_title(brief(panel.title), fontsize=WORDS + 0.5, loc="left", pad=6 + 11 * -(-keys // KEYS))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if isinstance(panel, Heat):
        _draw_heat(figure, axes, panel)
        return
    if isinstance(panel, Curves):
        _draw_curves(axes, panel, order)
    elif isinstance(panel, Bars):
        _draw_bars(axes, panel, order)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def mean_curve(runs: Sequence[Curve]) -> list[tuple[float, MeanOfRuns]]:
    """The mean over runs at each x that any of them has, of those that have it; values that are not finite are left out."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for x, value in run:
            if math.isfinite(value):
                values.setdefault(x, []).append(value)
    return [(x, mean_of_runs(values[x])) for x in sorted(values)]


def histogram(values: Mapping[str, np.ndarray], edges: np.ndarray) -> tuple[list[str], dict[str, list[float]]]:
    """The share of each series' values that falls between two edges; the last bin holds its upper edge.

    Returns:
        (names of the bins: their lower edges, name -> shares).
    """
    shares = {name: (np.histogram(part, edges)[0] / max(len(part), 1)).tolist() for name, part in values.items()}
    return [f"{edge:g}" for edge in edges[:-1]], shares


def _draw_curves(axes: Axes, panel: Curves, order: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = -np.inf if panel.low is None else panel.low, np.inf if panel.high is None else panel.high
    for name, runs in panel.series.items():
        curve, number = mean_curve(runs), order.index(name)
        if not curve:
            continue
        x, means = [at for at, _ in curve], np.array([found.mean for _, found in curve])
        halves = np.array([found.half for _, found in curve], dtype=np.float64)  # None, of one run, is not a number
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.4, "zorder": 3}
        look |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 3.2, "markevery": max(1, round(len(x) / MARKED))}
        drawn = [run for run in runs if run]
        if len(drawn) >= BANDED:
            ends = np.clip(means - halves, low, high), np.clip(means + halves, low, high)
            axes.fill_between(x, *ends, color=look["color"], alpha=0.18, linewidth=0, zorder=2)
        elif len(drawn) > 1:
            for run in drawn:
                axes.plot(*zip(*run, strict=True), color=look["color"], linewidth=0.7, alpha=0.6, zorder=2)
        axes.plot(x, means, label=f"{brief(name)} ({len(runs)} runs)" if len(drawn) > 1 else brief(name), **look)
    for number, (name, level) in enumerate(panel.levels.items()):
        axes.axhline(level, color=GREY, linewidth=0.9, linestyle=LEVELS[number % len(LEVELS)], zorder=1, label=brief(name))
    places = {float(x) for runs in panel.series.values() for run in runs for x, _ in run}
    axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=all(x.is_integer() for x in places)))
    if len(places) == 1:  # one epoch has no range that ticks could divide
        axes.set_xticks(list(places))
    axes.yaxis.set_major_locator(MaxNLocator(TICKS))
    if max(map(abs, axes.get_ylim())) >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    # An axis that began above the lowest score, or ended below the highest, would make small differences look large.
    bottom, top = axes.get_ylim()
    bottom, top = bottom if panel.low is None else panel.low, top if panel.high is None else panel.high
    room = 0.02 * (top - bottom)  # for half a marker
    axes.set_ylim(bottom - room * (panel.low is not None), top + room * (panel.high is not None))
    if labels := axes.get_legend_handles_labels()[1]:
        # Below the panel, where it hides no line however the lines run.
        paired = any(sum(map(bool, runs)) == 2 for runs in panel.series.values())
        told = [("bands: 95% interval of the mean", axes.collections), ("thin: each of two runs", paired)]
        said = "; ".join(text for text, there in told if there) or None
        columns = KEYS if sum(sorted(map(len, labels))[-KEYS:]) <= ON_A_LINE else 1
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": columns}
        axes.legend(fontsize=SMALL, title=said, title_fontsize=SMALL, frameon=False, handlelength=2.6, columnspacing=1.2, **below)


def _draw_bars(axes: Axes, panel: Bars, order: Sequence[str]) -> None:
    groups = np.arange(len(panel.names))
    width = (1.0 if panel.touching and len(panel.series) == 1 else 0.8) / max(len(panel.series), 1)
    for number, (name, heights) in enumerate(panel.series.items()):
        x = groups + (number - (len(panel.series) - 1) / 2) * width
        known, halves = (np.array(values, dtype=np.float64) for values in (heights, panel.halves.get(name, [None] * len(heights))))
        colour = COLOURS[(order.index(name) if name in order else number) % len(COLOURS)]
        axes.bar(x, known, width, color=colour, edgecolor="white", linewidth=0.3, label=brief(name), zorder=2)
        if np.isfinite(halves).any():
            # An interval reaches no further than the axis, whose ends are those of the score.
            low, high = np.minimum(halves, known), np.minimum(halves, (panel.top or np.inf) - known).clip(min=0)
            axes.errorbar(x, known, (low, high), fmt="none", ecolor="#202024", elinewidth=0.8, capsize=2, zorder=3)
    _name(axes, "x", panel.names, BINS if panel.touching else NAMED)
    if len(panel.series) > 1:
        # Between the title and the axes, where it covers no bar.
        axes.legend(fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=KEYS, borderpad=0.2, borderaxespad=0)
    axes.set_ylim(0, panel.top)


def _draw_heat(figure: Figure, axes: Axes, panel: Heat) -> None:
    from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
    from matplotlib.ticker import PercentFormatter

    colours = LinearSegmentedColormap.from_list("hsal", SCALE / 255)
    norm = PowerNorm(0.5, 0, 1) if panel.percent else Normalize(0, float(panel.values.max()) or 1.0)
    box = None if panel.extent is None else (0, panel.extent[0], panel.extent[1], 0)
    image = axes.imshow(panel.values, cmap=colours, norm=norm, extent=box, aspect="equal" if box else "auto", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, pad=0.02, format=PercentFormatter(1, decimals=0) if panel.percent else None)
    bar.set_label(panel.colour_label, fontsize=SMALL)
    bar.outline.set_visible(False)
    if panel.percent and max(panel.values.shape) <= NUMBERED:
        light, dark = (tuple(part / 255 for part in colour) for colour in (PAPER, INK))
        for (row, column), value in np.ndenumerate(panel.values):
            if value >= 0.005:
                ink = dark if norm(value) > BRIGHT else light
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=SMALL, color=ink)
    for along, names in (("x", panel.x_names), ("y", panel.y_names)):
        if names is not None:
            _name(axes, along, names)
    axes.spines[:].set_visible(False)


def _name(axes: Axes, along: str, names: Sequence[str], most: int = NAMED) -> None:
    """Names the places 0, 1, 2 ... of an axis, as many of them as are legible."""
    every = max(1, -(-len(names) // most))
    shown = [brief(name, LONG) for name in names[::every]]
    (axes.set_xticks if along == "x" else axes.set_yticks)(range(0, len(names), every), shown)
    if along == "x" and sum(len(name) + 1 for name in shown) > ROOM:
        axes.tick_params(axis="x", rotation=90)
