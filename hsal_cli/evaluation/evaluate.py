"""Evaluation of a policy, or of the direct baseline, on a feature table (section 5): the roll-outs, and every score of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hsal_cli import distributed
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.attention import Tally, add_attn_saliency, add_localization
from hsal_cli.evaluation.calibration import add_reliability, reliability
from hsal_cli.evaluation.flops import cells_looked_at, policy_flops
from hsal_cli.evaluation.looking import Looking
from hsal_cli.evaluation.metrics import exact_match_and_f1, label_counts, multiset_metrics, trivial_baselines
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.trust import Trust
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.episode import Choose, Episode, greedy, sampling, until
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.set_predictor import SetPredictor
from hsal_cli.progress import SILENT, Reporter

if TYPE_CHECKING:
    from hsal_cli.features.table import FeatureRows, FeatureTable

STOPPED_HINT = "run the same command again"


def evaluate(
    policy: HSAL | CountClassifier | SetPredictor,
    table: FeatureRows,
    class_names: list[str],
    settings: EvalSettings,
    max_steps: int,
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
    train_labels: torch.Tensor | None = None,
    trust: Trust = Trust(),
) -> dict[str, Any]:
    """Shows a table to a policy, which is rolled out over it, or to a direct baseline, and scores what is named.

    Args:
        policy: on `device`, in evaluation mode.
        table: at least one image.
        class_names: K names.
        settings: `sample`: 0 for one greedy roll-out an image, else that many sampled ones, whose metrics are averaged.
        max_steps: cap on meta-steps; `settings.max_steps` goes before it.
        reporter: progress, in images.
        train_labels: (N, L) labels of the training split, padded with -1, for the trivial baselines.
        trust: what is kept with the policy.

    Returns:
        Plain JSON types: all of `metrics.multiset_metrics`; `calibration` (see `calibration.reliability`; `ece_at_1`, its `ece` at
        temperature 1; and `unlike`, the share of images that differ from all that the policy knows);
        `attn_saliency` (`raw`, `normalized`, `random`, `best`); where boxes are known `localization` (`glimpse_hit`, `mask_mass`,
        controls `random`, `area`, `center`, `saliency`, `reachable`, and `digits_once`, `repeat_visits`; see `attention`);
        `looking` of greedy roll-outs (see `Looking.scores`); of an image on average `flops`, those of the `policy`, and
        `cells_looked_at`, by glimpses; `baselines`, with train_labels (see `metrics`); `sample`, `max_steps` and `stop_threshold` as used.
        A score of which there is no case, such as `glimpse_hit` of a policy without glimpses, is None; a direct baseline has no
        `calibration`, `localization` or `looking`, and its `attn_saliency` and `max_steps` are None.

    Raises:
        UsageError: sampled roll-outs are asked of a direct baseline.
        Interrupted: a signal asked to stop.
    """
    looks = isinstance(policy, HSAL)
    if not looks and (settings.sample or settings.max_steps or settings.stop_threshold is not None):
        raise UsageError(
            "a direct baseline takes no steps, so there are none to sample, to cap or to stop",
            "leave --sample, --max-steps and --stop-threshold out",
        )
    choose = until(settings.stop_threshold, trust.temperature)
    max_steps, times = settings.max_steps or max_steps, max(settings.sample, 1)
    true, results, stretch = label_counts(table.labels, policy.classes), [], distributed.stretch(len(table), settings.batch_size)
    looking = None
    if looks and settings.looking and not settings.sample:
        looking = Looking(policy, max_steps, settings.seed, settings.resamples, settings.looking, stretch.start, choose)
    with reporter.track("evaluating", len(stretch) * times, "images") as advance:

        def seen(part: FeatureTable, episode: Episode | None) -> None:
            if looking is not None:
                looking.add(part.volumes.to(device), part.saliency.to(device), part.labels, episode)
            if episode is not None:
                add_reliability(sure, episode, part.labels, trust.temperature)
                add_reliability(plain, episode, part.labels, 1.0)
                work.add("meta_steps", episode.active.sum(0).cpu().numpy())
                work.add("cells", cells_looked_at(episode).cpu().numpy())
            if trust.ranges:
                sure.add("unlike", np.array([bool(said) for said in trust.unlike(part.volumes[:, : policy.channels], part.saliency)]))
            advance(len(part))
            reporter.check_stop(STOPPED_HINT)

        for number in range(times):
            sure, plain, work = Tally(), Tally(), Tally()
            seed = settings.seed + number if settings.sample else None
            named, attention, localization = answers(policy, table, max_steps, settings.batch_size, device, seed, seen, choose)
            scores = multiset_metrics(true, named, class_names, settings.resamples, settings.seed)
            scores["attn_saliency"] = dict.fromkeys(("raw", "normalized", "random", "best")) | attention.means()
            sure, plain, work = sure.together(), plain.together(), work.together()
            means = work.means()
            scores |= {"flops": {"policy": policy_flops(policy, means.get("meta_steps") or 0)}, "cells_looked_at": means.get("cells")}
            if looks:
                scores["calibration"] = reliability(sure, trust.temperature) | {"ece_at_1": reliability(plain, 1.0)["ece"]}
                scores["calibration"]["unlike"] = sure.means().get("unlike")
            if table.boxes is not None and looks:
                scores["localization"] = localization.means()
            results.append(scores)
    found = mean_of(results)
    if looking is not None:
        found["looking"] = looking.scores()
    if train_labels is not None and len(train_labels):
        found["baselines"] = trivial_baselines(label_counts(train_labels, policy.classes), true)
    used = {"max_steps": max_steps if looks else None, "stop_threshold": settings.stop_threshold}
    return {**found, "sample": settings.sample, **used}


def quick_scores(
    policy: HSAL | CountClassifier | SetPredictor,
    table: FeatureRows,
    max_steps: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Greedy scores for the validation at the end of each epoch, without intervals.

    Returns:
        `exact_match`, `macro_f1`; of a policy also `attn_saliency` (raw scale, as in the paper's figure 5), `attn_saliency_normalized`, and
        where boxes are known `glimpse_hit`, `mask_mass`, `area`, `digits_once` and `repeat_visits`. Those without a case are left out.
    """
    named, attention, localization = answers(policy, table, max_steps, batch_size, device)
    exact, macro_f1 = exact_match_and_f1(label_counts(table.labels, policy.classes), named)
    salient, local = attention.means(), localization.means()
    found = {
        "attn_saliency": salient.get("raw"),
        "attn_saliency_normalized": salient.get("normalized"),
        **{name: local.get(name) for name in ("glimpse_hit", "mask_mass", "area", "digits_once", "repeat_visits")},
    }
    return {"exact_match": exact, "macro_f1": macro_f1, **{name: value for name, value in found.items() if value is not None}}


