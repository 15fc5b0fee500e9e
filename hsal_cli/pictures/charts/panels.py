"""Bars and heat maps for reports and file summaries, in the style and size of `curves`."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hsal_cli import __version__
from hsal_cli.pictures.charts.curves import AS_WRITTEN, COLOURS, DPI, HEIGHT, SMALL, WIDTH, WORDS
from hsal_cli.pictures.palette import INK, PAPER, SCALE
from hsal_cli.words import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED = 12  # rows up to which a heat map's numbers are legible
NAMED = 30  # bars or rows up to which each has its name
BRIGHT = 0.6  # of the scale, from where dark numbers read better than light ones
KEYS = 2  # names of series on a line
LONG = 18  # letters of a name that are shown


@dataclasses.dataclass(frozen=True)
class Bars:
    """Bars side by side.

    Attributes:
        title, x_label, y_label: in words, units included.
        names: what stands under each group of bars.
        series: name -> one height a group; None leaves the place empty.
        halves: name -> half the width of each bar's interval, None where there is none.
        top: upper end of the y axis; None: as high as the bars.
        touching: the bars of one series touch, as those of a histogram do.
    """

    title: str
    x_label: str
    y_label: str
    names: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    halves: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    top: float | None = None
    touching: bool = False


@dataclasses.dataclass(frozen=True)
class Heat:
    """A heat map.

    Attributes:
        title, x_label, y_label: in words.
        values: (rows, columns), >= 0; row 0 is at the top.
        colour_label: what a colour stands for, with its unit.
        x_names, y_names: of columns and rows; None: the axes count in `extent`.
        extent: (width, height) of the map in the unit of its axes; None with names.
        percent: write each cell's value into it as a percentage, and give small values more of the scale.
    """

    title: str
    x_label: str
    y_label: str
    values: np.ndarray
    colour_label: str
    x_names: Sequence[str] | None = None
    y_names: Sequence[str] | None = None
    extent: tuple[float, float] | None = None
    percent: bool = False


def draw_panels(panels: Sequence[Bars | Heat | None], columns: int = 2, size: tuple[float, float] = (WIDTH, HEIGHT)) -> bytes:
    """Draws panels into one PNG.

    Args:
        panels: at least one; None leaves its place empty.
        columns: panels beside each other, at most.
        size: of a panel, inches.

    Returns:
        The bytes of the PNG, the same for the same panels.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    style = {"font.family": "DejaVu Sans", "font.size": WORDS, "axes.linewidth": 0.6, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL}
    with rc_context(style | AS_WRITTEN):
        figure: Figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=DPI, layout="constrained")
        for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            panel = panels[place] if place < len(panels) else None
            if panel is None:
                axes.set_axis_off()
            elif isinstance(panel, Bars):
                _draw_bars(axes, panel)
            else:
                _draw_heat(figure, axes, panel)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": f"hsal {__version__}"})
    return stream.getvalue()


def histogram(values: Mapping[str, np.ndarray], edges: np.ndarray) -> tuple[list[str], dict[str, list[float]]]:
    """The share of each series' values that falls between two edges; the last bin holds its upper edge.

    Returns:
        (names of the bins: their lower edges, name -> shares).
    """
    shares = {name: (np.histogram(part, edges)[0] / max(len(part), 1)).tolist() for name, part in values.items()}
    return [f"{edge:g}" for edge in edges[:-1]], shares


def _draw_bars(axes: Axes, panel: Bars) -> None:
    groups = np.arange(len(panel.names))
    width = (1.0 if panel.touching and len(panel.series) == 1 else 0.8) / max(len(panel.series), 1)
    for number, (name, heights) in enumerate(panel.series.items()):
        x = groups + (number - (len(panel.series) - 1) / 2) * width
        known = np.array([np.nan if height is None else height for height in heights], dtype=np.float64)
        halves = [half if half is not None else np.nan for half in panel.halves.get(name, [None] * len(heights))]
        axes.bar(x, known, width, color=COLOURS[number % len(COLOURS)], edgecolor="white", linewidth=0.3, label=brief(name), zorder=2)
        if np.isfinite(halves).any():
            # An interval reaches no further than the axis, whose ends are those of the score.
            low, high = np.minimum(halves, known), np.minimum(halves, (panel.top or np.inf) - known).clip(min=0)
            axes.errorbar(x, known, (low, high), fmt="none", ecolor="#202024", elinewidth=0.8, capsize=2, zorder=3)
    every = max(1, -(-len(groups) // NAMED)) if not panel.touching else max(1, round(len(groups) / 8))
    axes.set_xticks(groups[::every], [brief(name, LONG) for name in panel.names[::every]])
    if max((len(brief(name, LONG)) for name in panel.names), default=0) * len(groups[::every]) > 55:
        axes.tick_params(axis="x", rotation=90)
    keys = len(panel.series) if len(panel.series) > 1 else 0
    if keys:
        # Between the title and the axes, where it covers no bar.
        axes.legend(fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=KEYS, borderpad=0.2, borderaxespad=0)
    axes.set_title(brief(panel.title), fontsize=WORDS + 0.5, loc="left", pad=6 + 11 * -(-keys // KEYS))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_ylim(0, panel.top)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_heat(figure: Figure, axes: Axes, panel: Heat) -> None:
    from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
    from matplotlib.ticker import PercentFormatter

    colours = LinearSegmentedColormap.from_list("hsal", SCALE / 255)
    rows, columns = panel.values.shape
    top = float(panel.values.max()) or 1.0
    norm = PowerNorm(0.5, 0, 1) if panel.percent else Normalize(0, top)
    box = None if panel.extent is None else (0, panel.extent[0], panel.extent[1], 0)
    image = axes.imshow(panel.values, cmap=colours, norm=norm, extent=box, aspect="equal" if box else "auto", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, pad=0.02, format=PercentFormatter(1, decimals=0) if panel.percent else None)
    bar.set_label(panel.colour_label, fontsize=SMALL)
    bar.outline.set_visible(False)
    if panel.percent and max(rows, columns) <= NUMBERED:
        light, dark = (tuple(part / 255 for part in colour) for colour in (PAPER, INK))
        for (row, column), value in np.ndenumerate(panel.values):
            if value >= 0.005:
                ink = dark if norm(value) > BRIGHT else light
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=SMALL, color=ink)
    for names, place, label in ((panel.x_names, axes.set_xticks, panel.x_label), (panel.y_names, axes.set_yticks, panel.y_label)):
        if names is not None:
            every = max(1, -(-len(names) // NAMED))
            place(range(0, len(names), every), [brief(name, LONG) for name in names[::every]])
            if place == axes.set_xticks and sum(len(brief(name, LONG)) for name in names[::every]) > 45:
                axes.tick_params(axis="x", rotation=90)
        (axes.set_xlabel if place == axes.set_xticks else axes.set_ylabel)(label)
    axes.set_title(brief(panel.title), fontsize=WORDS + 0.5, loc="left")
    axes.spines[:].set_visible(False)
