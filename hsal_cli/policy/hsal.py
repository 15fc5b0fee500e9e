"""HSAL, the hierarchical policy (section 3, figure 7), and the one roll-out that everything runs."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from hsal_cli.errors import UsageError
from hsal_cli.policy.controllers import Closer, Controller, MetaController, Pick, Seen, WinnerTakeAll
from hsal_cli.policy.episode import Choose, Episode, Source, draw, with_shift
from hsal_cli.policy.maps import FLAT, finer_columns, gaussian_masks, inhibit, initial_glimpse, min_max, of_rows, one_hot, priority_map
from hsal_cli.policy.shared import HalfPrecision, Linear, SharedWeights
from hsal_cli.policy.stop_head import StopHead
from hsal_cli.policy.variant import Variant

SIDES = {"fine": 2, "window": 1}  # cells that a glimpse reads of, along a side of one of the volume
LOOK_EVERY = 8  # meta-steps between looks, where all are active, at whether any image still names labels


class HSAL(nn.Module):
    """Meta-controller, interface, controller, inhibition of return, and where it is asked for a second head for stop.

    Args:
        variant: what it is made of; kept as `variant`, as it is on these maps.
        classes: labels without stop, K.
        volume_shape: (C + fine, h, w) of the volumes, `variant.fine` of them a finer stage's or a window's.
        volume_scale: standard deviation of the C first channels in the training split; they are divided by it. Stored with the weights.
    """

    def __init__(self, variant: Variant, classes: int, volume_shape: tuple[int, int, int], volume_scale: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.stop = classes
        self.volume_shape = tuple(volume_shape)
        self.channels, (height, width) = volume_shape[0] - variant.fine, volume_shape[1:]
        if variant.fine:  # maps are those of the finer stage
            height, width = variant.fine_side * height, variant.fine_side * width
        self.map_shape = height, width
        self.variant = variant = variant.on_map(height * width)
        if variant.glimpse != "column" and (not variant.fine or variant.fine_side != SIDES[variant.glimpse]):
            if variant.glimpse == "window":
                lacking, hint = "windows", "make them with: hsal precompute --resolution window; or leave --set glimpse=window out"
            else:
                lacking, hint = "finer stage", "give --data the scene file, whose features are made then; or add --variant columns"
            raise UsageError(f"glimpse = {variant.glimpse}, and the features hold no {lacking}", hint)
        self.meta_controller = (
            WinnerTakeAll(variant) if variant.mask == "winner-take-all" else MetaController(variant, classes + 1, height, width)
        )
        self.controller = Controller(variant, classes + 1, self.channels, height, width)
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
        stop_counts: bool = True,
        dense: bool | None = None,
        closer: Closer | None = None,
        half: bool = False,
    ) -> Episode:
        """Rolls the policy out over a batch.

        Args:
            volumes: (B, C + fine, h, w), raw, of any float type; fastest in channels_last order. With `closer` (B, C, h, w).
            saliency: (B, h, w), raw, at least 0; with a finer stage (B, 2h, 2w), and so are all maps.
            choose: names the labels; called once a meta-step with the examples still active (see `choosing.Choose`).
            steps: (B,) int64, how many meta-steps each example takes, whatever it is labelled.
            max_steps: without `steps`, an example ends after it names stop (that step is part of the episode), or after this many; with
                them, the most that one of them may be.
            sample_glimpses: draw glimpses from their distribution; otherwise the likeliest cell is taken.
            generator: where the randomness of glimpses comes from; None: torch's own.
            stop_counts: whether `choose` looks at the score of stop; where it does not, what the second head adds to it is computed for
                all meta-steps at once.
            dense: every example takes `max_steps` meta-steps, and those beyond its end are blotted out afterwards: more work, but the host
                never waits to learn who is still active. Otherwise only those that are take a meta-step. None: wherever `volumes` are not
                on a CPU.
            closer: computes what glimpses read, (n, fine), of the images at some rows around a cell (n,) of each, when they look there;
                None: the last channels of the volumes hold it.
            half: the large products are made in bfloat16, where there are no gradients.

        Raises:
            ValueError: shapes that do not fit, neither `steps` nor `max_steps`, or dense without `max_steps`.
        """
        dense = volumes.device.type != "cpu" if dense is None else dense
        self._check(volumes, saliency, steps, max_steps, dense, closer)
        size, device, dtype = len(volumes), volumes.device, self.volume_scale.dtype
        counts, limit, rows = None, max_steps, slice(size) if dense else torch.arange(size, device=device)
        if steps is not None and not dense:
            # With the longest examples first, those still active are always a prefix of the batch: nothing is copied.
            steps, order = steps.cpu().sort(descending=True, stable=True)
            limit = int(steps[0]) if size else 0
            counts = [int(n) for n in (steps > torch.arange(limit)[:, None]).sum(1)]
            rows = order.to(device)
            volumes, saliency = of_rows(volumes, rows), of_rows(saliency, rows)
        saliency = saliency.to(dtype)
        if self.variant.saliency_transform == "sqrt":
            saliency = saliency.clamp(min=0).sqrt()
        first = min_max(saliency, torch.finfo(dtype).tiny)
        channels, (height, width) = self.channels, self.volume_shape[1:]
        columns = torch.empty(size, height * width, channels, device=device, dtype=dtype)  # so that one column lies together
        live = _Live(
            rows=rows,
            volumes=columns.copy_(volumes[:, :channels].flatten(2).transpose(1, 2)).div_(self.volume_scale),
            fine=None if self.variant.glimpse == "column" or closer else self._finer(volumes[:, channels:]),
            first=first,
            saliency=saliency if self.variant.update == "raw" else first,
            memory=torch.zeros(size, self.classes + 1, device=device, dtype=dtype),
            places=None if dense else torch.arange(size, device=device),
        )

        def pick(scores: Tensor) -> Tensor:
            return draw(scores, generator, live.rows) if sample_glimpses else scores.argmax(1)

        record = _Record(size)
        linear: Linear = HalfPrecision() if half and not torch.is_grad_enabled() else SharedWeights()
        for t in range(limit):
            if counts is not None and counts[t] < len(live.memory):
                live.keep(slice(counts[t]))
            if not len(live.memory):
                break
            labels = self._meta_step(t, live, choose, pick, record, linear, stop_counts, t + 1 == limit, closer)
            if dense:
                if steps is None and t % LOOK_EVERY == LOOK_EVERY - 1 and record.all_named(self.stop):
                    break
            elif counts is None:
                going = (labels != self.stop).nonzero()[:, 0]
                if len(going) < len(labels):
                    live.keep(going)
        return self._episode(record, live, steps, dense)

    def _meta_step(
        self,
        t: int,
        live: _Live,
        choose: Choose,
        pick: Pick,
        record: _Record,
        linear: Linear,
        stop_counts: bool,
        last: bool,
        closer: Closer | None,
    ) -> Tensor:
        memory, update = live.memory, self.variant.update
        saliency = (
            live.saliency
            if update == "normalized"
            else min_max(live.saliency, FLAT if update == "rescaled" else torch.finfo(memory.dtype).tiny)
        )
        gaussians, live.meta_state = self.meta_controller(saliency, memory, live.meta_state, linear)
        mask, inhibiting = self.masks(gaussians, saliency)
        priority = priority_map(mask, saliency)
        seen: Seen = functools.partial(closer, live.rows) if closer else live.volumes if live.fine is None else live.fine
        together = len(mask) == len(live.volumes)
        glimpse = initial_glimpse(mask, live.volumes, None if together else live.places)
        step = self.controller(priority, memory, glimpse, seen, live.state, pick, linear, live.places)
        scores, told = step.logits, {}
        if stop_counts and self.stop_head is not None:
            with torch.no_grad():
                told["stop_shift"] = self.stop_head(live.first, saliency, priority)
            scores = with_shift(scores, told["stop_shift"])
        labels = choose(t, live.rows, scores)
        if not torch.is_grad_enabled():  # else all heads are asked again, with gradients
            told |= {"logits": step.logits, "location_logits": _side_by_side(step.location_logits, priority)}
        record.add(
            live.rows,
            **told,
            labels=labels,
            states=step.states,
            state=step.state,
            glimpses=step.glimpses,
            masks=mask,
            priority=priority,
            saliency=saliency,
            first=live.first,
            gaussians=gaussians,
        )
        if last:
            return labels
        if self.variant.controller_state == "carry":
            live.state = step.state
        # Of glimpses kept apart all but the first may fall on what lies beside the object, which is to be found later.
        looked = step.glimpses[:, :1] if self.variant.glimpses_apart == "yes" else step.glimpses
        live.saliency = inhibit(live.saliency, inhibiting, looked, self.variant.inhibition == "normalized")
        live.memory = one_hot(labels, self.classes + 1, memory)
        return labels

    def masks(self, gaussians: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """M_t (B, h, w) of a mixture (B, G, 5) over S_t (B, h, w), and the wider one that saliency is inhibited by."""
        width = self.variant.inhibition_width
        found = gaussian_masks(gaussians, *saliency.shape[1:], (1.0,) if width == 1 else (1.0, width))
        return found[0], found[-1]

    def _episode(self, record: _Record, live: _Live, steps: Tensor | None, dense: bool) -> Episode:
        """The record as an episode; an empty one where no meta-step was taken."""
        cells, k = live.saliency.shape[1:], self.variant.glimpses
        gaussians = 1 if self.variant.mask == "winner-take-all" else self.variant.gaussians
        found = record.joined()
        if found:
            found |= self._heads(found)
        active = record.active(live.memory.device, steps, self.stop, dense)

        def table(name: str, *shape: int, fill: int = 0) -> Tensor:
            part = found.get(name)  # autocast decides the type
            if part is None:
                part = live.memory.new_zeros(0, *shape, dtype=torch.long if name in ("labels", "glimpses") else None)
            return record.table(part, active, fill, dense)

        return Episode(
            active=active,
            labels=table("labels", fill=-1),
            logits=table("logits", self.classes + 1),
            stop_shift=table("stop_shift"),
            glimpses=table("glimpses", k),
            location_logits=table("location_logits", k, cells.numel()),
            values=table("values", k + 1),
            masks=table("masks", *cells),
            priority=table("priority", *cells),
            saliency=table("saliency", *cells),
            gaussians=table("gaussians", gaussians, 5),
        )

    def _heads(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What no meta-step waits for, for all of them at once: values, and where gradients are wanted, every head's scores."""
        heads: dict[str, Tensor] = {}
        if torch.is_grad_enabled():
            heads["logits"], heads["location_logits"], heads["values"] = self.controller.heads(
                found["states"], found["state"], found["priority"], found["glimpses"]
            )
        else:
            heads["values"] = self.controller.value(found["states"]).squeeze(2)
        if self.stop_head is None:
            heads["stop_shift"] = found["states"].new_zeros(len(found["states"]))
        elif torch.is_grad_enabled() or "stop_shift" not in found:
            heads["stop_shift"] = self.stop_head(found["first"], found["saliency"], found["priority"])
        return heads

    def _finer(self, stage: Tensor) -> Tensor:
        """What glimpses read, so that what one of them reads lies together."""
        return finer_columns(stage) if self.variant.fine_side == 2 else stage.flatten(2).transpose(1, 2).contiguous()

    def _check(
        self, volumes: Tensor, saliency: Tensor, steps: Tensor | None, max_steps: int | None, dense: bool, closer: Closer | None
    ) -> None:
        if closer and self.variant.glimpse != "window":
            raise ValueError(f"glimpse = {self.variant.glimpse} reads the volumes, there is nothing to compute closer")
        shape = (self.channels if closer else self.volume_shape[0], *self.volume_shape[1:])
        if tuple(volumes.shape[1:]) != shape:
            raise ValueError(f"volumes have shape {tuple(volumes.shape)}, this policy takes (B, {', '.join(map(str, shape))})")
        if tuple(saliency.shape) != (len(volumes), *self.map_shape):
            raise ValueError(f"saliency maps have shape {tuple(saliency.shape)}, the volumes {tuple(volumes.shape)}")
        if max_steps is None and (steps is None or dense):
            raise ValueError("neither steps nor max_steps is given, or dense without max_steps: the roll-out has no end")
        if steps is not None and steps.shape != volumes.shape[:1]:
            raise ValueError(f"steps have shape {tuple(steps.shape)}, the batch has {len(volumes)} examples")


