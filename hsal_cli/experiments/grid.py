"""A grid of data sets, objectives and seeds (Table 1): what belongs to it, where it lies, and what of it is there.

OUT/
    grid.json                       settings of the grid, the backbone it shares, seconds spent on each step
    backbone/                       the fine-tuned run, where there was none to share
    runs/DATASET.OBJECTIVE.seedN/   a policy run each, with its eval.json, and where its last epoch is not its best one eval.last.json
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any, Literal

from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import SINGLE, Recipe, State, features_path, state_of_run
from hsal_cli.features.writer import partial_of
from hsal_cli.policy.variant import with_variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.documents import read_evaluation
from hsal_cli.runs.places import with_found, with_stored
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import DATASETS
from hsal_cli.settings import as_dict, build
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import write_json
from hsal_cli.storage.documents import read_document
from hsal_cli.typed import Document

FORMAT = "hsal-grid"


@dataclasses.dataclass(frozen=True)
class GridRecord(Document):
    """grid.json: the `backbone` that all share, once settled; `settings` of all scores; `seconds` of each step; `options` as typed."""

    format: Literal["hsal-grid"] = "hsal-grid"
    backbone: str | None = None
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    options: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is to be run.

    Attributes:
        datasets: names; each has its scene file at data/NAME.h5 and its features beside it.
        objectives: of `hsal train`.
        seeds: of the policies; data and backbone are shared by all.
        out: the folder of the grid.
        recipe: settings of every step; `train.objective` and `train.seed` are replaced by those of the grid.
        evaluation: how policies are evaluated.
        backbone: the run to share; None: the one that this grid had before, else the newest finished one in runs/, else one made in
            OUT/backbone.
        data: the folder of the scene files.
        options: options of the command line that bring about the same settings, such as `--preset quick`, for the commands in the report.
        epochs: of an objective, where they are not those of the recipe; what an epoch costs and teaches differs between objectives.
        own_seeds: of an objective, where they are not `seeds`.
    """

    datasets: tuple[str, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    recipe: Recipe
    evaluation: EvalSettings
    backbone: Path | None = None
    data: Path = SINGLE.parent
    options: tuple[str, ...] = ()
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    own_seeds: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """The policies, seed by seed, so that an interrupted grid has all data sets and objectives at the seeds it has finished."""
        seeds_of = {objective: self.own_seeds.get(objective, self.seeds) for objective in self.objectives}
        return [
            Cell(dataset, objective, seed)
            for seed in dict.fromkeys(seed for seeds in (self.seeds, *seeds_of.values()) for seed in seeds)
            for dataset in self.datasets
            for objective in self.objectives
            if seed in seeds_of[objective]
        ]

    def scenes(self, dataset: str) -> Path:
        """The scene file of a data set."""
        return self.data / f"{dataset}.h5"

    def features(self, dataset: str) -> Path:
        """The features of a data set."""
        return features_path(self.scenes(dataset), self.recipe.precompute.saliency, self.recipe.precompute.resolution)

    @property
    def single_objects(self) -> Path:
        """The scene file that a backbone is fine-tuned on: single digits where MNIST's sets are in the grid, else its first data set."""
        of_digits = any(dataset.startswith("mnist-") for dataset in self.datasets)
        return self.data / SINGLE.name if of_digits else self.scenes(self.datasets[0])

    def run_path(self, cell: Cell) -> Path:
        """The run directory of a policy."""
        return self.out / "runs" / cell.name

    def train_settings(self, cell: Cell) -> TrainSettings:
        """The training settings of a policy.

        Raises:
            UsageError: there is no such objective, or it cannot be combined with the other settings.
        """
        own = {"objective": cell.objective, "seed": cell.seed}
        if cell.objective in self.epochs:
            own["epochs"] = self.epochs[cell.objective]
        return build(TrainSettings, {**as_dict(self.recipe.train), **own})

    def evaluation_place(self, cell: Cell, which: str = "best") -> Path:
        """Where the scores of a run's checkpoint are kept: those of the test split where every reader of a run looks for them."""
        name, split = runs.EVALUATIONS[which], self.evaluation.split
        return self.run_path(cell) / (name if split == "test" else f"{name.removesuffix('.json')}.{cell.dataset}.{split}.json")

    def evaluated(self, cell: Cell, which: str = "best") -> dict[str, Any] | None:
        """The evaluation of a run's checkpoint, if it has one of this data set by these settings."""
        path = self.run_path(cell)
        try:
            found = read_evaluation(self.evaluation_place(cell, which), "hsal eval")
            if self.evaluation.split == "test" and runs.Run(path).other_data(found):
                return None
        except FileError:
            return None
        same = (found.split, found.sample) == (self.evaluation.split, self.evaluation.sample)
        same = same and Path(found.checkpoint).name == getattr(checkpoints.index_of(path / "checkpoints"), which)
        return found.raw if same and found.features == str(self.features(cell.dataset)) else None

    def backbone_place(self, reporter: Reporter = SILENT) -> tuple[Path, bool]:
        """(the backbone to share, whether it is one that this grid makes)."""
        own = self.out / "backbone"
        if self.backbone is not None:
            return self.backbone, False
        recorded = self.read_record().backbone
        if recorded is not None:
            return Path(recorded), Path(recorded).absolute() == own.absolute()
        if not own.exists():
            newest = runs.newest("backbone", reporter=reporter)
            if newest is not None:
                return newest.path, False
        return own, True

    def shared_settings(self) -> dict[str, dict[str, Any]]:
        """The settings that all scores of a grid must share."""
        train = {key: value for key, value in as_dict(self.recipe.train).items() if key not in ("objective", "seed")}
        evaluation = {key: value for key, value in as_dict(self.evaluation).items() if key != "batch_size"}
        return {"train": train, "epochs": dict(self.epochs), "variant": as_dict(self.recipe.variant), "eval": evaluation}

    def read_record(self) -> GridRecord:
        """What grid.json holds; nothing where the grid was never run.

        Raises:
            FileError: it is not the record of a grid.
        """
        path = self.out / "grid.json"
        if not path.exists():
            return GridRecord()
        try:
            return read_document(path, GridRecord, "hsal reproduce", lambda found: with_found(found, self.out))
        except FileError as error:
            raise FileError(f"{path} is not the record of a grid: {error.message}", "name another folder with --out") from error

    def record(self, **more: Any) -> None:
        """Adds to grid.json."""
        write_json(self.out / "grid.json", with_stored({**self.read_record().raw, "format": FORMAT, **more}, self.out))

    def cell_commands(self, cell: Cell, backbone: Path) -> tuple[str, str]:
        """What trains a policy of the grid, and what evaluates it."""
        path = self.run_path(cell)
        chosen = {"objective": cell.objective, "seed": cell.seed}
        if cell.objective in self.epochs:
            chosen["epochs"] = self.epochs[cell.objective]
        train = self.command("train", data=self.scenes(cell.dataset), backbone=backbone, **chosen, out=path)
        return train, self.command("eval", run=path)

    def command(self, words: str, **options: Any) -> str:
        """A command line with the options of the grid."""
        parts = ["hsal", *words.split(" ", 1)]
        for name, value in options.items():
            parts += [f"--{name}", str(value)]
        return shlex.join([*parts, *self.options])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One policy of a grid."""

    dataset: str
    objective: str
    seed: int

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.dataset}.{self.objective}.seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to do: `what`, the key of its seconds in grid.json; the file or run that it makes; the command that does it alone."""

    what: str
    path: Path
    state: State
    command: str


@dataclasses.dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Attributes:
        name: the run's.
        dataset, objective, seed: its place in the grid.
        path: its directory.
        evaluation: what `evaluate_file` gave; None where the run failed.
        rows: its metrics, one row an epoch.
        seconds: of training and evaluation, as far as they are known.
        digest: sha256 of the weights that were evaluated.
        commands: what makes the run and its scores alone.
        failure: why there is no evaluation, else "".
        last: what `evaluate_file` gave of the last epoch, where `evaluation` is of another one, the best; else None.
    """

    name: str
    dataset: str
    objective: str
    seed: int
    path: str
    evaluation: dict[str, Any] | None
    rows: list[dict[str, Any]]
    seconds: float | None
    digest: str
    commands: list[str]
    failure: str = ""
    last: dict[str, Any] | None = None


def plan(grid: Grid) -> list[Step]:
    """Every step of a grid, in order, with what is known of it before anything is run.

    Raises:
        UsageError: the settings are not those that the grid was begun with, or an objective is unknown.
    """
    _check_settings(grid)
    backbone, made_here = grid.backbone_place()
    state, single = state_of_run(backbone), grid.single_objects
    composed = [*map(grid.scenes, grid.datasets), *([single] if made_here and state != "done" else [])]
    steps = [
        Step(f"data {scenes.stem}", scenes, _state_of_file(scenes), grid.command(f"make-data {scenes.stem}", out=scenes))
        for scenes in dict.fromkeys(composed)
    ]
    if made_here:
        steps.append(Step("backbone", backbone, state, grid.command("finetune", data=single, out=backbone)))
    for dataset in grid.datasets:
        features = grid.features(dataset)
        command = grid.command("precompute", data=grid.scenes(dataset), backbone=backbone, out=features)
        begun = partial_of(features).exists() and not features.exists()
        steps.append(Step(f"features {dataset}", features, "resume" if begun else _state_of_file(features), command))
    for cell in grid.cells:
        grid.train_settings(cell)
        path = grid.run_path(cell)
        state = state_of_run(path)
        train, evaluate = grid.cell_commands(cell, backbone)
        steps.append(Step(f"train {cell.name}", path, state, train))
        is_scored = state == "done" and all(grid.evaluated(cell, which) is not None for which in to_evaluate(path))
        steps.append(Step(f"eval {cell.name}", grid.evaluation_place(cell), "done" if is_scored else "missing", evaluate))
    return steps


def to_evaluate(path: Path) -> list[str]:
    """The checkpoints of a finished run that its scores are of: the best, and the last where that is another one."""
    index = checkpoints.index_of(path / "checkpoints")
    return ["best"] if index.last == index.best else ["best", "last"]


def _state_of_file(path: Path) -> State:
    return "done" if path.exists() else "missing"


def _check_settings(grid: Grid) -> None:
    """Refuses to mix runs of different settings in one table."""
    before = with_variant(grid.read_record().settings)  # begun by hsal 0.1, it holds what that left open
    differing = [
        f"{table}.{key} is {before[table][key]}, not {value}"
        for table, values in grid.shared_settings().items()
        for key, value in values.items()
        if table != "epochs" and key in before.get(table, {}) and before[table][key] != value
    ]
    if differing:
        raise UsageError(
            f"{grid.out} was begun with other settings: {'; '.join(differing)}",
            "give the same --preset and --config as before, or name another folder with --out",
        )
    for cell in grid.cells:
        path, asked = grid.run_path(cell), grid.train_settings(cell).epochs
        # One that was begun for another number of epochs followed another schedule of its learning rate.
        has = asked if state_of_run(path) in ("missing", "odd") else runs.open_run(path, runs.EVALUATED).config.train.epochs
        if has != asked:
            raise UsageError(
                f"{path} was begun for {has} epochs, not {asked}",
                f"give --epochs {cell.objective}={has} as before, or name another folder with --out",
            )
    for dataset in grid.datasets:
        _check_data(grid, grid.scenes(dataset))
    backbone, made_here = grid.backbone_place()
    if made_here and state_of_run(backbone) != "done" and grid.single_objects.stem not in grid.datasets:
        _check_data(grid, grid.single_objects)


def _check_data(grid: Grid, path: Path) -> None:
    """Refuses images that were composed by other settings than the table would say; of others' images hsal knows no settings."""
    if not path.exists():
        return
    with open_scenes(path) as file:
        held = file.config
    if held.get("dataset") not in DATASETS:
        return
    asked = {name: value for name, value in as_dict(grid.recipe.scenes).items() if value not in (None, "auto") and name != "mnist_dir"}
    asked |= {"count": [1, 1]} if held["dataset"] == "mnist-single" else {}
    differing = [f"{name} is {held[name]}, not {value}" for name, value in asked.items() if name in held and held[name] != value]
    if differing:
        raise UsageError(
            f"{path} was made with other settings than this grid's: {'; '.join(differing)}",
            f"work in another folder, give the --config that it was made with, or make it anew: "
            f"{grid.command(f'make-data {path.stem}', out=path)} --overwrite",
        )
