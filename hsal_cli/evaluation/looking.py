"""Does it matter where it looks? Exact match again, with what a glimpse or the covert mask reads replaced at test time.

What a part is worth is what is lost without it. Inhibition of return keeps to the policy's own mask, so that what is replaced is what is
read alone: P_t and g_0 of a mask, the columns of glimpses. A cell that a glimpse falls on loses its saliency, as ever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hsal_cli import distributed
from hsal_cli.evaluation.attention import naming_steps
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.policy.controllers import ControllerStep, Pick
from hsal_cli.policy.episode import Choose, Episode, greedy
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.maps import gaussian_masks, highest_cell
from hsal_cli.policy.shared import Linear

GLIMPSES = ("random", "center", "saliency", "second", "none")
MASKS = ("uniform", "center", "saliency", "turned")
FEW = 100  # images that tell nothing of what decides
WORTHLESS = 0.01  # of exact match: a part whose loss is surely below it decides nothing


class OtherGlimpses(nn.Module):
    """A controller whose glimpses fall elsewhere.

    Args:
        controller: the policy's own.
        way: random: cells drawn evenly; center: the middle cell; saliency: the maximum of S_t; second: the cell that its location head
            likes second best; none: its own cells, but nothing is seen there.
        saliency: gives S_t of this meta-step, (B, h, w).
    """

    def __init__(self, controller: nn.Module, way: str, saliency: Callable[[], Tensor]):
        super().__init__()
        self.controller, self.way, self.saliency = controller, way, saliency
        self.value = controller.value
        self.generator = torch.Generator()

    def forward(
        self,
        priority: Tensor,
        memory: Tensor,
        glimpse: Tensor,
        seen: Tensor,
        state: Tensor | None,
        pick: Pick,
        linear: Linear,
        rows: Tensor | None = None,
    ) -> ControllerStep:
        """One meta-step, as `Controller` takes it."""
        height, width = priority.shape[1:]

        def other(scores: Tensor) -> Tensor:
            size, cells = scores.shape
            if self.way == "random":
                return torch.randint(cells, (size,), generator=self.generator).to(scores.device)
            if self.way == "center":
                return torch.full((size,), height // 2 * width + width // 2, device=scores.device)
            if self.way == "saliency":
                return self.saliency().flatten(1).argmax(1)
            return scores.topk(min(2, cells), dim=1).indices[:, -1] if self.way == "second" else pick(scores)

        shown = torch.zeros_like(seen) if self.way == "none" else seen
        return self.controller(priority, memory, glimpse, shown, state, other, linear, rows)


class OtherMask:
    """In place of `HSAL.masks`: another mask is read; its sum is the own one's, and the own one inhibits.

    Args:
        policy: whose masks.
        way: uniform; center, saliency: a Gaussian in the middle or at the maximum of S_t; turned: its own by half a
            turn; None: its own.
    """

    def __init__(self, policy: HSAL, way: str | None):
        self.own, self.way, self.beta = policy.masks, way, sum(policy.variant.beta) / 2  # 1/cells^2
        self.saliency: Tensor | None = None

    def __call__(self, gaussians: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """As `HSAL.masks`."""
        self.saliency = saliency
        mask, inhibiting = self.own(gaussians, saliency)
        return mask if self.way is None else self._other(mask, saliency), inhibiting

    def _other(self, mask: Tensor, saliency: Tensor) -> Tensor:
        if self.way == "turned":
            return mask.flip(1, 2)
        height, width = saliency.shape[1:]
        if self.way == "uniform":
            made = torch.ones_like(mask)
        else:
            middle = saliency.new_tensor([(height + 1) / 2, (width + 1) / 2]).expand(len(saliency), 2)
            place = middle if self.way == "center" else highest_cell(saliency)
            ones = saliency.new_ones(len(saliency), 1)
            made = gaussian_masks(torch.cat([ones, self.beta * ones, self.beta * ones, place], 1)[:, None], height, width, (1.0,))[0]
        return made * (mask.sum((1, 2), keepdim=True) / made.sum((1, 2), keepdim=True))


def replaced(policy: HSAL, glimpses: str | None = None, mask: str | None = None) -> HSAL:
    """The same policy, sharing its weights, of which one part reads something else.

    Args:
        policy: left as it is.
        glimpses: one of `GLIMPSES`.
        mask: one of `MASKS`.
    """
    other = copy.copy(policy)
    other._modules = dict(policy._modules)
    other.masks = masks = OtherMask(policy, mask)
    if glimpses is not None:
        other.controller = OtherGlimpses(policy.controller, glimpses, lambda: masks.saliency)
    return other


class Looking:
    """Collects roll-outs with replaced parts beside the policy's own, up to so many images.

    Args:
        policy: in evaluation mode.
        max_steps: cap on meta-steps.
        seed: of random cells and of the bootstrap.
        resamples: of the bootstrap.
        images: of the first so many of the split.
        first: row of the split at which this worker begins.
        choose: names the labels.
    """

    def __init__(self, policy: HSAL, max_steps: int, seed: int, resamples: int, images: int, first: int = 0, choose: Choose = greedy):
        ways = {("glimpses", way): replaced(policy, glimpses=way) for way in (GLIMPSES if policy.variant.glimpses else ())}
        self._policies = ways | {("masks", way): replaced(policy, mask=way) for way in MASKS}
        self._classes, self._max_steps, self._seed, self._resamples = policy.classes, max_steps, seed, resamples
        self._own: list[np.ndarray] = []
        self._right: dict[tuple[str, str], list[np.ndarray]] = {way: [] for way in self._policies}
        self._together: list[np.ndarray] = []  # of each meta-step that names a label, whether its glimpses share one cell
        self._row, self._images, self._choose = first, images, choose

    def add(self, volumes: Tensor, saliency: Tensor, labels: Tensor, own: Episode) -> None:
        """Adds a batch.

        Args:
            volumes: (B, C, h, w), raw, on the policy's device, as `saliency` (B, h, w) is.
            labels: (B, L), padded with -1.
            own: what the policy did with them.
        """
        from hsal_cli.vision.devices import half_gains

        size, start = min(max(self._images - self._row, 0), len(labels)), self._row
        self._row += len(labels)
        if not size:
            return
        true = label_counts(labels[:size], self._classes)
        self._own.append((label_counts(own.labels.T[:size], self._classes) == true).all(1))
        cells = own.glimpses[:, :size].cpu().numpy()[naming_steps(own)[:, :size]]
        self._together.append((cells[:, 1:] == cells[:, :1]).all(1) if cells.shape[1] > 1 else np.zeros(0, dtype=bool))
        half = half_gains(volumes.device)
        for way, policy in self._policies.items():
            if way == ("glimpses", "random"):
                policy.controller.generator.manual_seed(self._seed * 1_000_003 + start)
            with torch.inference_mode():
                episode = policy(volumes[:size], saliency[:size], choose=self._choose, max_steps=self._max_steps, half=half)
            self._right[way].append((label_counts(episode.labels.T, self._classes) == true).all(1))

    def scores(self) -> dict[str, Any]:
        """What was found, of all workers together.

        Returns:
            `images`, `exact_match` of the policy itself, and `glimpses` and `masks`: of each way `exact_match`, `lost` (what the policy
            has more) and `lost_ci95`, of the paired difference; `one_cell`, the share of the meta-steps that name a label whose
            glimpses all fall on one cell, None where there are no two.
        """
        own = _joined(self._own)
        found: dict[str, Any] = {"images": len(own), "exact_match": float(own.mean()), "glimpses": {}, "masks": {}}
        draws = np.random.default_rng(self._seed).integers(len(own), size=(self._resamples, len(own)))
        for (part, way), right in self._right.items():
            other = _joined(right)
            lost = own.astype(float) - other
            low, high = np.percentile(lost[draws].mean(1), (2.5, 97.5))
            found[part][way] = {"exact_match": float(other.mean()), "lost": float(lost.mean()), "lost_ci95": [float(low), float(high)]}
        together = _joined(self._together)
        return {**found, "one_cell": float(together.mean()) if len(together) else None}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(distributed.all_gather(np.concatenate([np.zeros(0, dtype=bool), *parts])))


def verdicts(looking: dict[str, Any]) -> list[str]:
    """What the scores say in words: a part decides nothing where every replacement surely costs less than `WORTHLESS`, and matters where
    one surely costs something; glimpses where cells drawn at random do.
    """
    found = []
    if looking.get("images", FEW) < FEW:
        return [f"{looking['images']} images are too few to say whether it matters where it looks"]
    for part, text in (("glimpses", "where its glimpses fall"), ("masks", "where its covert mask lies")):
        blind, ways = looking[part].get("none"), {way: row for way, row in looking[part].items() if way != "none"}
        if blind and blind["lost_ci95"][0] > 0:
            found.append(f"that there are glimpses matters: none cost {blind['lost']:.3f} of exact match")
        if not ways:
            continue
        worst = max(ways, key=lambda way: ways[way]["lost"])
        lost, (low, high) = ways[worst]["lost"], ways[worst]["lost_ci95"]
        if high < WORTHLESS:
            found.append(f"{text} decides nothing: no replacement costs more than {max(lost, 0):.3f} of exact match")
            continue
        if low <= 0:
            found.append(f"whether it matters {text} is not settled: {worst} in its place costs {lost:.3f} ({low:.3f} to {high:.3f})")
            continue
        drawn = ways.get("random", ways[worst])
        if drawn["lost_ci95"][0] <= 0:
            said = f"{text} is not shown to matter: random in its place costs nothing ({drawn['lost']:.3f} of exact match)"
            found.append(f"{said}, {worst} {lost:.3f}")
            continue
        found.append(f"{text} matters: {worst} in its place costs {lost:.3f} of exact match")
        if ways["saliency"]["lost_ci95"][1] < WORTHLESS:
            found.append(f"{text} is no choice of its own: the maximum of the saliency map does as well")
    return found