def _side_by_side(scores: list[Tensor], priority: Tensor) -> Tensor:
    """Scores (B, k, h * w) of k glimpses, which there may be none of."""
    return torch.stack(scores, 1) if scores else priority.new_zeros(len(priority), 0, priority[0].numel())


@dataclasses.dataclass
class _Live:
    """The state of the examples still active; `rows` are their places in the batch.

    Volumes are large: those of a prefix are seen without being copied, and of other examples `places` says which they are.
    """

    rows: Tensor | slice  # (n,), or all
    volumes: Tensor  # (m, h * w, C), scaled, of these examples and, where they are no prefix, of some that have ended
    first: Tensor  # (n, h, w), S_0
    saliency: Tensor  # (n, h, w), what inhibition of return has left
    memory: Tensor  # (n, K + 1)
    fine: Tensor | None  # raw, of the same m examples, what glimpses read (see `HSAL._finer`); None: volumes' columns, or not computed yet
    places: Tensor | None  # (n,), where in `volumes` and `fine` they are; None: in the same order, all of them
    meta_state: Tensor | None = None  # (n, hidden), the meta-controller's h_{t-1}; None is zeros
    state: Tensor | None = None  # (n, hidden), the controller's

    def keep(self, which: slice | Tensor) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            large = field.name in ("volumes", "fine")
            if value is not None and (isinstance(which, slice) or not large):
                setattr(self, field.name, value[which])


