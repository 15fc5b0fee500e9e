"""Training of the direct baseline, the count classifier, by cross-entropy on the counts: the task of `hsal train --objective count`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.evaluation.evaluate_counts import predicted_counts
from hsal_cli.evaluation.metrics import exact_match_and_f1, label_counts
from hsal_cli.learning.feature_task import FeatureTask
from hsal_cli.learning.rewards import count_labels


class CountTask(FeatureTask):
    """Training of a count classifier as a task of the loop; of the settings it reads epochs, batch size, learning rate, clip and seed."""

    headline = ("loss", "exact_match", "macro_f1")

    def step(self, step: int) -> tuple[int, dict[str, Tensor]]:
        settings = self.settings
        batch = self.batch(step)
        counts = count_labels(batch.labels, self.model.classes).long().to(self.device)  # (B, K)
        # Dropout draws from torch's own state: seeded by the step, a resumed epoch drops what an uninterrupted one would.
        torch.manual_seed((settings.seed * 1_000_003 + self.taken(step)) % 2**63)
        self.model.train()
        logits = self.model(batch.volumes.to(self.device))
        # Summed over the classes: the negative log-likelihood of the whole multiset.
        loss = F.cross_entropy(logits.flatten(0, 1), counts.clamp(max=self.model.most).flatten(), reduction="sum") / len(counts)
        norm = self.descend(loss, step)
        exact = (logits.detach().argmax(-1) == counts).all(1).float().mean()
        return len(counts), {"loss": loss, "train_exact_match": exact, "gradient_norm": norm}

    def validate(self) -> dict[str, float]:
        self.model.eval()
        size = 2 * self.settings.batch_size
        found = torch.cat([counts for _, counts in predicted_counts(self.model, self.held_out, size, self.device)])
        true = label_counts(self.held_out.labels, self.model.classes)
        return dict(zip(("exact_match", "macro_f1"), exact_match_and_f1(true, found.numpy()), strict=True))

    def check(self, row: dict[str, Any]) -> None:
        """There is no collapse to guard against beyond the loop's check of the loss."""
