"""Fine-tuning on images of one object each: as crops, in full, or in crowds pasted together from several."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import FileError
from hsal_cli.finetuning.crowds import crowd, object_regions, on_objects
from hsal_cli.finetuning.shown import LossSums, Shown, in_view, naming_loss, share_of
from hsal_cli.finetuning.views import share_in_view, view_centres, views
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.devices import forward_context
from hsal_cli.vision.images import to_input


@dataclasses.dataclass(frozen=True)
class SingleObjects:
    """Single-object images with their labels, resident in memory.

    Attributes:
        images: uint8 (N, H, W) or (N, H, W, 3).
        labels: int64 (N,) in 0..K-1.
        boxes: float (N, 4) x0, y0, x1, y1 in px; None where the scene file has none.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor | None

    def select(self, rows: Tensor) -> SingleObjects:
        """The images at `rows`."""
        return SingleObjects(self.images[rows], self.labels[rows], None if self.boxes is None else self.boxes[rows])

    def hold_out(self, count: int, seed: int) -> tuple[SingleObjects, SingleObjects]:
        """Splits off `count` images, at most half of them: (held out, the rest)."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        count = min(count, len(self.labels) // 2)
        return self.select(order[:count]), self.select(order[count:].sort().values)

    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """What a step shows: crops or full views of one object, labels (B,); or, with `crowd`, full views of crowds, each object with a
        region of its own."""
        size = tuple(self.images.shape[1:3])
        if crops or settings.crowd == 1:
            batch = self.select(picked)
            inputs, seen = views(batch.images, batch.boxes if crops else None, side, model.input_size, settings.distortion, draws)
            if batch.boxes is None:
                return Shown(inputs, batch.labels)
            return Shown(inputs, batch.labels, None, on_objects(batch.boxes[:, None], view_centres(seen, side, model.stride, size)))
        together = crowd(self.images, self.boxes, self.labels, picked, settings.crowd, draws)
        inputs, seen = views(together.images, None, side, model.input_size, settings.distortion, draws)
        centres = view_centres(seen, side, model.stride, size)
        labels = in_view(together.labels, share_in_view(seen, together.boxes, size))
        return Shown(inputs, labels, object_regions(together.boxes, centres), on_objects(together.boxes, centres))

    def loss(self, logits: Tensor, labels: Tensor) -> LossSums:
        """Cross-entropy over the objects, and how many of them are named rightly."""
        return naming_loss(logits[labels >= 0], labels[labels >= 0])

    @torch.inference_mode()
    def score(self, model: ActivationModel, batch_size: int, device: torch.device) -> float:
        """Share of the images, shown in full, that are classified correctly."""
        model.eval()
        right, own = 0, distributed.stretch(len(self.labels), batch_size)
        for start in own[::batch_size]:
            rows = slice(start, min(start + batch_size, own.stop))
            inputs = to_input(self.images[rows], model.input_size).to(device)
            with forward_context(device):
                named = model.classify(inputs.contiguous(memory_format=torch.channels_last)).argmax(1)
            right += int((named.cpu() == self.labels[rows]).sum())
        return share_of(right, len(own))


def is_alone(labels: np.ndarray) -> np.ndarray:
    """(N,) which rows of labels (N, L), padded with -1, hold exactly one object."""
    return (labels >= 0).sum(axis=1) == 1


def check_alone(scenes: Path, split: str, labels: np.ndarray) -> None:
    """Refuses labels (N, L) of images of none or several objects.

    Raises:
        FileError: names the first such image.
    """
    alone = is_alone(labels)
    if not alone.all():
        row = int(alone.argmin())
        raise FileError(
            f"{scenes}: image {row} of {split} holds {(labels[row] >= 0).sum()} objects; --objects single takes one",
            "make such images with: hsal make-data mnist-single, or learn from none or several: --objects auto",
        )


def read_single_objects(scenes: Path, split: str, most: int | None = None) -> SingleObjects:
    """Reads a split of a scene file whose images hold one object each.

    Raises:
        FileError: the split is missing, or an image holds none or several objects.
    """
    with open_scenes(scenes) as file:
        if split not in file.splits:
            raise FileError(f"{scenes} has no split {split}", "make it with: hsal make-data mnist-single")
        part = file.split(split)
        stop = len(part) if most is None else min(most, len(part))
        labels = part.labels[:stop]
        check_alone(scenes, split, labels)
        column = (labels >= 0).argmax(axis=1)
        rows = np.arange(stop)
        boxes = None if part.boxes is None else torch.from_numpy(part.boxes[rows, column].astype(np.float32))
        if boxes is not None and bool((boxes[:, 2] <= boxes[:, 0]).any()):
            boxes = None
        return SingleObjects(torch.from_numpy(part.read(0, stop)), torch.from_numpy(labels[rows, column].astype(np.int64)), boxes)
