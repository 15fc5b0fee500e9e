"""What a policy did with each image of a split: confusion of labels, exact match by count, and images worth looking at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hsal_cli.evaluation.evaluate import STOPPED_HINT, roll_outs
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.models.load import LoadedPolicy
from hsal_cli.models.look import Look, look_at
from hsal_cli.progress import SILENT, Reporter

if TYPE_CHECKING:
    from hsal_cli.features.table import FeatureTable
    from hsal_cli.policy.episode import Episode

BATCH = 256  # images rolled out together


@dataclasses.dataclass(frozen=True)
class Detail:
    """Greedy roll-outs of N images.

    Attributes:
        true, named: (N, K) counts of labels.
        confidence: (N,) the lowest probability of an image's choices, stop included; in [0, 1].
    """

    true: np.ndarray
    named: np.ndarray
    confidence: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        """(N,) bool, whether the multiset is right."""
        return (self.true == self.named).all(axis=1)

    @property
    def errors(self) -> np.ndarray:
        """(N,) labels missed plus labels wrongly named."""
        return np.abs(self.true - self.named).sum(axis=1)


def detail(loaded: LoadedPolicy, table: FeatureTable, device: torch.device | str = "cpu", reporter: Reporter = SILENT) -> Detail:
    """Rolls a policy out greedily over a table of at least one image.

    Raises:
        Interrupted: a signal asked to stop.
    """
    classes = loaded.policy.classes
    named, confidence = [], []
    with reporter.track("looking at test images", len(table), "images") as advance:
        for part, episode in roll_outs(loaded.policy, table, loaded.max_steps, BATCH, device):
            named.append(label_counts(episode.labels.T, classes))
            confidence.append(_confidence(episode))
            advance(len(part))
            reporter.check_stop(STOPPED_HINT)
    return Detail(label_counts(table.labels, classes), np.concatenate(named), np.concatenate(confidence))


def _confidence(episode: Episode) -> np.ndarray:
    """(B,) the lowest probability among the labels chosen at the active meta-steps."""
    from hsal_cli.vision.devices import on_host

    chosen = episode.scores.softmax(-1).gather(-1, episode.labels.clamp(min=0)[..., None])[..., 0]
    return on_host(torch.where(episode.active, chosen, 1.0).amin(0)).numpy()


def confusion(true: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Which label was named for which, counted in objects.

    A multiset does not say which label was meant for which object. Those on both sides are right; of an image's other labels, each
    missed one is shared evenly among the wrong ones, as the mean over all ways to pair them would. Where there are more missed than
    wrong labels, or the other way round, the rest has no partner.

    Args:
        true, named: (N, K) counts.

    Returns:
        (K + 1, K + 1) float64: rows are true labels, columns named ones; the last row stands for labels named for no object, the last
        column for objects that no label was named for. The sum of row c is the number of objects of class c.
    """
    classes = true.shape[1]
    hits = np.minimum(true, named)
    found = np.zeros((classes + 1, classes + 1))
    found[:classes, :classes] = np.diag(hits.sum(axis=0))
    missed, wrong = (true - hits).astype(np.float64), (named - hits).astype(np.float64)
    most = np.maximum(missed.sum(axis=1), wrong.sum(axis=1))
    rows = most > 0
    missed, wrong, most = missed[rows], wrong[rows], most[rows, None]
    found[:classes, :classes] += (missed / most).T @ wrong
    found[:classes, classes] = (missed * (1 - wrong.sum(axis=1, keepdims=True) / most)).sum(axis=0)
    found[classes, :classes] = (wrong * (1 - missed.sum(axis=1, keepdims=True) / most)).sum(axis=0)
    return found


def exact_by_count(found: Detail) -> dict[int, tuple[int, float]]:
    """True number of objects -> (images, share of exact matches)."""
    sizes, exact = found.true.sum(axis=1), found.exact
    return {int(size): (int((sizes == size).sum()), float(exact[sizes == size].mean())) for size in np.unique(sizes)}


def choose(found: Detail, most: int = 3) -> dict[str, list[int]]:
    """Images worth looking at, by rule; of equals the first.

    Returns:
        kind -> rows, best example first; kinds without an image are left out:
        `best`: exact matches with the most objects, the surest first;
        `worst`: most errors, the surest first;
        `repeats`: the first images in which a label repeats, right or wrong;
        `uncertain`: the least confident choices.
    """
    every = np.arange(len(found.true))
    right, wrong = every[found.exact], every[~found.exact]
    sizes, repeated = found.true.sum(axis=1), every[(found.true > 1).any(axis=1)]
    ordered = {
        "best": right[np.lexsort((-found.confidence[right], -sizes[right]))],
        "worst": wrong[np.lexsort((-found.confidence[wrong], -found.errors[wrong]))],
        "repeats": repeated,
        "uncertain": np.argsort(found.confidence, kind="stable"),
    }
    return {kind: rows[:most].tolist() for kind, rows in ordered.items() if len(rows)}


def look_at_rows(
    loaded: LoadedPolicy, part: FeatureTable, rows: Sequence[int], images: Sequence[np.ndarray], device: torch.device | str = "cpu"
) -> list[tuple[Look, list[str]]]:
    """Trajectories of chosen test images, with their true labels.

    Args:
        part: the features of these images.
        rows: their numbers in the split.
        images: uint8 (H, W) or (H, W, 3) each.
    """
    episode = next(roll_outs(loaded.policy, part, loaded.max_steps, len(rows), device))[1]
    found = []
    for place, (row, image) in enumerate(zip(rows, images, strict=True)):
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        truth = [loaded.classes[label] for label in part.labels[place].tolist() if label >= 0]
        found.append((look_at(episode, place, f"test image {row}", image, loaded.classes), truth))
    return found
