"""Pictures of trajectories: where panels stand, that the marked cells are those glimpsed, and the file that is written."""

import dataclasses

import numpy as np
import pytest
from picture_parts import a_step, drawn
from PIL import Image

from hsal_cli.models.seen import Look, LookStep
from hsal_cli.pictures.film import film as encoded_film
from hsal_cli.pictures.marks import cell_box, read_box
from hsal_cli.pictures.palette import GREEN, ORANGE, RED, heat
from hsal_cli.pictures.trajectory import MARGIN, WIDEST, hits, layout_of, titles, trajectories
from hsal_cli.pictures.writing import write_picture
from hsal_cli.storage.files import bears_mark


def a_look(labels=("3", "5"), glimpses=((0, 1), (2, 0)), size=(60, 90), grid=(3, 4), name="scene.png"):
    """A look whose maps differ from row to row of the picture: S_t falls from left to right, P_t from top to bottom."""
    height, width = grid
    mask = np.full(grid, 0.1)
    mask[1, 2] = 0.5
    steps = [
        LookStep(
            label,
            0.91,
            list(glimpses),
            mask,
            np.linspace(1, 0, height)[:, None].repeat(width, 1),
            np.linspace(1, 0, width)[None].repeat(height, 0),
            np.array([[1.0, 0.8, 0.8, 2.0, 3.0]]),
        )
        for label in labels
    ]
    return Look(name, np.full((*size, 3), 90, dtype=np.uint8), steps, 0.99)


def pixels_of(picture, box):
    x0, y0, x1, y1 = (side + MARGIN for side in box)
    return np.asarray(picture)[y0:y1, x0:x1].astype(int)


def has(pixels, colour):
    return bool((np.abs(pixels - np.array(colour)).sum(-1) < 12).any())


@pytest.mark.parametrize("region", [None, (100, 5, 700, 35)])
def test_the_words_of_rows_stand_apart_where_wide_images_have_low_panels(region):
    layout = layout_of(dataclasses.replace(a_look("1234567", size=(40, 900)), region=region))
    assert layout.panel[1] < 30
    for step in range(layout.steps):
        rows = [layout.box(row, step) for row in range(len(layout.rows))]
        middles = [(top + bottom) / 2 for _, top, _, bottom in rows]
        assert min(np.diff(middles)) >= 54, "two lines of 18 px, and a line between"
        assert rows[-1][3] < layout.bars(step)[1]
    assert layout.bars(layout.steps - 1)[3] < layout.size[1]


@pytest.mark.parametrize(("size", "wide"), [((60, 90), 1.5), ((90, 60), 2 / 3), ((100, 100), 1), ((40, 400), 10)])
def test_panels_keep_the_proportions_of_the_image_and_stand_in_a_grid(size, wide):
    layout = layout_of(a_look(size=size))
    assert layout.panel[0] / layout.panel[1] == pytest.approx(wide, rel=0.06)
    assert max(layout.panel) <= 1.6 * 168 + 1
    boxes = [[layout.box(row, step) for step in range(2)] for row in range(4)]
    for row in range(4):
        assert boxes[row][0][2] < boxes[row][1][0]  # steps side by side
        assert row == 0 or boxes[row - 1][0][3] < boxes[row][0][1]  # rows below each other
        for x0, y0, x1, y1 in boxes[row]:
            assert (x1 - x0, y1 - y0) == layout.panel
            assert x0 >= 0 and y0 >= 0 and x1 <= layout.size[0] and y1 <= layout.size[1]
    picture = drawn(a_look(size=size))
    assert picture.width >= layout.size[0] + 2 * MARGIN and picture.height > layout.size[1] + 2 * MARGIN


def test_cells_tile_a_panel():
    covered = np.zeros((50, 71), dtype=int)
    for row in range(3):
        for column in range(4):
            x0, y0, x1, y1 = cell_box((5, 7, 76, 57), (row, column), (3, 4))
            covered[y0 - 7 : y1 - 7, x0 - 5 : x1 - 5] += 1
    assert (covered == 1).all()


