"""Evaluation of a file: its split shown to a loaded policy, and the document that says what the scores are of (`hsal eval`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hsal_cli import distributed
from hsal_cli.errors import FileError
from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.flops import backbone_flops
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.settings import LookedFirst, alike, kind_in, made_with
from hsal_cli.models.load import LoadedPolicy, find_backbone, place_of_network
from hsal_cli.policy.hsal import HSAL
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.settings import frame_of
from hsal_cli.settings import as_dict
from hsal_cli.typed import Odd, checked

if TYPE_CHECKING:
    from hsal_cli.features.table import FeatureRows
    from hsal_cli.vision.backbone import LoadedBackbone


def evaluate_file(
    loaded: LoadedPolicy, features: Path, settings: EvalSettings, device: torch.device | str = "cpu", reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Evaluates a loaded policy, or direct baseline, on a split of a feature file.

    Returns:
        What `evaluate` gives, with baselines if the file has a training split, and `dataset` (the file's name without endings),
        `split`, `features`, `features_digest`, `scenes_digest`, `checkpoint`, `objective`, `parameters` (how many numbers were learned),
        `frame` (what was cut out of the images), `trained_frame` (of those that the policy was trained on) and `precision` (of a policy's
        large products); and in `flops`
        `looks` (those that found the frame of an image whose frame is "found"), `backbone`, `windows` (of the cells looked at, where the
        features have them) and `image` in all; None where a network is nowhere.

    Raises:
        FileError: the file is unusable, has no such split, or holds features of another backbone, other classes or another shape.
        Interrupted: a signal asked to stop.
    """
    from hsal_cli.features.table import check_match, open_features

    try:
        backbone = find_backbone(loaded)
    except FileError:  # scores of features do not need it
        backbone = None
    with open_features(features) as file:
        check_match(file, backbone_digest=loaded.meta.backbone_digest, backbone=backbone and backbone.path)
        _check_fits(features, loaded, file.classes, file.volume_shape, file.saliency, file.input_size)
        reporter.say(f"reading {features}")
        table = file.table(settings.split)
        if not len(table):
            raise FileError(f"split {settings.split} of {features} holds no image", "name another one with --split")
        table = table.labelled(_as_named(table.labels, file.classes, loaded), table.boxes)
        train_labels = _as_named(file.labels("train"), file.classes, loaded) if "train" in file.splits else None
        digests = {"features_digest": file.digest, "scenes_digest": file.scenes_digest}
        made_from, config = {"features": str(features), **digests}, file.config.scenes_config
        distributed.agree(**digests, weights=loaded.checkpoint.digest, eval=as_dict(settings))
    return _document(loaded, backbone, table, features, made_from, config, settings, device, reporter, train_labels)


