"""Crowds: objects pasted beside each other, and the region of each."""

import numpy as np
import pytest
import torch

from hsal_cli.errors import UsageError
from hsal_cli.finetuning.finetune import settle
from hsal_cli.finetuning.views import Crowd, cell_centres, crowd, object_regions, on_objects, views
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import FinetuneSettings


def objects(count: int = 40, side: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Filled rectangles on black, each of a grey value of its own, which is its label plus 50."""
    generator = np.random.default_rng(0)
    images, boxes = torch.zeros(count, side, side, dtype=torch.uint8), torch.zeros(count, 4)
    for row in range(count):
        width, height = generator.integers(5, 14, 2)
        x, y = generator.integers(1, side - width - 1), generator.integers(1, side - height - 1)
        boxes[row] = torch.tensor([x, y, x + width, y + height])
        images[row, y : y + height, x : x + width] = 50 + row
    return images, boxes, torch.arange(count)


def crowds(most: int = 4, seed: int = 0) -> Crowd:
    images, boxes, labels = objects()
    return crowd(images, torch.arange(40), boxes, labels, torch.arange(30), most, Draws.all(torch.Generator().manual_seed(seed), 30))


def test_every_object_of_a_crowd_lies_in_its_box_and_no_two_boxes_overlap() -> None:
    together = crowds()
    counts = (together.labels >= 0).sum(1)
    assert set(counts.tolist()) == {1, 2, 3, 4} and together.labels[:, 0].tolist() == list(range(30))
    for image, boxes, labels in zip(together.images, together.boxes.long(), together.labels, strict=True):
        covered = torch.zeros_like(image, dtype=torch.bool)
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if label < 0:
                assert (x0, y0, x1, y1) == (-1, -1, -1, -1)
                continue
            inside = image[y0:y1, x0:x1]
            assert inside.max() == 50 + label and set(inside.unique().tolist()) <= {0, 50 + label}
            assert not covered[y0:y1, x0:x1].any()
            covered[y0:y1, x0:x1] = True
        assert not image[~covered].any()


def test_one_object_a_crowd_leaves_the_images_as_they_are() -> None:
    images, boxes, _ = objects()
    alone = crowds(most=1)
    assert torch.equal(alone.images, images[:30]) and torch.equal(alone.boxes[:, 0], boxes[:30]) and alone.labels.shape == (30, 1)


def test_crowds_depend_on_the_generator_alone_and_leave_their_sources_alone() -> None:
    first, again, other = crowds(seed=1), crowds(seed=1), crowds(seed=2)
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    images, boxes, labels = objects()
    before = images.clone()
    crowd(images, torch.arange(40), boxes, labels, torch.arange(30), 4, Draws.all(torch.Generator(), 30))
    assert torch.equal(images, before)


def test_each_cell_belongs_to_the_object_whose_box_is_nearest() -> None:
    boxes = torch.tensor([[[0, 0, 20, 20], [60, 0, 100, 100], [-1, -1, -1, -1]]], dtype=torch.float)
    shares = object_regions(boxes, cell_centres(torch.eye(2, 3)[None], 5, (100, 100)))
    assert shares.shape == (1, 3, 5, 5) and torch.equal(shares.sum(1), torch.ones(1, 5, 5)) and not shares[0, 2].any()
    for row in range(5):
        for column in range(5):
            x, y = column * 20 + 10, row * 20 + 10
            first = max(0, x - 20) ** 2 + max(0, y - 20) ** 2
            second = max(0, 60 - x) ** 2
            assert shares[0, :, row, column].tolist() == ([1, 0, 0] if first <= second else [0, 1, 0])


def test_a_cell_lies_on_an_object_whose_box_reaches_into_it() -> None:
    boxes = torch.tensor([[[22, 41, 39, 59], [61, 61, 79, 85], [-1, -1, -1, -1]], [[-1, -1, -1, -1]] * 3], dtype=torch.float)
    covered = on_objects(boxes, cell_centres(torch.eye(2, 3).expand(2, 2, 3), 5, (100, 100)))  # cells of 20 px
    expected = torch.zeros(2, 5, 5)
    expected[0, 2, 1] = expected[0, 3, 3] = expected[0, 4, 3] = 1
    assert torch.equal(covered, expected)


def test_cell_centres_follow_the_augmented_view() -> None:
    """The brightest cell of a turned, shifted and scaled view looks at the lit spot of its image, give or take a cell."""
    images = torch.zeros(24, 64, 64, dtype=torch.uint8)
    spots = [(18 + 2 * (row % 12), 44 - 2 * (row % 9)) for row in range(24)]
    for image, (x, y) in zip(images, spots, strict=True):
        image[y - 3 : y + 3, x - 3 : x + 3] = 255
    seen, theta = views(images, None, 64, 64, 1.0, Draws.all(torch.Generator().manual_seed(0), len(images)))
    centres = cell_centres(theta, 16, (64, 64))
    brightest = torch.nn.functional.avg_pool2d(seen[:, :1], 4).flatten(1).argmax(1)
    found = centres.flatten(1, 2)[torch.arange(24), brightest]
    assert (found - torch.tensor(spots)).abs().max() < 5


def test_a_crowd_needs_boxes() -> None:
    cpu = torch.device("cpu")
    assert settle(FinetuneSettings(), cpu, True).crowd == 4 and settle(FinetuneSettings(), cpu, False).crowd == 1
    with pytest.raises(UsageError, match="no boxes"):
        settle(FinetuneSettings(crowd=3), cpu, False)
