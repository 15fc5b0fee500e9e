"""The embedded digits: a function of seed, split and index; shaped like MNIST; drawn as a slow reference draws them."""

import math

import numpy as np
import pytest

from hsal_cli.scenes.digits.stroke_shapes import WAYS
from hsal_cli.scenes.digits.strokes import MOST_POINTS, SAMPLES, _ink, draw_pool, parse_way


@pytest.fixture(scope="module")
def pool():
    return draw_pool("train", 0, 500)


def test_a_glyph_depends_on_seed_split_and_index_alone(pool):
    images, labels = pool
    few, few_labels = draw_pool("train", 0, 33)
    assert np.array_equal(few, images[:33]) and np.array_equal(few_labels, labels[:33])
    for split, seed in (("test", 0), ("train", 1)):
        other, _ = draw_pool(split, seed, 33)
        assert not any(np.array_equal(a, b) for a, b in zip(few, other, strict=True))


def test_every_digit_is_written_in_several_ways_and_never_twice_alike(pool):
    images, labels = pool
    assert labels.tolist() == [row % 10 for row in range(500)]
    assert all(len({way for _, way in ways}) == len(ways) >= 4 for ways in WAYS) and len(WAYS) == 10
    for digit in range(10):
        flat = images[labels == digit].reshape(50, -1) / 255.0
        apart = np.sqrt(((flat[:, None] - flat[None]) ** 2).sum(axis=2))[np.triu_indices(50, 1)]
        assert apart.min() > 0.8 and apart.mean() > 5  # MNIST: at least 1.65, on average 6.7 (the 1) to 10.2


def test_ink_has_the_size_and_the_place_of_mnist(pool):
    images, labels = pool
    rows, columns, centres = np.arange(28) + 0.5, np.arange(28) + 0.5, []
    for image in images[labels != 1].astype(float):
        inked = image >= 128
        height, width = np.ptp(np.flatnonzero(inked.any(axis=1))) + 1, np.ptp(np.flatnonzero(inked.any(axis=0))) + 1
        assert 17 <= max(height, width) <= 22
        centre = (image.sum(axis=1) @ rows / image.sum(), image.sum(axis=0) @ columns / image.sum())
        centres.append(math.dist(centre, (14.5, 14.5)))
        assert not image[0].any() and not image[-1].any() and not image[:, 0].any() and not image[:, -1].any()
    assert np.mean(centres) < 1 and max(centres) < 4  # a lopsided digit is kept inside the square
    assert 0.09 < images.mean() / 255 < 0.17  # MNIST: 0.131


@pytest.mark.parametrize("digit", range(10))
def test_the_pen_passes_the_control_points_in_order_evenly_and_lifts(digit):
    for _, text in WAYS[digit]:
        points, curve, along = parse_way(text)
        assert len(points) <= MOST_POINTS and curve.shape == (SAMPLES, len(points))
        path = curve @ points
        nearest = np.linalg.norm(path[:, None] - points[None], axis=2)
        assert nearest.min(axis=0).max() < 0.03  # each point lies on the path, but for the spacing of the samples
        assert np.allclose(curve.sum(axis=1), 1)  # so that moving a whole digit moves its path alike
        jumps = np.linalg.norm(np.diff(path, axis=0), axis=1) > 0.1
        assert jumps.sum() == text.count("|") and along.min() >= 0 and along.max() <= 1 + 1e-9


def test_ink_is_drawn_as_a_pixel_by_pixel_reference_draws_it():
    steps = np.linspace(0, 1, SAMPLES)
    path = np.stack([6 + 14 * steps, 10 + 5 * np.sin(3 * steps)], axis=1)
    drawn = _ink(path[None], np.full((1, SAMPLES), 1.5), np.array([1.2]))[0]
    for row in range(28):
        for column in range(28):
            edge = min(math.dist((column + 0.5, row + 0.5), place) for place in path) - 1.5
            assert drawn[row, column] == pytest.approx(255 * min(max(0.5 - edge / 1.2, 0), 1), abs=1)
