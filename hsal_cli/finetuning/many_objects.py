"""Fine-tuning on images of several objects: by their boxes, by one label drawn at random (section 5), or by counts alone.

Each of the classes here holds a split in memory and says what a step shows the network of it, what the loss is, and how it is scored;
`single_objects.SingleObjects` does the same for images of one object.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import FileError, UsageError
from hsal_cli.finetuning.crowds import object_regions, on_objects
from hsal_cli.finetuning.shown import LossSums, Shown, in_view, naming_loss, share_of
from hsal_cli.finetuning.single_objects import check_alone, is_alone
from hsal_cli.finetuning.views import cell_centres, share_in_view, view_centres, views
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.training.rewards import count_labels
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.devices import forward_context
from hsal_cli.vision.images import to_input


@dataclasses.dataclass(frozen=True)
class ManyObjects:
    """Images of several objects, resident in memory.

    Attributes:
        images: uint8 (N, H, W) or (N, H, W, 3).
        multisets: int64 (N, L) in 0..K-1, padded with -1.
        corners: float (N, L, 4) x0, y0, x1, y1 in px, -1 where there is no object; None where unknown.
        classes: K.
    """

    images: Tensor
    multisets: Tensor
    corners: Tensor | None
    classes: int


def read_scenes(scenes: Path, split: str, most: int | None = None) -> ManyObjects:
    """Reads a split of a scene file.

    Raises:
        FileError: there is no such split.
    """
    with open_scenes(scenes) as file:
        part = file.split(split)
        stop = len(part) if most is None else min(most, len(part))
        corners = None if part.boxes is None else torch.from_numpy(part.boxes[:stop].astype(np.float32))
        multisets = torch.from_numpy(part.labels[:stop].astype(np.int64))
        return ManyObjects(torch.from_numpy(part.read(0, stop)), multisets, corners, len(file.classes))


def way_of(scenes: Path, wanted: str) -> str:
    """How images teach: "single", "crops", "random-label" or "counts".

    Args:
        scenes: the scene file.
        wanted: `FinetuneSettings.objects`; auto takes what the file allows: single objects, boxes, counts.

    Raises:
        UsageError: crops are wanted where there are no boxes; FileError: there is no training split, or no object in
            it; or single objects are wanted of images that hold none or several.
    """
    with open_scenes(scenes) as file:
        if "train" not in file.splits:
            raise FileError(f"{scenes} has no split train", "make it with: hsal make-data mnist-single")
        part = file.split("train")
        labels = {name: file.split(name).labels for name in ("train", "test") if name in file.splits}
        alone, boxes = all(bool(is_alone(each).all()) for each in labels.values()), part.boxes is not None
        if not (part.labels >= 0).any():
            raise FileError(
                f"{scenes}: no image of train holds an object, so there is nothing to learn",
                "take scenes with objects, such as by: hsal make-data mnist-single",
            )
    if wanted == "single":  # the test split is read when all is trained
        for name, each in labels.items():
            check_alone(scenes, name, each)
    if wanted == "crops" and not boxes:
        raise UsageError(f"objects = crops, but {scenes} has no boxes", "take --objects counts or --objects random-label")
    return wanted if wanted != "auto" else "single" if alone else "crops" if boxes else "counts"


@dataclasses.dataclass(frozen=True)
class BoxedObjects:
    """Objects of known place: each is named from the evidence of its own cells, alone in a crop or beside the others in the full image.

    Attributes:
        scenes: the images that they stand in.
        rows: (M,) the image of each object.
        columns: (M,) its place among the image's labels.
    """

    scenes: ManyObjects
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, scenes: ManyObjects) -> BoxedObjects:
        """All objects of these scenes."""
        rows, columns = (scenes.multisets >= 0).nonzero(as_tuple=True)
        return cls(scenes, rows, columns)

    @property
    def labels(self) -> Tensor:
        """(M,) the class of each object."""
        return self.scenes.multisets[self.rows, self.columns]

    @property
    def boxes(self) -> Tensor:
        """(M, 4) in px."""
        return self.scenes.corners[self.rows, self.columns]

    @property
    def images(self) -> Tensor:
        """The images, of which an object's is `rows`'."""
        return self.scenes.images

    def hold_out(self, count: int, seed: int) -> tuple[BoxedObjects, BoxedObjects]:
        """Splits off the objects of `count` images, at most half of those that have any: (held out, the rest)."""
        images, place = self.rows.unique(return_inverse=True)
        held = _drawn(len(images), count, seed)[place]
        return tuple(BoxedObjects(self.scenes, self.rows[chosen], self.columns[chosen]) for chosen in (held, ~held))

    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """What a step shows: views with labels (B, M), regions and objects; a crop teaches one object (M = 1), a full image all of its."""
        rows, columns = self.rows[picked], self.columns[picked]
        corners, labels = self.scenes.corners[rows], self.scenes.multisets[rows]
        own = self.scenes.corners[rows, columns] if crops else None
        inputs, seen = views(self.scenes.images[rows], own, side, model.input_size, settings.distortion, draws)
        centres = view_centres(seen, side, model.stride, tuple(self.scenes.images.shape[1:3]))
        regions = own_cells(corners, centres)
        if crops:
            place = torch.arange(len(rows))
            labels, regions = labels[place, columns][:, None], regions[place, columns][:, None]
        else:
            labels = in_view(labels, share_in_view(seen, corners, tuple(self.scenes.images.shape[1:3])))
        return Shown(inputs, labels, regions, on_objects(corners, centres))

    def loss(self, logits: Tensor, labels: Tensor) -> LossSums:
        """Cross-entropy over the objects, and how many of them are named rightly."""
        return naming_loss(logits[labels >= 0], labels[labels >= 0])

    @torch.inference_mode()
    def score(self, model: ActivationModel, batch_size: int, device: torch.device) -> float:
        """Share of the objects that are named rightly from their own cells of the full image."""
        model.eval()
        size = tuple(self.scenes.images.shape[1:3])
        images, right, objects = self.rows.unique(), 0, 0
        own = distributed.stretch(len(images), batch_size)
        for start in own[::batch_size]:
            rows = images[start : min(start + batch_size, own.stop)]
            centres = cell_centres(torch.eye(2, 3).expand(len(rows), 2, 3), model.resolution, size)
            regions, labels = own_cells(self.scenes.corners[rows], centres), self.scenes.multisets[rows]
            inputs = to_input(self.scenes.images[rows], model.input_size).to(device)
            with forward_context(device):
                named = model.classify(inputs.contiguous(memory_format=torch.channels_last), regions.to(device)).argmax(2)
            right += int(((named.cpu() == labels) & (labels >= 0)).sum())
            objects += int((labels >= 0).sum())
        return share_of(right, objects)


@dataclasses.dataclass(frozen=True)
class WholeImages:
    """Images whose objects have no known place.

    Attributes:
        scenes: all images.
        rows: (M,) those that are meant.
        counts: learn how many there are of each class; else to name one label, drawn anew each time (section 5), of images that have one.
    """

    scenes: ManyObjects
    rows: Tensor
    counts: bool

    @classmethod
    def of(cls, scenes: ManyObjects, counts: bool) -> WholeImages:
        """All of these scenes; to name a label, those that have one."""
        return cls(scenes, torch.arange(len(scenes.images)) if counts else (scenes.multisets[:, 0] >= 0).nonzero()[:, 0], counts)

    @property
    def labels(self) -> Tensor:
        """(M, L) padded with -1."""
        return self.scenes.multisets[self.rows]

    @property
    def boxes(self) -> None:
        """Nothing to crop by."""
        return None

    @property
    def images(self) -> Tensor:
        """The images, of which `rows` are meant."""
        return self.scenes.images

    def hold_out(self, count: int, seed: int) -> tuple[WholeImages, WholeImages]:
        """Splits off `count` images, at most half of them: (held out, the rest)."""
        held = _drawn(len(self.rows), count, seed)
        return tuple(WholeImages(self.scenes, self.rows[chosen], self.counts) for chosen in (held, ~held))

    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """What a step shows: full views; as labels the counts, or one label of each image's."""
        rows = self.rows[picked]
        inputs, _ = views(self.scenes.images[rows], None, model.input_size, model.input_size, settings.distortion, draws)
        labels = self.scenes.multisets[rows]
        if self.counts:
            return Shown(inputs, count_labels(labels, self.scenes.classes))
        chance = torch.where(labels >= 0, draws.rand(labels.shape[1]), -1.0)
        return Shown(inputs, labels.gather(1, chance.argmax(1, keepdim=True))[:, 0])

    def loss(self, logits: Tensor, labels: Tensor) -> LossSums:
        """For counts Poisson's likelihood of them, whose rate grows with the evidence; else cross-entropy. And the accuracy of `score`."""
        if not self.counts:
            return naming_loss(logits, labels)
        rates = F.softplus(logits)
        loss = F.poisson_nll_loss(rates, labels.float(), log_input=False, reduction="sum")
        return LossSums(loss, rates.numel(), _overlap(rates.round(), labels).sum(), len(rates))

    @torch.inference_mode()
    def score(self, model: ActivationModel, batch_size: int, device: torch.device) -> float:
        """For counts the multi-label accuracy, sum_c min(n_c, p_c) / sum_c max(n_c, p_c), averaged over images, of the rounded counts;
        else the share of images whose named label is one of theirs."""
        model.eval()
        total, own = 0.0, distributed.stretch(len(self.rows), batch_size)
        for start in own[::batch_size]:
            rows = self.rows[start : min(start + batch_size, own.stop)]
            inputs = to_input(self.scenes.images[rows], model.input_size).to(device)
            with forward_context(device):
                logits = model.classify(inputs.contiguous(memory_format=torch.channels_last)).float().cpu()
            counts = count_labels(self.scenes.multisets[rows], self.scenes.classes)
            if self.counts:
                total += float(_overlap(F.softplus(logits).round(), counts).sum())
            else:
                total += float((counts.gather(1, logits.argmax(1, keepdim=True)) > 0).sum())
        return share_of(total, len(own))


