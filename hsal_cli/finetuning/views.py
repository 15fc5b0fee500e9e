"""What the network sees while it is fine-tuned: crops that just contain an object, or full images, augmented; and crowds pasted for it.

Crops keep the scale that the object has in the full image: at an input size of 224 px an object of up to 97 px is seen in a crop of
112 px, a quarter of the work. Crowds are single objects cut out of their images and pasted beside others, each with a region of its own: a
network that has only seen one object alone lets the evidence of two neighbours run together, and then no glimpse can tell them apart.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.runs.seeds import Draws
from hsal_cli.vision.devices import moved
from hsal_cli.vision.images import GAIN, SCALE, SHIFT, TURN, placed, to_input

ROOM = 1.15  # a crop's side over its object's
CPU = torch.device("cpu")
POINTS = 8  # a side of the grid of points by which an object is in view

MARGIN = 1  # px kept around an object's box when it is cut out, for the soft edge of its ink
TRIES = 30  # places tried before an object is left out of a crowd, as small images hold few large ones


def crop_sides(boxes: Tensor, image_size: tuple[int, int], input_size: int, stride: int) -> Tensor:
    """The crop side that each object needs.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in px of the image.
        image_size: (H, W) in px.
        input_size: side of the network's full input, px.
        stride: px of input a cell of the volume.

    Returns:
        (N,) half the network's input, or more where the object is larger: then a multiple of the stride, at most the input; px.
    """
    height, width = image_size
    across = (boxes[:, 2] - boxes[:, 0]) * (input_size / width)
    down = (boxes[:, 3] - boxes[:, 1]) * (input_size / height)
    side = torch.maximum(across, down).float() * ROOM
    needed = (torch.ceil(side / stride) * stride).clamp(max=input_size)
    # Tighter crops are cheaper still, but a network that has seen no empty background is lost on full images.
    return torch.where(side <= input_size / 2, input_size / 2, needed).long()


def views(
    images: Tensor,
    boxes: Tensor | None,
    side: int,
    input_size: int,
    augment: bool,
    draws: Draws,
    device: torch.device = CPU,
    mirror: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cuts one view of each image. Where is settled on the CPU; the images go to the device as bytes, and are cut there.

    Args:
        images: uint8 (B, H, W) or (B, H, W, 3), on the CPU.
        boxes: (B, 4) in px of the image; None for full views.
        side: side of the views, px of the network's input.
        input_size: side of the network's full input, px.
        augment: random scale, rotation, shift and contrast.
        draws: the source of all that is random, for these B images.
        device: where the views are wanted.
        mirror: also reverse columns and rows, and exchange the two, at random.

    Returns:
        The views, float (B, 3, side, side), normalised for the network, on the device; and where they look, (B, 2, 3), on the CPU: the
        affine maps from a place in a view to the place in its image that is seen there, both in [-1, 1], x before y.
    """
    count, height, width = images.shape[:3]
    images = moved(images, device)
    if not (augment or mirror) and boxes is None:
        return to_input(images, input_size), torch.eye(2, 3).expand(count, 2, 3)
    # Sampling only enlarges: what is larger than the network's input is first shrunk to it, with antialiasing.
    full = to_input(images, min(max(height, width), input_size))

    def uniform(limit: float) -> Tensor:
        return (draws.rand() * 2 - 1) * (limit if augment else 0.0)

    zoom = torch.exp(uniform(math.log1p(SCALE)))
    turn = uniform(math.radians(TURN))
    share = side / input_size
    if boxes is None:
        centre_x, centre_y = uniform(SHIFT), uniform(SHIFT)
    else:
        centre_x = _centres(boxes[:, 0] / width, boxes[:, 2] / width, share / zoom, draws)
        centre_y = _centres(boxes[:, 1] / height, boxes[:, 3] / height, share / zoom, draws)
    theta = placed(share / zoom, turn, torch.stack([centre_x, centre_y], 1), draws.randint(8) if mirror else None)
    grid = F.affine_grid(moved(theta, device), [count, 3, side, side], align_corners=False)
    # What lies outside of the image continues its border: an empty background of MNIST, a plausible one of photographs.
    seen = F.grid_sample(full, grid.to(full.dtype), padding_mode="border", align_corners=False)
    if augment:
        gain = moved(torch.exp(uniform(GAIN)), device)[:, None, None, None]
        floor = seen.amin(dim=(2, 3), keepdim=True)
        seen = floor + (seen - floor) * gain
    return seen, theta


