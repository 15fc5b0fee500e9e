"""eval.json: what `hsal eval` found, as it is read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hsal_cli.storage.documents import read_document
from hsal_cli.typed import Document


@dataclasses.dataclass(frozen=True)
class Scores:
    """The two scores that everything is compared by.

    Attributes:
        exact_match: share of images whose multiset is named exactly.
        macro_f1: mean F1 of the classes that occur.
    """

    exact_match: float
    macro_f1: float


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
    """An evaluation (see `evaluate.evaluate_file`); what older versions did not write has a default.

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
        scenes_digest: of the scenes that it was evaluated on; None by versions that noted the place alone.
        sample: sampled roll-outs an image; 0: greedy.
        max_steps: cap on meta-steps; None for count classifiers.
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
    scenes_digest: str | None = None
    sample: int = 0
    max_steps: int | None = None


def predictor(name: str) -> str:
    """A predictor that never looks (see `baselines`), in words; `count` is an objective, and another thing."""
    return {"count_only": "number of objects known"}.get(name, name.replace("_", " "))


def read_evaluation(source: Path, made_by: str) -> Evaluation:
    """Reads an evaluation; errors are those of `documents.read_document`."""
    return read_document(source, Evaluation, made_by)