def own_cells(corners: Tensor, centres: Tensor) -> Tensor:
    """The cells of each object: as `object_regions`, but an object between others keeps the cell at its middle, shared or not.

    Args:
        corners: (B, M, 4) in px, -1 where there is no object.
        centres: (B, h, w, 2) in px.

    Returns:
        (B, M, h, w), 0 or 1.
    """
    regions = object_regions(corners, centres)
    middles = (corners[..., :2] + corners[..., 2:]) / 2
    nearest = (middles[:, :, None, None] - centres[:, None]).square().sum(-1).flatten(2).argmin(2, keepdim=True)
    without = (regions.flatten(2).sum(2) == 0) & (corners[..., 0] >= 0)
    return torch.where(without[..., None], torch.zeros_like(regions).flatten(2).scatter_(2, nearest, 1.0), regions.flatten(2)).view_as(
        regions
    )


def _overlap(predicted: Tensor, counts: Tensor) -> Tensor:
    """(B,) sum_c min / sum_c max of two counts (B, K); 1 where there is nothing and nothing is counted."""
    either = torch.maximum(predicted, counts).sum(1)
    return torch.where(either > 0, torch.minimum(predicted, counts).sum(1) / either.clamp(min=1), 1.0)


def _drawn(images: int, count: int, seed: int) -> Tensor:
    """(N,) bool: `count` images drawn at random, at most half of them."""
    held = torch.zeros(images, dtype=torch.bool)
    held[torch.randperm(images, generator=torch.Generator().manual_seed(seed))[: min(count, images // 2)]] = True
    return held
