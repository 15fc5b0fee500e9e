"""The parts of a sweep that train: short runs at each glimpse budget k, or with each saliency model, all alike but for that."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import ensure_run, ensure_scores, state_of_run
from hsal_cli.experiments.settings import SweepSettings
from hsal_cli.experiments.sweep import AGAIN, row_of
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import SALIENCY, PrecomputeSettings, features_path
from hsal_cli.features.table import open_features
from hsal_cli.models.load import LoadedPolicy, load_policy
from hsal_cli.policy.variant import Variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.settings import build
from hsal_cli.storage.files import refuse_link
from hsal_cli.vision.backbone import LoadedBackbone


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the short runs share: settings and features of the swept policy, but for the number of epochs, and its backbone."""

    variant: Variant
    train: TrainSettings
    features: Path
    backbone: LoadedBackbone
    out: Path
    device: torch.device
    reporter: Reporter = SILENT

    def row(self, name: str, value: str, x: float, variant: Variant, saliency: str, scenes: Path | None = None) -> dict[str, Any]:
        """The scores on the test split of the run of that name in OUT/runs, trained as far as it is not, as a row (see `sweep.row_of`).

        Args:
            value, x: what sets it apart.
            scenes: the scene file that maps of its saliency model are computed from; None: the features have them.
        """
        self.reporter.check_stop(AGAIN)
        place = self.out / "runs" / name
        # A run of other settings in this folder was made by an earlier sweep; a new one replaces it.
        anew = (place / "status.json").is_file() and not self._is_same(place, variant, saliency)

        @functools.cache
        def features() -> Path:
            return self.features if scenes is None else self._with_saliency(scenes, saliency)

        def evaluate() -> dict[str, Any]:
            return evaluate_file(load_policy(place, "best", self.device), features(), EvalSettings(looking=0), self.device, self.reporter)

        if anew or state_of_run(place) != "done":
            self.reporter.say(f"{name}: training for {self.train.epochs} epochs")
            ensure_run(place, features(), variant, self.train, self.backbone.path, self.device, self.reporter, anew)
        scores = ensure_scores(place / runs.EVALUATIONS["best"], self.reporter, evaluate)
        if scenes is not None and features.cache_info().currsize:
            features().unlink()
        return row_of(value, x, scores)

    def _is_same(self, place: Path, variant: Variant, saliency: str) -> bool:
        config = runs.open_run(place, runs.EVALUATED).config
        with open_features(self.features) as file:
            scenes_digest = file.scenes_digest
        found = (config.variant, config.train, config.backbone_digest, config.saliency, config.scenes_digest)
        return found == (variant, self.train, self.backbone.digest, saliency, scenes_digest)

    def _with_saliency(self, scenes: Path, name: str) -> Path:
        """The features with the maps of another model."""
        refuse_link(self.out / "cache")
        out, settings = features_path(self.out / "cache" / "scenes.h5", name), PrecomputeSettings(saliency=name)
        return precompute(scenes, self.backbone.path, out, settings, self.device, self.reporter, volumes_from=self.features)


def bench_for(
    loaded: LoadedPolicy,
    run: Path,
    features: Path,
    backbone: LoadedBackbone,
    settings: SweepSettings,
    out: Path,
    device: torch.device,
    reporter: Reporter = SILENT,
) -> Bench:
    """What short runs beside a policy share: its own settings, as far as its run tells.

    Raises:
        FileError: the features are missing.
    """
    if not features.is_file():
        raise FileError(f"the features the policy was trained on are not at {features}", "name them with --data FILE.features.h5")
    is_run = (run / "config.json").is_file()
    train = runs.open_run(run, "policy").config.train if is_run else build(TrainSettings, {"objective": loaded.meta.objective})
    train = dataclasses.replace(train, epochs=settings.epochs)
    return Bench(loaded.policy.variant, train, features, backbone, out, device, reporter)


def glimpse_budgets(bench: Bench, budgets: tuple[int, int]) -> list[dict[str, Any]]:
    """A row for each number of glimpses a meta-step, k, from the lowest to the highest (see `sweep.row_of`)."""
    with open_features(bench.features) as file:
        saliency = file.saliency
    return [
        bench.row(f"glimpses-{k}", f"k = {k}", float(k), dataclasses.replace(bench.variant, glimpses=k), saliency)
        for k in range(budgets[0], budgets[1] + 1)
    ]


def saliency_models(bench: Bench, scenes: Path) -> list[dict[str, Any]]:
    """A row for each saliency model; volumes are shared, maps computed from the images of the scene file of the features.

    Raises:
        UsageError: the features are another model's than the activation model's, whose volumes are not rounded.
    """
    with open_features(bench.features) as file:
        if file.saliency != "activation":
            raise UsageError(
                f"part saliency starts from features with saliency activation; {bench.features} has {file.saliency}",
                "name other features with --data",
            )
    return [
        bench.row(f"saliency-{name}", name, float(place), bench.variant, name, None if name == "activation" else scenes)
        for place, name in enumerate(SALIENCY)
    ]
