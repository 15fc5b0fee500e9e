"""The reliability diagram (Guo et al. 2017): how often choices were right against how probable they were, and how many there were."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hsal_cli import __version__
from hsal_cli.pictures.charts.panels import COLOURS, DASHES, DPI, GREY, MARKERS, SMALL, STYLE, WORDS
from hsal_cli.words import brief

SIZE, HEIGHTS = (4.4, 4.4), (3.2, 1.0)  # of the figure, inches, and of its two parts, as shares


def reliability_diagram(title: str, series: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draws the diagram, with the 95% interval of each bin, and below it how many choices fall into each.

    Args:
        title: of the picture.
        series: name, in words -> the bins of `calibration.reliability`, the same ones in each; those without a choice show no point.

    Returns:
        The bytes of the PNG, the same for the same bins.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with rc_context(STYLE):
        figure: Figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        shares, counts = figure.subplots(2, 1, sharex=True, height_ratios=HEIGHTS)
        shares.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (1, 1.6)), zorder=1, label="as sure as it is right")
        for number, (name, bins) in enumerate(series.items()):
            known = [part for part in bins if part["choices"]]
            sure, right, of = (np.array([part[key] for part in known], np.float64) for key in ("confidence", "right", "choices"))
            low, high = wilson(right, of)
            colour = COLOURS[number % len(COLOURS)]
            look = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "linestyle": DASHES[number % len(DASHES)], "markersize": 4}
            shares.errorbar(
                sure,
                right,
                (right - low, high - right),
                elinewidth=0.8,
                capsize=2,
                linewidth=1.2,
                label=brief(name),
                zorder=3 + number,
                **look,
            )
            edges = [part["low"] for part in bins] + [bins[-1]["high"]]
            counts.stairs([part["choices"] for part in bins], edges, color=colour, linewidth=1.2, linestyle=look["linestyle"])
        shares.set_title(brief(title), fontsize=WORDS + 0.5, loc="left", pad=8 + 11 * (1 + len(series)))
        shares.set_ylabel("share of the choices that are right")
        shares.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        # Between the title and the axes, where it covers no point.
        shares.legend(fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.2, borderaxespad=0)
        counts.set_xlabel("probability of the choice (mean of its bin)")
        counts.set_ylabel("choices (log)")
        counts.set_yscale("symlog", linthresh=1)
        most = max((part["choices"] for bins in series.values() for part in bins), default=0)
        counts.set_ylim(0, 2 * most + 1)
        powers = range(len(str(most)))
        counts.set_yticks([0, *(10**power for power in powers)][:: 1 + len(powers) // 4])
        counts.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        counts.minorticks_off()
        for axes in (shares, counts):
            axes.grid(color="#DDDDDD", linewidth=0.5)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": f"hsal {__version__}"})
    return stream.getvalue()


def wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The low and high ends of Wilson's 95% interval of shares (n,) of so many cases (n,), >= 1, each; it is no point at 0 and 1."""
    from scipy.stats import binomtest  # type: ignore[import-untyped,unused-ignore]  # half a second to import

    cases = zip(np.rint(share * count).astype(int).tolist(), count.astype(int).tolist(), strict=True)
    ends = [binomtest(right, of).proportion_ci(0.95, method="wilson") for right, of in cases]
    return np.array([end.low for end in ends]).clip(max=share), np.array([end.high for end in ends]).clip(min=share)
