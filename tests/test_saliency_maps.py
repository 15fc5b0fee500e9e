"""Pictures of saliency maps: panels in place, cells coloured by the map, the maximum marked."""

import itertools

import numpy as np
from PIL import Image

from hsal_cli.pictures.marks import cell_box, panel_size
from hsal_cli.pictures.palette import ORANGE
from hsal_cli.pictures.saliency_maps import BLACK, COVER, SIDE, SaliencyView, draw_saliency, overlay, panel_boxes

IMAGE = np.zeros((60, 90, 3), np.uint8)
MAP = np.zeros((7, 7))
MAP[2, 4], MAP[5, 1] = 3.0, 1.5


def near(pixel, colour, by=3) -> bool:
    return all(abs(int(a) - int(b)) <= by for a, b in zip(pixel, colour, strict=True))


def test_panels_keep_the_images_proportions_and_do_not_overlap():
    for height, width in ((60, 90), (100, 100), (20, 300), (300, 20), (1, 1)):
        image = np.zeros((height, width, 3), np.uint8)
        across, down = panel_size(image, SIDE)
        if max(height, width) < 5 * min(height, width):
            assert abs(across / down - width / height) < 0.02
        boxes = panel_boxes(image, 6)
        for place, (x0, y0, x1, y1) in enumerate(boxes):
            assert (x1 - x0, y1 - y0) == (across, down)
            assert all(x1 <= b[0] or b[2] <= x0 or y1 <= b[1] or b[3] <= y0 for b in boxes[place + 1 :])


def test_the_maximum_is_marked_and_only_it():
    picture = np.asarray(draw_saliency("a.png", IMAGE, [SaliencyView("one", MAP), SaliencyView("two", MAP.T)]))
    assert near(picture[0, 0], (255, 255, 255))
    for box, cell in zip(panel_boxes(IMAGE, 3)[1:], ((2, 4), (4, 2)), strict=True):
        x0, y0, x1, y1 = cell_box(box, cell, (7, 7))
        assert all(near(picture[y, x], ORANGE) for x, y in ((x0 + 1, y0 + 1), (x1 - 2, y1 - 2), ((x0 + x1) // 2, y0 + 1)))
        panel = picture[box[1] : box[3], box[0] : box[2]].astype(int)
        orange = (np.abs(panel - np.array(ORANGE)).max(-1) <= 3).nonzero()
        assert orange[0].min() == y0 - box[1] and orange[0].max() == y1 - 1 - box[1]
        assert orange[1].min() == x0 - box[0] and orange[1].max() == x1 - 1 - box[0]


def test_colours_follow_the_map_and_the_image_shows_through():
    half = np.zeros((140, 140, 3), np.uint8)
    half[:, 70:] = 255
    flat = np.asarray(overlay(Image.fromarray(half), np.zeros((7, 7)))).astype(int)
    assert abs((flat[10, 130] - flat[10, 10]).mean() - (1 - COVER) * (255 - BLACK)) < 2  # the same cell colour over black and over white
    rising = np.asarray(overlay(Image.fromarray(half[:, :1].repeat(140, 1)), np.arange(49.0).reshape(7, 7)))
    light = rising.astype(float) @ [0.299, 0.587, 0.114]
    cells = [light[20 * row + 10, 20 * column + 10] for row in range(7) for column in range(7)]
    assert all(a < b for a, b in itertools.pairwise(cells))
    # One line between two cells, lighter than both; none on cells too small for it.
    assert light[10, 20] > light[10, 19] and light[10, 20] > light[10, 21]
    fine = np.asarray(overlay(Image.fromarray(half), np.zeros((28, 28)))).astype(int)
    assert len(np.unique(fine[:, :70].reshape(-1, 3), axis=0)) == 1


def test_a_flat_map_has_no_maximum():
    assert SaliencyView("flat", np.ones((3, 3))).maximum is None and SaliencyView("one", MAP).maximum == (2, 4)
    draw_saliency("a.png", IMAGE, [SaliencyView("flat", np.ones((3, 3)))])
