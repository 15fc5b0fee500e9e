"""Fine-tuning the activation model on single-object images (section 5, "Implementation Details")."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.finetuning.end_to_end import score_counts
from hsal_cli.finetuning.objects import Objects
from hsal_cli.finetuning.reading import read_objects, way_of
from hsal_cli.finetuning.views import crop_sides
from hsal_cli.models.shipped import BACKBONE, part_of
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.loop import ModelTask, one_cycle, progress_of, restored, train
from hsal_cli.runs.replica import Replica
from hsal_cli.runs.run import Run
from hsal_cli.runs.seeds import Draws, seeded
from hsal_cli.runs.settings import FEW_IMAGES, FinetuneSettings
from hsal_cli.runs.start import being_trained, resume_from, say_changes, say_missing_classes
from hsal_cli.scenes.scene_file import SceneFile, open_scenes
from hsal_cli.settings import as_dict
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.vision.architectures import LITE0, RESNETS, TIMM
from hsal_cli.vision.backbone import ActivationModel, backbone_meta
from hsal_cli.vision.devices import choose_device, fitting, forward_context, say_if_busy
from hsal_cli.vision.initial import initial_weights
from hsal_cli.vision.timm_networks import lite0_is_here

CROPS, FULL_AFTER_CROPS = 48_000, 36_000
FULL_ALONE, FULL_ALONE_CPU, FULL_COUNTED, FULL_COUNTED_CPU = 600_000, 40_000, 60_000, 12_000
FULL_COUNTED_FROZEN, FROZEN_CROPS, FROZEN = 6_000, (4_000, 2_000), 0.5  # of crops, and in full after them
DEFAULTS = FinetuneSettings()
CROWD = 4  # objects in an image, as many as in MNIST Multiset
MEANING = {
    "crops": "each is learned by its box",
    "random-label": "one of its labels is drawn each time",
    "counts": "the number of each class is learned",
}
WHOLE_IMAGES = ("counts", "random-label")  # ways that look at whole images and know no boxes
TEST_IMAGES = 2_000  # of the test split, scored once at the end; by a network that counts all are


class FinetuneTask(ModelTask):
    """Fine-tuning as a task of the loop: crops first, full images last, of one object or several, validated on full images.

    The settings leave nothing open (see `settle`), and the model is on `device`.
    """

    command = "hsal finetune"
    score_name = "accuracy"
    headline = ("loss", "train_accuracy", "background_share", "accuracy")

    def __init__(self, model: ActivationModel, data: Objects, settings: FinetuneSettings, device: torch.device, meta: dict[str, Any]):
        self.model, self.settings, self.device = model, settings, device
        self._meta = meta
        self.held_out, self.data = data.hold_out(settings.validation, settings.seed)
        self.plan = plan(settings)
        self.epochs = len(self.plan)
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.replica = Replica(model, self.loss)
        self.batches: list[tuple[Tensor, int]] = []
        self.all_steps = sum(self.steps(epoch) for epoch in range(self.epochs))

    def steps(self, epoch: int) -> int:
        return math.ceil(self.plan[epoch][1] / self.settings.batch_size)

    def start_epoch(self, epoch: int) -> None:
        kind, count = self.plan[epoch]
        draw = seeded(self.settings.seed, epoch)
        rows = torch.cat([torch.randperm(len(self.data.labels), generator=draw) for _ in range(-(-count // len(self.data.labels)))])[:count]
        sides = torch.full((count,), self.model.input_size)
        if kind == "crops":
            sides = crop_sides(self.data.boxes[rows], self.data.size, self.model.input_size, self.model.stride)
            # Objects of a size go together, in random order within it; a batch's views share the largest side it needs.
            rows, sides = (values[torch.argsort(sides, stable=True)] for values in (rows, sides))
        step = self.settings.batch_size
        batches = [(rows[start : start + step], int(sides[start : start + step].max())) for start in range(0, count, step)]
        self.batches = [batches[place] for place in torch.randperm(len(batches), generator=draw)]
        self.kind = kind
        self.first_step = sum(self.steps(earlier) for earlier in range(epoch))

    def step(self, step: int) -> tuple[int, dict[str, Tensor]]:
        rows, side = self.batches[step]
        self.model.train()
        logged = self.replica.backward(rows, side, Draws.shared(self.settings.seed + 1, self.first_step + step, len(rows)))
        rate = one_cycle(self.first_step + step, self.all_steps, self.settings.learning_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in self.model.parameters() if weight.grad is not None])
        self.optimiser.step()
        return len(rows), {**logged, "gradient_norm": norm}

    def loss(self, rows: Tensor, side: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """This worker's part of the loss of a batch (see `replica.Loss`): of its rows, in views of this side."""
        crops, own = self.kind == "crops", draws.own
        draws = draws.at_least_one()
        shown = self.data.show(rows[draws.places], crops, side, self.model, self.settings, draws).first(own, self.device)
        with forward_context(self.device):
            volumes = self.model(shown.inputs.contiguous(memory_format=torch.channels_last))
            answers = self.data.answers(self.model, volumes, shown.regions)
            objects = self.data.objects_in(self.model, volumes, shown)
        sums = self.data.loss(answers, shown.labels)
        counts = torch.tensor([sums.terms, sums.cases], device=self.device)
        lost, right, terms, cases = distributed.all_reduce(torch.cat([torch.stack([sums.loss.detach(), sums.right]), counts]))
        terms, cases = terms.clamp(min=1), cases.clamp(min=1)  # a small batch may show no object whole
        logged = {"loss": lost / terms, "train_accuracy": right / cases}
        if not self.settings.background:
            return sums.loss / terms, logged
        astray = background_share(volumes.float(), objects).sum() / len(rows)
        logged["background_share"] = distributed.all_reduce(astray.detach())
        return sums.loss / terms + self.settings.background * astray, logged

    def validate(self) -> dict[str, float]:
        return {"accuracy": self.held_out.score(self.model, self.settings.batch_size, self.device)}

    def check(self, rows: list[dict[str, Any]]) -> None:
        """Fine-tuning has no collapse to guard against beyond the loop's check of the loss."""


