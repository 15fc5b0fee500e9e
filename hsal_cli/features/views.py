"""More views of the training images than the images themselves, so that a policy learns from few of them without knowing them by heart.

They stand in a split of their own beside train: its images in order, then again, as often as there are views beside the first one, the
image as it is. A view depends on its row alone. It shows what the image shows, but for what a shift may push over the border.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hsal_cli.errors import UsageError
from hsal_cli.scenes.scene_file import SceneFile, SceneSplit
from hsal_cli.vision.images import GAIN, SCALE, SHIFT, TURN, placed

VIEWS = "train-views"  # the split


@dataclasses.dataclass(frozen=True)
class Views:
    """The other views of a split's images, as if they were a split of a scene file.

    Attributes:
        source: the split.
        times: views an image, beside itself.
        mirror: whether they are mirrored and turned by right angles.
    """

    source: SceneSplit
    times: int
    mirror: bool
    name = VIEWS
    boxes = None

    def __len__(self) -> int:
        return self.times * len(self.source)

    @property
    def labels(self) -> np.ndarray:
        """int16 (times * N, L), padded with -1."""
        return np.tile(self.source.labels, (self.times, 1))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, px."""
        return self.source.image_size

    def read(self, start: int, stop: int) -> np.ndarray:
        """Views start to stop (exclusive), uint8 (n, H, W) or (n, H, W, 3); errors are those of reading the images."""
        found = []
        while start < stop:
            first = start % len(self.source)
            last = min(len(self.source), first + stop - start)
            found.append(view_of(self.source.read(first, last), range(start, start + last - first), self.mirror))
            start += last - first
        return np.concatenate(found)


def view_of(images: np.ndarray, rows: range, mirror: bool) -> np.ndarray:
    """One view of each image, shifted, turned, zoomed and of another contrast by numbers that its row draws.

    Args:
        images: uint8 (B, H, W) or (B, H, W, 3); only square ones are turned by a right angle.
        rows: one each.
        mirror: also mirrored and turned by right angles; what has an up and a down, as a row of digits, tilts half as far else.

    Returns:
        The like.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    drawn = torch.stack([torch.rand(6, generator=torch.Generator().manual_seed(row), dtype=torch.float64) for row in rows]).float()
    limits = (math.log1p(SCALE), math.radians(TURN if mirror else TURN / 2), GAIN)
    zoom, turn, gain = ((2 * drawn[:, place] - 1) * limit for place, limit in enumerate(limits))
    ways = (drawn[:, 5] * (8 if pixels.shape[2] == pixels.shape[3] else 4)).long()
    theta = placed(torch.exp(-zoom), turn, (2 * drawn[:, 3:5] - 1) * SHIFT, ways if mirror else None)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    floor = seen.amin((2, 3), keepdim=True)
    seen = (floor + (seen - floor) * torch.exp(gain)[:, None, None, None]).round().clamp(0, 255).to(torch.uint8)
    return (seen[:, 0] if images.ndim == 3 else seen.permute(0, 2, 3, 1)).contiguous().numpy()


class ViewedScenes:
    """A scene file with more views of its training images, which precomputing reads as it reads a scene file.

    Args:
        scenes: the open file.
        views: of each training image, itself included.
        mirror: whether they are mirrored and turned by right angles.

    Raises:
        UsageError: there is no training image, or the file has a split of that name.
    """

    def __init__(self, scenes: SceneFile, views: int, mirror: bool):
        if "train" not in scenes.splits or VIEWS in scenes.splits:
            wrong = f"has a split {VIEWS} already" if VIEWS in scenes.splits else "has no training images"
            raise UsageError(f"views = {views}, but {scenes.path} {wrong}", "leave --views out")
        self._scenes, self._views = scenes, Views(scenes.split("train"), views - 1, mirror)
        self.splits = [*scenes.splits, VIEWS]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scenes, name)

    def __len__(self) -> int:
        return len(self._scenes) + len(self._views)

    def split(self, name: str) -> SceneSplit | Views:
        """One of `splits`."""
        return self._views if name == VIEWS else self._scenes.split(name)
