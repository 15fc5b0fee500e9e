"""Training of the direct baselines, which look nowhere: the tasks of `hsal train --objective count` and `--objective set`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.evaluation.evaluate import quick_scores
from hsal_cli.policy.count_classifier import DROPOUT
from hsal_cli.policy.set_predictor import set_loss
from hsal_cli.runs.seeds import Draws
from hsal_cli.training.feature_task import FeatureTask
from hsal_cli.training.rewards import count_labels
from hsal_cli.vision.devices import moved


class CountTask(FeatureTask):
    """Training of a count classifier, by cross-entropy on the counts; it reads epochs, batch size, learning rate, clip and seed."""

    headline = ("loss", "exact_match", "macro_f1")

    def loss(self, draws: Draws, labels: Tensor, volumes: Tensor, saliency: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        labels = labels[draws.places]
        counts = count_labels(labels, self.model.classes)  # (n, K)
        loss, found = self.summed(volumes, labels, counts, draws)
        exact = (found.detach() == counts).all(1).sum() / draws.size
        total, exact = distributed.all_reduce(torch.stack([loss.detach() / draws.size, exact]))
        return loss / draws.size, {"loss": total, "train_exact_match": exact}

    def summed(self, volumes: Tensor, labels: Tensor, counts: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The loss of a batch, summed over its images, and the counts (n, K) that are named in it."""
        kept = (draws.rand(self.model.features) >= DROPOUT).float() / (1 - DROPOUT)
        logits = self.model(volumes, moved(kept, self.device))
        # Summed over the classes: the negative log-likelihood of the whole multiset.
        loss = F.cross_entropy(logits.flatten(0, 1), counts.clamp(max=self.model.most).flatten(), reduction="sum")
        return loss, logits.argmax(-1)

    def validate(self) -> dict[str, float]:
        self.model.eval()
        return quick_scores(self.model, self.held_out, 0, 2 * self.settings.batch_size, self.device)

    def check(self, rows: list[dict[str, Any]]) -> None:
        """There is no collapse to guard against beyond the loop's check of the loss."""


class SetTask(CountTask):
    """Training of a set predictor, by the cheapest pairing of its queries with the labels."""

    def summed(self, volumes: Tensor, labels: Tensor, counts: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        logits = self.model(volumes)
        named = F.one_hot(logits.argmax(-1), self.model.classes + 1).sum(1)[:, : self.model.classes]
        return set_loss(logits, labels), named
