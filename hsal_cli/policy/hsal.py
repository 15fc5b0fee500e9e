"""HSAL, the hierarchical policy (section 3, figure 7), and the one roll-out that everything runs."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.policy.controllers import Controller, MetaController, Pick, WinnerTakeAll
from hsal_cli.policy.episode import Choose, Episode, Source, draw, with_shift
from hsal_cli.policy.maps import FLAT, gaussian_mask, inhibit, initial_glimpse, min_max, priority_map, widened
from hsal_cli.policy.stop_head import StopHead
from hsal_cli.policy.variant import Variant


class HSAL(nn.Module):
    """Meta-controller, interface, controller, inhibition of return, and where it is asked for a second head for stop.

    Args:
        variant: what it is made of; kept as `variant`, as it is on these maps.
        classes: labels without stop, K.
        volume_shape: (C, h, w) of the volumes.
        volume_scale: standard deviation of the volumes of the training split; they are divided by it. Stored with the weights.
    """

    def __init__(self, variant: Variant, classes: int, volume_shape: tuple[int, int, int], volume_scale: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.stop = classes
        self.volume_shape = tuple(volume_shape)
        _, height, width = self.volume_shape
        self.variant = variant = variant.on_map(height * width)
        self.meta_controller = (
            WinnerTakeAll(variant) if variant.mask == "winner-take-all" else MetaController(variant, classes + 1, height, width)
        )
        self.controller = Controller(variant, classes + 1, self.volume_shape)
        self.stop_head = StopHead() if variant.stop_input == "state+saliency" else None
        self.register_buffer("volume_scale", torch.tensor(float(volume_scale)))

    def forward(
        self,
        volumes: Tensor,
        saliency: Tensor,
        *,
        choose: Choose,
        steps: Tensor | None = None,
        max_steps: int | None = None,
        sample_glimpses: bool = False,
        generator: Source | None = None,
    ) -> Episode:
        """Rolls the policy out over a batch.

        Args:
            volumes: (B, C, h, w), raw, of any float type.
            saliency: (B, h, w), raw, at least 0.
            choose: names the labels; called once a meta-step with the examples still active (see `choosing.Choose`).
            steps: (B,) int64, how many meta-steps each example takes, whatever it is labelled. On the CPU, it spares waiting for a GPU.
            max_steps: without `steps`, an example ends after it names stop (that step is part of the episode), or after this many.
            sample_glimpses: draw glimpses from their distribution; otherwise the likeliest cell is taken.
            generator: where the randomness of glimpses comes from; None: torch's own.

        Raises:
            ValueError: shapes that do not fit, or neither `steps` nor `max_steps`.
        """
        self._check(volumes, saliency, steps, max_steps)
        size, device, dtype = len(volumes), volumes.device, self.volume_scale.dtype
        rows = torch.arange(size, device=device)
        if steps is None:
            counts, limit = None, max_steps
        else:
            # With the longest examples first, those still active are always a prefix of the batch: nothing is copied.
            steps, order = steps.cpu().sort(descending=True, stable=True)
            limit = int(steps[0]) if size else 0
            counts = [int(n) for n in (steps > torch.arange(limit)[:, None]).sum(1)]
            rows = order.to(device)
            volumes, saliency = volumes[rows], saliency[rows]
        saliency = saliency.to(dtype)
        if self.variant.saliency_transform == "sqrt":
            saliency = saliency.clamp(min=0).sqrt()
        first = min_max(saliency, torch.finfo(dtype).tiny)
        live = _Live(
            rows=rows,
            volumes=volumes.flatten(2).to(dtype),
            first=first,
            saliency=saliency if self.variant.update == "raw" else first,
            memory=torch.zeros(size, self.classes + 1, device=device, dtype=dtype),
        )

        def pick(scores: Tensor) -> Tensor:
            return draw(scores, generator, live.rows) if sample_glimpses else scores.argmax(1)

        record = _Record(size)
        for t in range(limit):
            if counts is not None and counts[t] < len(live.rows):
                live.keep(slice(counts[t]))
            if not len(live.rows):
                break
            labels = self._meta_step(t, live, choose, pick, record)
            if counts is None:
                going = (labels != self.stop).nonzero()[:, 0]
                if len(going) < len(labels):
                    live.keep(going)
        return self._episode(record, live)

    def _meta_step(self, t: int, live: _Live, choose: Choose, pick: Pick, record: _Record) -> Tensor:
        memory, update = live.memory, self.variant.update
        saliency = (
            live.saliency
            if update == "normalized"
            else min_max(live.saliency, FLAT if update == "rescaled" else torch.finfo(memory.dtype).tiny)
        )
        mask, gaussians, live.meta_state = self.meta_controller(saliency, memory, live.meta_state)
        priority = priority_map(mask, saliency)
        glimpse = initial_glimpse(mask, live.volumes) / self.volume_scale
        step = self.controller(priority, memory, glimpse, live.volumes, self.volume_scale, live.state, pick)
        stop_shift = step.logits.new_zeros(len(live.rows)) if self.stop_head is None else self.stop_head(live.first, saliency, priority)
        labels = choose(t, live.rows, with_shift(step.logits, stop_shift).detach())
        record.add(
            live.rows,
            labels=labels,
            logits=step.logits,
            stop_shift=stop_shift,
            glimpses=step.glimpses,
            location_logits=step.location_logits,
            values=step.values,
            masks=mask,
            priority=priority,
            saliency=saliency,
            gaussians=gaussians,
        )
        if self.variant.controller_state == "carry":
            live.state = step.state
        width = self.variant.inhibition_width
        inhibiting = mask if width == 1 else gaussian_mask(widened(gaussians, width), *saliency.shape[1:])
        live.saliency = inhibit(live.saliency, inhibiting, step.glimpses, self.variant.inhibition == "normalized")
        live.memory = F.one_hot(labels, self.classes + 1).to(memory.dtype)
        return labels

    def _episode(self, record: _Record, live: _Live) -> Episode:
        """The record as an episode; an empty one where no meta-step was taken."""
        cells, k = live.saliency.shape[1:], self.variant.glimpses
        gaussians = 1 if self.variant.mask == "winner-take-all" else self.variant.gaussians
        floats, longs = live.saliency.new_zeros, live.rows.new_zeros
        return Episode(
            active=record.active(live.rows.device),
            labels=record.stack("labels", longs(0), fill=-1),
            logits=record.stack("logits", floats(0, self.classes + 1)),
            stop_shift=record.stack("stop_shift", floats(0)),
            glimpses=record.stack("glimpses", longs(0, k)),
            location_logits=record.stack("location_logits", floats(0, k, cells.numel())),
            values=record.stack("values", floats(0, k + 1)),
            masks=record.stack("masks", floats(0, *cells)),
            priority=record.stack("priority", floats(0, *cells)),
            saliency=record.stack("saliency", floats(0, *cells)),
            gaussians=record.stack("gaussians", floats(0, gaussians, 5)),
        )

    def _check(self, volumes: Tensor, saliency: Tensor, steps: Tensor | None, max_steps: int | None) -> None:
        if tuple(volumes.shape[1:]) != self.volume_shape:
            raise ValueError(f"volumes have shape {tuple(volumes.shape)}, this policy takes (B, {', '.join(map(str, self.volume_shape))})")
        if tuple(saliency.shape) != (len(volumes), *self.volume_shape[1:]):
            raise ValueError(f"saliency maps have shape {tuple(saliency.shape)}, the volumes {tuple(volumes.shape)}")
        if steps is None and max_steps is None:
            raise ValueError("neither steps nor max_steps is given: the roll-out has no end")
        if steps is not None and steps.shape != volumes.shape[:1]:
            raise ValueError(f"steps have shape {tuple(steps.shape)}, the batch has {len(volumes)} examples")


@dataclasses.dataclass
class _Live:
    """The state of the examples still active; `rows` are their places in the batch."""

    rows: Tensor  # (n,)
    volumes: Tensor  # (n, C, h * w)
    first: Tensor  # (n, h, w), S_0
    saliency: Tensor  # (n, h, w), what inhibition of return has left
    memory: Tensor  # (n, K + 1)
    meta_state: Tensor | None = None  # (n, hidden), the meta-controller's h_{t-1}; None is zeros
    state: Tensor | None = None  # (n, hidden), the controller's

    def keep(self, which: slice | Tensor) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                setattr(self, field.name, value[which])


class _Record:
    """Collects what each meta-step yields for its active examples, and puts it into the order of the batch at the end.

    Args:
        size: examples of the batch, B.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.places: list[Tensor] = []  # of each step's examples, in a (T * B) table
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, rows: Tensor, **parts: Tensor) -> None:
        self.places.append(rows + len(self.places) * self.size)
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part)

    def stack(self, name: str, empty: Tensor, fill: float = 0) -> Tensor:
        """(T, B, ...): one field; `empty` is what no meta-steps at all give."""
        steps = len(self.places)
        joined = torch.cat(self.parts[name]) if steps else empty  # autocast decides the type
        table = joined.new_full((steps * self.size, *empty.shape[1:]), fill)
        if steps:
            table = table.index_copy(0, torch.cat(self.places), joined)
        return table.view(steps, self.size, *empty.shape[1:])

    def active(self, device: torch.device) -> Tensor:
        table = torch.zeros(len(self.places) * self.size, dtype=torch.bool, device=device)
        if self.places:
            table[torch.cat(self.places)] = True
        return table.view(len(self.places), self.size)