class _Record:
    """Collects what each meta-step yields for its active examples, and puts it into the order of the batch at the end.

    Args:
        size: examples of the batch, B.
    """

    def __init__(self, size: int) -> None:
        self.size, self.steps = size, 0
        self.places: list[Tensor] = []  # of each step's examples, in a (T * B) table; none where all are active
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, rows: Tensor | slice, **parts: Tensor) -> None:
        if not isinstance(rows, slice):
            self.places.append(rows + self.steps * self.size)
        self.steps += 1
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part)

    def all_named(self, stop: int) -> bool:
        """Whether all examples have named stop; waits for the device."""
        return bool((torch.stack(self.parts["labels"]) == stop).any(0).all())

    def joined(self) -> dict[str, Tensor]:
        """Each field, of all meta-steps' examples one after the other; empty where there was none."""
        self._where = torch.cat(self.places) if self.places else None
        return {name: torch.cat(parts) for name, parts in self.parts.items()}

    def active(self, device: torch.device, steps: Tensor | None, stop: int, dense: bool) -> Tensor:
        """(T, B) bool, who took which meta-step."""
        if dense and self.steps:
            if steps is not None:
                return torch.arange(self.steps, device=device)[:, None] < steps
            going = (torch.stack(self.parts["labels"]) != stop).long().cumprod(0)  # has not named stop so far
            return torch.cat([torch.ones_like(going[:1]), going[:-1]]) > 0
        table = torch.zeros(self.steps * self.size, dtype=torch.bool, device=device)
        if self.places:
            table[self._where] = True
        return table.view(self.steps, self.size)

    def table(self, joined: Tensor, active: Tensor, fill: float, dense: bool) -> Tensor:
        """(T, B, ...): one field, with `fill` where an example is not active."""
        shape = (self.steps, self.size, *joined.shape[1:])
        if dense:
            active, joined = active.view(*active.shape, *[1] * (joined.dim() - 1)), joined.view(shape)
            return joined * active if fill == 0 else torch.where(active, joined, fill)
        table = joined.new_full((self.steps * self.size, *joined.shape[1:]), fill)
        if self.places:
            table = table.index_copy(0, self._where, joined)
        return table.view(shape)