def background_share(volumes: Tensor, objects: Tensor) -> Tensor:
    """Share (B,) in [0, 1] of the saliency, sum_c V_c^2 of volumes (B, C, h, w), off the objects (B, h, w), 1 for cells on one."""
    saliency = volumes.square().sum(1)
    return (saliency * (1 - objects)).sum((1, 2)) / saliency.sum((1, 2)).clamp(min=torch.finfo(saliency.dtype).tiny)


def settle(
    settings: FinetuneSettings, device: torch.device, has_boxes: bool, own: bool = False, images: int = FEW_IMAGES
) -> FinetuneSettings:
    """Fills in what is left open, by the device: a CPU trains on crops first, at half the pixels a cell.

    Args:
        settings: what is asked for.
        device: where it will be done.
        has_boxes: whether there are any.
        own: whether the images are a user's own, not composed by hsal.
        images: how many there are to learn from.

    Raises:
        UsageError: crops are asked for, and there are no boxes to crop by; no image is to be shown; or random weights are to be kept.
    """
    cpu, counted = device.type == "cpu", settings.objects == "counts"
    mode = settings.mode if settings.mode != "auto" else "crops" if cpu and has_boxes else "full"
    if mode == "crops" and settings.objects in WHOLE_IMAGES:
        raise UsageError(f"mode = crops does not go with objects = {settings.objects}, which looks at whole images", "leave --mode out")
    if mode == "crops" and not has_boxes:
        raise UsageError("mode = crops, but the scene file has no boxes to crop by", "take --mode full")
    if (settings.crowd or 1) > 1 and not has_boxes:
        raise UsageError(f"crowd = {settings.crowd}, but the scene file has no boxes to cut objects out by", "take --crowd 1")
    if settings.background and not (has_boxes or counted):
        raise UsageError(
            f"background = {settings.background:g}, but there are no boxes that tell objects from background",
            "leave --background out, or take --objects counts, whose cells tell where objects are",
        )
    full = settings.full_images
    if full == 0 and (mode == "full" or settings.crop_images == 0):
        raise UsageError("full_images = 0 and no crops: there is nothing to train on", "give --full-images or --crop-images a number")
    pretrained, few = own and settings.weights in ("auto", "imagenet") and lite0_is_here(), own and images < FEW_IMAGES
    arch = settings.arch if settings.arch != "auto" else TIMM + LITE0 if pretrained else RESNETS[0]
    if settings.frozen and settings.weights == "none":
        raise UsageError(f"frozen = {settings.frozen:g} of a network of random weights, which would stay random", "leave --frozen out")
    frozen = settings.frozen if settings.frozen is not None else FROZEN if pretrained and few and arch == TIMM + LITE0 else 0.0
    views = FULL_COUNTED_CPU if counted and cpu else FULL_COUNTED if counted else FULL_ALONE_CPU if cpu else FULL_ALONE
    views = min(views, FULL_COUNTED_FROZEN) if counted and frozen >= FROZEN else views
    crops, after = (CROPS, FULL_AFTER_CROPS) if frozen < FROZEN else FROZEN_CROPS
    if mode == "crops":
        views = after
    return dataclasses.replace(
        settings,
        mode=mode,
        crowd=settings.crowd or (CROWD if has_boxes else 1),
        background=float(counted) if settings.background is None else settings.background,
        input_size=settings.input_size or (16 if cpu else 32) * int(settings.resolution),
        batch_size=settings.batch_size or (32 if mode == "crops" else 16 if counted else 128),
        crop_images=crops if settings.crop_images is None else settings.crop_images,
        full_images=views if full is None else full,
        arch=arch,
        mirror=few if settings.mirror is None else settings.mirror,
        frozen=frozen,
    )


