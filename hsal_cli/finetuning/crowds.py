"""Crowds: several single objects in one image, each with a region of its own, so that fine-tuning sees neighbours.

A network that has only seen one object alone lets the evidence of two neighbours run together; then no glimpse can tell them apart. Here
further objects are cut out of other images and pasted beside the first. With one object an image, this is the paper's fine-tuning.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hsal_cli.runs.seeds import Draws

MARGIN = 1  # px kept around an object's box when it is cut out, for the soft edge of its ink
TRIES = 30  # places tried before an object is left out, as small images hold few large ones


@dataclasses.dataclass(frozen=True)
class Crowd:
    """Images of one or more objects.

    Attributes:
        images: uint8 (B, H, W) or (B, H, W, 3).
        boxes: float (B, M, 4) x0, y0, x1, y1 in px; -1 where an image holds fewer than M objects.
        labels: int64 (B, M), -1 likewise.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor


def crowd(images: Tensor, boxes: Tensor, labels: Tensor, first: Tensor, most: int, draws: Draws) -> Crowd:
    """Pastes up to `most - 1` objects of other images beside the object of each image, at places where no boxes overlap.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3), one object each: where the others come from.
        boxes: (N, 4) in px.
        labels: (N,).
        first: (B,) the images that the others are pasted into.
        most: largest number of objects in an image, >= 1; each number is as likely as any other, as far as there is room.
        draws: the source of all that is random, for the B images.

    Returns:
        The B images with up to `most` objects each.
    """
    height, width = images.shape[1:3]
    pasted = images[first].clone()
    all_boxes = torch.full((len(first), most, 4), -1.0)
    all_labels = torch.full((len(first), most), -1, dtype=torch.int64)
    all_boxes[:, 0], all_labels[:, 0] = boxes[first].float(), labels[first]
    others = draws.randint(most)
    rows = draws.randint(len(images), most)
    spots = draws.rand(most, TRIES, 2)
    corners = boxes.long()
    for image in range(len(first)):
        taken = [corners[first[image]].tolist()]
        for place in range(1, int(others[image]) + 1):
            row = rows[image, place]
            x0, y0, x1, y1 = corners[row].tolist()
            x0, y0, x1, y1 = max(x0 - MARGIN, 0), max(y0 - MARGIN, 0), min(x1 + MARGIN, width), min(y1 + MARGIN, height)
            room = torch.tensor([width - (x1 - x0) + 1, height - (y1 - y0) + 1])
            for x, y in (spots[image, place] * room).long().tolist():
                box = [x, y, x + x1 - x0, y + y1 - y0]
                if not any(_overlap(box, other) for other in taken):
                    pasted[image, box[1] : box[3], box[0] : box[2]] = images[row, y0:y1, x0:x1]
                    all_boxes[image, len(taken)], all_labels[image, len(taken)] = torch.tensor(box).float(), labels[row]
                    taken.append(box)
                    break
    return Crowd(pasted, all_boxes, all_labels)


def _outside(boxes: Tensor, centres: Tensor) -> Tensor:
    """How far cells (B, h, w, 2) lie off boxes (B, M, 4) along each axis: (B, M, h, w, 2), >= 0."""
    corners = boxes[:, :, None, None]  # (B, M, 1, 1, 4)
    return torch.maximum(corners[..., :2] - centres[:, None], centres[:, None] - corners[..., 2:]).clamp(min=0)


def _overlap(one: list[int], other: list[int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def on_objects(boxes: Tensor, centres: Tensor) -> Tensor:
    """Which cells of an image lie on an object: those that a box reaches into.

    Args:
        boxes: (B, M, 4) in px, -1 where there is no object.
        centres: (B, h, w, 2) x and y of each cell's centre, px of the image; h, w >= 2.

    Returns:
        (B, h, w), 0 or 1.
    """
    half = (centres[:, :1, 1:2] - centres[:, :1, :1]).norm(dim=-1)[:, None] / 2  # of a cell's side, (B, 1, 1, 1)
    reached = (_outside(boxes, centres).amax(-1) < half) & (boxes[:, :, 0] >= 0)[:, :, None, None]
    return reached.any(1).float()


def object_regions(boxes: Tensor, centres: Tensor) -> Tensor:
    """Shares the cells of an image out among its objects: each cell goes to the object whose box is nearest.

    Args:
        boxes: (B, M, 4) in px, -1 where there is no object.
        centres: (B, h, w, 2) x and y of each cell's centre, px of the image.

    Returns:
        (B, M, h, w), 0 or 1; over the objects of an image each cell adds up to 1. Between boxes at one distance the first wins.
    """
    distance = _outside(boxes, centres).square().sum(-1)  # (B, M, h, w)
    distance = distance.masked_fill((boxes[:, :, 0] < 0)[:, :, None, None], torch.inf)
    return torch.zeros_like(distance).scatter_(1, distance.argmin(1, keepdim=True), 1.0)