def roll_outs(
    policy: HSAL,
    table: FeatureRows,
    max_steps: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    choose: Choose = greedy,
) -> Iterator[tuple[FeatureTable, Episode]]:
    """Rolls a policy out over a table, or over this worker's stretch of it, batch by batch, without gradients (see `half_gains`).

    Args:
        seed: samples all actions, each batch with a generator of its own, so that it does not matter who rolls it out; None: greedily.
        choose: names the labels of greedy roll-outs.

    Yields:
        (part, episode): the rows of the table that make the batch, and what the policy did with them.
    """
    from hsal_cli.vision.devices import half_gains, moved

    device = torch.device(device)
    half = half_gains(device)
    for start, part in _batches(table, batch_size):
        generator = None if seed is None else torch.Generator().manual_seed((seed * 1_000_003 + start) % 2**63)
        with torch.inference_mode():
            episode = policy(
                moved(part.volumes, device),
                moved(part.saliency, device),
                choose=sampling(generator) if generator else choose,
                max_steps=max_steps,
                sample_glimpses=generator is not None,
                generator=generator,
                half=half,
            )
        yield part, episode


def _batches(table: FeatureRows, batch_size: int) -> Iterator[tuple[int, FeatureTable]]:
    """(first row, rows) of each batch of this worker's stretch of a table."""
    own = distributed.stretch(len(table), batch_size)
    for start in own[::batch_size]:
        yield start, table.select(slice(start, min(start + batch_size, own.stop)))


def answers(
    policy: HSAL | CountClassifier | SetPredictor,
    table: FeatureRows,
    max_steps: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    seen: Callable[[FeatureTable, Episode | None], None] = lambda part, episode: None,
    choose: Choose = greedy,
) -> tuple[np.ndarray, Tally, Tally]:
    """What a table's images are named, by all workers: (N, K) int64 counts, and the tallies of attention and localization of a policy."""
    counts, attention, localization = [np.zeros((0, policy.classes), dtype=np.int64)], Tally(), Tally()
    if not isinstance(policy, HSAL):
        for _, part in _batches(table, batch_size):
            with torch.inference_mode():
                counts.append(policy.predict(part.volumes.to(device)).cpu().numpy())
            seen(part, None)
    else:
        for part, episode in roll_outs(policy, table, max_steps, batch_size, device, seed, choose):
            counts.append(label_counts(episode.labels.T, policy.classes))
            add_attn_saliency(attention, episode, part.saliency)
            if part.boxes is not None:
                add_localization(localization, episode, part.labels, part.boxes, part.image_size)
            seen(part, episode)
    return np.concatenate(distributed.all_gather(np.concatenate(counts))), attention.together(), localization.together()


def mean_of(documents: list[Any]) -> Any:
    """The mean of JSON documents of one form, number by number; None where all are None. Numbers that all agree stay as they are."""
    first = documents[0]
    if isinstance(first, dict):
        return {key: mean_of([document[key] for document in documents]) for key in first}
    if isinstance(first, list):
        return [mean_of(list(items)) for items in zip(*documents, strict=True)]
    known = [document for document in documents if document is not None]
    if not known or all(value == known[0] for value in known):
        return known[0] if known else None
    return sum(known) / len(known)
