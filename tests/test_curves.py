"""Means over runs with their intervals, and the curves drawn of them."""

import io
import statistics

import numpy as np
import pytest
from PIL import Image

from hsal_cli.evaluation.metrics import mean_of_runs
from hsal_cli.pictures.charts.panels import COLOURS, DPI, HEIGHT, WIDTH, Bars, Curves, draw_panel, draw_panels, mean_curve


def rgb(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def pixels_of(picture: np.ndarray, colour: str) -> int:
    """Pixels of exactly this colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((picture == wanted).all(axis=2).sum())


def blended(picture: np.ndarray, colour: str) -> int:
    """Pixels of a band of this colour: 18% of it on white."""
    wanted = np.array([0.18 * int(colour[place : place + 2], 16) + 0.82 * 255 for place in (1, 3, 5)])
    return int((np.abs(picture - wanted) < 1.5).all(axis=2).sum())


def drawn(panel: Curves):
    """The axes that a panel was drawn on."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    draw_panel(figure, axes, panel, list(panel.series))
    return axes


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.962, 0.955, 0.971]
    found = mean_of_runs(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.half == pytest.approx(
        4.302653 * statistics.stdev(values) / 3**0.5, abs=1e-6
    )  # t(0.975), 2 degrees of freedom, from tables
    assert found.runs == 3 and mean_of_runs([0.5]).half is None


def test_a_mean_curve_takes_the_runs_that_have_an_epoch_and_leaves_out_what_is_not_finite() -> None:
    runs = [[(1, 0.2), (2, 0.4), (3, 0.9)], [(1, 0.4), (2, float("nan"))], []]
    curve = mean_curve(runs)
    assert [(x, round(found.mean, 9), found.runs) for x, found in curve] == [(1, 0.3, 2), (2, 0.4, 1), (3, 0.9, 1)]


def test_each_panel_has_the_size_of_a_papers_column_and_series_keep_their_colours() -> None:
    a, b = [[(1, 0.1), (2, 0.9)]], [[(1, 0.5), (2, 0.6)]]
    panels = [
        Curves("both", "epoch", "score", {"a": a, "b": b}),
        Curves("b alone", "epoch", "score", {"b": b}),
        Curves("a alone", "epoch", "score", {"a": a}),
    ]
    picture = rgb(draw_panels(panels))
    height, width = round(HEIGHT * DPI), round(WIDTH * DPI)
    assert picture.shape == (2 * height, 2 * width, 3)
    below = picture[height:]
    assert pixels_of(below[:, :width], COLOURS[0]) > 200 and pixels_of(below[:, :width], COLOURS[1]) == 0
    second = picture[:height, width:]
    assert pixels_of(second, COLOURS[1]) > 200 and pixels_of(second, COLOURS[0]) == 0


def test_a_band_is_drawn_where_several_runs_give_an_interval_and_nowhere_else() -> None:
    runs = [[(1, 0.2), (2, 0.5), (3, 0.8)], [(1, 0.3), (2, 0.6), (3, 0.9)], [(1, 0.25), (2, 0.5), (3, 0.9)]]
    assert blended(rgb(draw_panels([Curves("three", "epoch", "score", {"a": runs})])), COLOURS[0]) > 5_000
    assert blended(rgb(draw_panels([Curves("one", "epoch", "score", {"a": runs[:1]})])), COLOURS[0]) < 200


def test_of_two_runs_each_is_a_thin_line_for_their_interval_says_little() -> None:
    runs = [[(1, 0.2), (2, 0.5)], [(1, 0.3), (2, 0.6), (3, 0.9)], []]
    axes = drawn(Curves("two", "epoch", "score", {"a": runs}, low=0.0, high=1.0))
    assert not axes.collections and [list(line.get_ydata()) for line in axes.lines[:2]] == [[0.2, 0.5], [0.3, 0.6, 0.9]]
    assert axes.get_legend().get_title().get_text() == "thin: each of two runs"


def test_a_share_is_never_shown_beyond_one() -> None:
    runs = [[(1, 0.90), (2, 0.99)], [(1, 0.99), (2, 0.90)], [(1, 0.95), (2, 0.95)]]  # the interval reaches far beyond 1
    free, bounded = (Curves("s", "epoch", "score", {"a": runs}, low=0, high=high) for high in (None, 1.0))
    areas = [blended(rgb(draw_panels([panel])), COLOURS[0]) for panel in (free, bounded)]
    assert areas[1] > 0
    axes = drawn(bounded)
    assert axes.get_ylim() == (-0.02, 1.02) and max(path.vertices[:, 1].max() for path in axes.collections[0].get_paths()) <= 1.0


def test_a_series_without_values_and_a_level_are_drawn_without_ado() -> None:
    panel = Curves("t", "epoch", "score", {"nothing yet": [[], []], "a": [[(1, 10_000.0), (2, 20_000.0)]]}, levels={"chance": 12_000.0})
    assert draw_panels([panel], columns=1) == draw_panels([panel], columns=1)  # the same panels, the same bytes


def test_bars_have_the_colours_that_their_names_have_in_other_pictures() -> None:
    bars = Bars("t", "x", "y", ["1"], {"b": [0.5]})
    assert [pixels_of(rgb(draw_panels([bars], names=names)), COLOURS[1]) > 5_000 for names in (("a", "b"), ("b", "a"))] == [True, False]


def test_one_epoch_has_one_tick() -> None:
    assert list(drawn(Curves("one", "epoch", "score", {"a": [[(1, 0.5)]]})).get_xticks()) == [1]


def test_the_axis_of_a_share_runs_from_0_to_1_however_close_its_values_are() -> None:
    assert drawn(Curves("s", "epoch", "share", {"a": [[(1, 0.97), (2, 0.98)]]}, low=0.0, high=1.0)).get_ylim() == (-0.02, 1.02)
