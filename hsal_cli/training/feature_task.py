"""What every task that trains on precomputed features shares: the order of the data, who computes which rows, a step, what is saved."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor, nn

from hsal_cli.features.table import FeatureRows, FeatureTable
from hsal_cli.runs.loop import ModelTask, one_cycle
from hsal_cli.runs.replica import Replica
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import TrainSettings


class FeatureTask(ModelTask, abc.ABC):
    """Training on features as a task of the loop, without its loss and scores.

    Args:
        model: on `device`.
        data: features of the training split.
        rows: those of them to train on.
        held_out: the validation part, held out of the training split.
        settings: how.
        device: where to compute.
        meta: what the checkpoint says of the model.
    """

    command = "hsal train"
    score_name = "exact_match"

    def __init__(
        self,
        model: nn.Module,
        data: FeatureRows,
        rows: Tensor,
        held_out: FeatureTable,
        settings: TrainSettings,
        device: torch.device,
        meta: dict[str, Any],
    ):
        self.model, self.settings, self.device = model, settings, device
        self.data, self.rows, self.held_out, self._meta = data, rows, held_out, meta
        self.epochs = settings.epochs
        # Parameters and step count differ by objective (cross-entropy trains no location head), so gradients may be None.
        self.optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self.replica = Replica(model, self.loss)
        self.order = rows
        self.epoch = 0

    def steps(self, epoch: int) -> int:
        return math.ceil(len(self.rows) / self.settings.batch_size)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        draw = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + epoch) % 2**63)
        self.order = self.data.shuffled(self.rows, draw)

    def step(self, step: int) -> tuple[int, dict[str, Tensor]]:
        size = self.settings.batch_size
        rows = self.order[step * size : (step + 1) * size]
        self.model.train()
        logged = self.replica.backward(rows, Draws.shared(self.settings.seed + 1, self.taken(step), len(rows)))
        return len(rows), {**logged, "gradient_norm": self.descend(step)}

    @abc.abstractmethod
    def loss(self, rows: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """This worker's part of a batch's loss (see `replica.Loss`).

        Args:
            rows: of the data, the whole batch.
            draws: its randomness; their `places` are the rows that this worker computes.
        """

    def taken(self, step: int) -> int:
        """How many steps come before this one, over all epochs."""
        return self.epoch * self.steps(0) + step

    def descend(self, step: int) -> Tensor:
        """Takes a step of the optimiser along the learning-rate schedule; returns the gradient's norm before it was clipped."""
        rate = self.settings.learning_rate
        if self.settings.schedule == "one-cycle":
            rate = one_cycle(self.taken(step), self.epochs * self.steps(0), rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step()
        return norm
