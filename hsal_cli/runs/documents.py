"""What a run's documents hold, as they are read: status.json, config.json, the lines of metrics.jsonl, and what `hsal eval` found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hsal_cli.policy.variant import Variant, with_variant
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.storage.documents import read_document
from hsal_cli.typed import Document

Kind = Literal["backbone", "policy", "count"]
State = Literal["running", "stopped", "failed", "finished"]
NEAR_ZERO = 0.05  # an exact match below it tells epochs apart by chance


@dataclasses.dataclass(frozen=True)
class Scores:
    """Share of images whose multiset is named exactly, and the mean F1 of the classes that occur: all is compared by these two."""

    exact_match: float
    macro_f1: float


@dataclasses.dataclass(frozen=True)
class Status(Document):
    """status.json: what a run is, and how far it has come.

    Attributes:
        kind: of the run.
        state: running (or killed), stopped, failed or finished.
        format: "hsal-run"; without it the folder is never replaced.
        started, updated: times, in UTC.
        device: where it was trained last.
        workers: by how many processes.
        exact_match, accuracy: the best score on held-out images, of a finished policy or count classifier, or of a finished backbone.
        test_accuracy: of a finished backbone, on test images.
        test_exact_match, test_macro_f1: of one that learned from counts, the scores of its own counts on test images.
        images: how many it was trained on; None where an older version did not note it.
        never_looks: predictor that never looks -> its scores on the held-out images of a policy or count classifier.
    """

    kind: Kind
    state: State
    format: str = ""
    started: str | None = None
    updated: str = ""
    device: str | None = None
    workers: int = 1
    exact_match: float | None = None
    accuracy: float | None = None
    test_accuracy: float | None = None
    test_exact_match: float | None = None
    test_macro_f1: float | None = None
    images: int | None = None
    never_looks: dict[str, Scores] = dataclasses.field(default_factory=dict)

    @property
    def accuracies(self) -> dict[str, float]:
        """The scores of a finished backbone, those that are known."""
        names = ("accuracy", "test_accuracy", "test_exact_match", "test_macro_f1")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint that a new policy took its weights from: its `path`, and the `digest` of the weights."""

    path: str
    digest: str


@dataclasses.dataclass(frozen=True)
class PolicyConfig(Document):
    """config.json of a policy or of a count classifier.

    Attributes:
        features, features_digest: the feature file that it was trained on.
        train: how.
        variant: of a policy; a count classifier has none.
        backbone: the run or checkpoint behind the features, where it was known.
        backbone_digest, scenes_digest: what the features were made from.
        saliency: the saliency model of the features.
        init_from: where its first weights are from; None: they were drawn.
        window: images in memory at a time; 0: all of them.
    """

    features: str
    features_digest: str
    train: TrainSettings
    variant: Variant | None = None
    backbone: str | None = None
    backbone_digest: str | None = None
    scenes_digest: str | None = None
    saliency: str = "activation"
    init_from: Start | None = None
    window: int = 0

    @staticmethod
    def stored(values: dict[str, Any]) -> dict[str, Any]:
        """What hsal 0.1 left open, as it took it."""
        return with_variant(values)


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Document):
    """config.json of a backbone: the scene file and how it was trained on it; `weights_used`: what it started from, such as imagenet."""

    scenes: str
    scenes_digest: str
    finetune: FinetuneSettings
    weights_used: str


@dataclasses.dataclass(frozen=True)
class Row:
    """What every line of metrics.jsonl has: the `epoch`, counted from 1."""

    epoch: int


def rank(row: Mapping[str, Any], score: str) -> tuple[float, float, int]:
    """By what the best epoch is the greatest: its score, but none near zero; then macro-F1; then its number."""
    value = max(row[score], NEAR_ZERO) if score == "exact_match" else row[score]
    return value, row.get("macro_f1", 0.0), row["epoch"]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Low and high end of the intervals of the two scores."""

    exact_match: tuple[float, float]
    macro_f1: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class PartScores(Scores):
    """Scores of some of the images; `examples` is how many."""

    examples: int


@dataclasses.dataclass(frozen=True)
class Evaluation(PartScores, Document):
    """An evaluation (see `evaluation.files.evaluate_file`); what older versions did not write has a default.

    Attributes:
        dataset, split: what was evaluated on.
        ci95: 95% intervals over images.
        baselines: predictor that never looks -> its scores; empty without a training split.
        by_count: number of objects, as text -> the scores of the images that have so many.
        localization: score -> value, None where no meta-step counts; None without boxes.
        attn_saliency: scale -> mean saliency at the glimpses, None for count classifiers.
        cardinality_error: mean difference of the numbers of objects.
        objective: what was trained.
        parameters: how many numbers were learned.
        checkpoint: path of what was evaluated.
        features: path of what it was evaluated on; None where a scene file was.
        features_digest: of that feature file; None where there was none, or by versions that noted the place alone.
        scenes_digest: of the scenes that it was evaluated on; None by versions that noted the place alone.
        sample: sampled roll-outs an image; 0: greedy.
        max_steps: cap on meta-steps; None for count classifiers.
        stop_threshold: probability of stop above which it was named; None: where it was likelier than each label.
        flops: floating-point operations an image, by part; None of what is not known.
    """

    dataset: str
    split: str
    ci95: Intervals
    baselines: dict[str, Scores] = dataclasses.field(default_factory=dict)
    by_count: dict[str, PartScores] = dataclasses.field(default_factory=dict)
    localization: dict[str, float | None] | None = None
    attn_saliency: dict[str, float | None] = dataclasses.field(default_factory=dict)
    cardinality_error: float | None = None
    objective: str | None = None
    parameters: int | None = None
    checkpoint: str = ""
    features: str | None = None
    features_digest: str | None = None
    scenes_digest: str | None = None
    sample: int = 0
    max_steps: int | None = None
    stop_threshold: float | None = None
    flops: dict[str, float | None] = dataclasses.field(default_factory=dict)


def read_evaluation(source: Path, made_by: str) -> Evaluation:
    """Reads an evaluation; errors are those of `documents.read_document`."""
    return read_document(source, Evaluation, made_by)


def predictor(name: str) -> str:
    """A predictor that never looks (see `baselines`), in words; `count` is an objective, and another thing."""
    return {"count_only": "number of objects known"}.get(name, name.replace("_", " "))
