"""What fine-tuning learns from: single objects, crowds pasted from them, objects known by their boxes, labels drawn at random, or counts.

`Objects` holds a split in memory; each kind of it says what a step shows the network, what the loss is, and how it is scored.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.finetuning.views import cell_centres, crowd, object_regions, on_objects, own_cells, share_in_view, view_centres, views
from hsal_cli.policy.count_classifier import expected, expected_counts
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import HELD_OUT, FinetuneSettings
from hsal_cli.training.rewards import count_labels
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.devices import forward_context, moved
from hsal_cli.vision.images import to_input

ENOUGH = 0.5  # objects that a cell expects and which make it one on an object
CALIBRATION = 256  # images that a classifier of single objects is calibrated on before it counts
SCALES, SHIFTS = [2.0**-power for power in range(9)], [float(shift) for shift in range(-10, 3)]
WHOLE = 0.85  # share of an object that must be in view for it to be asked for
Own = TypeVar("Own", bound="Objects")


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Images with what is known of them, resident in memory.

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


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a step shows the network of B images.

    Attributes:
        inputs: (B, 3, s, s).
        labels: (B,), or (B, M) padded with -1 where there are regions, or counts (B, K).
        regions: (B, M, h, w), the cells that each object is named from; None: all.
        objects: (B, h, w), 1 for cells on an object, 0 for background; None where no boxes are known.
    """

    inputs: Tensor
    labels: Tensor
    regions: Tensor | None = None
    objects: Tensor | None = None

    def first(self, rows: int, device: torch.device) -> Shown:
        """The first rows of it, on a device."""
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Shown(*(None if part is None else moved(part[:rows], device) for part in parts))


@dataclasses.dataclass(frozen=True)
class LossSums:
    """The sum of a loss, with its gradient, over `terms`, and of what is `right` over `cases`.

    They are not averaged yet, so that those of several workers can be added up.
    """

    loss: Tensor
    terms: int
    right: Tensor
    cases: int


