"""Training of the direct baseline, the count classifier, by cross-entropy on the counts: the task of `hsal train --objective count`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.evaluation.evaluate import quick_scores
from hsal_cli.policy.count_classifier import DROPOUT
from hsal_cli.runs.seeds import Draws
from hsal_cli.training.feature_task import FeatureTask
from hsal_cli.training.rewards import count_labels


class CountTask(FeatureTask):
    """Training of a count classifier as a task of the loop; of the settings it reads epochs, batch size, learning rate, clip and seed."""

    headline = ("loss", "exact_match", "macro_f1")

    def loss(self, rows: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.data.select(rows[draws.places])
        counts = count_labels(batch.labels, self.model.classes).long().to(self.device)  # (n, K)
        kept = (draws.rand(self.model.features) >= DROPOUT).float() / (1 - DROPOUT)
        logits = self.model(batch.volumes.to(self.device), kept.to(self.device))
        # Summed over the classes: the negative log-likelihood of the whole multiset.
        loss = F.cross_entropy(logits.flatten(0, 1), counts.clamp(max=self.model.most).flatten(), reduction="sum") / len(rows)
        exact = (logits.detach().argmax(-1) == counts).all(1).sum() / len(rows)
        total, exact = distributed.all_reduce(torch.stack([loss.detach(), exact]))
        return loss, {"loss": total, "train_exact_match": exact}

    def validate(self) -> dict[str, float]:
        self.model.eval()
        return quick_scores(self.model, self.held_out, 0, 2 * self.settings.batch_size, self.device)

    def check(self, rows: list[dict[str, Any]]) -> None:
        """There is no collapse to guard against beyond the loop's check of the loss."""
