"""What every task that trains on precomputed features shares: the order of the data, who computes which rows, a step, what is saved."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.errors import first_line, out_of_memory
from hsal_cli.features.table import FeatureRows, FeatureTable
from hsal_cli.policy.maps import of_rows
from hsal_cli.runs.loop import ModelTask, one_cycle
from hsal_cli.runs.replica import Replica
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.captured import Captured, graph_on
from hsal_cli.vision.devices import free_memory, moved

SHARE = 0.6  # of a GPU's free memory that features may take
BLOCK = 4096  # rows uploaded at a time


def held_on(device: torch.device, data: FeatureRows) -> tuple[Tensor, Tensor] | None:
    """Volumes and saliency maps on the device where they fit there, so that no step copies them; None where they do not."""
    if not isinstance(data, FeatureTable):
        return None
    if device.type == "cpu":
        return data.volumes, data.saliency
    if data.volumes.nbytes + data.saliency.nbytes > SHARE * free_memory(device):
        return None
    size, channels, height, width = data.volumes.shape
    columns = torch.empty(size, height * width, channels, dtype=data.volumes.dtype, device=device)  # as the policy reads them
    for start in range(0, size, BLOCK):
        columns[start : start + BLOCK] = moved(data.volumes[start : start + BLOCK], device).flatten(2).transpose(1, 2)
    return columns.view(size, height, width, channels).permute(0, 3, 1, 2), moved(data.saliency, device)


def mirrored(volumes: Tensor, saliency: Tensor, ways: Tensor, fine: int = 0) -> tuple[Tensor, Tensor]:
    """Volumes (n, C, h, w) and saliency maps (n, h, w) in another arrangement, which holds the same multiset.

    Args:
        ways: (n,) of 0..7; by bits: columns reversed, rows reversed, and rows made columns where there are as many of them.
        fine: channels of a finer stage or a window, the last ones; the cells of that stage, as many as the maps', change places too.
    """
    side = saliency.shape[2] // volumes.shape[3]
    parts = [saliency[:, None], volumes[:, : volumes.shape[1] - fine]]
    parts += [F.pixel_shuffle(volumes[:, -fine:], side)] if fine else []
    turns = [lambda maps: maps.flip(-1), lambda maps: maps.flip(-2), lambda maps: maps.transpose(-1, -2)]
    for bit, turn in enumerate(turns[: 3 if saliency.shape[1] == saliency.shape[2] else 2]):
        chosen = (ways >> bit & 1).bool().to(volumes.device)[:, None, None, None]
        parts = [torch.where(chosen, turn(part), part) for part in parts]
    return torch.cat([parts[1], F.pixel_unshuffle(parts[2], side)], 1) if fine else parts[1], parts[0][:, 0]


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
        views: of each image in `data`: the first of all images, to which `rows` point, then the second of all, and so on. An epoch shows
            each image in one of them, drawn anew.
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
        views: int = 1,
    ):
        self.model, self.settings, self.device = model, settings, device
        self.data, self.rows, self.held_out, self._meta = data, rows, held_out, meta
        self.epochs, self.views = settings.epochs, views
        # Of an optimiser that may be captured, the learning rate is a tensor that a capture reads.
        on_gpu = device.type not in ("cpu", "mps")
        rate = torch.tensor(settings.learning_rate).to(device) if on_gpu else settings.learning_rate
        # Parameters and step count differ by objective (cross-entropy trains no location head), so gradients may be None.
        self.optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=on_gpu)
        self.replica = Replica(model, self.loss)
        self.generator = torch.Generator("cpu" if settings.deterministic else device)
        graph_of = graph_on(device) if self.one_length() and not settings.deterministic else None
        self.captured = None if graph_of is None else Captured(graph_of(self.generator))
        self.warning: str | None = None
        self.most_labels = int((data.labels >= 0).sum(1).max())
        self.labels = moved(data.labels, device)
        self.held = held_on(device, data)
        self.order = self.order_there = rows
        self.epoch = 0

    def one_length(self) -> bool:
        """Whether a step on a GPU makes the same launches whatever it reads, and waits for none."""
        return False

    def steps(self, epoch: int) -> int:
        return math.ceil(len(self.rows) / self.settings.batch_size)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        draw = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + epoch) % 2**63)
        self.order = self.data.shuffled(self.rows, draw)
        if self.views > 1:
            self.order = self.order + len(self.data) // self.views * torch.randint(self.views, self.order.shape, generator=draw)
        self.order_there = moved(self.order, self.device)

    def step(self, step: int) -> tuple[int, dict[str, Tensor]]:
        size = self.settings.batch_size
        places = slice(step * size, min((step + 1) * size, len(self.order)))
        self.model.train()
        draws = Draws.shared(self.settings.seed + 1, self.taken(step), places.stop - places.start, self.generator)
        self.set_rate(step)
        parts = self.parts(places, draws)
        if self.captured is None or draws.size < size:
            return draws.size, self.learn(draws, *parts)
        try:
            return draws.size, self.captured(lambda *held: self.learn(draws, *held), parts)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self.captured = None
            self.warning = f"a step could not be captured as a CUDA graph, and each is launched anew: {first_line(error)}"
            self.generator = torch.Generator(self.device)  # the other one may still wait for the capture's end
            return self.step(step)

    def learn(self, draws: Draws, *parts: Tensor) -> dict[str, Tensor]:
        """What a step computes: gradients and new weights; returns what to log."""
        logged = self.replica.backward(draws, *parts)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step()
        return {**logged, "gradient_norm": norm.to(logged["loss"].dtype)}

    @abc.abstractmethod
    def loss(self, draws: Draws, labels: Tensor, volumes: Tensor, saliency: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """This worker's part of a batch's loss (see `replica.Loss`).

        Args:
            draws: the randomness of the whole batch; their `places` are the rows that this worker computes.
            labels, volumes, saliency: see `parts`.
        """

    def parts(self, places: slice, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """What a step reads, on the device: the labels (B, L) of the whole batch, and of the rows that this worker computes the volumes
        (n, C, h, w), in half precision, and saliency maps (n, h, w).
        """
        order = self.order_there[places]
        if self.held is not None:
            rows = order[draws.places]
            volumes, saliency = (of_rows(part, rows) for part in self.held)
        else:
            batch = self.data.select(self.order[places][draws.places])
            volumes, saliency = moved(batch.volumes, self.device), moved(batch.saliency, self.device)
        if self.settings.mirror:
            volumes, saliency = mirrored(volumes, saliency, draws.randint(8), self.data.fine)
        return self.labels[order], volumes, saliency

    def taken(self, step: int) -> int:
        """How many steps come before this one, over all epochs."""
        return self.epoch * self.steps(0) + step

    def set_rate(self, step: int) -> None:
        """The learning rate of a step, by the schedule."""
        rate = self.settings.learning_rate
        if self.settings.schedule == "one-cycle":
            rate = one_cycle(self.taken(step), self.epochs * self.steps(0), rate)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