def evaluate_scenes(
    loaded: LoadedPolicy,
    backbone: LoadedBackbone,
    scenes: Path,
    settings: EvalSettings,
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Evaluates a loaded policy, or direct baseline, on a split of a scene file, whose features are computed on the way and not kept.

    Memory is bounded by one batch; sampled roll-outs take the images several times, so their features are held in memory, in float16.

    Args:
        backbone: the one the policy was trained with, on `device`.

    Returns:
        What `evaluate_file` gives, with `scenes` in place of `features` and without `features_digest`.

    Raises:
        FileError: the file is unusable, has no such split, or has other classes; or the backbone does not fit the policy.
        Interrupted: a signal asked to stop.
    """
    from hsal_cli.features.saliency.models import saliency_model
    from hsal_cli.features.scene_features import SceneFeatures
    from hsal_cli.scenes.scene_file import open_scenes

    side, size = backbone.model.resolution, backbone.model.input_size
    with open_scenes(scenes) as file:
        saliency = loaded.meta.saliency
        _check_fits(scenes, loaded, file.classes, (backbone.model.channels + backbone.model.fine, side, side), saliency, size)
        table = SceneFeatures(file.split(settings.split), backbone, saliency_model(saliency))
        table = table.labelled(_as_named(table.labels, file.classes, loaded), table.boxes)
        own = torch.from_numpy(file.split("train").labels).long() if "train" in file.splits else None
        train_labels = None if own is None else _as_named(own, file.classes, loaded)
        if settings.sample > 1:
            table = table.in_memory(settings.batch_size, reporter)
        made_from = {"scenes": str(scenes), "scenes_digest": file.digest}
        distributed.agree(scenes_digest=file.digest, weights=loaded.checkpoint.digest, backbone=backbone.digest, eval=as_dict(settings))
        return _document(loaded, backbone, table, scenes, made_from, file.config, settings, device, reporter, train_labels)


def check_scenes(scenes: Path, loaded: LoadedPolicy, split: str) -> None:
    """Refuses scenes that a policy cannot be evaluated on, before an hour of features is computed for it.

    Raises:
        FileError: a class that the policy does not know, or no such split.
    """
    from hsal_cli.scenes.scene_file import open_scenes

    with open_scenes(scenes) as file:
        _check_fits(scenes, loaded, file.classes, loaded.policy.volume_shape, loaded.meta.saliency, None)
        file.split(split)


def _document(
    loaded: LoadedPolicy,
    backbone: LoadedBackbone | None,
    table: FeatureRows,
    source: Path,
    made_from: dict[str, str],
    scenes_config: dict[str, Any],
    settings: EvalSettings,
    device: torch.device | str,
    reporter: Reporter,
    train_labels: torch.Tensor | None,
) -> dict[str, Any]:
    """Scores, and what they are scores of."""
    from hsal_cli.features.settings import dataset_of
    from hsal_cli.vision.devices import fitting, half_gains, say_if_busy

    say_if_busy(device, reporter)
    with fitting(device, settings.batch_size):
        found = evaluate(loaded.policy, table, loaded.classes, settings, loaded.max_steps, device, reporter, train_labels, loaded.trust)
    looks = _looks_flops(loaded, scenes_config)
    work: dict[str, float | None] = {"looks": looks, **dict.fromkeys(("backbone", "windows", "image"))}
    if backbone is not None:
        seen, window = backbone_flops(backbone.model)
        # What reads windows and looks nowhere, a direct baseline, reads them all.
        cells, policy = backbone.model.resolution**2, loaded.policy
        if isinstance(policy, HSAL):
            cells = found["cells_looked_at"] if policy.variant.glimpse == "window" else 0
        work |= {"backbone": seen, "windows": window * cells}
        if looks is not None:
            work["image"] = looks + seen + window * cells + found["flops"]["policy"]
    found["flops"] |= work
    return {
        "dataset": dataset_of(source, loaded.meta.saliency),
        "split": settings.split,
        **found,
        **made_from,
        "frame": frame_of(scenes_config),
        "checkpoint": str(loaded.checkpoint.path),
        "objective": loaded.meta.objective,
        "parameters": sum(parameter.numel() for parameter in loaded.policy.parameters()),
        "saliency": loaded.meta.saliency,
        "trained_frame": loaded.meta.frame,
        "precision": "bfloat16" if half_gains(torch.device(device)) and isinstance(loaded.policy, HSAL) else "float32",
    }


def _looks_flops(loaded: LoadedPolicy, scenes_config: dict[str, Any]) -> float | None:
    """FLOPs of the looks that found the frame of an image; None where the network that looked is nowhere."""
    from hsal_cli.vision.backbone import load_backbone

    if frame_of(scenes_config) != "found":
        return 0
    try:
        looked = checked(scenes_config.get("found"), LookedFirst, "found")
        place = place_of_network(loaded.checkpoint, looked.look_digest, looked.look)
        return None if place is None else looked.zooms * backbone_flops(load_backbone(place).model)[0]
    except (Odd, FileError):
        return None


def _as_named(labels: torch.Tensor, classes: list[str], loaded: LoadedPolicy) -> torch.Tensor:
    """Labels (N, L) of a file with these classes, as the policy counts its own."""
    places = torch.tensor([loaded.classes.index(name) for name in classes])
    return torch.where(labels >= 0, places[labels.clamp(min=0)], labels)


def _check_fits(
    source: Path, loaded: LoadedPolicy, classes: list[str], shape: tuple[int, int, int], saliency: str, input_size: int | None
) -> None:
    strange = [name for name in classes if name not in loaded.classes]  # of those it knows, images need not show all
    for what, found, wanted in (
        ("classes", classes if strange else loaded.classes, loaded.classes),
        ("saliency of kind", kind_in(saliency), kind_in(loaded.meta.saliency)),
        ("volumes of shape", list(shape), list(loaded.policy.volume_shape)),
        ("an input_size of", input_size or loaded.meta.input_size, loaded.meta.input_size or input_size),
    ):
        if found != wanted:
            again = made_with(alike(source, Path(loaded.meta.features)), loaded.meta.backbone)
            hint = f"make features like those that it was trained on: {again}"
            if what == "classes":
                hint = f"train a policy that names those: hsal train --data {source}"
            elif what == "saliency of kind":
                hint = "name another file with --data"
            raise FileError(f"{source} has {what} {found}, the policy was trained with {wanted}", hint)
