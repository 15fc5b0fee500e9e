"""The rewards of section 4.2 against plain Python."""

import collections
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsal_cli.training.rewards import action_rewards, count_labels, explained_variance, moments, of_named, remaining_before, turns

ALL = torch.tensor(True)

CLASSES = 4
label = st.integers(0, CLASSES - 1)
image = st.tuples(st.lists(label, max_size=5), st.lists(st.integers(-1, CLASSES), min_size=6, max_size=6))
batches = st.lists(image, min_size=1, max_size=4)


def padded(lists: list[list[int]], width: int = 5) -> torch.Tensor:
    return torch.tensor([[*labels, *[-1] * (width - len(labels))] for labels in lists])


def multiset_rewards(named: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the labels named (T, B) earn, and what was left before each."""
    left = remaining_before(named, counts)
    return of_named(action_rewards(left), named), left


def list_rewards(named: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return of_named(action_rewards(turns(labels, len(named), CLASSES)), named)


def slow_rewards(true: list[int], named: list[int]) -> tuple[list[float], list[collections.Counter]]:
    left, rewards, before = collections.Counter(true), [], []
    for one in named:
        before.append(collections.Counter(left))
        if left[one] > 0:
            left[one] -= 1
            rewards.append(1.0)
        else:
            rewards.append(-1.0)
    return rewards, before


@settings(max_examples=60, deadline=None)
@given(batches)
def test_the_reward_and_the_remaining_multiset_are_those_of_brute_force(batch: list[tuple[list[int], list[int]]]) -> None:
    true, named = [list(part) for part in zip(*batch, strict=True)]
    counts = count_labels(padded(true), CLASSES)
    rewards, remaining = multiset_rewards(torch.tensor(named).T, counts)
    for b, (labels, names) in enumerate(batch):
        assert counts[b].tolist() == [labels.count(c) for c in range(CLASSES)]
        expected, before = slow_rewards(labels, names)
        assert rewards[:, b].tolist() == expected
        assert remaining[:, b].tolist() == [[left[c] for c in range(CLASSES)] for left in before]


@settings(max_examples=60, deadline=None)
@given(st.lists(label, min_size=1, max_size=5), st.lists(st.integers(0, CLASSES), min_size=4, max_size=4))
def test_the_total_reward_is_that_of_any_permutation_of_the_named_labels(true: list[int], named: list[int]) -> None:
    orders = list(itertools.permutations(named))
    counts = count_labels(padded([true]), CLASSES).expand(len(orders), -1)
    rewards, _ = multiset_rewards(torch.tensor(orders).T, counts)
    assert len(set(rewards.sum(0).tolist())) == 1


@settings(max_examples=60, deadline=None)
@given(batches)
def test_the_list_task_rewards_only_the_label_whose_turn_it_is(batch: list[tuple[list[int], list[int]]]) -> None:
    true, named = [list(part) for part in zip(*batch, strict=True)]
    rewards = list_rewards(torch.tensor(named).T, padded(true))
    for b, (labels, names) in enumerate(batch):
        turns = [*labels, *[None] * (len(names) - len(labels))]
        assert rewards[:, b].tolist() == [1.0 if one == turn else -1.0 for one, turn in zip(names, turns, strict=True)]


def test_the_reward_leaves_the_multisets_it_was_given_as_they_are() -> None:
    counts = torch.tensor([[1, 2]])
    multiset_rewards(torch.tensor([[1], [1], [0]]), counts)
    assert counts.tolist() == [[1, 2]]


def test_stop_is_in_no_multiset_and_in_no_list() -> None:
    named = torch.full((2, 1), CLASSES)
    assert multiset_rewards(named, torch.ones(1, CLASSES, dtype=torch.long))[0].tolist() == [[-1.0], [-1.0]]
    assert list_rewards(named, torch.tensor([[0, -1]])).tolist() == [[-1.0], [-1.0]]


def test_explained_variance_is_the_share_of_the_returns_variance_that_the_baseline_takes_away() -> None:
    generator = torch.Generator().manual_seed(2)
    returns, noise = torch.randn(50, dtype=torch.double, generator=generator), torch.randn(50, dtype=torch.double, generator=generator)
    values = returns + 0.3 * noise + 2.0

    def variance(numbers: list[float]) -> float:
        mean = math.fsum(numbers) / len(numbers)
        return math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)

    expected = 1 - variance((returns - values).tolist()) / variance(returns.tolist())
    assert explained_variance(moments(returns, returns - values, ALL)).item() == pytest.approx(expected)
    halves = [moments(some, some - value, ALL) for some, value in zip(returns.split(30), values.split(30), strict=True)]
    assert explained_variance(sum(halves)).item() == pytest.approx(expected)
    among = torch.arange(80) % 2 == 0  # what does not count may be anything
    padded = [torch.stack([part, torch.full_like(part, 9.0)], 1).flatten()[:80] for part in (returns, returns - values)]
    of_40 = 1 - variance((returns - values)[:40].tolist()) / variance(returns[:40].tolist())
    assert explained_variance(moments(*padded, among)).item() == pytest.approx(of_40)
    assert explained_variance(moments(returns, 0 * returns, ALL)).item() == pytest.approx(1.0)
    assert explained_variance(moments(returns, returns, ALL)).item() == pytest.approx(0.0)


@pytest.mark.parametrize("returns", [[], [1.0], [1.0, 1.0, 1.0]])
def test_explained_variance_of_returns_that_do_not_vary_is_zero(returns: list[float]) -> None:
    assert explained_variance(moments(torch.tensor(returns), torch.tensor(returns), ALL)).item() == 0.0
