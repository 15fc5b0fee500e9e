"""Training of the direct baseline, the count classifier, by cross-entropy on the counts: the task of `hsal train --objective count`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.evaluation.count_classifier import CountClassifier
from hsal_cli.evaluation.evaluate_counts import predicted_counts
from hsal_cli.evaluation.metrics import exact_match_and_f1, label_counts
from hsal_cli.learning.loop import one_cycle
from hsal_cli.learning.rewards import count_labels
from hsal_cli.learning.settings import TrainSettings
from hsal_cli.vision.feature_file import FeatureTable


class CountTask:
    """Training of a count classifier as a task of the loop; of the settings it reads epochs, batch size, learning rate, clip and seed.

    Args:
        model: on `device`.
        data: features of the training split, in memory.
        rows: those of them to train on.
        held_out: the validation part, held out of the training split.
        settings: how.
        device: where to compute.
        meta: what the checkpoint says of the model.
    """

    command = "hsal train"
    score_name = "exact_match"
    headline = ("loss", "exact_match", "macro_f1")

    def __init__(
        self,
        model: CountClassifier,
        data: FeatureTable,
        rows: Tensor,
        held_out: FeatureTable,
        settings: TrainSettings,
        device: torch.device,
        meta: dict[str, Any],
    ):
        self.model, self.settings, self.device = model, settings, device
        self.data, self.rows, self.held_out, self._meta = data, rows, held_out, meta
        self.epochs = settings.epochs
        self.optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self.order = rows
        self.epoch = 0

    def steps(self, epoch: int) -> int:
        return math.ceil(len(self.rows) / self.settings.batch_size)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        draw = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + epoch) % 2**63)
        self.order = self.rows[torch.randperm(len(self.rows), generator=draw)]

    def step(self, step: int) -> tuple[int, dict[str, Tensor]]:
        settings = self.settings
        batch = self.data.select(self.order[step * settings.batch_size : (step + 1) * settings.batch_size])
        counts = count_labels(batch.labels, self.model.classes).long().to(self.device)  # (B, K)
        taken = self.epoch * self.steps(0) + step
        # Dropout draws from torch's own state: seeded by the step, a resumed epoch drops what an uninterrupted one would.
        torch.manual_seed((settings.seed * 1_000_003 + taken) % 2**63)
        self.model.train()
        logits = self.model(batch.volumes.to(self.device))
        # Summed over the classes: the negative log-likelihood of the whole multiset.
        loss = F.cross_entropy(logits.flatten(0, 1), counts.clamp(max=self.model.most).flatten(), reduction="sum") / len(counts)
        rate = one_cycle(taken, self.epochs * self.steps(0), settings.learning_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimiser.step()
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

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict()}

    def load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.model.load_state_dict(weights)
        self.optimiser.load_state_dict(state["optimiser"])

    def meta(self) -> dict[str, Any]:
        return self._meta
