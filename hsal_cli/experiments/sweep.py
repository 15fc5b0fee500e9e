"""The generalisation sweep: a trained policy on scenes unlike those it was trained on, composed for the purpose.

OUT/sweep.*         every score: JSON, tables, curves (see sweep_report.py)
OUT/parts/*.json    one file a condition, so that a sweep goes on where it stopped
OUT/runs/           short trainings of the parts "glimpses" and "saliency" (see sweep_trained.py)
OUT/cache/          scenes and features of the condition in work; removed when it is done
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import ensure_scores
from hsal_cli.experiments.settings import SweepSettings
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import PrecomputeSettings, kind_in
from hsal_cli.features.table import open_features
from hsal_cli.models.load import LoadedPolicy
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs.documents import Evaluation
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import open_scenes, write_scenes
from hsal_cli.scenes.settings import RECIPES, SceneSettings
from hsal_cli.settings import as_dict
from hsal_cli.storage.files import digest_of, refuse_link
from hsal_cli.storage.hdf5 import format_of
from hsal_cli.typed import Odd, checked
from hsal_cli.vision.backbone import LoadedBackbone

AGAIN = "run the same command again to go on"
SIZES = ((14, 20), (20, 30), (30, 40), (40, 50), (50, 60))  # px, in images of 100 px
CLUTTER = (0, 4, 8, 16, 32)  # pieces
SPACING = ("grid", "free", "tight")
CONTRASTS = (1.0, 0.75, 0.5, 0.3, 0.2, 0.1)
MOST_OBJECTS, MORE = 8, 4  # objects, and how many more than in training where those are as many


@dataclasses.dataclass(frozen=True)
class Condition:
    """One way of composing test images.

    Attributes:
        part: what is varied.
        value: to what, in words.
        x: the same as a number, for a curve.
        scenes: the recipe.
        contrast: what every intensity is multiplied by; the background is black.
    """

    part: str
    value: str
    x: float
    scenes: SceneSettings
    contrast: float = 1.0


@dataclasses.dataclass(frozen=True)
class SceneRecipe:
    """What a policy was trained on, as its scene or feature file tells: such as mnist-multiset, and how its images were composed."""

    dataset: str
    scenes: SceneSettings
    file: Path


def recipe_of(source: Path, images: int) -> SceneRecipe:
    """Reads how images were composed from a scene file or a feature file, for test images alone.

    Raises:
        FileError: missing or unusable, or not of images that hsal composes.
    """
    if format_of(source) == SCENES:
        with open_scenes(source) as scenes:
            config = scenes.config
    else:
        with open_features(source) as features:
            config = features.config.scenes_config
    dataset = str(config.get("dataset", "images of unknown origin"))
    if dataset not in RECIPES:
        raise FileError(
            f"{source} holds {dataset}, which the sweep cannot compose anew",
            f"sweep a policy that was trained on one of: {', '.join(RECIPES)}; or name such a file with --data",
        )
    try:
        settings = dataclasses.replace(checked(config, SceneSettings, "config"), train=0, test=images)
    except Odd as odd:
        raise FileError(odd.said_of(source), f"make it again with: hsal make-data {dataset} --overwrite --out {source}") from odd
    if settings.mnist_dir and not Path(settings.mnist_dir).is_dir():  # made on another machine
        settings = dataclasses.replace(settings, mnist_dir=None)
    return SceneRecipe(dataset, settings, source)


def conditions(recipe: SceneRecipe, parts: list[str], reporter: Reporter = SILENT) -> Iterator[Condition]:
    """The conditions of the parts that shift the test images; the recipe itself comes first.

    A condition that cannot be composed, such as 8 digits of 40 px in 100 px, is left out and said.
    """
    base = recipe.scenes
    yield Condition("trained", "as trained", 0.0, base)
    scale, trained = base.image_size / 100, base.count[1]
    most = MOST_OBJECTS if trained < MOST_OBJECTS else trained + MORE
    sizes = [tuple(max(4, round(side * scale)) for side in band) for band in SIZES]
    wanted: dict[str, list[tuple[str, float, dict[str, Any]]]] = {
        "count": [(str(n), n, {"count": (n, n)}) for n in range(min(1, base.count[0]), most + 1)],
        "size": [(f"{low}-{high} px", (low + high) / 2, {"digit_size": (low, high)}) for low, high in sizes],
        "clutter": [(f"{n} pieces", n, {"clutter": n}) for n in CLUTTER],
        "spacing": [(name, place, {"placement": name}) for place, name in enumerate(SPACING)],
    }
    for part in parts:
        for value, x, changes in wanted.get(part, []):
            try:
                yield Condition(part, value, float(x), dataclasses.replace(base, **changes))
            except UsageError as error:
                reporter.say(f"{part} {value} is left out: {error.message}")
        if part == "contrast":
            for contrast in CONTRASTS:
                yield Condition(part, f"{contrast:g}", contrast, base, contrast)


def shifts(
    loaded: LoadedPolicy,
    backbone: LoadedBackbone,
    recipe: SceneRecipe,
    settings: SweepSettings,
    out: Path,
    device: torch.device,
    reporter: Reporter = SILENT,
) -> dict[str, list[dict[str, Any]]]:
    """Evaluates a policy under every condition.

    Args:
        loaded, backbone: the policy, on `device`, and the backbone it was trained with.
        recipe: how the images it was trained on were composed.
        settings: which parts, and how many images each.
        out: the sweep's folder; what an earlier call finished there is taken over.

    Returns:
        "trained" and each part -> a row a condition (see `row_of`).

    Raises:
        UsageError: the policy takes its saliency maps from files, which new scenes have none of.
        Interrupted: a signal asked to stop; finished conditions are kept.
    """
    if kind_in(loaded.meta.saliency) == "file":
        raise UsageError(
            f"the policy takes its maps from {loaded.meta.saliency}, and new scenes have none", "sweep a policy with a saliency model"
        )
    todo = list(conditions(recipe, settings.part_names, reporter))
    found: dict[str, list[dict[str, Any]]] = {}
    for number, condition in enumerate(todo):
        reporter.check_stop(AGAIN)
        composed = {"dataset": recipe.dataset, "scenes": as_dict(condition.scenes), "contrast": condition.contrast}
        key = digest_of({**composed, "policy": loaded.checkpoint.digest, "backbone": backbone.digest})[:16]

        def evaluate(condition=condition, key=key, number=number) -> dict[str, Any]:
            reporter.say(f"{number + 1} of {len(todo)}: {condition.part} {condition.value}")
            return _evaluate(condition, out / "cache" / f"{key}.h5", loaded, backbone, recipe.dataset, device, reporter)

        scores = ensure_scores(out / "parts" / f"{key}.json", reporter, evaluate)
        found.setdefault(condition.part, []).append(row_of(condition.value, condition.x, scores))
    return found


def row_of(value: str, x: float, scores: Evaluation) -> dict[str, Any]:
    """One row of the sweep's tables; a score that there is not is None."""
    local = scores.localization or {}
    return {
        "value": value,
        "x": x,
        "examples": scores.examples,
        "exact_match": scores.exact_match,
        "exact_match_ci95": list(scores.ci95.exact_match),
        "macro_f1": scores.macro_f1,
        "cardinality_error": scores.cardinality_error,
        "glimpse_hit": local.get("glimpse_hit"),
        "saliency_hit": local.get("saliency"),
        "mask_mass": local.get("mask_mass"),
    }


