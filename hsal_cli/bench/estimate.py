"""How long work takes here, and what it writes, told before it starts: amounts of images, at the speeds of a short measurement.

The stages are those of `hsal bench`. What is to be made is found out as the commands find it: whatever is there takes no time.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hsal_cli.bench.shop import Shop
from hsal_cli.bench.stages import MAKERS
from hsal_cli.bench.timing import Piece
from hsal_cli.evaluation.looking import GLIMPSES, MASKS
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.grid import Grid, Step
from hsal_cli.experiments.pipeline import Recipe, backbone_scenes, check_makeable, features_path
from hsal_cli.experiments.settings import SweepSettings
from hsal_cli.features.precompute import plan as plan_features
from hsal_cli.features.settings import SALIENCY, STAGED, PrecomputeSettings, holds_features
from hsal_cli.features.table import open_features
from hsal_cli.finetuning.finetune import plan, settled_for
from hsal_cli.progress import LONG_S, SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.storage.hdf5 import format_of
from hsal_cli.vision.backbone import CHANNELS, DOUBLE_FINE, FINE, WINDOW

PIECE_S = 0.3  # what a measured piece lasts, about
# Images a second that a slow machine of two cores makes; what even these would do in LONG_S is begun without a measurement.
SLOWEST = {"make-data": 1500.0, "finetune": 8.0, "precompute": 45.0, "train": 150.0, "eval": 500.0, "paint": 100.0, "read": 5.0}
# Times that precomputing at a resolution takes what it takes else, about.
HEAVIER = {"14": 4.0, "28": 16.0, "double": 4.0, "double-fine": 4.0, "window": 5.0}
PACKED = 0.13  # bytes that a pixel of a scene file takes, measured on 100 px images
BACKBONE_BYTES, POLICY_BYTES = 5.2e8, 5.0e7  # a run, with two checkpoints that hold the optimiser's state too


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to be done.

    Attributes:
        what: in a few words.
        images: stage of `hsal bench`, or of `pieces` -> images that pass through it.
        bytes: what it writes.
        asked: whether it begins only where somebody says so: it is not what the command is named for.
        pieces: does and times a part of a stage that `hsal bench` does not have.
        heavier: times that it takes what such images usually take, where that is known beforehand.
        network: the one that is fine-tuned, and which images then pass through, with nothing left open; None: the recipe's.
    """

    what: str
    images: dict[str, float]
    bytes: float = 0.0
    asked: bool = False
    pieces: Mapping[str, Piece] = dataclasses.field(default_factory=dict)
    heavier: float = 1.0
    network: FinetuneSettings | None = None


def may_be_long(works: Sequence[Work]) -> bool:
    """Whether a slow machine would take longer than LONG_S, so that measuring is worth its seconds."""
    return sum(work.heavier * count / SLOWEST[stage] for work in works for stage, count in work.images.items()) > LONG_S


def seconds_of(
    works: Sequence[Work], recipe: Recipe, device: torch.device, backbone: Path | None = None, reporter: Reporter = SILENT
) -> list[float]:
    """Measures the stages that the works need, a second or a few each, in a temporary folder.

    Args:
        works: what is to be done.
        recipe: the settings of the steps.
        device: where it will be done.
        backbone: the one that images will pass through, a run or a checkpoint; None: one like the recipe's.
        reporter: asked whether to stop.

    Returns:
        Seconds of each work, one after the other on this machine as busy as it is now.
    """
    # Drawn digits take as long as others, and are always at hand.
    scenes = dataclasses.replace(recipe.scenes, digits="strokes", mnist_dir=None, classes=None, class_names=None)
    networks = [work.network for work in works if work.network is not None] or [recipe.finetune]
    scenes = dataclasses.replace(scenes, train=max(scenes.train, 2000), test=0)
    recipe = dataclasses.replace(recipe, scenes=scenes, finetune=networks[0])
    speeds: dict[str, float] = {}
    own = {stage: piece for work in works for stage, piece in work.pieces.items()}
    with tempfile.TemporaryDirectory(prefix="hsal-estimate-") as folder:
        shop = Shop(recipe, Path(folder), device, reporter)
        if backbone is not None:
            shop.backbone = backbone
        for stage in dict.fromkeys(stage for work in works for stage, count in work.images.items() if count):
            piece = own[stage] if stage in own else MAKERS[stage](shop, PIECE_S, EvalSettings(resamples=1)).work
            if stage not in ("make-data", *own):
                piece()  # warms up
            units, took = piece()
            speeds[stage] = units / took
    return [sum(count / speeds[stage] for stage, count in work.images.items() if count) for work in works]


