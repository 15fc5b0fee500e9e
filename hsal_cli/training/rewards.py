"""The rewards of section 4.2: is the label still in the multiset, and how high is the priority map at the glimpse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.errors import UsageError
from hsal_cli.registry import T
from hsal_cli.training.settings import REWARDS


def register_reward(name: str) -> Callable[[T], T]:
    """A decorator that makes a reward of your own known to `hsal train --reward NAME`, in place of "is it still in the multiset?".

    It stands over a function `(remaining, labels) -> rewards`:
        remaining: int64 (T, B, K), how often each class is still to be named before meta-step t.
        labels: int64 (B, L), the true labels of each image, padded with -1; with `--task list` from left to right.
        rewards: float (T, B, K + 1), what naming each class would earn at that step; the last one is for stop.

    On the command line the file that it stands in is named by HSAL_PLUGINS, or its package has an entry point in the group `hsal.reward`.

    Args:
        name: lower-case letters, digits, - and _.

    Raises:
        UsageError: another kind of name, or one that hsal has itself (multiset, list).
    """
    return REWARDS.register(name)


def rewards_of_actions(reward: str, remaining: Tensor, labels: Tensor) -> Tensor:
    """What every action would earn; that of the action taken is looked up in it.

    Args:
        reward: "multiset", "list", or a name that was registered.
        remaining: (T, B, K), A_t before step t, as `multiset_rewards` returns it.
        labels: (B, L) in the order of the list task, padded with -1.

    Returns:
        (T, B, K + 1).

    Raises:
        UsageError: no such reward, or one of a user's own that gives something else.
    """
    steps, size, classes = remaining.shape
    if reward == "multiset":
        return rewards_of_all(remaining)
    if reward == "list":
        return list_rewards_of_all(labels, steps, classes)
    found = REWARDS.get(reward)(remaining, labels)
    if not isinstance(found, Tensor) or tuple(found.shape) != (steps, size, classes + 1) or not found.isfinite().all():
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
        raise UsageError(f"reward {reward} gave {what}", f"return a tensor of finite numbers ({steps}, {size}, {classes + 1})")
    return found.to(remaining.device, torch.get_default_dtype()).detach()


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """Multisets as counts.

    Args:
        labels: (B, L) in 0..K-1, padded with -1.
        classes: K.

    Returns:
        (B, K) int64.
    """
    counts = torch.zeros(len(labels), classes + 1, dtype=torch.long, device=labels.device)
    counts.scatter_add_(1, torch.where(labels >= 0, labels, classes), torch.ones_like(labels))
    return counts[:, :classes]


def multiset_rewards(named: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """R_clf of section 4.2: +1 for a label still in the multiset, which then loses it, -1 for any other.

    Args:
        named: (T, B) labels in the order they were named; K (stop) and -1 (not active) are in no multiset.
        counts: (B, K) the multiset A_1 of each image.

    Returns:
        rewards (T, B) of +1 and -1; remaining (T, B, K), A_t before step t.
    """
    classes = counts.shape[1]
    left = torch.cat([counts, torch.zeros_like(counts[:, :1])], dim=1)
    rewards, remaining = [], []
    for labels in named:
        place = torch.where(labels >= 0, labels, classes)[:, None]
        hit = left.gather(1, place) > 0
        remaining.append(left[:, :classes])
        rewards.append(hit[:, 0])
        left = left.scatter_add(1, place, -hit.long())
    return torch.stack(rewards).float() * 2 - 1, torch.stack(remaining)


def list_rewards(named: Tensor, labels: Tensor) -> Tensor:
    """The list task of section 4.2, A_i <- y_i: +1 only for the label whose turn it is.

    Args:
        named: (T, B) labels in the order they were named.
        labels: (B, L) in their order, padded with -1.

    Returns:
        (T, B) of +1 and -1.
    """
    turns = torch.full((len(named), labels.shape[0]), -2, dtype=labels.dtype, device=labels.device)
    most = min(len(named), labels.shape[1])
    turns[:most] = labels.T[:most]
    return ((named == turns) & (turns >= 0)).float() * 2 - 1


def rewards_of_all(remaining: Tensor) -> Tensor:
    """R_clf of every action: +1 for each label still in the multiset, -1 for the others and for stop.

    Args:
        remaining: (T, B, K), A_t before step t, as `multiset_rewards` returns it.

    Returns:
        (T, B, K + 1) of +1 and -1.
    """
    return F.pad((remaining > 0).float() * 2 - 1, (0, 1), value=-1.0)


def list_rewards_of_all(labels: Tensor, steps: int, classes: int) -> Tensor:
    """The same for the list task: +1 for the label whose turn it is, -1 for all else.

    Args:
        labels: (B, L) in their order, padded with -1.
        steps: T.
        classes: K.

    Returns:
        (T, B, K + 1) of +1 and -1.
    """
    every = torch.arange(classes + 1, device=labels.device)[:, None, None].expand(classes + 1, steps, len(labels))
    return torch.stack([list_rewards(named, labels) for named in every], dim=-1)


def returns_to_go(rewards: Tensor) -> Tensor:
    """Sum of a reward and all that follow it, along the first dimension."""
    return rewards.flip(0).cumsum(0).flip(0)


def wide(values: Tensor) -> torch.dtype:
    """The type to add values up in: double precision, except on an Apple GPU, which has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def moments(returns: Tensor, errors: Tensor) -> Tensor:
    """What `explained_variance` needs of returns (N,) and of the baseline's errors (N,), returns less values: (5,), to be added up
    over the parts of a batch."""
    returns, errors = returns.to(wide(returns)), errors.to(wide(errors))
    return torch.stack([torch.ones_like(returns).sum(), returns.sum(), returns.square().sum(), errors.sum(), errors.square().sum()])


def explained_variance(sums: Tensor) -> Tensor:
    """How much of the returns' variance the baseline explains: 1 is all, 0 none; 0 where the returns do not vary.

    Args:
        sums: (5,) `moments` of all parts.
    """
    count, returns, square_returns, errors, square_errors = sums
    spread = square_returns - returns.square() / count.clamp(min=1)  # the same denominator stands under both variances
    left = square_errors - errors.square() / count.clamp(min=1)
    return torch.where(spread > 1e-12 * count, 1 - left / spread.clamp(min=1e-12), torch.zeros_like(spread))
