"""What a composed scene must be, whatever the settings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsal_cli.errors import UsageError
from hsal_cli.scenes.compose import AHEAD, INK, Composer, Uniforms
from hsal_cli.scenes.digits.glyphs import Glyphs, gather
from hsal_cli.scenes.settings import SceneSettings, board_side

NAMES = [str(digit) for digit in range(10)]


def squares(grey_of=lambda row: 255, margin: int = 0, rows: int = 30) -> Glyphs:
    """Glyphs that are filled squares: with no margin, a digit's box is exactly as large as the digit."""
    images = np.zeros((rows, 28, 28), np.uint8)
    for row in range(rows):
        images[row, margin : 28 - margin, margin : 28 - margin] = grey_of(row)
    return gather(images, np.arange(rows) % 10, NAMES, "test")


def composer(glyphs: Glyphs | None = None, distinct: bool = False, stream: int = 0, **recipe) -> Composer:
    return Composer(glyphs or squares(), SceneSettings(**recipe), distinct, stream)


def overlap(a, b) -> bool:
    pixels = [{(x, y) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in (a, b)]
    return bool(pixels[0] & pixels[1])


@st.composite
def recipes(draw):
    side = draw(st.integers(24, 64))
    most = draw(st.integers(1, 6))
    smallest = draw(st.integers(4, max(4, side // 3)))
    placement = draw(st.sampled_from(["free", "tight", "grid", "authors"]))
    largest = side // board_side(most) if placement == "authors" else side  # their board holds digits at their full size
    return {
        "image_size": side,
        "count": (draw(st.integers(1, most)), most),
        "digit_size": (smallest, draw(st.integers(smallest, largest))),
        "clutter": draw(st.integers(0, 4)),
        "placement": placement,
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


@settings(max_examples=60, deadline=None)
@given(recipe=recipes(), index=st.integers(0, 10**8))
def test_digits_lie_inside_the_image_and_never_overlap(recipe, index):
    image, labels, boxes = composer(**recipe).compose(index)
    side = recipe["image_size"]
    assert image.shape == (side, side) and image.dtype == np.uint8
    assert recipe["count"][0] <= len(labels) == len(boxes) <= recipe["count"][1]
    assert all(0 <= label < 10 for label in labels)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        assert 0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side
        assert recipe["digit_size"][0] <= x1 - x0 == y1 - y0 <= recipe["digit_size"][1]
        assert not any(overlap(boxes[number], other) for other in boxes[:number])


def test_free_keeps_whole_glyphs_apart_and_tight_only_their_ink():
    """Ink fills the middle 14 of a glyph's 28 px, so glyphs of 20 px that do not overlap keep their ink 10 px apart, across or down."""

    def gaps(placement: str) -> list[int]:
        make = composer(squares(margin=7), placement=placement, count=(2, 2), digit_size=(20, 20), image_size=50, clutter=0)
        pairs = [make.compose(index)[2] for index in range(200)]
        return [max(max(a[0], b[0]) - min(a[2], b[2]), max(a[1], b[1]) - min(a[3], b[3])) for a, b in pairs]

    assert min(gaps("free")) in (9, 10)  # bicubic resizing makes the ink's edge a pixel wider
    assert min(gaps("tight")) == 0


@pytest.mark.parametrize("placement", ["free", "tight", "grid", "authors"])
def test_boxes_are_tight_around_the_ink(mnist_dir, placement):
    from hsal_cli.scenes.digits.glyphs import DigitSource

    make = composer(DigitSource("mnist", mnist_dir).glyphs("test", 0), clutter=0, placement=placement)
    for index in range(30):
        image, _, boxes = make.compose(index)
        outside = np.ones(image.shape, bool)
        for x0, y0, x1, y1 in boxes:
            ink = image[y0:y1, x0:x1] >= INK
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            outside[y0:y1, x0:x1] = False
        assert not image[outside].any()


def test_counts_labels_and_sizes_are_uniform():
    make = composer(count=(1, 4), digit_size=(20, 24), clutter=0)
    found = [make.compose(index)[1:] for index in range(1200)]
    counts = np.bincount([len(labels) for labels, _ in found], minlength=5)[1:] / 1200
    labels = np.bincount([label for labels, _ in found for label in labels]) / sum(len(labels) for labels, _ in found)
    sides = np.array([box[2] - box[0] for _, boxes in found for box in boxes])
    sizes = np.bincount(sides - 20, minlength=5) / len(sides)
    # Five standard deviations of a share from so many draws.
    assert np.abs(counts - 0.25).max() < 0.065 and np.abs(labels - 0.1).max() < 0.03 and np.abs(sizes - 0.2).max() < 0.04


def test_a_set_names_no_label_twice_and_a_multiset_may():
    kinds = {distinct: [composer(distinct=distinct, count=(4, 4)).compose(index)[1] for index in range(60)] for distinct in (True, False)}
    assert all(len(set(labels)) == 4 for labels in kinds[True])
    assert any(len(set(labels)) < 4 for labels in kinds[False])


def test_grid_puts_one_digit_a_cell_of_the_largest_digits_size():
    make = composer(placement="grid", count=(3, 4), digit_size=(10, 30), image_size=70, clutter=0)
    places = set()
    for index in range(40):
        boxes = make.compose(index)[2]
        cell = max(x1 - x0 for x0, _, x1, _ in boxes)
        across = 70 // cell
        fits = []
        for left in range(70 % cell + 1):
            for top in range(70 % cell + 1):
                cells = {((x0 - left) // cell, (y0 - top) // cell) for x0, y0, _, _ in boxes}
                inside = all(
                    x0 >= left
                    and (x0 - left) // cell == (x1 - 1 - left) // cell < across
                    and y0 >= top
                    and (y0 - top) // cell == (y1 - 1 - top) // cell < across
                    for x0, y0, x1, y1 in boxes
                )
                fits.append(inside and len(cells) == len(boxes))
        assert any(fits)
        places |= {(x0, y0) for x0, y0, _, _ in boxes}
    assert len(places) > 80  # offsets are random, not the cells' corners


def test_authors_lay_digits_on_a_board_that_begins_at_the_top_left_at_their_full_sizes():
    make = composer(placement="authors", count=(1, 4), digit_size=(10, 30), image_size=70, clutter=0)
    sizes, corners = [], []
    for index in range(200):
        boxes = make.compose(index)[2]
        cell = max(x1 - x0 for x0, _, x1, _ in boxes)
        cells = [(x0 // cell, y0 // cell) for x0, y0, _, _ in boxes]
        ends = [((x1 - 1) // cell, (y1 - 1) // cell) for _, _, x1, y1 in boxes]
        assert cells == ends and len(set(cells)) == len(boxes) and max(map(max, cells)) < 70 // cell
        sizes += [x1 - x0 for x0, _, x1, _ in boxes]
        corners += [(x0, y0) for x0, y0, _, _ in boxes]
    assert min(sizes) == 10 and max(sizes) == 30 and abs(np.mean(sizes) - 20) < 1.5
    assert len(set(corners)) > 200


def test_the_authors_clutter_lies_in_cells_of_its_own_size_under_the_digits():
    alone = composer(placement="authors", count=(0, 0), clutter=9, clutter_size=5, image_size=52, digit_size=(10, 10))
    filled = set()
    for index in range(100):
        image = alone.compose(index)[0]
        board = image[:50, :50].reshape(10, 5, 10, 5).any(axis=(1, 3))
        assert board.sum() <= 9 and not image[50:].any() and not image[:, 50:].any()
        filled |= set(zip(*np.nonzero(board), strict=True))
    assert len(filled) == 100
    bright = composer(placement="authors", count=(1, 1), clutter=100, clutter_size=5, image_size=50, digit_size=(20, 20))
    image = bright.compose(0)[0]
    bare = composer(placement="authors", count=(1, 1), clutter=0, clutter_size=5, image_size=50, digit_size=(20, 20))
    patch = bare.compose(0)[0]
    assert (image[patch > 0] == patch[patch > 0]).all()


def test_the_authors_boards_must_hold_everything_at_its_full_size():
    assert SceneSettings(placement="authors").count == (1, 4)  # the paper's recipe does
    with pytest.raises(UsageError, match="5 digits of up to 50 px do not fit on the authors' board of 100 px"):
        SceneSettings(placement="authors", count=(1, 5))
    with pytest.raises(UsageError, match="401 pieces of clutter"):
        SceneSettings(placement="authors", clutter=401)


def test_crowded_images_get_smaller_digits_rather_than_none():
    make = composer(count=(9, 9), digit_size=(13, 40), image_size=40, clutter=0)
    for index in range(5):
        _, labels, boxes = make.compose(index)
        assert len(labels) == len(boxes) == 9


def test_clutter_is_cut_from_other_digits_and_lies_under_the_digits():
    glyphs = squares(lambda row: 60 + 4 * row, margin=4)
    make = composer(glyphs, count=(2, 2), clutter=8, clutter_size=5, digit_size=(28, 28))
    for index in range(40):
        image, labels, boxes = make.compose(index)
        own = set()
        outside = image.copy()
        for label, (x0, y0, x1, y1) in zip(labels, boxes, strict=True):
            grey = min(int(value) for value in np.unique(image[y0:y1, x0:x1]))
            assert (grey - 60) // 4 % 10 == label  # nothing darker than the digit shows through it
            own.add(grey)
            outside[y0:y1, x0:x1] = 0
        strewn = set(np.unique(outside).tolist()) - {0}
        assert strewn and not strewn & own
        assert (outside > 0).sum() <= 8 * 5 * 5


def test_no_piece_of_clutter_is_blank():
    images = np.zeros((10, 28, 28), np.uint8)
    images[:, 20, 20] = 255  # a single pixel of ink: a piece cut at random would nearly always miss it
    make = composer(gather(images, np.arange(10), NAMES, "test"), count=(1, 1), clutter=1, digit_size=(28, 28))
    assert all((make.compose(index)[0] == 255).sum() == 2 for index in range(30))


def test_an_image_depends_on_seed_stream_and_index_alone():
    first = [composer(seed=7).compose(index)[0] for index in range(6)]
    again = [composer(seed=7).compose(index)[0] for index in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (composer(seed=8), composer(seed=7, stream=1)):
        assert not any(np.array_equal(a, other.compose(index)[0]) for index, a in enumerate(first))


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ({"count": (64, 64), "digit_size": (50, 50)}, "64 digits of 50 px do not fit"),
        ({"digit_size": (20, 120)}, "digit_size = 20-120 does not fit"),
        ({"clutter_size": 10, "image_size": 8, "digit_size": (4, 4)}, "clutter_size = 10 does not fit"),
        ({"train": 0, "test": 0}, "no image to make"),
        ({"count": (3, 2)}, "count = 3-2 runs backwards"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_before_anything_is_made(recipe, part):
    with pytest.raises(UsageError, match=part):
        SceneSettings(**recipe)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), streams=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3), draws=st.integers(1, 3 * AHEAD))
def test_numbers_drawn_ahead_are_those_of_a_generator_of_the_streams_own(seed, streams, draws):
    uniforms = Uniforms(seed)
    for stream in streams:
        uniforms.start(stream)
        plain = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
        assert [uniforms.below(1000) for _ in range(draws)] == [int(plain.random() * 1000) for _ in range(draws)]