def making_scenes(path: Path, settings: SceneSettings, asked: bool = False) -> list[Work]:
    """Composing a data set, if it is missing."""
    return [] if path.exists() else [dataclasses.replace(composing(path, settings), asked=asked)]


def composing(path: Path, settings: SceneSettings) -> Work:
    """Composing a data set."""
    count = settings.train + settings.test
    return Work(f"composing {path}", {"make-data": count}, count * PACKED * settings.image_size**2)


def fine_tuning(scenes: Path, settings: FinetuneSettings, device: torch.device) -> Work:
    """Fine-tuning on a scene file, or on one that is still to be composed."""
    settled = settled_for(scenes, settings, device)
    count = sum(count for _, count in plan(settled))
    if settled.objects == "counts" and scenes.exists():
        count += images_of(scenes, SceneSettings()).get("test", 0) // 3  # scored at the end: a forward pass is a third of a step
    return Work("fine-tuning the backbone", {"finetune": count}, BACKBONE_BYTES, network=settled)


def feature_work(out: Path, images: float, cells: int, resolution: str | None, asked: bool = False) -> list[Work]:
    """Precomputing features of so many images at a resolution, if they are missing."""
    if out.exists():
        return []
    staged = resolution in (FINE, DOUBLE_FINE)  # as many channels again, and a map of four times the cells
    channels = CHANNELS * (2.0 if staged else 1.25 if resolution == WINDOW else 1.0)
    return [_computing(out, images, images * cells**2 * (2 * channels + (16 if staged else 4)), resolution, asked)]


def precomputing(scenes: Path, backbone: Path, out: Path, settings: PrecomputeSettings, overwrite: bool) -> list[Work]:
    """The command of that name."""
    todo = plan_features(scenes, backbone, out, settings, overwrite)
    return [] if todo.exists else [_computing(out, todo.images, todo.size, settings.resolution)]


def _computing(out: Path, images: float, size: float, resolution: str | None, asked: bool = False) -> Work:
    return Work(f"computing {out}", {"precompute": images}, size, asked, heavier=_heavier(resolution))


def _heavier(resolution: str | None) -> float:
    return HEAVIER.get(resolution or "", 1.0)


def images_of(path: Path, settings: SceneSettings) -> dict[str, int]:
    """Images in each split of a scene or feature file; of one that is missing, as many as it will have."""
    if not path.exists():
        return {"train": settings.train, "test": settings.test}
    if format_of(path) == SCENES:
        with open_scenes(path) as file:
            return {name: len(file.split(name)) for name in file.splits}
    with open_features(path) as file:
        return {name: file.rows(name) for name in file.splits}


def scoring(scenes: Path, settings: SceneSettings, evaluation: EvalSettings, resolution: str | None) -> Work:
    """Scoring a policy on images whose features, at a resolution, are not kept."""
    count = images_of(scenes, settings).get(evaluation.split, 0)
    rolled_out = count * evaluation.sample or count + (len(GLIMPSES) + len(MASKS)) * min(evaluation.looking, count)
    return Work(f"scoring {count:,} images", {"precompute": count, "eval": rolled_out}, asked=True, heavier=_heavier(resolution))


