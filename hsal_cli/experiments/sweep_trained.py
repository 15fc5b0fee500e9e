"""The parts of a sweep that train: short runs at each glimpse budget k, or with each saliency model, all alike but for that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.evaluate import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.sweep import AGAIN, kept_scores, row_of
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import SALIENCY, PrecomputeSettings
from hsal_cli.features.table import features_path, open_features
from hsal_cli.models.load import LoadedPolicy, load_policy
from hsal_cli.policy.variant import Variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs import run as runs
from hsal_cli.runs.scores import Evaluation, read_evaluation
from hsal_cli.runs.settings import SweepSettings, TrainSettings
from hsal_cli.settings import build
from hsal_cli.storage.atomic import write_json
from hsal_cli.storage.files import refuse_link
from hsal_cli.training.train import resume, train
from hsal_cli.vision.backbone import LoadedBackbone


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the short runs share.

    Attributes:
        variant, train: their settings, those of the swept policy but for the number of epochs.
        features: the feature file that the swept policy was trained on.
        backbone: the one behind it.
        out: the sweep's folder.
        device: where to compute.
        reporter: progress.
    """

    variant: Variant
    train: TrainSettings
    features: Path
    backbone: LoadedBackbone
    out: Path
    device: torch.device
    reporter: Reporter = SILENT

    def scores(self, name: str, variant: Variant, features: Path | None, saliency: str) -> Evaluation | None:
        """The scores on the test split of the run of that name, trained as far as it is not.

        Args:
            name: of the run, in OUT/runs.
            variant: its policy's.
            features: what it is trained on; None: only say what is there.
            saliency: their saliency model.

        Returns:
            Its evaluation; without features, None where the run is not finished or was trained otherwise.
        """
        place = self.out / "runs" / name
        state = runs.Run(place).status.state if (place / "status.json").is_file() else None
        same = state is not None and self._is_same(place, variant, saliency)
        kept = kept_scores(place / runs.EVALUATIONS["best"], self.reporter) if same and state == "finished" else None
        if kept is not None:
            return kept
        if features is None:
            return None
        self.reporter.say(f"{name}: training for {self.train.epochs} epochs")
        if same and (place / "checkpoints" / "index.json").is_file():
            resume(place, self.device, self.reporter, features=features)
        else:  # a run of other settings in this folder was made by an earlier sweep; this one replaces it
            train(features, place, variant, self.train, self.device, self.reporter, overwrite=True, backbone=self.backbone.path)
        scores = evaluate_file(load_policy(place, "best", self.device), features, EvalSettings(), self.device, self.reporter)
        write_json(place / runs.EVALUATIONS["best"], scores)
        return read_evaluation(place / runs.EVALUATIONS["best"], "hsal sweep")

    def _is_same(self, place: Path, variant: Variant, saliency: str) -> bool:
        config = runs.open_run(place, runs.EVALUATED).config
        with open_features(self.features) as file:
            scenes_digest = file.scenes_digest
        found = (config.variant, config.train, config.backbone_digest, config.saliency, config.scenes_digest)
        return found == (variant, self.train, self.backbone.digest, saliency, scenes_digest)


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
    rows = []
    with open_features(bench.features) as file:
        saliency = file.saliency
    for k in range(budgets[0], budgets[1] + 1):
        bench.reporter.check_stop(AGAIN)
        scores = bench.scores(f"glimpses-{k}", dataclasses.replace(bench.variant, glimpses=k), bench.features, saliency)
        rows.append(row_of(f"k = {k}", float(k), scores))
    return rows


def saliency_models(bench: Bench, scenes: Path) -> list[dict[str, Any]]:
    """A row for each saliency model; volumes are shared, maps computed from the images.

    Args:
        bench: the shared settings.
        scenes: the scene file of the features.

    Raises:
        UsageError: the features are another model's than the activation model's, whose volumes are not rounded.
    """
    with open_features(bench.features) as file:
        if file.saliency != "activation":
            raise UsageError(
                f"part saliency starts from features with saliency activation; {bench.features} has {file.saliency}",
                "name other features with --data",
            )
    rows = []
    for place, name in enumerate(SALIENCY):
        bench.reporter.check_stop(AGAIN)
        scores = bench.scores(f"saliency-{name}", bench.variant, None, name)
        if scores is None:
            features = bench.features if name == "activation" else _with_saliency(bench, scenes, name)
            scores = bench.scores(f"saliency-{name}", bench.variant, features, name)
            if features != bench.features:
                features.unlink()
        rows.append(row_of(name, float(place), scores))
    return rows


def _with_saliency(bench: Bench, scenes: Path, name: str) -> Path:
    refuse_link(bench.out / "cache")
    out = features_path(bench.out / "cache" / "scenes.h5", name)
    settings = PrecomputeSettings(saliency=name)
    return precompute(scenes, bench.backbone.path, out, settings, bench.device, bench.reporter, volumes_from=bench.features)
