"""The contact sheet: every image in its place, boxes where they belong, the multiset under each."""

import numpy as np
import pytest
from PIL import ImageFont

from hsal_cli.pictures.contact_sheet import BOX, GAP, TEXT, TILE, _caption, contact_sheet

CLASSES = ["a", "b", "c"]


def test_images_lie_in_a_grid_enlarged_by_a_whole_factor():
    images = np.arange(5, dtype=np.uint8)[:, None, None] * 50 + np.zeros((5, 60, 60), np.uint8)
    sheet = np.asarray(contact_sheet(images, np.zeros((5, 1), int), None, CLASSES, columns=3))
    factor = TILE // 60
    for number in range(5):
        left, top = GAP + number % 3 * (60 * factor + GAP), GAP + number // 3 * (60 * factor + TEXT + 2 * GAP)
        assert (sheet[top : top + 60 * factor, left : left + 60 * factor] == 50 * number).all()


def test_boxes_run_around_the_ink_and_padding_draws_none():
    images = np.zeros((1, 100, 100), np.uint8)
    images[0, 30:50, 10:40] = 255
    sheet = np.asarray(contact_sheet(images, np.array([[1, -1]]), np.array([[[10, 30, 40, 50], [-1] * 4]]), CLASSES))
    tile = sheet[GAP : GAP + 200, GAP : GAP + 200]
    assert (tile[60:100, 20:80] == 255).mean() > 0.9  # the frame lies around the ink, not on it
    rows, columns = np.nonzero((tile == BOX).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (59, 100, 19, 80)


@pytest.mark.parametrize("shape", [(2, 400, 300), (2, 400, 300, 3), (2, 7, 90)])
def test_large_colour_and_flat_images_and_boxes_at_the_rim_are_drawn(shape):
    labels, boxes = np.zeros((2, 1), int), np.array([[[0, 0, shape[2], shape[1]]]] * 2)
    sheet = np.asarray(contact_sheet(np.full(shape, 200, np.uint8), labels, boxes, CLASSES))
    assert max(sheet.shape[:2]) < 2 * TILE + 6 * GAP and (sheet == BOX).all(axis=2).any()


def test_captions_name_the_multiset_and_stay_within_their_room():
    font = ImageFont.load_default(size=TEXT)
    assert _caption(np.array([2, 0, 2, -1]), CLASSES, font, 200) == ["a, c, c"] and _caption(np.array([-1]), CLASSES, font, 200) == ["{}"]
    lines = _caption(np.zeros(60, int), CLASSES, font, 200)
    assert len(lines) == 2 and all(line.startswith("a, a") and font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).count("a") + int(lines[1].split("+")[1]) == 60


def test_classes_of_longer_names_stand_once_with_how_often_they_occur():
    font, shapes = ImageFont.load_default(size=TEXT), ["circle", "square", "star"]
    assert _caption(np.array([1, 0, 1, 0, 0, -1]), shapes, font, 300) == ["circle x3, square x2"]
    assert _caption(np.array([2, 0, 0, 1, 1, 1]), shapes, font, 100) == ["circle x2,", "square x3, +1"]


def test_captions_of_two_lines_stand_below_each_other():
    images, labels = np.zeros((2, 100, 100, 3), np.uint8), np.array([[0, 1, 2], [0, -1, -1]])
    names = ["a long circle", "a long square", "a long star"]
    sheets = [np.asarray(contact_sheet(images, labels[rows], None, names)) for rows in ([0, 1], [1, 1])]
    assert sheets[0].shape[0] == sheets[1].shape[0] + TEXT
    lines = [(sheets[0][TILE + GAP + GAP // 3 + line * TEXT :][: TEXT + 4] < 99).any() for line in (0, 1)]
    assert lines == [True, True]