def test_glimpsed_cells_are_outlined_on_image_and_priority_map_and_no_others():
    look = a_look()
    picture, layout = drawn(look), layout_of(look)
    for row, marked in ((0, True), (1, False), (2, False), (3, True)):
        for cell in ((0, 1), (2, 0), (1, 3)):
            x0, _, x1, y1 = cell_box(layout.box(row, 1), cell, (3, 4))
            lower_edge = pixels_of(picture, (x0 + 4, y1 - 2, x1 - 4, y1))
            assert has(lower_edge, ORANGE) == (marked and cell != (1, 3)), (row, cell)


def test_all_that_a_glimpse_reads_is_outlined_on_the_image_as_far_as_it_lies_in_it():
    box, step = (10, 20, 170, 140), dataclasses.replace(a_step(), reads=3)
    assert read_box(box, (1, 2), step) == (50, 20, 170, 140)
    assert read_box(box, (0, 0), step) == (10, 20, 90, 100)
    assert read_box(box, (2, 1), dataclasses.replace(step, reads=1)) == cell_box(box, (2, 1), (3, 4)) == (50, 100, 90, 140)


def test_maps_are_drawn_cell_by_cell_on_their_scale():
    look = a_look(glimpses=())
    picture, layout = drawn(look), layout_of(look)
    step = look.steps[0]
    for row, values in ((1, step.saliency), (2, step.mask / step.mask.max()), (3, step.priority)):
        for cell in np.ndindex(3, 4):
            x0, y0, _, _ = cell_box(layout.box(row, 0), cell, (3, 4))
            corner = pixels_of(picture, (x0 + 2, y0 + 2, x0 + 4, y0 + 4))
            assert (corner == heat(values[cell])).all(), (row, cell)


def test_the_outline_lies_where_the_mask_has_half_its_maximum():
    look = a_look(glimpses=())
    picture, box = drawn(look), layout_of(look).box(0, 0)
    pixels = pixels_of(picture, box)
    marked = np.argwhere(np.abs(pixels - 90).sum(-1) > 20)
    height, width = pixels.shape[:2]
    rows, columns = (marked[:, 0] + 0.5) / height * 3 + 0.5, (marked[:, 1] + 0.5) / width * 4 + 0.5
    distance = np.hypot(rows - 2, columns - 3)
    assert len(marked) > 100
    assert np.abs(distance - np.sqrt(np.log(2) / 0.8)).max() < 0.15  # cells


def test_hits_follow_the_remaining_multiset():
    assert hits(["5", "5", "3", "5"], ["3", "5", "5"]) == [True, True, True, False]
    assert hits(["1"], []) == [False]


def test_labels_are_marked_where_the_truth_is_known():
    look = a_look(labels=("3", "5"))
    layout = layout_of(look)

    def named(picture, step):
        x0, _, x1, y1 = layout.box(3, step)
        return pixels_of(picture, (x0, y1 + 4, x1, layout.size[1]))

    known, unknown = drawn(look, ["3", "3"]), drawn(look)
    assert has(named(known, 0), GREEN) and not has(named(known, 0), RED)
    assert has(named(known, 1), RED) and not has(named(known, 1), GREEN)
    assert not has(named(unknown, 0), GREEN) and not has(named(unknown, 0), RED)


@pytest.mark.parametrize("look", [a_look(labels=()), a_look(labels=("a very long name of a class",)), a_look(glimpses=((1, 1), (1, 1)))])
def test_unusual_looks_are_drawn(look):
    """A picture as large as its layout, and not the same as that of another truth."""
    picture, other = drawn(look, ["3"]), drawn(look, ["4", "4"])
    assert picture.width >= layout_of(look).size[0] and picture.tobytes() != other.tobytes()


