"""Steps: each finds what an earlier command made, goes on with what was interrupted, and makes what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from hsal_cli import distributed
from hsal_cli.errors import FileError
from hsal_cli.features.precompute import precompute
from hsal_cli.features.saliency.models import saliency_model
from hsal_cli.features.settings import PrecomputeSettings, features_path, holds_features, made_with
from hsal_cli.features.table import check_match, open_features
from hsal_cli.finetuning.finetune import finetune, is_own
from hsal_cli.models.load import RUNS, backbone_folder
from hsal_cli.policy.variant import Variant
from hsal_cli.progress import Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.documents import Evaluation, read_evaluation
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import DATASETS, SceneSettings, made_by
from hsal_cli.storage.atomic import write_json
from hsal_cli.storage.hdf5 import format_of
from hsal_cli.training.train import resume, train
from hsal_cli.vision.backbone import load_backbone

DATA = Path("data")
DEFAULT_SCENES = DATA / "mnist-multiset.h5"
SINGLE = DATA / "mnist-single.h5"
State = Literal["done", "resume", "missing", "odd"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of every step up to a trained policy."""

    scenes: SceneSettings
    finetune: FinetuneSettings
    precompute: PrecomputeSettings
    variant: Variant
    train: TrainSettings


def only_scenes(data: Path = DATA) -> Path | None:
    """The one scene file of a folder, which is meant where none is named; None where there is none, or several.

    Single digits do not count: `hsal finetune` makes them for itself.
    """
    found = [path for path in sorted(data.glob("*.h5")) if path.name != SINGLE.name and path.is_file() and format_of(path) == SCENES]
    return found[0] if len(found) == 1 else None


def made_from_a_folder(data: Path) -> bool:
    """Whether a scene or feature file holds a user's own images; False of one that is missing, which is composed."""
    if not data.exists():
        return False
    if format_of(data) == SCENES:
        with open_scenes(data) as file:
            return is_own(file)
    with open_features(data) as features:
        return bool(features.config.scenes_config.get("dataset") == "folder")


def backbone_scenes(scenes: Path | None) -> Path:
    """What a backbone is fine-tuned on: single digits for MNIST's sets and where there is no scene file, else the scene file itself."""
    return SINGLE if scenes is None or scenes.name.startswith("mnist-") or not scenes.exists() else scenes


def check_makeable(data: Path) -> None:
    """Refuses a scene or feature file that is missing, unless its name is one that hsal knows how to make.

    Raises:
        FileError: with the command that makes it.
    """
    if not data.exists() and data.stem not in DATASETS:
        raise FileError(f"{data} is missing", way_to(data))


def way_to(data: Path) -> str:
    """The hint for a scene or feature file that is missing, or is neither."""
    return f"make it with: {made_with(data)}" if holds_features(data) else made_by(data)


def ensure_scenes(scenes: Path, settings: SceneSettings, reporter: Reporter) -> Path:
    """The scene file, made by the default recipe of its name if it is missing; of several workers the first one makes it.

    Raises:
        FileError: it is missing and its name is not one that hsal knows how to make.
    """

    def made() -> Path:
        if scenes.exists():
            return scenes
        check_makeable(scenes)
        reporter.say(f"{scenes} is missing: making it (hsal make-data {scenes.stem})")
        return make_dataset(scenes.stem, settings, scenes, None, reporter)

    return distributed.broadcast(made)


def ensure_backbone(recipe: Recipe, device: torch.device, reporter: Reporter, scenes: Path = DEFAULT_SCENES) -> Path:
    """The newest finished backbone run; if there is none, one fine-tuned on single digits for MNIST's sets, else on the scenes."""
    found = distributed.broadcast(lambda: runs.newest("backbone", reporter=reporter))
    if found is not None:
        return found.path
    reporter.say("there is no fine-tuned backbone in runs/: making one (hsal finetune)")
    single = ensure_scenes(backbone_scenes(scenes), recipe.scenes, reporter)
    out = distributed.broadcast(lambda: runs.fresh_path("finetune"))
    return finetune(single, out, recipe.finetune, device, reporter).path


def ensure_features(
    scenes: Path, backbone: Path, reporter: Reporter, device: torch.device, settings: PrecomputeSettings | None = None
) -> Path:
    """The features of a scene file by a backbone, computed if they are missing.

    Features of another backbone, scene file or saliency model are refused by name, not replaced.

    Raises:
        FileError: the feature file that is there belongs to another backbone, scene file or saliency model.
    """
    settings = settings or PrecomputeSettings()
    out = features_path(scenes, settings.saliency, settings.resolution)
    if distributed.broadcast(out.exists):
        with open_scenes(scenes) as scene_file, open_features(out) as file:
            digests = (scene_file.digest, load_backbone(backbone).digest, saliency_model(settings.saliency).digest)
            check_match(file, *digests, scenes=scenes, backbone=backbone)
        return out
    reporter.say(f"{out} is missing: computing it ({made_with(out)})")
    return precompute(scenes, backbone, out, settings, device, reporter)


def ensure_policy_data(
    data: Path, backbone: Path | None, recipe: Recipe, device: torch.device, reporter: Reporter, saliency: str | None = None
) -> tuple[Path, Path | None]:
    """What training a policy needs, whatever of it is missing being made.

    Args:
        data: a scene file, or a feature file, which is taken as it is.
        backbone: the fine-tuned run; None takes the newest one.
        saliency: the saliency model that was asked for; None: the recipe's, or whatever a feature file has.

    Returns:
        (feature file, backbone run); the run is None where a feature file was given and its backbone is not in runs/.

    Raises:
        FileError: something that is there was made from other things than it is to be used with.
    """
    if holds_features(data):
        with open_features(data) as file:
            if saliency is not None:
                check_match(file, saliency_digest=saliency_model(saliency).digest)
            return data, backbone or backbone_folder(file.backbone_digest, RUNS)
    scenes = ensure_scenes(data, recipe.scenes, reporter)
    backbone = backbone or ensure_backbone(recipe, device, reporter, scenes)
    return ensure_features(scenes, backbone, reporter, device, recipe.precompute), backbone


def state_of_run(path: Path) -> State:
    """A run that was killed before its first checkpoint is missing: there is nothing to go on with. One that cannot be read is odd."""
    if not (path / "status.json").exists():
        return "missing"
    try:
        status, _ = runs.Run(path).status, runs.Run(path).config
    except FileError:
        return "odd"
    if status.state == "finished":
        return "done"
    return "resume" if any((path / "checkpoints").glob("*/manifest.json")) else "missing"


def ensure_run(
    path: Path,
    features: Path,
    variant: Variant,
    settings: TrainSettings,
    backbone: Path,
    device: torch.device,
    reporter: Reporter,
    anew: bool = False,
) -> None:
    """A finished run: one that is finished is left alone, and an interrupted one goes on, unless it is to be trained `anew`."""
    state = "missing" if anew else state_of_run(path)
    if state == "resume":
        resume(path, device, reporter, features=features)
    elif state != "done":
        train(features, path, variant, settings, device, reporter, overwrite=path.exists(), backbone=backbone)


def ensure_scores(place: Path, reporter: Reporter, evaluate: Callable[[], dict[str, Any]]) -> Evaluation:
    """The scores kept at a place; where there are none, or they cannot be read, which is said, new ones, kept there."""
    if place.exists():
        try:
            return read_evaluation(place, "hsal sweep")
        except FileError as error:
            reporter.warn(f"measured anew: {error.message}")
    write_json(place, evaluate())
    return read_evaluation(place, "hsal sweep")
