"""Test-time augmentation: the mean of the volumes of several views of an image, each a little larger, smaller or turned.

What a single volume gets wrong by chance, such as a 4 that looks like a 9 from where its strokes fall between cells, the others may get
right. It costs a forward pass a view, and is no part of the paper. (Krizhevsky et al., "ImageNet Classification with Deep Convolutional
Neural Networks", 2012, average over ten crops so.)
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from hsal_cli.vision.backbone import LoadedBackbone

VIEWS = ((1.0, 0.0), (1.06, 0.0), (0.94, 0.0), (1.0, 4.0), (1.0, -4.0))
"""Enlargement and turn, in degrees, of each view; the first is the image as it is. Objects stay in their cells, or nearly so."""


def view(images: Tensor, number: int) -> Tensor:
    """One view of each image, enlarged and turned about the centre; what lies outside of an image continues its border.

    Args:
        images: float (B, 3, s, s), as the network takes them.
        number: place in VIEWS.

    Returns:
        float (B, 3, s, s).
    """
    scale, degrees = VIEWS[number]
    if (scale, degrees) == (1.0, 0.0):
        return images
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    theta = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]], device=images.device, dtype=images.dtype)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def with_views(backbone: LoadedBackbone, views: int) -> LoadedBackbone:
    """A backbone whose volumes are the mean over the first `views` of VIEWS; the same backbone for one.

    Args:
        backbone: as `load_backbone` gives it.
        views: 1 to 5.
    """
    if views == backbone.model.views:
        return backbone
    model = copy.deepcopy(backbone.model)
    model.views = views
    return dataclasses.replace(backbone, model=model)
