"""What the stages are timed on: a few composed scenes, an untrained activation model, an untrained policy and random features.

How long anything takes does not depend on what was learned, but for one thing: when a policy names stop. So an untrained one is given the
bias with which it stops about when a trained one would.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch

from hsal_cli.bench.timing import Clock
from hsal_cli.evaluation.evaluate import roll_outs
from hsal_cli.experiments.pipeline import Recipe
from hsal_cli.features.table import FeatureTable, map_shape
from hsal_cli.finetuning.finetune import settle
from hsal_cli.policy.hsal import HSAL
from hsal_cli.progress import Reporter
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.scenes.digits.glyphs import find_digits
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.settings import as_dict
from hsal_cli.storage.checkpoints import write_checkpoint
from hsal_cli.storage.files import digest_of_file
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.resolution import with_finer_stage, with_windows

ROWS = 4096  # of features, 200 MB at 7 x 7 cells: far more than a cache holds
PATTERNS = 256  # of them differ
EPOCH_STEPS = 1000  # of fine-tuning, after which it starts over
CLASSES = [str(digit) for digit in range(10)]
NEVER = -100.0  # a bias with which a label is never named


class Shop:
    """Makes what the stages need, each thing once, in a temporary folder, by a recipe; says where digits come from if that needs saying."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, reporter: Reporter):
        self.recipe, self.folder, self.device, self.reporter = recipe, folder, device, reporter

    @functools.cached_property
    def scenes(self) -> SceneSettings:
        """The recipe of the scenes, with the digits that are at hand."""
        source = find_digits(self.recipe.scenes, self.reporter)
        return dataclasses.replace(
            self.recipe.scenes, digits=source.name, mnist_dir=str(source.folder) if source.folder else None, classes=None, class_names=None
        )

    @functools.cached_property
    def finetune(self) -> FinetuneSettings:
        """Fine-tuning on full images of single objects, which is most of its work, with nothing left open."""
        settled = settle(dataclasses.replace(self.recipe.finetune, objects="single"), self.device, has_boxes=True)
        images = EPOCH_STEPS * settled.batch_size
        return dataclasses.replace(settled, crop_images=0, full_images=images, epoch_images=images, validation=1)

    @property
    def resolution(self) -> int:
        """Cells along a side of the volumes."""
        return int(self.finetune.resolution)

    def model(self) -> ActivationModel:
        """An activation model of random weights, on the CPU."""
        torch.manual_seed(0)
        settings = self.finetune
        return ActivationModel(settings.arch, len(CLASSES), settings.input_size, self.resolution, settings.dilate, settings.channels)

    @functools.cached_property
    def seen(self) -> ActivationModel:
        """The model with what glimpses read behind its volumes."""
        made = {"fine": with_finer_stage, "window": with_windows}.get(self.recipe.variant.glimpse)
        return made(self.model().eval()) if made else self.model()

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(C + fine, h, w)."""
        return self.seen.channels + self.seen.fine, self.resolution, self.resolution

    @functools.cached_property
    def backbone(self) -> Path:
        """The checkpoint of such a model."""
        folder, settings = self.folder / "backbone", self.finetune
        meta = {
            "kind": "backbone",
            "arch": settings.arch,
            "input_size": settings.input_size,
            "resolution": self.resolution,
            "dilate": settings.dilate,
            "channels": settings.channels,
            "classes": CLASSES,
            "weights": "random",
        }
        write_checkpoint(folder, self.model().state_dict(), None, meta)
        return folder

    def compose(self, name: str, count: int) -> Path:
        """A scene file of training images alone."""
        settings = dataclasses.replace(self.scenes, train=count, test=0)
        return make_dataset(name, settings, self.folder / f"{name}-{count}.h5", None, Clock(self.reporter))

    def policy(self) -> HSAL:
        """An untrained policy, on the device."""
        torch.manual_seed(0)
        variant = dataclasses.replace(self.recipe.variant, fine=self.seen.fine, fine_side=self.seen.fine_side)
        return HSAL(variant, len(CLASSES), self.volume_shape).to(self.device)

    @property
    def most_labels(self) -> int:
        """Most labels in an image."""
        return self.recipe.scenes.count[1]

    @functools.cached_property
    def table(self) -> FeatureTable:
        """Random features, with as many labels an image as the recipe says."""
        rows, maps = min(ROWS, max(self.recipe.scenes.train, 2)), map_shape(self.volume_shape, self.seen.fine, self.seen.fine_side)
        draw = torch.Generator().manual_seed(0)
        volumes = torch.rand(min(PATTERNS, rows), *self.volume_shape, generator=draw).half()
        volumes = volumes.repeat(-(-rows // len(volumes)), 1, 1, 1)[:rows]
        low, high = self.recipe.scenes.count
        labels = torch.randint(len(CLASSES), (rows, high), generator=draw)
        counts = torch.randint(low, high + 1, (rows, 1), generator=draw)
        labels = torch.where(torch.arange(high) < counts, labels, -1)
        saliency = torch.rand(rows, *maps, generator=draw)
        boxes = torch.where(labels[..., None] >= 0, torch.tensor([10, 10, 50, 50]), -1)
        return FeatureTable(volumes, saliency, labels, boxes, (self.recipe.scenes.image_size,) * 2, self.seen.fine)

    def stopping_policy(self) -> HSAL:
        """An untrained policy that takes about as many meta-steps as a trained one: one more than an image has labels."""
        policy = self.policy().eval()
        low, high = self.recipe.scenes.count
        bias = policy.controller.label.bias
        with torch.no_grad():
            bias[policy.stop] = NEVER
            first, most = self.table.select(slice(0, 256)), self.most_labels + 2
            (_, episode), *_ = roll_outs(policy, first, most, 256, self.device)
            lead = episode.logits[..., : policy.stop].amax(2) - (episode.logits[..., policy.stop] - NEVER)
            # An image goes on while its lowest lead so far is above the bias: at (low + high) / 2 of its meta-steps, on average.
            bias[policy.stop] = torch.quantile(lead.cummin(0).values, 1 - (low + high) / 2 / most)
        return policy

    def policy_checkpoint(self) -> Path:
        """The checkpoint of an untrained policy that never stops of itself, with the backbone above."""
        policy, folder = self.policy(), self.folder / "policy"
        with torch.no_grad():
            policy.controller.label.bias[policy.stop] = NEVER
        meta = {
            "kind": "policy",
            "variant": as_dict(policy.variant),
            "classes": CLASSES,
            "volume_shape": list(policy.volume_shape),
            "volume_scale": 1.0,
            "max_labels": self.most_labels,
            "backbone": str(self.backbone),
            "backbone_digest": digest_of_file(self.backbone / "weights.safetensors"),
        }
        write_checkpoint(folder, policy.state_dict(), None, meta)
        return folder

    def picture(self) -> Path:
        """A composed image, as a PNG."""
        from PIL import Image

        target = self.folder / "image.png"
        with open_scenes(self.compose("mnist-multiset", 1)) as file:
            Image.fromarray(file.split("train").read(0, 1)[0]).save(target)
        return target