def settled_for(scenes: Path, settings: FinetuneSettings, device: torch.device) -> FinetuneSettings:
    """What is left open, filled in by a scene file, or by what `hsal make-data mnist-single` makes where there is none that can be read.

    Raises:
        UsageError: see `settle`.
    """
    try:
        with open_scenes(scenes) as file:
            split = file.split(file.splits[0])
            has_boxes, own, images = split.boxes is not None, is_own(file), len(split)
        way = way_of(scenes, settings.objects)
        has_boxes = has_boxes and way not in WHOLE_IMAGES
    except HsalError:  # what is wrong with the file is for fine-tuning to say
        has_boxes, own, images, way = True, False, FEW_IMAGES, "single"
    return settle(_of_a_way(settings, way), device, has_boxes, own, images)


def _of_a_way(settings: FinetuneSettings, way: str) -> FinetuneSettings:
    """Settings of images that teach in this way (`reading.way_of`); images of several objects are crowds already."""
    return settings if way == "single" else dataclasses.replace(settings, objects=way, crowd=1)


def is_own(scenes: SceneFile) -> bool:
    """Whether a scene file holds a user's own images, from a folder."""
    return scenes.config.get("dataset") == "folder"


def plan(settings: FinetuneSettings) -> list[tuple[str, int]]:
    """What each epoch shows: ("crops" or "full", how many images)."""
    as_crops = settings.crop_images if settings.mode == "crops" else 0
    return _epochs_of("crops", as_crops, settings.epoch_images) + _epochs_of("full", settings.full_images, settings.epoch_images)


def _lengthened(
    settings: FinetuneSettings, longer: FinetuneSettings, before: Checkpoint | None, out: Path, reporter: Reporter
) -> FinetuneSettings:
    """The settings of a resumed run that is to show more images; refuses what would change epochs that it has trained already."""
    if longer == settings:
        return settings
    progress = progress_of(before)
    done = progress["epoch"] + (progress["step"] > 0)
    if longer.full_images < settings.full_images or plan(longer)[:done] != plan(settings)[:done]:
        raise UsageError(
            f"{out} shows {settings.full_images:,} full images; {longer.full_images:,} would change epochs that it has trained already",
            f"give --full-images a larger multiple of {settings.epoch_images}",
        )
    reporter.say(
        f"full images {settings.full_images:,} -> {longer.full_images:,}; the learning rate follows the longer schedule from here on"
    )
    return longer