def share_in_view(theta: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """How much of each object a view shows.

    Args:
        theta: (B, 2, 3) as `views` returns.
        boxes: (B, M, 4) in px of the image; -1 where there is no object.
        image_size: (H, W) in px.

    Returns:
        (B, M) share of the points of a grid over each box that lie in the view, in [0, 1].
    """
    size = torch.tensor([image_size[1], image_size[0]])
    steps = (torch.arange(POINTS) + 0.5) / POINTS
    inside = torch.cartesian_prod(steps, steps)  # (P, 2), from corner to corner
    points = (boxes[..., None, :2] + inside * (boxes[..., None, 2:] - boxes[..., None, :2])) / size * 2 - 1  # (B, M, P, 2)
    places = torch.linalg.solve(theta[:, None, None, :, :2], (points - theta[:, None, None, :, 2])[..., None])[..., 0]
    return (places.abs() <= 1).all(-1).float().mean(-1)


def cell_centres(theta: Tensor, cells: int, image_size: tuple[int, int], covered: float = 1.0) -> Tensor:
    """Where the cells of a view's volume look.

    Args:
        theta: (B, 2, 3) as `views` returns.
        cells: cells along a side of the volume.
        image_size: (H, W) in px.
        covered: the cells' reach over the view's side; above 1 where the last cell looks past its border.

    Returns:
        (B, cells, cells, 2) x and y of each cell's centre, px of the image.
    """
    along = (torch.arange(cells) * 2 + 1) * (covered / cells) - 1
    y, x = torch.meshgrid(along, along, indexing="ij")
    seen = torch.einsum("bij,hwj->bhwi", theta, torch.stack([x, y, torch.ones_like(x)], -1))
    return (seen + 1) / 2 * torch.tensor([image_size[1], image_size[0]])


def view_centres(theta: Tensor, side: int, stride: int, image_size: tuple[int, int]) -> Tensor:
    """`cell_centres` of views of this side, px, in a network of this stride, px a cell."""
    cells = -(-side // stride)
    return cell_centres(theta, cells, image_size, cells * stride / side)


def _centres(low: Tensor, high: Tensor, share: Tensor, draws: Draws) -> Tensor:
    """Random crop centres along one axis, in [-1, 1], such that the object from `low` to `high` (0..1) lies inside."""
    slack = (share - (high - low)).clamp(min=0) / 2
    return ((low + high) / 2 + (draws.rand() * 2 - 1) * slack) * 2 - 1


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


def crowd(images: Tensor, rows: Tensor, boxes: Tensor, labels: Tensor, first: Tensor, most: int, draws: Draws) -> Crowd:
    """Pastes up to `most - 1` objects of other images beside the object of each image, at places where no boxes overlap.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3), one object each.
        rows: (M,) those of them that objects are taken from.
        boxes: (M, 4) in px.
        labels: (M,).
        first: (B,) in 0..M-1, the objects that others are pasted beside.
        most: largest number of objects in an image, >= 1; each number is as likely as any other, as far as there is room.
        draws: the source of all that is random, for the B images.

    Returns:
        The B images with up to `most` objects each.
    """
    height, width = images.shape[1:3]
    pasted = images[rows[first]]
    all_boxes = torch.full((len(first), most, 4), -1.0)
    all_labels = torch.full((len(first), most), -1, dtype=torch.int64)
    all_boxes[:, 0], all_labels[:, 0] = boxes[first].float(), labels[first]
    others = draws.randint(most)
    drawn = draws.randint(len(rows), most)
    spots = draws.rand(most, TRIES, 2)
    corners = boxes.long()
    for image in range(len(first)):
        taken = [corners[first[image]].tolist()]
        for place in range(1, int(others[image]) + 1):
            one = drawn[image, place]
            x0, y0, x1, y1 = corners[one].tolist()
            x0, y0, x1, y1 = max(x0 - MARGIN, 0), max(y0 - MARGIN, 0), min(x1 + MARGIN, width), min(y1 + MARGIN, height)
            room = torch.tensor([width - (x1 - x0) + 1, height - (y1 - y0) + 1])
            for x, y in (spots[image, place] * room).long().tolist():
                box = [x, y, x + x1 - x0, y + y1 - y0]
                if all(x >= other[2] or other[0] >= box[2] or y >= other[3] or other[1] >= box[3] for other in taken):
                    pasted[image, box[1] : box[3], box[0] : box[2]] = images[rows[one], y0:y1, x0:x1]
                    all_boxes[image, len(taken)], all_labels[image, len(taken)] = torch.tensor(box).float(), labels[one]
                    taken.append(box)
                    break
    return Crowd(pasted, all_boxes, all_labels)


def _outside(boxes: Tensor, centres: Tensor) -> Tensor:
    """How far cells (B, h, w, 2) lie off boxes (B, M, 4) along each axis: (B, M, h, w, 2), >= 0."""
    corners = boxes[:, :, None, None]  # (B, M, 1, 1, 4)
    return torch.maximum(corners[..., :2] - centres[:, None], centres[:, None] - corners[..., 2:]).clamp(min=0)


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


def own_cells(corners: Tensor, centres: Tensor) -> Tensor:
    """Cells of each object, as `object_regions` gives them; but an object between others keeps the cell at its middle, shared or not."""
    regions = object_regions(corners, centres)
    middles = (corners[..., :2] + corners[..., 2:]) / 2
    nearest = (middles[:, :, None, None] - centres[:, None]).square().sum(-1).flatten(2).argmin(2, keepdim=True)
    without = (regions.flatten(2).sum(2) == 0) & (corners[..., 0] >= 0)
    middle = torch.zeros_like(regions).flatten(2).scatter_(2, nearest, 1.0).view_as(regions)
    return torch.where(without[..., None, None], middle, regions)
