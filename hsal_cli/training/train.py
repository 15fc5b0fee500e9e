"""Training the hierarchical policy, or the count classifier that it is compared with, on precomputed features (section 4)."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import FileError, TrainingError, UsageError
from hsal_cli.evaluation.calibration import measure_trust
from hsal_cli.evaluation.evaluate import quick_scores
from hsal_cli.evaluation.metrics import label_counts, trivial_baselines
from hsal_cli.models.load import policy_meta
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.set_predictor import SetPredictor
from hsal_cli.policy.variant import DEFAULT, Variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import loop
from hsal_cli.runs import run as runs
from hsal_cli.runs.documents import rank
from hsal_cli.runs.places import with_stored
from hsal_cli.runs.run import Run
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import REWARDS, TrainSettings
from hsal_cli.runs.start import being_trained, resume_from, say_changes
from hsal_cli.settings import as_dict
from hsal_cli.storage import checkpoints
from hsal_cli.training.count_task import CountTask, SetTask
from hsal_cli.training.feature_task import FeatureTask
from hsal_cli.training.material import Material, counting_layer, read_material
from hsal_cli.training.objectives import Namer, losses, make_targets
from hsal_cli.training.rewards import count_labels
from hsal_cli.training.verdicts import mask_off_objects, supervised_stop
from hsal_cli.vision.devices import choose_device, computing, fitting, say_if_busy

Model = HSAL | CountClassifier | SetPredictor
DEFAULTS = TrainSettings()
DEAD_STOPS, DEAD_REWARD = 0.95, -0.9


class PolicyTask(FeatureTask):
    """Policy training as a task of the loop; `model` is the policy."""

    headline = ("reward", "exact_match", "macro_f1", "glimpse_hit", "early_stops")

    def one_length(self) -> bool:
        return self.settings.rewarded in REWARDS.own  # who knows what a reward of the user's own decides on the host

    def parts(self, places: slice, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        return super().parts(places, draws.at_least_one())

    def loss(self, draws: Draws, labels: Tensor, volumes: Tensor, saliency: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        settings, classes = self.settings, self.model.classes
        targets = make_targets(labels, classes, settings, draws.generator)
        own, draws = draws.own, draws.at_least_one()
        targets = targets.select(draws.places)
        if not own:
            targets = dataclasses.replace(targets, sizes=torch.full_like(targets.sizes, -1))
        choose = Namer(targets, classes, settings, self.model.variant, draws)
        episode = self.model(
            volumes,
            saliency,
            choose=choose,
            steps=(targets.sizes + 1).clamp(min=1),
            max_steps=self.most_labels + 1,
            sample_glimpses=True,
            generator=draws,
            stop_counts=not choose.never_stops,
        )
        terms, logged = losses(episode, targets, settings, self.model.variant, draws.size)
        return torch.stack(list(terms.values())).sum(), logged

    def validate(self) -> dict[str, float]:
        self.model.eval()
        how = (self.model, self.held_out, self._meta["max_labels"] + 2, 2 * self.settings.batch_size, self.device)
        self._meta["trust"] = as_dict(measure_trust(*how))
        return quick_scores(*how)

    def check(self, rows: list[dict[str, Any]]) -> str | None:
        row = rows[-1]
        said, self.warning = self.warning, None
        if row["early_stops"] > DEAD_STOPS and row["reward"] < DEAD_REWARD and row["exact_match"] == 0.0:
            raise TrainingError(
                f"the policy has collapsed: {row['early_stops']:.0%} of its steps say stop too early, reward {row['reward']:.2f}",
                f"use {supervised_stop(self.model.variant, self.settings.objective)}a larger --batch-size or a lower --learning-rate",
            )
        mask_mass, area = ([(row["epoch"], row[name]) for row in rows if name in row] for name in ("mask_mass", "area"))
        found = mask_off_objects(mask_mass, area, self.model.variant)
        return found[1] if found and found[0] == row["epoch"] else said  # once


def train(
    features: Path,
    out: Path,
    variant: Variant = DEFAULT,
    settings: TrainSettings = DEFAULTS,
    device: torch.device | str = "auto",
    reporter: Reporter = SILENT,
    *,
    overwrite: bool = False,
    backbone: Path | None = None,
    init_from: Path | None = None,
    memory: float | None = None,
) -> Run:
    """Trains a new policy, or count classifier, and keeps its best and last checkpoints.

    Args:
        features: the feature file.
        out: the run directory to make.
        variant, settings: how.
        device: where to compute; a name as `--device` takes it, or a torch device.
        reporter: progress.
        overwrite: replace a run in `out`.
        backbone: the run that the features come from, recorded so that pictures can be looked at later.
        init_from: a run or checkpoint whose weights are started from; nothing else of it is taken.
        memory: GB that features may take; more are read as they are needed. None: 60% of what is free.

    Returns:
        The finished run.

    Raises:
        HsalError: bad input, collapse; Interrupted: asked to stop, state saved.
    """
    device = choose_device(device)
    material = read_material(features, settings, None, memory, reporter)
    model, described = _model(material, variant, settings, material.scale, backbone)
    model.to(device)
    started = start_from(model, described["kind"], init_from, material.classes) if init_from else None
    config = {
        "features": str(features),
        "backbone": str(backbone) if backbone else None,
        **({"variant": described["variant"]} if "variant" in described else {}),
        "train": as_dict(settings),
        "classes": material.classes,
        "volume_shape": list(material.shape),
        **material.digests,
        "init_from": started,
        **({"window": material.window} if material.window else {}),
    }
    distributed.agree(**material.digests, train=config["train"], variant=config.get("variant"), start=started and started["digest"])
    task = _task(model, described, material, settings, device, config["backbone"], out)
    run = runs.create(out, described["kind"], config, overwrite)
    return _run_through(task, run, config, None, reporter)


def resume(
    out: Path, device: torch.device | str = "auto", reporter: Reporter = SILENT, *, features: Path | None = None, epochs: int | None = None
) -> Run:
    """Goes on with a run, by its own settings. All that it needs is read and verified before anything of it is changed.

    Args:
        out: the run directory.
        device: where to compute; a name as `--device` takes it, or a torch device.
        reporter: progress.
        features: where the run's features are now; None: where they were.
        epochs: how many in all, no fewer than the run has; None: as many as it has.

    Returns:
        The finished run.

    Raises:
        HsalError: the run, its checkpoints or its features are not what they were; collapse; Interrupted: asked to stop, state saved.
    """
    run = runs.open_run(out, runs.EVALUATED)
    config, device = run.config, choose_device(device)
    settings = config.train
    if (epochs or settings.epochs) < settings.epochs:
        raise UsageError(f"{out} has {settings.epochs} epochs, which is more than {epochs}", "leave --epochs out, or give a larger one")
    longer = dataclasses.replace(settings, epochs=epochs or settings.epochs)
    if run.status.state == "finished" and longer == settings:
        reporter.say(f"{out} is finished: nothing to do")
        return run
    if longer != settings:
        reporter.say(f"epochs {settings.epochs} -> {longer.epochs}; the learning rate follows the longer schedule from here on")
    before = resume_from(run, reporter)
    say_changes(run, str(device), reporter)
    material = read_material(features or Path(config.features), longer, config.window, None, reporter)
    if config.features_digest != material.digests["features_digest"]:
        raise FileError(
            f"{material.features} is not the feature file that {out} was trained on",
            f"train a new run: hsal train --data {material.features}",
        )
    scale = policy_meta(before).volume_scale if before else material.scale
    model, described = _model(material, config.variant, longer, scale, config.backbone and Path(config.backbone))
    model.to(device)
    if config.init_from and before is None:
        source = Path(config.init_from.path)
        if start_from(model, described["kind"], source, material.classes)["digest"] != config.init_from.digest:
            raise FileError(
                f"{source} does not hold the weights that {out} started from", f"train a new run: hsal train --data {material.features}"
            )
    distributed.agree(**material.digests, train=as_dict(longer), variant=described.get("variant"), checkpoint=before and before.digest)
    task = _task(model, described, material, longer, device, config.backbone, out)
    progress = None if before is None else loop.restored(task, before)
    kept = {name: value for name, value in config.raw.items() if name != "policy"}  # of hsal 0.1, which left values open
    written = kept | {name: described[name] for name in described if name == "variant"}
    written |= {"features": str(material.features), "train": as_dict(longer)}
    return _run_through(task, run, written, progress, reporter)


def _model(
    material: Material, variant: Variant, settings: TrainSettings, scale: float, backbone: Path | None
) -> tuple[Model, dict[str, Any]]:
    """The untrained model, on the CPU, and what its checkpoints say of its kind and settings; a count classifier goes on from a backbone
    that learned counts."""
    torch.manual_seed(settings.seed)
    classes = len(material.classes)
    if settings.objective == "set":
        most = max(1, int((material.table.labels >= 0).sum(1).max()))
        named = SetPredictor(classes, material.shape, 2 * most, scale)
        described = {"kind": "count", "count": {"most": most, "hidden": named.hidden, "queries": named.queries}}
        return named, {**described, "volume_scale": scale}
    if settings.objective == "count":
        most = max(1, int(count_labels(material.table.labels, classes).max()))  # images may hold no object at all
        layer = counting_layer(material, backbone)
        counts = CountClassifier(classes, material.shape, most, scale, expecting=0 if layer is None else layer.in_features)
        if layer is not None:
            counts.expect(layer.weight, layer.bias)
        sizes = {"most": counts.most, "hidden": counts.hidden, **({"expecting": counts.expecting} if layer is not None else {})}
        return counts, {"kind": "count", "count": sizes, "volume_scale": scale}
    fine, maps = material.table.fine, material.held_out.saliency
    variant = dataclasses.replace(variant, fine=fine, fine_side=maps.shape[2] // material.shape[2] if fine else 2)
    policy = HSAL(variant, classes, material.shape, scale)
    return policy, {"kind": "policy", "variant": as_dict(policy.variant), "volume_scale": scale}


def _task(
    model: Model,
    described: dict[str, Any],
    material: Material,
    settings: TrainSettings,
    device: torch.device,
    backbone: str | None,
    out: Path,
) -> FeatureTask:
    meta = {
        **described,
        "objective": settings.objective,
        "classes": material.classes,
        "volume_shape": list(material.shape),
        "max_labels": int((material.table.labels >= 0).sum(1).max()),
        "backbone": backbone,
        "features": str(material.features),
        "fit": material.fit,
        "frame": material.frame,
        "input_size": material.input_size,
        **material.digests,
    }
    make_task = {"count": CountTask, "set": SetTask}.get(settings.objective, PolicyTask)
    data = model, material.table, material.rows, material.held_out
    return make_task(*data, settings, device, with_stored(meta, out), material.views)


def _run_through(task: FeatureTask, run: Run, config: dict[str, Any], progress: dict[str, Any] | None, reporter: Reporter) -> Run:
    """Trains from `progress` on, or from the start, to the end."""
    settings, device = task.settings, task.device
    reporter.say(
        f"training by {settings.objective} on {len(task.rows):,} images{f' in {task.views} views' if task.views > 1 else ''}, "
        f"{len(task.held_out):,} held out, {settings.epochs} epochs, on {device}"
    )
    say_if_busy(device, reporter)
    computed = computing(device, settings.deterministic)
    with contextlib.closing(task.data), being_trained(run, config, str(device)), fitting(device, settings.batch_size), computed:
        history = loop.train(task, run, reporter, progress)
        classes = task.model.classes
        blind = trivial_baselines(label_counts(task.data.labels[task.rows], classes), label_counts(task.held_out.labels, classes))
        best = max(history, key=lambda row: rank(row, "exact_match"))
        run.set_status("finished", exact_match=best["exact_match"], images=len(task.rows), never_looks=blind)
    distributed.barrier()  # the others may read it now
    return run


def start_from(model: Model, kind: str, source: Path, classes: list[str]) -> dict[str, str]:
    """Gives a new policy, or count classifier, the weights of another one; the scale of its volumes stays its own.

    Returns:
        `path` and `digest` of the checkpoint.

    Raises:
        FileError: no checkpoint of a policy, of other classes, or weights that do not fit; names the first that differ.
    """
    hint = "name a policy of the same settings and classes with --init-from, or leave it out"
    checkpoint = checkpoints.load_from(source, "best", hint)
    if checkpoint.kind != kind:
        raise FileError(f"{checkpoint.path} is a checkpoint of kind {checkpoint.kind}, not {kind}", hint)
    theirs = policy_meta(checkpoint).classes
    differing = checkpoints.differences(model.state_dict(), checkpoint.weights)
    if differing:
        raise FileError(f"the weights of {checkpoint.path} do not fit these settings and data: {differing}", hint)
    if theirs != classes:
        place = next((place for place, pair in enumerate(zip(theirs, classes, strict=False)) if pair[0] != pair[1]), 0)
        raise FileError(f"{checkpoint.path} is for other classes: class {place} is {theirs[place]}, not {classes[place]}", hint)
    model.load_state_dict({**checkpoint.weights, "volume_scale": model.volume_scale})
    return {"path": str(source), "digest": checkpoint.digest}
