"""Whether a policy is as sure as it is right: reliability of its choices, and the temperature that mends it (Guo et al. 2017).

A choice is right if it names a label that is still in the remaining multiset, or stop when nothing is left. Its confidence is the
probability of what was named. Several labels may be right at once, so the temperature is fitted to the chance that the choice is right,
not to one true class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hsal_cli import distributed
from hsal_cli.evaluation.attention import Tally, naming_steps, still_to_name
from hsal_cli.models.trust import WORDS, Trust, ranges_of, statistics
from hsal_cli.vision.devices import on_host

if TYPE_CHECKING:
    from hsal_cli.features.table import FeatureTable
    from hsal_cli.policy.episode import Episode
    from hsal_cli.policy.hsal import HSAL

BINS = 10
TEMPERATURES = np.geomspace(0.05, 20, 201)


def choices(episode: Episode, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The choices of all active meta-steps of a roll-out.

    Args:
        episode: of B images.
        labels: (B, L), padded with -1.

    Returns:
        (scores, right): (n, K + 1) float64, that of what was named first and the others behind it in any order; (n,) bool.
    """
    truth = labels.cpu().numpy()
    active, hits = episode.active.cpu().numpy(), still_to_name(episode, truth)
    done = hits.sum(0) == (truth >= 0).sum(1)  # stop comes last, so all hits came before it
    right = np.where(naming_steps(episode), hits, done)
    named = episode.labels.cpu().clamp(min=0)[..., None]
    scores = on_host(episode.scores)
    first = scores.gather(-1, named)
    # Named and first change places.
    swapped = torch.cat([first, scores.scatter(-1, named, scores[..., :1])[..., 1:]], -1)
    return swapped.numpy()[active], right[active]


def confidence(scores: np.ndarray, temperature: float) -> np.ndarray:
    """(n,) the probability of what was named, at a temperature; `scores` as `choices` gives them."""
    with np.errstate(over="ignore"):  # a probability of 0
        return 1 / np.exp((scores - scores[:, :1]) / temperature).sum(1)


def fit_temperature(scores: np.ndarray, right: np.ndarray) -> float:
    """The temperature at which the log-likelihood of which choices were right is largest; 1 where there is no choice.

    As in Platt scaling, nothing counts as certain: of n right choices, each is so by (n + 1) / (n + 2), and of n wrong ones by 1 / (n + 2).
    """
    if not len(right):
        return 1.0
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def loss(temperature: float) -> float:
        sure = np.clip(confidence(scores, temperature), 1e-12, 1 - 1e-12)
        return float(-(target * np.log(sure) + (1 - target) * np.log1p(-sure)).mean())

    return float(min(TEMPERATURES, key=loss))


def add_reliability(tally: Tally, episode: Episode, labels: torch.Tensor, temperature: float) -> None:
    """Adds the confidence of each choice of a roll-out, and whether it was right, to the bin that the confidence falls into."""
    scores, right = choices(episode, labels)
    add_choices(tally, confidence(scores, temperature), right)


def add_choices(tally: Tally, sure: np.ndarray, right: np.ndarray) -> None:
    """Adds choices: (n,) how sure each was, in [0, 1], and whether it was right, to the bin that it falls into."""
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    for number in range(BINS):
        tally.add(f"confidence {number}", sure[place == number])
        tally.add(f"right {number}", right[place == number])


def reliability(tally: Tally, temperature: float) -> dict[str, Any]:
    """The reliability diagram of all choices that were added.

    Returns:
        `ece`: the expected calibration error, the mean over the choices of how far their bin's mean confidence is from the share of it
        that is right; `temperature`; `bins`: `low`, `high`, `choices`, `confidence` and `right` (means; None in an empty bin).
    """
    means, counts = tally.means(), tally.counts()
    bins = [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "choices": counts.get(f"right {number}", 0),
            "confidence": means.get(f"confidence {number}"),
            "right": means.get(f"right {number}"),
        }
        for number in range(BINS)
    ]
    apart = sum(one["choices"] * abs(one["confidence"] - one["right"]) for one in bins if one["choices"])
    total = sum(one["choices"] for one in bins)
    return {"ece": apart / total if total else None, "temperature": temperature, "bins": bins}


def measure_trust(policy: HSAL, table: FeatureTable, max_steps: int, batch_size: int, device: torch.device | str = "cpu") -> Trust:
    """What is kept with a policy, measured on images held out of its training.

    Args:
        policy: on `device`, in evaluation mode.
        table: at least one image.
        max_steps: cap on meta-steps.
    """
    from hsal_cli.evaluation.evaluate import roll_outs

    scores, right, known = [np.zeros((0, policy.classes + 1))], [np.zeros(0, dtype=bool)], [np.zeros((0, len(WORDS)))]
    for part, episode in roll_outs(policy, table, max_steps, batch_size, device):
        some, outcome = choices(episode, part.labels)
        scores.append(some)
        right.append(outcome)
        found = statistics(part.volumes[:, : policy.channels], part.saliency)
        known.append(torch.stack([found[name] for name in WORDS], 1).numpy())
    scores, right, known = (np.concatenate(distributed.all_gather(np.concatenate(own))) for own in (scores, right, known))
    return Trust(fit_temperature(scores, right), ranges_of(dict(zip(WORDS, torch.from_numpy(known).unbind(1), strict=True))))
