"""The objectives of section 4 and their loss terms; each is a dict of named terms, weighted in one place.

- rl: the policy gradient of the multiset reward (section 4.2). By default over all actions: an action's own reward is known for every label
  and cell, so that sum_a pi(a) R(a) can be followed itself ("all-action" or "expected" policy gradient; Sutton et al., "Comparing
  Policy-Gradient Algorithms", 2001; Ciosek and Whiteson, "Expected Policy Gradients", AAAI 2018). `gradient` sampled: REINFORCE, from the
  actions taken, as in the paper.
- cross-entropy: the paper's baseline, cross-entropy on randomly ordered labels (section 5).
- multiset: cross-entropy to the uniform distribution over the remaining multiset (Welleck et al., "Loss Functions for Multiset
  Prediction", NeurIPS 2018).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.policy.episode import Episode, Rows, Source, draw
from hsal_cli.policy.maps import numbers
from hsal_cli.policy.variant import Variant
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.own_rewards import rewards_of_actions
from hsal_cli.training.rewards import count_labels, explained_variance, moments, of_named, remaining_before, still_there, wide, without
from hsal_cli.vision.devices import moved

HALF = math.log(0.5)
VALUE_WEIGHT = 0.5  # of the baseline's squared error; it trains the value head alone


@dataclasses.dataclass(frozen=True)
class Targets:
    """What is known of a batch.

    Attributes:
        labels: (B, L) the labels in the order of the list task or of this draw, padded with -1.
        counts: (B, K) the multisets.
        sizes: (B,) m, the number of labels; -1 for a row that counts for nothing.
    """

    labels: Tensor
    counts: Tensor
    sizes: Tensor

    def select(self, places: slice) -> Targets:
        """Those of some rows."""
        return Targets(self.labels[places], self.counts[places], self.sizes[places])


def make_targets(labels: Tensor, classes: int, settings: TrainSettings, generator: torch.Generator) -> Targets:
    """Counts, sizes and, for cross-entropy on multisets, a random order of the labels of a batch.

    Args:
        labels: (B, L) padded with -1.
        classes: K.
        settings: the objective and the task.
        generator: draws the order, on any device.
    """
    if settings.objective == "cross-entropy" and settings.task == "multiset":
        keys = moved(torch.rand(labels.shape, generator=generator, device=generator.device), labels.device)
        keys = torch.where(labels >= 0, keys, 2.0)
        labels = labels.gather(1, keys.argsort(dim=1))
    return Targets(labels, count_labels(labels, classes), (labels >= 0).sum(dim=1))


class Namer:
    """Chooses the label of each meta-step during training (the policy's `choose`).

    At step m+1 it is stop. Before it, rl and cross-entropy sample the policy's own label; multiset samples among the labels that
    remain, so that every episode ends with an empty multiset.

    Args:
        targets: of the batch.
        classes: K.
        settings: the objective.
        variant: the handling of stop.
        generator: draws the labels.
    """

    def __init__(self, targets: Targets, classes: int, settings: TrainSettings, variant: Variant, generator: Source):
        self.targets, self.classes, self.generator = targets, classes, generator
        self.draws_from_left = settings.objective == "multiset"
        self.never_stops = self.draws_from_left or variant.stop == "supervised"
        self.left = targets.counts.clone() if self.draws_from_left else targets.counts
        most = 1 + targets.labels.shape[1]  # meta-steps
        self.over = targets.sizes <= numbers(tuple(range(most)), targets.sizes)[:, None]  # (most, B), from where on only stop is named

    def __call__(self, step: int, rows: Rows, logits: Tensor) -> Tensor:
        scores = logits.detach()
        if self.never_stops:
            scores = scores[:, : self.classes]
        if self.draws_from_left:
            scores = scores.masked_fill(~still_there(self.left[rows]), -torch.inf)
        drawn = draw(scores, self.generator, rows)
        named = torch.where(self.over[min(step, len(self.over) - 1), rows], numbers((self.classes,), drawn), drawn)
        if self.draws_from_left:
            self.left[rows] = without(self.left[rows], named)
        return named


def losses(
    episode: Episode, targets: Targets, settings: TrainSettings, variant: Variant, batch: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the loss, and what to log beside them.

    Each term is summed over an episode and averaged over the batch, as the estimator of section 4.2 is.

    Args:
        episode: a roll-out of m+1 meta-steps an image, with labels and glimpses sampled.
        targets: of the same images.
        settings: the objective, the task, the weight of the entropy bonus.
        variant: the handling of stop, and how the gradient is estimated.
        batch: images of the whole batch, where several workers share it; None: these are all.

    Returns:
        terms: "class", "stop", "location", "value", "label_entropy", "stop_shift", as far as there are such, each already weighted;
            their sum is the loss. Of several workers each has its own part, and the loss is the sum of all.
        logged: the terms as "loss_class" and so on, their sum "loss", and "reward", "location_reward", "label_entropy",
            "location_entropy", "early_stops", "explained_variance", averages over the whole batch.
    """
    classes = targets.counts.shape[1]
    batch = len(targets.sizes) if batch is None else batch
    # The first m of an episode's m+1 steps name labels.
    steps = torch.arange(len(episode.labels), device=targets.sizes.device)
    naming = (steps[:, None] < targets.sizes) & episode.active
    last = (steps[:, None] == targets.sizes) & episode.active

    left = remaining_before(episode.labels, targets.counts)
    rewards = rewards_of_actions(settings.rewarded, left, targets.labels)
    class_rewards = of_named(rewards, episode.labels)
    log_all = episode.logits.log_softmax(dim=-1)
    log_stop = log_all[..., classes]
    log_named = log_all
    if variant.stop == "supervised" and settings.objective == "rl":
        log_named = episode.logits[..., :classes].log_softmax(dim=-1)
    odds = log_named.exp()
    label_entropy = -(odds * log_named).sum(dim=-1)

    location_log = episode.location_logits.log_softmax(dim=-1)  # (T, B, k, h*w)
    location_odds = location_log.exp()
    location_entropy = -(location_odds.detach() * location_log.detach()).sum(dim=(-2, -1))
    cells = episode.priority.flatten(2).detach()  # (T, B, h*w), the reward of a glimpse at each
    location_rewards = cells.gather(-1, episode.glimpses)
    returns = torch.cat([location_rewards, class_rewards[..., None]], dim=-1) * naming[..., None]  # (T, B, k+1), each action's own reward
    errors = returns - episode.values.detach()
    averages_actions = settings.objective == "rl" and variant.gradient == "expected"

    # name -> weight, and what is summed over the steps (T, B) that name labels; and over the last ones, weighted -1.
    at_naming: dict[str, tuple[float, Tensor]] = {}
    at_last: dict[str, Tensor] = {"stop": log_stop}
    if settings.objective == "rl":
        if averages_actions:
            gained = (odds * rewards[..., : log_named.shape[-1]]).sum(dim=-1)
        else:
            named = log_named.gather(-1, episode.labels.clamp(0, log_named.shape[-1] - 1)[..., None])[..., 0]
            gained = named * errors[..., -1]
        at_naming["class"] = -1.0, gained
        if variant.stop == "supervised":
            # log(1 - p_stop), from the labels' scores, so that it stays finite as p_stop nears 1
            at_naming["stop"] = -1.0, (log_all[..., :classes] - log_named)[..., 0]
        at_naming["label_entropy"] = -settings.label_entropy, label_entropy
    else:
        at_naming["class"] = -1.0, _expected_log(log_all, left, targets, settings)
    if settings.objective != "cross-entropy":
        if averages_actions:
            pointed = (location_odds * cells[:, :, None]).sum(dim=(-2, -1))
        else:
            pointed = (location_log.gather(-1, episode.glimpses[..., None])[..., 0] * errors[..., :-1]).sum(dim=-1)
        at_naming["location"] = -1.0, pointed
        at_naming["value"] = VALUE_WEIGHT, (returns - episode.values).square().sum(dim=-1)
    scores = episode.scores
    all_scores = scores.logsumexp(dim=-1)
    decided = scores[..., classes] - all_scores  # log p of stop as both heads have it
    if decided.requires_grad:
        at_naming["stop_shift"] = -1.0, scores[..., :classes].logsumexp(dim=-1) - all_scores
        at_last["stop_shift"] = decided
    weights = [weight / batch for weight, _ in at_naming.values()] + [-1 / batch] * len(at_last)
    among = torch.stack([naming] * len(at_naming) + [last] * len(at_last))
    every = torch.stack([part for _, part in at_naming.values()] + list(at_last.values()))
    sums = torch.where(among, every, numbers((0.0,), every)).sum(dim=(1, 2)) * numbers(tuple(weights), every)
    terms: dict[str, Tensor] = {}
    for name, term in zip([*at_naming, *at_last], sums.unbind(), strict=True):
        terms[name] = terms[name] + term if name in terms else term

    # Where stop is never sampled early, it is counted where it would be the likeliest outcome.
    early = episode.labels == classes if variant.stop == "sampled" else decided > HALF
    averaged = {
        "reward": class_rewards,
        "location_reward": location_rewards.sum(dim=-1),
        "label_entropy": label_entropy,
        "location_entropy": location_entropy,
        "early_stops": early,
    }
    spread = moments(returns[..., -1], errors[..., -1], naming)
    return terms, _logged(terms, averaged, naming, episode.glimpses.shape[-1], spread)


def _logged(terms: dict[str, Tensor], averaged: dict[str, Tensor], naming: Tensor, glimpses: int, spread: Tensor) -> dict[str, Tensor]:
    """Sums up over the workers, in double precision, and divides then: averages of averages would weigh images unequally.

    Args:
        averaged: (T, B), to be averaged over the steps that name labels; where the name says so, over their glimpses.
        spread: `moments`, the first of which counts those steps.
    """
    exact = wide(spread)
    every = torch.stack([values.detach() for values in averaged.values()]).to(exact)
    sums = torch.where(naming, every, numbers((0.0,), every)).sum(dim=(1, 2))
    lost = torch.stack([term.detach() for term in terms.values()]).to(exact)
    lost, sums, spread = distributed.all_reduce(torch.cat([lost, sums, spread])).split([len(lost), len(sums), len(spread)])
    each = numbers(tuple(float(glimpses) if name.startswith("location") else 1.0 for name in averaged), spread)
    means = sums / (spread[0] * each).clamp(min=1)
    logged = {"loss": lost.sum(), **{f"loss_{key}": value for key, value in zip(terms, lost.unbind(), strict=True)}}
    return {**logged, **dict(zip(averaged, means.unbind(), strict=True)), "explained_variance": explained_variance(spread)}


def _expected_log(log_all: Tensor, remaining: Tensor, targets: Targets, settings: TrainSettings) -> Tensor:
    """Log-probability (T, B) of the label in turn, or its mean over the labels that remain.

    Cross-entropy compares step t with the t-th label of this draw's order, whatever was named before.
    """
    if settings.objective == "multiset":
        shares = remaining / remaining.sum(dim=-1, keepdim=True).clamp(min=1)
        return (F.pad(shares, (0, 1)) * log_all).sum(dim=-1)
    count = log_all.shape[0]
    turns = F.pad(targets.labels.clamp(min=0).T, (0, 0, 0, max(0, count - targets.labels.shape[1])))[:count]
    return log_all.gather(-1, turns[..., None])[..., 0]
