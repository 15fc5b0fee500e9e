"""How far the answers of a policy can be trusted: what the images that it knows are like, and how sure it is when it is right."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from hsal_cli.errors import UsageError

TAIL = 0.001  # share of the known images left out at either end of a range
WIDENED = 2.0  # a range of n images is widened by WIDENED / sqrt(n) of its width: the fewer they are, the less their extremes tell
# What it means for an image that a statistic is below its range, or above.
WORDS = {
    "saliency": ("there is less in it", "there is more in it"),
    "background": ("its background is emptier", "its background is busier"),
    "contrast": ("nothing stands out from the rest", "one place stands out by far"),
    "activity": ("fewer features respond", "more features respond"),
}


@dataclasses.dataclass(frozen=True)
class Trust:
    """What is kept with a policy so that it can say how sure it is, and when it is shown something else than it knows.

    Attributes:
        temperature: scores are divided by it before they become probabilities (Guo et al. 2017); which label is named never changes.
        ranges: name of a statistic (see `statistics`) -> the lowest and highest value of images like those of training; none: all pass.
    """

    temperature: float = 1.0
    ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError(f"a temperature of {self.temperature} is not above 0", "train again")

    def unlike(self, volumes: Tensor, saliency: Tensor) -> list[list[str]]:
        """How each of B images differs from all that the policy knows; an empty list where it does not.

        Args:
            volumes, saliency: as in `statistics`.
        """
        said: list[list[str]] = [[] for _ in range(len(saliency))]
        for name, values in statistics(volumes, saliency).items():
            low, high = self.ranges.get(name, (-math.inf, math.inf))
            for place, value in enumerate(values.tolist()):
                if not low <= value <= high:
                    said[place].append(WORDS[name][value > high])
        return said


def statistics(volumes: Tensor, saliency: Tensor) -> dict[str, Tensor]:
    """What tells images of one kind from those of another: of the features, for those are all that training has of its images.

    Args:
        volumes: (B, C, h, w), as the activation model gave them.
        saliency: (B, h, w), raw, >= 0.

    Returns:
        (B,) float64 each: `saliency`, the log of its mean; `background`, the log of its median; `contrast`, the log of its maximum over
        its mean; `activity`, the share of activations above 0.
    """
    cells = saliency.flatten(1).cpu().double()
    mean, peak = cells.mean(1), cells.amax(1)
    return {
        "saliency": mean.log1p(),
        "background": cells.median(1).values.log1p(),
        "contrast": (peak / mean.clamp(min=1e-9)).log1p(),
        "activity": (volumes.flatten(1) > 0).float().mean(1).cpu().double(),
    }


def ranges_of(known: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """The ranges of statistics, each (n,), of n known images, at least one."""
    found = {}
    for name, values in known.items():
        low, high = (float(value) for value in torch.quantile(values, torch.tensor([TAIL, 1 - TAIL], dtype=values.dtype)))
        room = WIDENED / math.sqrt(len(values)) * (high - low)
        found[name] = (low - room, high + room)
    return found
