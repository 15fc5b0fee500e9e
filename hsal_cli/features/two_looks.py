"""Two looks: a first one, at the whole image, finds the region that the policy then sees enlarged, with no box asked.

The paper has one volume of the whole image ("lower-level activations at attended areas" are left for later); DRAM has a second,
finer patch at each place that it attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from hsal_cli.errors import FileError
from hsal_cli.features.saliency.models import activation_saliency
from hsal_cli.features.settings import LookSettings
from hsal_cli.scenes.street.frames import Found, Frame, Region, clipped, enlarged
from hsal_cli.settings import as_dict
from hsal_cli.vision.backbone import LoadedBackbone, fused
from hsal_cli.vision.images import from_pil, to_input

FINER = 4  # a region's border lies between cells, where the map that is interpolated so many times finer crosses the threshold
AROUND = 0.5  # of a region, in width and in height, that another look sees beside it
TOUCHING = np.ones((3, 3))  # places that share a corner touch


def salient_region(saliency: np.ndarray, seen: Frame, threshold: float, groups: str = "all") -> Region:
    """The region of an image that stands out.

    Args:
        saliency: (h, w) >= 0, the raw map of a part of the image, in equal cells.
        seen: that part, px.
        threshold: what counts is where the root of saliency, interpolated between the middles of the cells, is at least this share of
            its highest.
        groups: "all" such places, or the "strongest" group of touching ones: that of the greatest sum of root saliency.

    Returns:
        The box around those places, px; where the map is empty, the whole part.
    """
    if saliency.max() <= 0:
        return tuple(map(float, seen))
    coarse = torch.from_numpy(np.sqrt(saliency.astype(np.float64)))[None, None]
    root = F.interpolate(coarse, scale_factor=FINER, mode="bilinear", align_corners=False)[0, 0].numpy()
    salient = root >= threshold * root.max()
    if groups == "strongest":
        named, count = ndimage.label(salient, TOUCHING)
        salient = named == 1 + np.argmax(ndimage.sum_labels(root, named, range(1, count + 1)))
    rows, columns = np.flatnonzero(salient.any(axis=1)), np.flatnonzero(salient.any(axis=0))
    down, across = (seen[3] - seen[1]) / len(root), (seen[2] - seen[0]) / root.shape[1]
    return (
        seen[0] + float(columns[0]) * across,
        seen[1] + float(rows[0]) * down,
        seen[0] + float(columns[-1] + 1) * across,
        seen[1] + float(rows[-1] + 1) * down,
    )


class TwoLooks:
    """Finds the frames of images: a `scenes.street.frames.Finder`.

    Args:
        look: the network that looks first, on the device it is on.
        settings: how; its own `look` is not asked for.

    Attributes:
        config: the settings as JSON types, with the digest of the network's weights.
    """

    def __init__(self, look: LoadedBackbone, settings: LookSettings):
        self.settings, self._path = settings, look.path
        self._model = fused(look.model)
        self.config: dict[str, Any] = {**as_dict(settings), "look_digest": look.digest}

    def __call__(self, images: Sequence[Image.Image]) -> list[Found]:
        """Looks at whole images of any size, at the region so far with some of what lies around it, and so on.

        Raises:
            FileError: the network gives values that are not finite.
        """
        parts: list[Frame] = [(0, 0, *image.size) for image in images]
        regions: list[Region] = []
        for zoom in range(self.settings.zooms):
            if zoom:
                parts = [clipped(enlarged(np.array(region), AROUND), image.size) for region, image in zip(regions, images, strict=True)]
            threshold = self.settings.zoom_threshold if zoom else self.settings.first_threshold
            maps = self._maps([image.crop(part) for image, part in zip(images, parts, strict=True)])
            regions = [salient_region(one, part, threshold, self.settings.groups) for one, part in zip(maps, parts, strict=True)]
        frames = [clipped(enlarged(np.array(region)), image.size) for region, image in zip(regions, images, strict=True)]
        return [Found(region, frame) for region, frame in zip(regions, frames, strict=True)]

    def _maps(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The raw saliency maps of images, (B, h, w)."""
        device = self._model.fc.weight.device
        with torch.inference_mode():
            inputs = torch.cat([to_input(from_pil(image).to(device), self._model.input_size) for image in images])
            maps = activation_saliency(self._model(inputs)[:, : self._model.channels]).cpu()
        if not maps.isfinite().all():
            raise FileError(
                f"backbone {self._path} gives volumes that are not finite", "take another one, or train one with: hsal finetune"
            )
        return maps.numpy()
