"""What an image costs: floating-point operations of the backbone's looks and of the policy, two a multiplication with its addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hsal_cli.policy.episode import Episode
from hsal_cli.policy.hsal import HSAL
from hsal_cli.vision.backbone import ActivationModel


def flops_of(work: Callable[[], Any]) -> int:
    """FLOPs of the products and convolutions of a piece of work, which is done once."""
    # With gradients, as the counter's hooks on modules ask for them.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def backbone_flops(model: ActivationModel) -> tuple[int, int]:
    """FLOPs of an image's pass through an activation model, or of its first look alone, and of each window (0: it has none)."""
    weight = next(model.parameters())
    image = torch.zeros(1, 3, model.input_size, model.input_size, dtype=weight.dtype, device=weight.device)
    if not model.windows:
        return flops_of(lambda: model(image)), 0
    first = torch.zeros(1, dtype=torch.long, device=weight.device)
    return flops_of(lambda: model.first_look(image)), flops_of(lambda: model.look_closer(image, first, first))


def cells_looked_at(episode: Episode) -> Tensor:
    """At how many cells each image was looked at, (B,); a cell that was glimpsed again counts once."""
    steps, size, k = episode.glimpses.shape
    cells = episode.masks[0, 0].numel() if steps else 1
    seen = torch.zeros(size, cells + 1, dtype=torch.bool, device=episode.glimpses.device)
    taken = torch.where(episode.active[..., None], episode.glimpses, cells)  # the last column is of steps that were not taken
    return seen.scatter_(1, taken.transpose(0, 1).reshape(size, steps * k), True)[:, :cells].sum(1)


def policy_flops(policy: torch.nn.Module, meta_steps: float) -> float:
    """FLOPs of an image's roll-out of so many meta-steps; a direct baseline takes none of them, and reads the volume once."""
    weight = next(policy.parameters())
    volume = torch.zeros(1, *policy.volume_shape, dtype=weight.dtype, device=weight.device)
    if not isinstance(policy, HSAL):
        return flops_of(lambda: policy.predict(volume))
    saliency = torch.zeros(1, *policy.map_shape, dtype=weight.dtype, device=weight.device)

    def first_label(t: int, rows: Any, scores: Tensor) -> Tensor:  # never stop
        return torch.zeros(len(scores), dtype=torch.long, device=scores.device)

    @torch.no_grad()  # with gradients all heads are asked a second time
    def roll_out(steps: int) -> None:
        policy(volume, saliency, choose=first_label, max_steps=steps, dense=False)

    once, twice = (flops_of(lambda steps=steps: roll_out(steps)) for steps in (1, 2))
    return once + (meta_steps - 1) * (twice - once)
