"""What a policy or a direct baseline is trained on: the training split of a feature file, parted into what is learned from and held out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import FileError, UsageError
from hsal_cli.features.stream import FeatureStream, window_rows
from hsal_cli.features.table import FeatureRows, FeatureTable, open_features
from hsal_cli.features.views import VIEWS
from hsal_cli.progress import Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.settings import HELD_OUT, TrainSettings
from hsal_cli.runs.start import say_missing_classes
from hsal_cli.scenes.settings import frame_of
from hsal_cli.vision.backbone import load_backbone

VALIDATION_MOST = 2_000  # held-out images; more would only slow the epochs down


@dataclasses.dataclass(frozen=True)
class Material:
    """The training split of a feature file, parted into what is trained on and what is held out.

    Attributes:
        features: the file.
        table: its training split, in memory or as a stream.
        rows: those of `table` to train on, each in its first view.
        views: of each image in the table: the first of all images, then the second of all, and so on.
        held_out: the others, up to `VALIDATION_MOST`.
        classes: names.
        shape: of a volume, (C + fine, h, w).
        digests: what config.json and checkpoints say of the data's origin.
        window: images held in memory at a time; 0: all.
        fit: how the images became squares.
        frame: what was cut out of them first.
        input_size: the squares' side, px.
    """

    features: Path
    table: FeatureRows
    rows: Tensor
    held_out: FeatureTable
    classes: list[str]
    shape: tuple[int, int, int]
    digests: dict[str, str]
    window: int
    fit: str
    frame: str
    input_size: int
    views: int = 1

    @property
    def scale(self) -> float:
        """Standard deviation of the volumes, without what lies behind their own channels."""
        channels = self.shape[0] - self.table.fine
        return volume_scale(part[:, :channels] for part in self.table.parts())


def read_material(features: Path, settings: TrainSettings, window: int | None, memory: float | None, reporter: Reporter) -> Material:
    """Reads what is trained on.

    Args:
        window: images held in memory at a time, 0 for all; None: as many as `memory` says.
    """
    with open_features(features) as file:
        reporter.say(f"reading {features}")
        if window is None:
            window = distributed.broadcast(lambda: window_rows(file, "train", memory))
        if window:
            reporter.say(f"it does not fit into memory: {window:,} images at a time")
        table = FeatureStream(features, "train", window) if window else file.table("train")
        table = left_to_right(table) if settings.task == "list" else table
        rows, held_out = hold_out(len(table), settings.validation, settings.seed)
        scored = file.table("train", held_out) if window else table.select(held_out)
        views = 1
        ordered = settings.task == "list" and file.config.mirror  # a list has an order, which a mirror turns round
        if (file.config.views or 1) > 1 and not window and not ordered:
            table, views = table.followed_by(file.table(VIEWS)), file.config.views
        fit, frame, size = file.config.scenes_config.get("fit", "squash"), frame_of(file.config.scenes_config), file.input_size
        digests = {
            "features_digest": file.digest,
            "scenes_digest": file.scenes_digest,
            "backbone_digest": file.backbone_digest,
            "saliency": file.saliency,
        }
        found = Material(features, table, rows, scored, file.classes, file.volume_shape, digests, window, fit, frame, size, views)
    say_missing_classes(table.labels, found.classes, features, reporter)
    return found


def hold_out(images: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits the rows of the training split into those to train on and those to validate on; the test split is never touched.

    Raises:
        UsageError: there are too few images for both.
    """
    count = min(max(1, round(images * share), min(HELD_OUT, images // 5)), VALIDATION_MOST)
    if count >= images:
        raise UsageError(f"{images} training images are too few to hold some out", "take a data set with more of them, two at least")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def volume_scale(parts: Iterable[Tensor]) -> float:
    """Standard deviation of all activations of the training split, which comes in parts, in double precision."""
    total = square = 0.0
    count = 0
    for part in parts:
        total += float(part.float().sum(dtype=torch.float64))
        square += float(part.float().square().sum(dtype=torch.float64))
        count += part.numel()
    return math.sqrt(max(square / count - (total / count) ** 2, 1e-12))


def left_to_right(table: FeatureRows) -> FeatureRows:
    """Orders the labels of each image by their boxes' left edges, for the list task; unchanged without boxes."""
    if table.boxes is None:
        return table
    order = torch.where(table.labels >= 0, table.boxes[..., 0], 1 << 30).argsort(dim=1, stable=True)
    return table.labelled(table.labels.gather(1, order), table.boxes.gather(1, order[..., None].expand_as(table.boxes)))


def counting_layer(material: Material, backbone: Path | None) -> torch.nn.Linear | None:
    """The linear layer of the backbone behind the features, where that has learned counts (`finetune --objects counts`), else None."""
    if backbone is None:
        return None
    for run in (backbone, backbone.parent.parent):  # a run, or one of its checkpoints
        with contextlib.suppress(FileError):
            if runs.open_run(run, "backbone").config.finetune.objects != "counts":
                return None
            loaded = load_backbone(backbone)
            same = loaded.digest == material.digests["backbone_digest"] and loaded.model.resolution == material.shape[1]
            same = same and loaded.model.channels == material.shape[0] - material.table.fine  # not of a first look by an early stage
            return loaded.model.fc if same else None
    return None
