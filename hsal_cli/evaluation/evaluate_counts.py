"""Evaluation of the direct baseline, the count classifier: the same multiset metrics, and no attention to score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.baselines import trivial_baselines
from hsal_cli.evaluation.metrics import label_counts, multiset_metrics
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.progress import SILENT, Reporter

if TYPE_CHECKING:
    from hsal_cli.features.table import FeatureRows, FeatureTable


def predicted_counts(
    model: CountClassifier, table: FeatureRows, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[FeatureTable, Tensor]]:
    """Shows a table, or this worker's stretch of it, to a count classifier, batch by batch and without gradients.

    Yields:
        (part, counts): the rows of the table that make the batch, and (n, K) int64 counts on the CPU.
    """
    own = distributed.stretch(len(table), batch_size)
    for start in own[::batch_size]:
        part = table.select(slice(start, min(start + batch_size, own.stop)))
        with torch.inference_mode():
            yield part, model.predict(part.volumes.to(device)).cpu()


def all_counts(found: Iterable[tuple[FeatureTable, Tensor]], classes: int) -> np.ndarray:
    """(N, K) int64 counts of all rows, those that other workers have predicted included."""
    own = [counts for _, counts in found]
    return np.concatenate(distributed.all_gather(torch.cat([torch.zeros(0, classes, dtype=torch.int64), *own]).numpy()))


def evaluate_counts(
    model: CountClassifier,
    table: FeatureRows,
    class_names: list[str],
    settings: EvalSettings,
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
    train_labels: Tensor | None = None,
) -> dict[str, Any]:
    """Scores a count classifier on a table.

    Args:
        model: on `device`, in evaluation mode.
        table: at least one image.
        class_names: K names.
        settings: batch size, resamples and seed.
        reporter: progress, in images.
        train_labels: (N, L) labels of the training split, padded with -1, for the trivial baselines.

    Returns:
        What `evaluate.evaluate` gives, without `localization`; `attn_saliency` and `max_steps` are None: it looks nowhere.

    Raises:
        UsageError: sampled roll-outs are asked for; it has none.
        Interrupted: a signal asked to stop.
    """
    if settings.sample or settings.max_steps:
        raise UsageError("a count classifier takes no steps, so there are none to sample or to cap", "leave --sample and --max-steps out")
    predicted = []
    with reporter.track("evaluating", len(distributed.stretch(len(table), settings.batch_size)), "images") as advance:
        for part, counts in predicted_counts(model, table, settings.batch_size, device):
            predicted.append((part, counts))
            advance(len(part))
            reporter.check_stop("run the same command again")
    true = label_counts(table.labels, model.classes)
    found = multiset_metrics(true, all_counts(predicted, model.classes), class_names, settings.resamples, settings.seed)
    found["attn_saliency"] = dict.fromkeys(("raw", "normalized", "random", "best"))
    if train_labels is not None and len(train_labels):
        found["baselines"] = trivial_baselines(label_counts(train_labels, model.classes), true)
    return {**found, "sample": 0, "max_steps": None}