def _evaluate(
    condition: Condition,
    scenes: Path,
    loaded: LoadedPolicy,
    backbone: LoadedBackbone,
    dataset: str,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    """Composes scenes, computes their features, evaluates the policy on them, and removes both."""
    refuse_link(scenes.parent)
    features = scenes.with_suffix(".features.h5")
    if not scenes.is_file():
        make_dataset(dataset, condition.scenes, scenes, None, reporter)
        if condition.contrast != 1:
            dim(scenes, condition.contrast)
    settings = PrecomputeSettings(saliency=loaded.meta.saliency, resolution=backbone.refined)
    precompute(scenes, backbone.path, features, settings, device, reporter)
    # A policy trained on 1 to 4 objects is given the meta-steps that more objects take.
    most = max(loaded.max_steps, condition.scenes.count[1] + 2)
    scores = evaluate_file(loaded, features, EvalSettings(max_steps=most, looking=0), device, reporter)
    for file in (features, scenes):
        file.unlink()
    return scores


def dim(scenes: Path, contrast: float) -> None:
    """Multiplies all intensities of a scene file by a factor in [0, 1]; the file is replaced whole."""
    with open_scenes(scenes) as old, write_scenes(scenes, {**old.config, "contrast": contrast}, old.classes) as writer:
        for name in old.splits:
            split = old.split(name)

            def parts(split=split) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
                for start in range(0, len(split), 500):
                    rows = slice(start, min(start + 500, len(split)))
                    images = np.rint(split.read(rows.start, rows.stop) * contrast).astype(np.uint8)
                    yield images, split.labels[rows], split.boxes[rows]

            writer.write_split(name, parts(), split.images.shape)
