"""The features of a scene file's split, computed while they are read: what evaluating from a scene file alone needs."""

from __future__ import annotations

import torch

from hsal_cli.errors import FileError
from hsal_cli.features.precompute import as_features
from hsal_cli.features.saliency.models import SaliencyModel
from hsal_cli.features.table import FeatureRows, FeatureTable
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.scene_file import SceneSplit
from hsal_cli.vision.backbone import LoadedBackbone
from hsal_cli.vision.images import to_input

BATCH = 32  # images a forward pass, as precomputing takes them


class SceneFeatures(FeatureRows):
    """Features of an open scene file's split, computed each time they are asked for, as `hsal precompute` would write them."""

    def __init__(self, split: SceneSplit, backbone: LoadedBackbone, saliency: SaliencyModel):
        self._split, self._saliency = split, saliency
        self._backbone, self.fine = backbone, backbone.model.fine
        self.labels = torch.from_numpy(split.labels).long()
        self.boxes = None if split.boxes is None else torch.from_numpy(split.boxes).long()
        self.image_size = split.image_size

    def select(self, rows: slice) -> FeatureTable:
        """Computes the table of a slice of rows; FileError: the images are damaged, or the backbone gives values that are not finite."""
        start, stop, _ = rows.indices(len(self))
        model, parts = self._backbone.model, []
        device = next(model.parameters()).device
        with torch.inference_mode():
            for first in range(start, stop, BATCH):
                last = min(first + BATCH, stop)
                images = torch.from_numpy(self._split.read(first, last)).to(device)
                names = [f"{self._split.name}/{row}" for row in range(first, last)]
                volumes = self._backbone.volumes(to_input(images, model.input_size))
                found = as_features(images, volumes, model, self._saliency, names)
                parts.append([part.cpu() for part in found])
        volumes, saliency = (torch.cat(part) for part in zip(*parts, strict=True))
        if not saliency.isfinite().all():
            raise FileError(
                f"backbone {self._backbone.path} gives volumes that are not finite", "take another one, or train one with: hsal finetune"
            )
        boxes = None if self.boxes is None else self.boxes[rows]
        return FeatureTable(volumes, saliency, self.labels[rows], boxes, self.image_size, self.fine)

    def in_memory(self, batch_size: int, reporter: Reporter = SILENT) -> FeatureTable:
        """The table of all rows; between two batches it looks whether to stop, and raises Interrupted, else as `select`."""
        parts = []
        with reporter.track("features", len(self), "images") as advance:
            for start in range(0, len(self), batch_size):
                reporter.check_stop("run the same command again")
                parts.append(self.select(slice(start, start + batch_size)))
                advance(len(parts[-1]))
        volumes, saliency = torch.cat([part.volumes for part in parts]), torch.cat([part.saliency for part in parts])
        return FeatureTable(volumes, saliency, self.labels, self.boxes, self.image_size, self.fine)
