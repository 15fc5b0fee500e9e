"""Verdicts in words on how a training run went, by rules on its metrics; each names the curve that led to it.

Advice depends on the settings of the run: what is in force already is not advised. Where they cannot be told, none is given.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from hsal_cli.policy.variant import Variant
from hsal_cli.runs.documents import predictor
from hsal_cli.runs.record import Record, read_record
from hsal_cli.vision.architectures import IMAGENET

Curve = list[tuple[int, float]]

CELLS_COLLAPSED = 1.5  # a glimpse distribution over effectively fewer cells than this is settled
PRIORITY_LOW = 0.3  # mean priority at the glimpses (at most 1) of a location policy that misses what is salient
STOPS_AT_ONCE = 0.9  # share of naming steps at which stop is the likeliest outcome
HARDLY = 0.05  # an exact match that nothing was learned for
DROP = 0.1  # of the score from one epoch to the next: unstable
FALL = 0.02  # of the score below its best: overfitting, if training goes on improving; of few images more is chance
RISE = 0.01  # of the score over the last quarter: still rising
FLAT = 0.005  # of the score over the last third: levelled off
LABELS_SETTLED = 0.1  # nats: label distributions this sharp explore no more
REWARD_LOW = 0.5  # mean reward (-1 to 1) at which exploring would still pay
BESIDE = 0.15  # share of glimpses on the object that is named; chance is about 0.1
DRIFTED = 0.5  # share of its best mask_mass that a mask is left with once it has drifted off the objects
SPREAD = 0.1  # of the way from chance to the whole mask on the object: a mask that stays below it never came to the objects
EXPLAINS = 0.05  # share of the reward's variance; a baseline below it does not help
FEWEST = 4  # epochs that a trend is read from
SEES_WELL = 0.8  # accuracy of a backbone; of one below it a policy learns little
NAMES_WELL = 0.9  # score from which on nobody asks for more images
FEW_IMAGES = 1_000  # with fewer, more of them help most


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One finding.

    Attributes:
        text: a sentence, with the numbers it rests on.
        kind: good, note, or problem.
        metric: the curve that led to it.
        epoch: where on the curve, if at one place.
    """

    text: str
    kind: Literal["good", "note", "problem"]
    metric: str
    epoch: int | None = None


def verdicts(record: Record) -> list[Verdict]:
    """What the metrics of a run say, problems first."""
    if not record.rows:
        return [Verdict(f"no epoch was finished: the run is {record.state}", "problem", "loss")]
    rules = [_unfinished(record), _course(record), _seeing(record), _few(record), _blind(record)]
    if record.kind == "policy":
        rules += [_stopping(record), _looking(record), _masking(record), _naming(record), _baseline(record)]
    found = [verdict for rule in rules for verdict in rule]
    return sorted(found, key=lambda verdict: ("problem", "note", "good").index(verdict.kind))


def problems(run: Path) -> list[str]:
    """What is wrong with a run, in sentences; FileError: it cannot be read."""
    return [verdict.text for verdict in verdicts(read_record(run)) if verdict.kind == "problem"]


def _unfinished(record: Record) -> Iterator[Verdict]:
    done = record.rows[-1]["epoch"]
    planned = record.settings.get("epochs")
    of = f" of {planned}" if planned and record.kind != "backbone" else ""
    if record.state == "failed":
        yield Verdict(f"training failed after epoch {done}{of}", "problem", "loss", done)
    elif record.state != "finished":
        yield Verdict(f"training is not finished: {done}{of} epochs, state {record.state}", "note", record.score, done)


