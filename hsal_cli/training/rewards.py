"""The rewards of section 4.2: is the label still in the multiset, and how high is the priority map at the glimpse.

`action_rewards` is the one place that says what a label earns: the all-action gradient reads all of it, the sampled one and the log look
the named label's up in it (`of_named`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.policy.maps import numbers


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """Multisets as counts.

    Args:
        labels: (B, L) in 0..K-1, padded with -1.
        classes: K.

    Returns:
        (B, K) int64.
    """
    return (labels[..., None] == numbers(tuple(range(classes)), labels)).sum(1)


def still_there(left: Tensor) -> Tensor:
    """Which labels are still in a multiset, bool, of counts of any shape."""
    return left > 0


def without(left: Tensor, named: Tensor) -> Tensor:
    """Multisets (B, K) less the label named in each, (B,), where it is still there; K (stop) and -1 (not active) are in none."""
    return (left - (named[:, None] == numbers(tuple(range(left.shape[1])), named)).long()).clamp(min=0)


def remaining_before(named: Tensor, counts: Tensor) -> Tensor:
    """A_t of section 4.2, what is left of each multiset before a step: `without` each of the labels named before.

    Args:
        named: (T, B) labels in the order they were named; K (stop) and -1 (not active) are in no multiset.
        counts: (B, K) the multiset A_1 of each image.

    Returns:
        (T, B, K).
    """
    each = named[..., None] == numbers(tuple(range(counts.shape[1])), named)
    return (counts - each.cumsum(0)).add_(each).clamp_(min=0)


def turns(labels: Tensor, steps: int, classes: int) -> Tensor:
    """The list task of section 4.2, A_i <- y_i: of each list only the label whose turn it is.

    Args:
        labels: (B, L) in their order, padded with -1.
        steps: T.
        classes: K.

    Returns:
        (T, B, K), 1 for that label; all 0 where the list has ended.
    """
    padded = F.pad(labels, (0, max(0, steps - labels.shape[1])), value=-1)[:, :steps].T
    return (padded[..., None] == torch.arange(classes, device=labels.device)).long()


def action_rewards(left: Tensor) -> Tensor:
    """R_clf of every action: +1 for each label still in the multiset, -1 for the others and for stop.

    Args:
        left: (T, B, K), A_t before step t (`remaining_before`), or the label in turn (`turns`).

    Returns:
        (T, B, K + 1) of +1 and -1.
    """
    return still_there(F.pad(left, (0, 1))) * 2.0 - 1


def of_named(each: Tensor, named: Tensor) -> Tensor:
    """What the named labels earn.

    Args:
        each: (T, B, K + 1), what every action would (`action_rewards`).
        named: (T, B); -1 (not active) earns what stop does, and counts for nothing.

    Returns:
        (T, B).
    """
    return each.gather(-1, (named % each.shape[-1])[..., None])[..., 0]  # -1 is the last one


def wide(values: Tensor) -> torch.dtype:
    """The type to add values up in: double precision, except on an Apple GPU, which has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def moments(returns: Tensor, errors: Tensor, among: Tensor) -> Tensor:
    """What `explained_variance` needs of returns and of the baseline's errors, returns less values; to be added up over parts of a batch.

    Args:
        returns, errors: of any one shape.
        among: bool, which of them count.

    Returns:
        (5,).
    """
    returns, errors = returns.to(wide(returns)), errors.to(wide(errors))
    every = torch.stack([torch.ones_like(returns), returns, returns.square(), errors, errors.square()])
    return torch.where(among, every, numbers((0.0,), every)).flatten(1).sum(1)


def explained_variance(sums: Tensor) -> Tensor:
    """How much of the returns' variance the baseline explains: 1 is all, 0 none; 0 where the returns do not vary.

    Args:
        sums: (5,) `moments` of all parts.
    """
    count, (totals, squares) = sums[0], sums[1:].view(2, 2).unbind(1)  # of returns and of errors
    spread, left = squares - totals.square() / count.clamp(min=1)  # the same denominator stands under both variances
    return torch.where(spread > 1e-12 * count, 1 - left / spread.clamp(min=1e-12), numbers((0.0,), spread)[0])