def training(images: float, settings: TrainSettings) -> Work:
    """Training a policy on so many images."""
    return Work("training the policy", {"train": images * (1 - settings.validation) * settings.epochs}, POLICY_BYTES)


def before_a_backbone(scenes: Path, recipe: Recipe, device: torch.device) -> list[Work]:
    """Fine-tuning on a scene file, which is composed if it is missing; FileError where that is nothing that can be composed."""
    check_makeable(scenes)
    return [*making_scenes(scenes, recipe.scenes, asked=True), fine_tuning(scenes, recipe.finetune, device)]


def before_a_policy(data: Path, backbone: Path | None, recipe: Recipe, device: torch.device) -> list[Work]:
    """Everything up to a trained policy that `pipeline.ensure_policy_data` would not find, and its training; errors as above."""
    check_makeable(data)
    works: list[Work] = []
    if not holds_features(data):
        works += making_scenes(data, recipe.scenes, asked=True)
        if backbone is None and runs.newest("backbone") is None:
            single = backbone_scenes(data)
            works += [dataclasses.replace(work, asked=True) for work in before_a_backbone(single, recipe, device)]
        features = features_path(data, recipe.precompute.saliency, recipe.precompute.resolution)
        images = images_of(data, recipe.scenes)
        viewed = ((recipe.precompute.views or 1) - 1) * images.get("train", 0)
        works += feature_work(features, sum(images.values()) + viewed, _cells(recipe), recipe.precompute.resolution)
        return [*works, training(images.get("train", 0), recipe.train)]
    return [training(images_of(data, recipe.scenes).get("train", 0), recipe.train)]


def of_grid(grid: Grid, steps: Sequence[Step], device: torch.device) -> list[Work]:
    """The work of each step of a grid (see `grid.plan`); of one that is done, none."""
    recipe, cells = grid.recipe, {cell.name: cell for cell in grid.cells}

    def work_of(step: Step) -> Work:
        kind, _, name = step.what.partition(" ")
        if step.state == "done":
            return Work("", {})
        if kind == "data":
            (work,) = making_scenes(step.path, recipe.scenes)
        elif kind == "backbone":
            work = fine_tuning(grid.single_objects, recipe.finetune, device)
        elif kind == "features":
            (work,) = feature_work(
                step.path, sum(images_of(grid.scenes(name), recipe.scenes).values()), _cells(recipe), recipe.precompute.resolution
            )
        else:
            images, cell = images_of(grid.scenes(cells[name].dataset), recipe.scenes), cells[name]
            scored = Work("", {"eval": 2.0 * images.get(grid.evaluation.split, 0)})  # after its best epoch, and its last
            work = training(images.get("train", 0), grid.train_settings(cell)) if kind == "train" else scored
        return work

    return [dataclasses.replace(work_of(step), what=step.what, asked=True) for step in steps]


def sweeping(settings: SweepSettings, conditions: int, source: Path, recipe: Recipe) -> list[Work]:
    """A sweep of so many conditions; the parts that train do so on the features of `source`."""
    images = conditions * settings.images
    amounts, heavier = {"make-data": images, "precompute": images, "eval": images}, _heavier(recipe.precompute.resolution)
    works = [Work(f"{conditions} kinds of test images", amounts, asked=True, heavier=heavier)]
    low, high = settings.budgets
    short = ("glimpses" in settings.part_names) * (high - low + 1) + ("saliency" in settings.part_names) * len(SALIENCY)
    if short and source.exists():
        rows = images_of(source, recipe.scenes).get("train", 0) * (1 - recipe.train.validation)
        works.append(Work(f"{short} short runs", {"train": short * rows * settings.epochs}, short * POLICY_BYTES, asked=True))
    return works


def _cells(recipe: Recipe) -> int:
    asked = recipe.precompute.resolution
    own = int(recipe.finetune.resolution)
    return 2 * own if asked in ("double", "double-fine") else own if asked in (None, *STAGED) else int(asked)
