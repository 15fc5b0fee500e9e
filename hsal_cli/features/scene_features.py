"""The features of a scene file's split, computed while they are read: what evaluating from a scene file alone needs."""

from __future__ import annotations

import torch
from torch import Tensor

from hsal_cli.errors import FileError
from hsal_cli.features.precompute import as_features
from hsal_cli.features.saliency.models import SaliencyModel
from hsal_cli.features.table import FeatureTable
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.scene_file import SceneSplit
from hsal_cli.vision.backbone import LoadedBackbone
from hsal_cli.vision.images import to_input

BATCH = 32  # images a forward pass, as precomputing takes them


class SceneFeatures:
    """Stands in for a `FeatureTable` where rows are asked for in slices; only those asked for are ever in memory.

    Its numbers are those that `hsal precompute` would write. Each time a row is asked for, it is computed again.

    Args:
        split: of an open scene file.
        name: of that split.
        backbone: makes the volumes, on the device it is on.
        saliency: makes the saliency maps.

    Attributes:
        labels, boxes, image_size: as in `FeatureTable`, of all rows.
    """

    def __init__(self, split: SceneSplit, name: str, backbone: LoadedBackbone, saliency: SaliencyModel):
        self._name, self._saliency = name, saliency
        self._split, self._path, self._backbone = split, backbone.path, backbone
        self.labels = torch.from_numpy(split.labels).long()
        self.boxes = None if split.boxes is None else torch.from_numpy(split.boxes).long()
        self.image_size: tuple[int, int] = split.image_size

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: slice) -> FeatureTable:
        """Computes the table of some rows.

        Raises:
            FileError: the images are damaged, or the backbone gives values that are not finite.
        """
        start, stop, _ = rows.indices(len(self))
        model = self._backbone.model
        device = next(model.parameters()).device
        parts: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            for first in range(start, stop, BATCH):
                last = min(first + BATCH, stop)
                images = torch.from_numpy(self._split.read(first, last)).to(device)
                names = [f"{self._name}/{row}" for row in range(first, last)]
                volumes = self._backbone.volumes(to_input(images, model.input_size))
                found = as_features(images, volumes, self._saliency, names)
                parts.append(tuple(part.cpu() for part in found))
        volumes, saliency = (torch.cat(part) for part in zip(*parts, strict=True))
        if not saliency.isfinite().all():
            raise FileError(
                f"backbone {self._path} gives volumes that are not finite", "take another one, or train one with: hsal finetune"
            )
        boxes = None if self.boxes is None else self.boxes[rows]
        return FeatureTable(volumes, saliency, self.labels[rows], boxes, self.image_size)

    def in_memory(self, batch_size: int, reporter: Reporter = SILENT) -> FeatureTable:
        """Computes the table of all rows.

        Args:
            batch_size: images between two looks at whether to stop.
            reporter: progress, in images.

        Raises:
            FileError: as `select`; Interrupted: a signal asked to stop.
        """
        parts = []
        with reporter.track("features", len(self), "images") as advance:
            for start in range(0, len(self), batch_size):
                reporter.check_stop("run the same command again")
                parts.append(self.select(slice(start, start + batch_size)))
                advance(len(parts[-1]))
        volumes, saliency = torch.cat([part.volumes for part in parts]), torch.cat([part.saliency for part in parts])
        return FeatureTable(volumes, saliency, self.labels, self.boxes, self.image_size)