@pytest.mark.parametrize(("steps", "beside"), [(1, 1), (5, 5), (6, 3), (8, 4), (64, 5)])
def test_long_episodes_go_on_below_and_no_picture_is_wider_than_a_page(steps, beside):
    look = a_look(labels=("3",) * steps, size=(100, 100))
    layout, picture = layout_of(look), drawn(look)
    corners = [layout.box(0, step)[:2] for step in range(steps)]
    assert len({x for x, _ in corners}) == beside and len({y for _, y in corners}) == -(-steps // beside)
    assert corners == sorted(corners, key=lambda corner: corner[::-1])  # row by row
    assert picture.width <= WIDEST + 2 * MARGIN
    assert all(layout.bars(step)[3] <= layout.box(0, step + beside)[1] for step in range(steps - beside))


@pytest.mark.parametrize("size", [(1500, 3000), (3000, 1500), (100, 2000)])
def test_large_and_long_photos_are_drawn_in_their_proportions_within_a_page(size):
    picture = drawn(a_look(labels=("3",) * 8, size=size))
    assert picture.width <= WIDEST + 2 * MARGIN


def test_where_nothing_is_named_the_meta_step_that_named_stop_is_shown():
    stop = a_look(labels=("stop",))
    look = dataclasses.replace(stop, steps=[], end=stop.steps[0])
    shown, blank = drawn(look), drawn(dataclasses.replace(look, end=None))
    box = layout_of(look).box(3, 0)
    assert has(pixels_of(shown, box), ORANGE) and (pixels_of(blank, box) == 255).all()


def test_long_titles_are_set_smaller_and_then_cut():
    look = a_look(labels=("a very long name of a class",) * 3, name="x" * 200 + ".png")
    assert drawn(look, ["another long name of a class"] * 3).width <= layout_of(look).size[0] + 2 * MARGIN


def test_a_picture_says_where_the_image_is_unlike_those_of_training():
    look = a_look()
    strange = dataclasses.replace(look, unlike=["brighter"])
    assert "unlike the images of training" in titles(strange, None)[1] and "unlike" not in titles(look, None)[1]
    assert drawn(strange).tobytes() != drawn(look).tobytes()


def test_several_trajectories_share_one_picture():
    looks = [a_look(), a_look(size=(90, 60)), a_look()]
    one, all_down, two_wide = (trajectories(looks[:n], columns=columns) for n, columns in ((1, 1), (3, 1), (3, 2)))
    assert all_down.height > 2.5 * (one.height - 60)
    assert two_wide.height < all_down.height and two_wide.width > all_down.width
    assert trajectories([a_look(labels=("3",), size=(100, 100))] * 7).width <= WIDEST + 2 * MARGIN


def test_a_large_picture_keeps_its_colours_and_one_of_ours_is_known(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    write_picture(noise, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as found:
        assert found.mode == "RGB" and found.tobytes() == noise.tobytes()
    assert bears_mark(tmp_path / "a.png")
    noise.save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no picture")
    assert not bears_mark(tmp_path / "b.png") and not bears_mark(tmp_path / "c.png")


def test_heat_grows_lighter_with_the_value():
    lightness = heat(np.linspace(-0.5, 1.5, 41)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) >= 0).all() and np.diff(lightness)[10:30].min() > 0


def test_an_svg_has_the_shapes_and_texts_of_the_picture_in_its_size():
    from xml.etree import ElementTree

    from hsal_cli.pictures.trajectory import draw_trajectories
    from hsal_cli.pictures.vector import Vector, pdf

    looks = [a_look(labels=("3", "a <b> & 'c'"), size=(60, 90))]
    picture, drawn = trajectories(looks, [["3"]]), draw_trajectories(Vector, looks, [["3"]])
    assert drawn.size == picture.size
    tree = ElementTree.fromstring(drawn.svg())
    assert (int(tree.get("width")), int(tree.get("height"))) == picture.size
    texts = ["".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <b> & 'c'" in texts and {"step 1", "step 2", "named"} <= {*texts}
    cells = sum(rect.get("fill") not in ("none", "#f0a000") for rect in tree.iter("{http://www.w3.org/2000/svg}rect"))
    assert cells >= 2 * 3 * looks[0].steps[0].mask.size  # three maps a step
    page = pdf(picture)
    assert page.startswith(b"%PDF-") and b"% hsal " in page[:40] and b"%%EOF" in page[-10:]


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (2, 300), (1, 3000)])
def test_the_thinnest_image_is_drawn(size) -> None:
    look = a_look(size=size, grid=(7, 7))
    assert min(layout_of(look).panel) >= 24 and trajectories([look]).size[0] > 100
    assert encoded_film([look])[:3] == b"GIF"