@dataclasses.dataclass(frozen=True)
class Objects(abc.ABC):
    """Objects, each an example to learn from.

    Attributes:
        scenes: the images that they stand in.
        rows: (M,) the image of each, rising.
        columns: (M,) its place among the image's labels.
    """

    scenes: Scenes
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls: type[Own], scenes: Scenes) -> Own:
        """All objects of these scenes."""
        return cls(scenes, *(scenes.multisets >= 0).nonzero(as_tuple=True))

    @property
    def images(self) -> Tensor:
        """The images, of which an example's is `rows`'."""
        return self.scenes.images

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of an image, px."""
        return tuple(self.images.shape[1:3])

    @functools.cached_property
    def labels(self) -> Tensor:
        """(M,) the class of each object."""
        return self.scenes.multisets[self.rows, self.columns]

    @functools.cached_property
    def boxes(self) -> Tensor | None:
        """(M, 4) in px; None where unknown."""
        return None if self.scenes.corners is None else self.scenes.corners[self.rows, self.columns]

    def hold_out(self: Own, count: int, seed: int) -> tuple[Own, Own]:
        """Splits off what stands in `count` images, at most a fifth of all, or `HELD_OUT`: (held out, the rest)."""
        images, place = self.rows.unique(return_inverse=True)
        most = max(len(images) // 5, min(HELD_OUT, len(images) // 2))
        held = torch.zeros(len(images), dtype=torch.bool)
        held[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: min(count, most)]] = True
        held = held[place]
        return tuple(dataclasses.replace(self, rows=self.rows[own], columns=self.columns[own]) for own in (held, ~held))

    @abc.abstractmethod
    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """What a step shows of these examples: in crops, or in the full image, in views of this side, px."""

    def answers(self, model: ActivationModel, volumes: Tensor, regions: Tensor | None) -> Tensor:
        """What volumes (B, C, h, w) say, which `loss` takes: logits (B, K), or (B, M, K) of regions."""
        return model.name(volumes, regions).float()

    def objects_in(self, model: ActivationModel, volumes: Tensor, shown: Shown) -> Tensor | None:
        """Where objects are in what was shown, (B, h, w) in [0, 1]; None where that is not known."""
        return shown.objects

    def loss(self, logits: Tensor, labels: Tensor) -> LossSums:
        """Cross-entropy over the objects, and how many of them are named rightly."""
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return LossSums(loss, len(labels), (logits.argmax(1) == labels).sum(), len(labels))

    @torch.inference_mode()
    def score(self, model: ActivationModel, batch_size: int, device: torch.device) -> float:
        """The accuracy on full images, of all workers together; what it counts, `_right` says."""
        images, right, cases = self.rows.unique(), 0.0, 0
        own = distributed.stretch(len(images), batch_size)
        for inputs, rows in self._shown_whole(model, images[own.start : own.stop], batch_size, device):
            with forward_context(device):
                found, among = self._right(model, inputs, rows)
            right, cases = right + float(found), cases + among
        right, cases = distributed.all_reduce(torch.tensor([right, cases], dtype=torch.float64)).tolist()
        return right / max(cases, 1)

    def _shown_whole(
        self, model: ActivationModel, images: Tensor, batch_size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What a model in evaluation is to be asked of full images (N,), a batch at a time, and which they are."""
        model.eval()
        for rows in images.split(batch_size):
            yield to_input(moved(self.images[rows], device), model.input_size).contiguous(memory_format=torch.channels_last), rows

    @abc.abstractmethod
    def _right(self, model: ActivationModel, inputs: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """How much is right of the images at `rows`, of how many cases."""


class SingleObjects(Objects):
    """Images of one object each: as crops, in full, or in crowds pasted together from several. Scored by the images named rightly."""

    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """Crops or full views of one object, labels (B,); or, with `crowd`, full views of crowds, each object with a region of its own."""
        rows, boxes, labels = self.rows[picked], self.boxes, self.labels
        if crops or settings.crowd == 1:
            own = None if boxes is None else boxes[picked]
            inputs, seen = _views(self.images[rows], own if crops else None, side, model, settings, draws)
            astray = None if own is None else on_objects(own[:, None], view_centres(seen, side, model.stride, self.size))
            return Shown(inputs, labels[picked], None, astray)
        together = crowd(self.images, self.rows, boxes, labels, picked, settings.crowd, draws)
        inputs, seen = _views(together.images, None, side, model, settings, draws)
        centres = view_centres(seen, side, model.stride, self.size)
        labels = _in_view(together.labels, share_in_view(seen, together.boxes, self.size))
        return Shown(inputs, labels, object_regions(together.boxes, centres), on_objects(together.boxes, centres))

    def _right(self, model: ActivationModel, inputs: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        named = model.classify(inputs).argmax(1).cpu()
        return (named == self.scenes.multisets[rows].amax(1)).sum(), len(rows)


class BoxedObjects(Objects):
    """Objects of known place, among others: each is named from the evidence of its own cells, in a crop or in the full image.

    Scored by the objects that are named rightly from their own cells of the full image.
    """

    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """Views with labels (B, M), regions and objects; a crop teaches one object (M = 1), a full image all of its."""
        rows, columns = self.rows[picked], self.columns[picked]
        corners, labels = self.scenes.corners[rows], self.scenes.multisets[rows]
        own = self.boxes[picked] if crops else None
        inputs, seen = _views(self.images[rows], own, side, model, settings, draws)
        centres = view_centres(seen, side, model.stride, self.size)
        regions = own_cells(corners, centres)
        if crops:
            place = torch.arange(len(rows))
            labels, regions = labels[place, columns][:, None], regions[place, columns][:, None]
        else:
            labels = _in_view(labels, share_in_view(seen, corners, self.size))
        return Shown(inputs, labels, regions, on_objects(corners, centres))

    def _right(self, model: ActivationModel, inputs: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        centres = cell_centres(torch.eye(2, 3).expand(len(rows), 2, 3), model.resolution, self.size)
        regions, labels = own_cells(self.scenes.corners[rows], centres), self.scenes.multisets[rows]
        named = model.classify(inputs, regions.to(inputs.device)).argmax(2).cpu()
        return ((named == labels) & (labels >= 0)).sum(), int((labels >= 0).sum())


class LabelledImages(Objects):
    """Images whose objects have no known place: one of an image's labels, drawn anew each time, is to be named (section 5).

    Scored by the images whose named label is one of theirs.
    """

    @classmethod
    def of(cls: type[Own], scenes: Scenes) -> Own:
        """All of these scenes that have a label."""
        rows = (scenes.multisets[:, 0] >= 0).nonzero()[:, 0]
        return cls(scenes, rows, torch.zeros_like(rows))

    @property
    def boxes(self) -> None:
        """Nothing to crop by."""
        return None

    def show(self, picked: Tensor, crops: bool, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws) -> Shown:
        """Full views, and a label of each."""
        rows = self.rows[picked]
        inputs, _ = _views(self.images[rows], None, model.input_size, model, settings, draws)
        return Shown(inputs, self._asked(self.scenes.multisets[rows], draws))

    def _asked(self, labels: Tensor, draws: Draws) -> Tensor:
        chance = torch.where(labels >= 0, draws.rand(labels.shape[1]), -1.0)
        return labels.gather(1, chance.argmax(1, keepdim=True))[:, 0]

    def _right(self, model: ActivationModel, inputs: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        counts = count_labels(self.scenes.multisets[rows], self.scenes.classes)
        return (counts.gather(1, model.classify(inputs).argmax(1, keepdim=True).cpu()) > 0).sum(), len(rows)


class CountedImages(LabelledImages):
    """Images of which it is known how many objects of each class they hold, or that they hold none.

    Scored by the multi-label accuracy of the rounded counts, sum_c min(n_c, p_c) / sum_c max(n_c, p_c), averaged over images.
    """

    @classmethod
    def of(cls: type[Own], scenes: Scenes) -> Own:
        """All of these scenes."""
        rows = torch.arange(len(scenes.images))
        return cls(scenes, rows, torch.zeros_like(rows))

    def _asked(self, labels: Tensor, draws: Draws) -> Tensor:
        return count_labels(labels, self.scenes.classes)

    def answers(self, model: ActivationModel, volumes: Tensor, regions: None) -> Tensor:
        """Expected counts (B, K) > 0: what each cell expects, added up; cells without evidence expect one object among them all.

        No cell can take back what another one counts, so each must find its own objects.
        """
        return self._expected(model, volumes).sum((1, 2))

    def objects_in(self, model: ActivationModel, volumes: Tensor, shown: Shown) -> Tensor:
        """Cells that expect `ENOUGH` of an object are on one, as far as the network knows."""
        return (self._expected(model, volumes).detach().sum(3) / ENOUGH).clamp(max=1)

    def _expected(self, model: ActivationModel, volumes: Tensor) -> Tensor:
        """What each cell expects, (B, h, w, K)."""
        return expected_counts(model.fc, volumes)

    @torch.inference_mode()
    def calibrate(self, model: ActivationModel, batch_size: int, device: torch.device) -> tuple[float, float]:
        """Scales and shifts the evidence of a classifier that names single objects, so that its cells' counts fit best (as Platt, 1999).

        Such a classifier is sure in every cell, and its cells together would count dozens of objects.

        Args:
            model: changed in place: the scale and the shift, of a grid, that the loss is least with on `CALIBRATION` of the images.
            batch_size: images at a time.
            device: where the model is.

        Returns:
            The scale and the shift: evidence e becomes scale * e + shift.
        """
        rows, evidence = self.rows[:CALIBRATION], []
        for inputs, _ in self._shown_whole(model, rows, batch_size, device):
            with forward_context(device):
                evidence.append(model.fc(model(inputs).permute(0, 2, 3, 1)).float().cpu())
        cells, counts = torch.cat(evidence), count_labels(self.scenes.multisets[rows], self.scenes.classes)
        grid = list(itertools.product(SCALES, SHIFTS))
        fits = torch.stack([self.loss(expected(scale * cells + shift).sum((1, 2)), counts).loss for scale, shift in grid])
        scale, shift = grid[int(distributed.all_reduce(fits).argmin())]  # the same on all workers
        model.fc.weight.mul_(scale)
        model.fc.bias.mul_(scale).add_(shift)
        return scale, shift

    def loss(self, rates: Tensor, labels: Tensor) -> LossSums:
        """Poisson's likelihood of the counts (B, K); and the accuracy of `score`."""
        loss = F.poisson_nll_loss(rates, labels.float(), log_input=False, reduction="sum")
        return LossSums(loss, rates.numel(), overlap(rates.round(), labels).sum(), len(rates))

    def _right(self, model: ActivationModel, inputs: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        return overlap(self._counted(model, inputs), count_labels(self.scenes.multisets[rows], self.scenes.classes)).sum(), len(rows)

    def _counted(self, model: ActivationModel, inputs: Tensor) -> Tensor:
        return self.answers(model, model(inputs), None).cpu().round().long()

    @torch.inference_mode()
    def counted(
        self, model: ActivationModel, batch_size: int, device: torch.device, reporter: Reporter = SILENT
    ) -> tuple[np.ndarray, np.ndarray]:
        """The true counts and the network's, rounded: of each image what it names end to end; int64 (N, K) each."""
        own, counted = distributed.stretch(len(self.rows), batch_size), [torch.zeros(0, self.scenes.classes, dtype=torch.long)]
        with reporter.track("counting test images", own.stop - own.start, "images") as advance:
            for inputs, _ in self._shown_whole(model, self.rows[own.start : own.stop], batch_size, device):
                with forward_context(device):
                    counted.append(self._counted(model, inputs))
                advance(len(inputs))
        found = np.concatenate(distributed.all_gather(torch.cat(counted).numpy()))
        return count_labels(self.scenes.multisets[self.rows], self.scenes.classes).numpy(), found


KINDS: dict[str, type[Objects]] = {"single": SingleObjects, "crops": BoxedObjects, "random-label": LabelledImages, "counts": CountedImages}


def _views(
    images: Tensor, boxes: Tensor | None, side: int, model: ActivationModel, settings: FinetuneSettings, draws: Draws
) -> tuple[Tensor, Tensor]:
    """`views.views` for this model, where it is, as the settings say."""
    device = next(model.parameters()).device
    return views(images, boxes, side, model.input_size, settings.augment, draws, device, bool(settings.mirror))


def _in_view(labels: Tensor, shares: Tensor) -> Tensor:
    """Labels (B, M) with -1 for objects too much of which is cut off, by how much of each is in view, (B, M)."""
    return labels.masked_fill(shares < WHOLE, -1)


def overlap(predicted: Tensor, counts: Tensor) -> Tensor:
    """(B,) sum_c min / sum_c max of two counts (B, K); 1 where there is nothing and nothing is counted."""
    either = torch.maximum(predicted, counts).sum(1)
    return torch.where(either > 0, torch.minimum(predicted, counts).sum(1) / either.clamp(min=1), 1.0)
