"""What an image costs: floating-point operations of the backbone and of the policy, two a multiplication with its addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hsal_cli.policy.hsal import HSAL
from hsal_cli.vision.backbone import ActivationModel


def flops_of(work: Callable[[], Any]) -> int:
    """FLOPs of the products and convolutions of a piece of work, which is done once."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def backbone_flops(model: ActivationModel) -> int:
    """FLOPs of one image's pass through an activation model."""
    weight = next(model.parameters())
    image = torch.zeros(1, 3, model.input_size, model.input_size, dtype=weight.dtype, device=weight.device)
    return flops_of(lambda: model(image))


def policy_flops(policy: torch.nn.Module, meta_steps: float) -> float:
    """FLOPs of an image's roll-out of so many meta-steps; a direct baseline takes none of them, and reads the volume once."""
    weight = next(policy.parameters())
    volume = torch.zeros(1, *policy.volume_shape, dtype=weight.dtype, device=weight.device)
    if not isinstance(policy, HSAL):
        return flops_of(lambda: policy.predict(volume))
    saliency = torch.zeros(1, *policy.map_shape, dtype=weight.dtype, device=weight.device)

    def first_label(t: int, rows: Any, scores: Tensor) -> Tensor:  # never stop
        return torch.zeros(len(scores), dtype=torch.long, device=scores.device)

    once, twice = (
        flops_of(lambda steps=steps: policy(volume, saliency, choose=first_label, max_steps=steps, dense=False)) for steps in (1, 2)
    )
    return once + (meta_steps - 1) * (twice - once)