def _epochs_of(kind: str, images: int, size: int) -> list[tuple[str, int]]:
    """Splits `images` into epochs of about `size`."""
    count = max(1, round(images / size)) if images else 0
    return [(kind, images * (part + 1) // count - images * part // count) for part in range(count)]


def finetune(
    scenes: Path,
    out: Path,
    settings: FinetuneSettings = DEFAULTS,
    device: torch.device | str = "auto",
    reporter: Reporter = SILENT,
    overwrite: bool = False,
    resume: bool = False,
    moved: Path | None = None,
    full_images: int | None = None,
) -> Run:
    """Fine-tunes the activation model and keeps its best and last checkpoints.

    Args:
        scenes: a scene file, of single objects or of several (`FinetuneSettings.objects`).
        out: the run directory to make, or with `resume` to go on with.
        settings: how; ignored with `resume`, where the run's own settings hold.
        device: where to compute; a name as `--device` takes it, or a torch device.
        reporter: progress.
        overwrite: replace a run in `out`.
        resume: go on with the run in `out`.
        moved: with `resume`, where the run's scene file is now; None: where it was.
        full_images: with `resume`, how many images are shown in full in all, no fewer than the run has; None: as many as it has.

    Returns:
        The finished run.

    Raises:
        HsalError: bad input; Interrupted: asked to stop, state saved.
    """
    device = choose_device(device)
    before: Checkpoint | None = None
    if resume:
        run = runs.open_run(out, "backbone")
        config = run.config
        settings, scenes = config.finetune, moved or Path(config.scenes)
        longer = dataclasses.replace(settings, full_images=settings.full_images if full_images is None else full_images)
        if run.status.state == "finished" and longer == settings:
            reporter.say(f"{out} is finished: nothing to do")
            return run
        if gone := config.raw["finetune"].get("distort"):
            raise UsageError(f"{out} was begun with distort {gone}, which this hsal no longer has", "go on with the hsal that began it")
        before = resume_from(run, reporter)
        settings = _lengthened(settings, longer, before, out, reporter)
        say_changes(run, str(device), reporter)
    way = way_of(scenes, settings.objects)
    data = read_objects(scenes, "train", way)
    with open_scenes(scenes) as file:
        classes, digest, labels = file.classes, file.digest, torch.from_numpy(file.split("train").labels)
        own = is_own(file)
    if resume and config.scenes_digest != digest:
        raise FileError(f"{scenes} is not the scene file that {out} was trained on", f"train a new run: hsal finetune --data {scenes}")
    say_missing_classes(labels, classes, scenes, reporter)
    empty = int((labels < 0).all(1).sum())
    if empty and way in ("crops", "random-label"):
        reporter.say(f"{empty:,} training images have no object: they are left out (--objects counts learns from them)")
    if way != "single":
        reporter.say(f"{scenes} has several objects an image: {MEANING[way]} (--objects {way})")
    elif settings.mode == "auto" and device.type == "cpu" and data.boxes is None:
        reporter.warn(f"{scenes} has no boxes to crop by: full images only, which is slow on a CPU")
    settings = settle(_of_a_way(settings, way), device, data.boxes is not None, own, len(labels))
    torch.manual_seed(settings.seed)
    model = ActivationModel(settings.arch, len(classes), settings.input_size, int(settings.resolution), settings.dilate, settings.channels)
    used = backbone_meta(before).weights if before else initial_weights(model, str(part_of(Path(settings.weights), BACKBONE)), reporter)
    if settings.frozen:
        model.freeze(settings.frozen)
    model.to(device, memory_format=torch.channels_last)
    meta = {
        "kind": "backbone",
        "arch": settings.arch,
        "input_size": settings.input_size,
        "resolution": int(settings.resolution),
        "dilate": settings.dilate,
        "channels": settings.channels,
        "classes": classes,
        "weights": used,
        "scenes_digest": digest,
    }
    distributed.agree(scenes_digest=digest, finetune=as_dict(settings), weights=used, checkpoint=before and before.digest)
    task = FinetuneTask(model, data, settings, device, meta)
    if way == "counts" and used.startswith("file:") and before is None:
        scale, shift = task.data.calibrate(model, settings.batch_size, device)
        reporter.say(f"the classifier's evidence is taken times {scale:.2g}, {shift:+g}: so calibrated, its counts fit best")
    del data  # the task has its parts, and images are what takes the memory
    if not resume:
        written = {"scenes": str(scenes), "scenes_digest": digest, "finetune": as_dict(settings), "weights_used": used, "classes": classes}
    elif used != config.weights_used:
        raise FileError(
            f"{out} started from {config.weights_used} weights, now there are {used}", f"train a new run: hsal finetune --data {scenes}"
        )
    else:
        written = config.raw | {"scenes": str(scenes), "finetune": as_dict(settings)}
    progress = None if before is None else restored(task, before)
    if not resume:
        run = runs.create(out, "backbone", written, overwrite)
    shown = ", ".join(f"{sum(n for kind, n in task.plan if kind == part):,} {part}" for part in ("crops", "full"))
    reporter.say(f"fine-tuning {settings.arch} at {settings.input_size} px on {scenes}: {shown} images, starting from {used} weights")
    say_if_busy(device, reporter)
    with being_trained(run, written, str(device)), fitting(device, settings.batch_size):
        rows = train(task, run, reporter, progress)
    distributed.barrier()  # the last checkpoint is written
    run.set_status("finished", **_results(run, rows, task, scenes, way, reporter))
    distributed.barrier()
    return run


def _results(run: Run, rows: list[dict[str, Any]], task: FinetuneTask, scenes: Path, way: str, reporter: Reporter) -> dict[str, float]:
    """What is told of a finished run: its best held-out accuracy, how many images taught it, and the scores on the test split, if any."""
    results: dict[str, float] = {"accuracy": max(row["accuracy"] for row in rows)} if rows else {}
    results["images"] = len(task.data.rows.unique())
    with open_scenes(scenes) as file:
        labels = file.split("test").labels if "test" in file.splits else np.zeros((0, 0))
        tested = len(labels) > 0 and (way == "counts" or bool((labels >= 0).any()))
    if tested:
        best = checkpoints.load(run.checkpoints, "best")
        task.model.load_state_dict(best.weights)
        model, batch_size, device = task.model, task.settings.batch_size, task.device
        if way == "counts":
            results |= score_counts(run, best, model, scenes, batch_size, device, reporter)
        else:
            results["test_accuracy"] = read_objects(scenes, "test", way, TEST_IMAGES).score(model, batch_size, device)
    return results