def _course(record: Record) -> Iterator[Verdict]:
    """The course of the score on held-out images: unstable, overfitting, rising, levelled off."""
    score = record.curve(record.score)
    if not score:
        return
    name, values = record.score.replace("_", " "), [value for _, value in score]
    for (_, before), (epoch, now) in itertools.pairwise(score):
        if before - now >= DROP:
            text = f"unstable: {name} fell from {before:.3f} to {now:.3f} in epoch {epoch}; a lower --learning-rate may be calmer"
            yield Verdict(text, "note", record.score, epoch)
            break
    if len(score) < FEWEST:
        yield Verdict(f"{len(score)} epochs are too few to read a trend from ({name} {values[-1]:.3f})", "note", record.score)
        return
    best = max(range(len(score)), key=lambda place: values[place])
    peak, last = score[best][0], score[-1][0]
    training = record.curve("reward") or [(epoch, -loss) for epoch, loss in record.curve("loss")]
    goes_on = dict(training).get(last, -math.inf) > dict(training).get(peak, math.inf)
    back, third = max(1, len(score) // 4), max(2, len(score) // 3)
    recent = values[-third:]
    if values[best] - values[-1] >= max(FALL, _chance(record, values[best])) and goes_on:
        fit = f"reward in training rose from {dict(training)[peak]:.3f} to {dict(training)[last]:.3f}"
        if record.kind != "policy":
            fit = f"the loss in training fell from {-dict(training)[peak]:.3f} to {-dict(training)[last]:.3f}"
        text = f"overfits since epoch {peak}: {name} fell from {values[best]:.3f} to {values[-1]:.3f} while {fit}"
        yield Verdict(text, "problem", record.score, peak)
    elif best == len(score) - 1 and values[-1] - values[-1 - back] >= RISE:
        gain = f"+{values[-1] - values[-1 - back]:.3f} over the last {back} epoch{'s' if back > 1 else ''}, to {values[-1]:.3f}"
        yield Verdict(f"still rising at the end ({name} {gain}): train longer", "note", record.score, last)
    elif max(recent) - min(recent) <= FLAT and values[-1] > HARDLY:
        yield Verdict(f"{name} levelled off at {values[-1]:.3f} from epoch {score[-third][0]} on", "good", record.score, score[-third][0])


def _chance(record: Record, share: float) -> float:
    """Two standard errors of a share of the held-out images; 0 where it is not known how many there were."""
    part, images = record.settings.get("validation") or 0, record.status.images or 0
    held_out = part if part >= 1 else images * part / (1 - part)
    return 2 * math.sqrt(share * (1 - share) / held_out) if held_out else 0.0


def _seeing(record: Record) -> Iterator[Verdict]:
    """What the backbone names rightly, or finds by counting: its own, or that of the features which a policy was trained on."""
    backbone = record if record.kind == "backbone" else record.backbone
    accuracy = backbone.status.accuracy if backbone else None
    if backbone is None or accuracy is None or accuracy >= SEES_WELL:
        return
    settings = backbone.settings
    counts, shown = settings.get("objects") == "counts", settings.get("full_images")
    ways = [f"longer (--full-images {2 * shown})" if shown else "longer (--full-images)", "more images"]
    if backbone.config.get("weights_used") == "random":
        ways.insert(0, f"pretrained weights ({IMAGENET})")
    found = (
        f"finds {accuracy:.0%} of the objects, by the overlap of its counts and the true ones"
        if counts
        else f"names {accuracy:.0%} rightly"
    )
    yield Verdict(f"the backbone {found}: {', '.join(ways[:-1])}, or {ways[-1]}", "problem", "accuracy")


def _few(record: Record) -> Iterator[Verdict]:
    images, best = record.status.images, record.best
    if images is not None and images < FEW_IMAGES and best and best[record.score] < NAMES_WELL:
        yield Verdict(f"{images} images to learn from are few: more of them help most", "problem", record.score)


def _blind(record: Record) -> Iterator[Verdict]:
    """Whether a predictor that never sees an image does as well."""
    rivals, best = record.status.never_looks, record.best
    if not rivals or best is None:
        return
    name, scores = max(rivals.items(), key=lambda item: item[1].macro_f1)
    if best["macro_f1"] <= scores.macro_f1:
        found = f"macro-F1 {best['macro_f1']:.3f} on held-out images, and {predictor(name)} {scores.macro_f1:.3f}"
        yield Verdict(f"worse than a predictor that never looks: {found}", "problem", "macro_f1", best["epoch"])


def _stopping(record: Record) -> Iterator[Verdict]:
    stops = record.curve("early_stops")
    if stops and stops[-1][1] > STOPS_AT_ONCE:
        since = _since(stops, lambda value: value > STOPS_AT_ONCE)
        way = f"use {supervised_stop(record.variant, record.settings.get('objective'))}a lower --learning-rate"
        text = f"learned to stop at once: at {stops[-1][1]:.0%} of the steps stop comes too early, since epoch {since}; {way}"
        yield Verdict(text, "problem", "early_stops", since)


def supervised_stop(variant: Variant | None, objective: str | None) -> str:
    """Advice to supervise stop, to stand before others; "" where stop is never sampled."""
    return "--set stop=supervised, " if variant is not None and variant.stop == "sampled" and objective in ("rl", "cross-entropy") else ""


def _looking(record: Record) -> Iterator[Verdict]:
    """Where the glimpses went; cross-entropy alone does not train them."""
    hits = record.curve("glimpse_hit")
    if record.settings.get("objective") not in ("rl", "multiset", None):
        if hits:
            text = f"glimpses are not trained by this objective: {hits[-1][1]:.2f} of them lie on the object that is named"
            yield Verdict(text, "note", "glimpse_hit")
        return
    entropy, priority = record.curve("location_entropy"), dict(record.curve("location_reward"))
    last = entropy[-1] if entropy else None
    if last is not None and math.exp(last[1]) < CELLS_COLLAPSED and priority.get(last[0], 1) < PRIORITY_LOW:
        since = _since(entropy, lambda value: math.exp(value) < CELLS_COLLAPSED)
        text = (
            f"the location policy collapsed at epoch {since}: it chooses among effectively {math.exp(last[1]):.1f} cells, where the "
            f"priority is only {priority[last[0]]:.2f}; {_better_looks(record)}"
        )
        yield Verdict(text, "problem", "location_entropy", since)
    if hits and hits[-1][1] < BESIDE:
        text = f"glimpses land beside the objects: {hits[-1][1]:.2f} of them lie on the one that is named, hardly more than by chance"
        yield Verdict(text, "problem", "glimpse_hit", hits[-1][0])
    elif hits and hits[-1][1] >= 0.5:
        yield Verdict(f"it looks at what it names: {hits[-1][1]:.2f} of the glimpses lie on the object", "good", "glimpse_hit")


def _better_looks(record: Record) -> str:
    """What keeps glimpses from settling where nothing is."""
    variant, ways = record.variant, []
    if variant is not None and variant.location_input == "hidden":
        ways.append("--set location_input=priority")
    if variant is not None and variant.gradient == "sampled" and record.settings.get("objective") == "rl":
        ways.append("--set gradient=expected")
    return f"try {' or '.join(ways)}" if ways else "a lower --learning-rate may keep it exploring"


def _masking(record: Record) -> Iterator[Verdict]:
    found = mask_off_objects(record.curve("mask_mass"), record.curve("area"), record.variant)
    if found:
        yield Verdict(found[1], "problem", "mask_mass", found[0])


def mask_off_objects(mask_mass: Curve, area: Curve, variant: Variant | None) -> tuple[int, str] | None:
    """Whether the covert mask never came to the objects that are named, in two epochs at least, or has left them to the end of the curve.

    Args:
        mask_mass: share of the mask on the object that is named, an epoch each.
        area: the object's share of the image's area, which an even mask has there; empty where it was not recorded.
        variant: of the policy; None: not known.

    Returns:
        The epoch since when (the second, if never), and a sentence with a hint; None where it is on them.
    """
    if len(mask_mass) < 2:
        return None
    best = max(value for _, value in mask_mass)
    chance = area[-1][1] if area else None
    if chance is not None and best < chance + SPREAD * (1 - chance):
        text = (
            f"the mask never came to the objects: mask_mass is {best:.2f} at best, where a mask spread evenly has {chance:.2f}"
            f"{_better_masks(variant)}"
        )
        return mask_mass[1][0], text
    if mask_mass[-1][1] >= DRIFTED * best:
        return None
    since = _since(mask_mass, lambda value: value < DRIFTED * best)
    text = (
        f"the mask drifts off the objects since epoch {since}: mask_mass fell from {best:.2f} to {mask_mass[-1][1]:.2f}"
        f"{_better_masks(variant)}"
    )
    return since, text


def _better_masks(variant: Variant | None) -> str:
    """What brings the mask to the objects, or keeps it there; one that learns nothing lies where saliency is highest."""
    if variant is None:
        return ""
    if variant.mask == "winner-take-all":
        return "; it lies where saliency is highest: another --saliency may have that on the objects"
    learned, carried = variant.mask == "learned", variant.controller_state == "carry"
    found = ["--set mask=anchored"] if learned else ["--set controller_state=reset"] if carried else []
    return f"; try {' or '.join([*found, '--variant fixed-mask'])}"


def _naming(record: Record) -> Iterator[Verdict]:
    reward, entropy, exact = record.curve("reward"), record.curve("label_entropy"), record.curve("exact_match")
    if reward and exact and exact[-1][1] < HARDLY and len(exact) > 1:
        text = f"hardly anything was learned: exact match {exact[-1][1]:.3f}, reward {reward[-1][1]:.2f} (from -1 to 1)"
        yield Verdict(text, "problem", "reward", reward[-1][0])
    settled = [epoch for epoch, value in entropy if value < LABELS_SETTLED]
    if reward and settled and reward[-1][1] < REWARD_LOW and settled[-1] == entropy[-1][0] and record.settings.get("objective") == "rl":
        since = _since(entropy, lambda value: value < LABELS_SETTLED)
        text = (
            f"stopped exploring labels at epoch {since}: their entropy is {entropy[-1][1]:.2f} nats while the reward is only "
            f"{reward[-1][1]:.2f}; raise --label-entropy"
        )
        yield Verdict(text, "problem", "label_entropy", since)


def _baseline(record: Record) -> Iterator[Verdict]:
    """The baseline of rl's REINFORCE; the gradient over all actions reads none."""
    explained, variant = record.curve("explained_variance"), record.variant
    reads_it = record.settings.get("objective") == "rl" and variant is not None and variant.gradient == "sampled"
    if explained and reads_it and explained[-1][1] < EXPLAINS:
        text = f"the baseline V explains nothing of the reward (explained variance {explained[-1][1]:.2f}): it only centres the advantages"
        yield Verdict(text, "note", "explained_variance", explained[-1][0])


def _since(curve: Curve, holds: Callable[[float], bool]) -> int:
    """The epoch from which on a condition holds to the end."""
    first = curve[-1][0]
    for epoch, value in reversed(curve):
        if not holds(value):
            break
        first = epoch
    return first
