"""What a run's documents hold, as they are read: status.json, config.json, and the lines of metrics.jsonl."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hsal_cli.policy.variant import Variant, with_variant
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.typed import Document

Kind = Literal["backbone", "policy", "count"]


State = Literal["running", "stopped", "failed", "finished"]


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

    @property
    def accuracies(self) -> dict[str, float]:
        """`accuracy` and `test_accuracy`, those that are known."""
        known = {"accuracy": self.accuracy, "test_accuracy": self.test_accuracy}
        return {name: value for name, value in known.items() if value is not None}


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
    """config.json of a backbone.

    Attributes:
        scenes, scenes_digest: the scene file that it was trained on.
        finetune: how.
        weights_used: what it started from, such as imagenet.
    """

    scenes: str
    scenes_digest: str
    finetune: FinetuneSettings
    weights_used: str


@dataclasses.dataclass(frozen=True)
class Row:
    """What every line of metrics.jsonl has: the `epoch`, counted from 1."""

    epoch: int
