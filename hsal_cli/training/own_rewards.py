"""Rewards by name: those of section 4.2 (rewards.py), and a user's own in place of "is it still in the multiset?"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hsal_cli.errors import UsageError
from hsal_cli.registry import T
from hsal_cli.runs.settings import REWARDS
from hsal_cli.training.rewards import action_rewards, turns


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
        remaining: (T, B, K), A_t before step t (`rewards.remaining_before`).
        labels: (B, L) in the order of the list task, padded with -1.

    Returns:
        (T, B, K + 1).

    Raises:
        UsageError: no such reward, or one of a user's own that gives something else.
    """
    steps, size, classes = remaining.shape
    if reward in REWARDS.own:
        return action_rewards(turns(labels, steps, classes) if reward == "list" else remaining)
    found = REWARDS.get(reward)(remaining, labels)
    if not isinstance(found, Tensor) or tuple(found.shape) != (steps, size, classes + 1) or not found.isfinite().all():
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
        raise UsageError(f"reward {reward} gave {what}", f"return a tensor of finite numbers ({steps}, {size}, {classes + 1})")
    return found.to(remaining.device, torch.get_default_dtype()).detach()
