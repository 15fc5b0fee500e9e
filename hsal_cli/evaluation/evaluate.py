"""Evaluation of a policy, or of the direct baseline, on a feature table (section 5): the roll-outs, and every score of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hsal_cli import distributed
from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.attention import Tally, add_attn_saliency, add_localization
from hsal_cli.evaluation.calibration import add_reliability, reliability
from hsal_cli.evaluation.flops import backbone_flops, cells_looked_at, policy_flops
from hsal_cli.evaluation.looking import Looking
from hsal_cli.evaluation.metrics import exact_match_and_f1, label_counts, multiset_metrics, trivial_baselines
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.settings import LookedFirst, kind_in
from hsal_cli.models.load import LoadedPolicy, find_backbone, place_of_network
from hsal_cli.models.trust import Trust
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.episode import Choose, Episode, greedy, sampling, until
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.set_predictor import SetPredictor
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.settings import frame_of
from hsal_cli.settings import as_dict
from hsal_cli.typed import Odd, checked

if TYPE_CHECKING:
    from hsal_cli.features.table import FeatureRows, FeatureTable
    from hsal_cli.vision.backbone import LoadedBackbone

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
            named, attention, localization = _answers(policy, table, max_steps, settings.batch_size, device, seed, seen, choose)
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


def evaluate_file(
    loaded: LoadedPolicy, features: Path, settings: EvalSettings, device: torch.device | str = "cpu", reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Evaluates a loaded policy, or direct baseline, on a split of a feature file.

    Returns:
        What `evaluate` gives, with baselines if the file has a training split, and `dataset` (the file's name without endings),
        `split`, `features`, `features_digest`, `scenes_digest`, `checkpoint`, `objective`, `parameters` (how many numbers were learned),
        `frame` (what was cut out of the images) and `trained_frame` (of those that the policy was trained on); and in `flops`
        `looks` (those that found the frame of an image whose frame is "found"), `backbone`, `windows` (of the cells looked at, where the
        features have them) and `image` in all; None where a network is nowhere.

    Raises:
        FileError: the file is unusable, has no such split, or holds features of another backbone, other classes or another shape.
        Interrupted: a signal asked to stop.
    """
    from hsal_cli.features.table import check_match, open_features

    try:
        backbone = find_backbone(loaded)
    except FileError:  # scores of features do not need it
        backbone = None
    with open_features(features) as file:
        check_match(file, backbone_digest=loaded.meta.backbone_digest, backbone=backbone and backbone.path)
        _check_fits(features, loaded, file.classes, file.volume_shape, file.saliency, file.input_size)
        reporter.say(f"reading {features}")
        table = file.table(settings.split)
        if not len(table):
            raise FileError(f"split {settings.split} of {features} holds no image", "name another one with --split")
        table = table.labelled(_as_named(table.labels, file.classes, loaded), table.boxes)
        train_labels = _as_named(file.labels("train"), file.classes, loaded) if "train" in file.splits else None
        digests = {"features_digest": file.digest, "scenes_digest": file.scenes_digest}
        made_from, config = {"features": str(features), **digests}, file.config.scenes_config
        distributed.agree(**digests, weights=loaded.checkpoint.digest, eval=as_dict(settings))
    return _document(loaded, backbone, table, features, made_from, config, settings, device, reporter, train_labels)


def evaluate_scenes(
    loaded: LoadedPolicy,
    backbone: LoadedBackbone,
    scenes: Path,
    settings: EvalSettings,
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Evaluates a loaded policy, or direct baseline, on a split of a scene file, whose features are computed on the way and not kept.

    Memory is bounded by one batch; sampled roll-outs take the images several times, so their features are held in memory, in float16.

    Args:
        backbone: the one the policy was trained with, on `device`.

    Returns:
        What `evaluate_file` gives, with `scenes` in place of `features` and without `features_digest`.

    Raises:
        FileError: the file is unusable, has no such split, or has other classes; or the backbone does not fit the policy.
        Interrupted: a signal asked to stop.
    """
    from hsal_cli.features.saliency.models import saliency_model
    from hsal_cli.features.scene_features import SceneFeatures
    from hsal_cli.scenes.scene_file import open_scenes

    side, size = backbone.model.resolution, backbone.model.input_size
    with open_scenes(scenes) as file:
        saliency = loaded.meta.saliency
        _check_fits(scenes, loaded, file.classes, (backbone.model.channels + backbone.model.fine, side, side), saliency, size)
        table = SceneFeatures(file.split(settings.split), backbone, saliency_model(saliency))
        table = table.labelled(_as_named(table.labels, file.classes, loaded), table.boxes)
        own = torch.from_numpy(file.split("train").labels).long() if "train" in file.splits else None
        train_labels = None if own is None else _as_named(own, file.classes, loaded)
        if settings.sample > 1:
            table = table.in_memory(settings.batch_size, reporter)
        made_from = {"scenes": str(scenes), "scenes_digest": file.digest}
        distributed.agree(scenes_digest=file.digest, weights=loaded.checkpoint.digest, backbone=backbone.digest, eval=as_dict(settings))
        return _document(loaded, backbone, table, scenes, made_from, file.config, settings, device, reporter, train_labels)


def check_scenes(scenes: Path, loaded: LoadedPolicy, split: str) -> None:
    """Refuses scenes that a policy cannot be evaluated on, before an hour of features is computed for it.

    Raises:
        FileError: a class that the policy does not know, or no such split.
    """
    from hsal_cli.scenes.scene_file import open_scenes

    with open_scenes(scenes) as file:
        _check_fits(scenes, loaded, file.classes, loaded.policy.volume_shape, loaded.meta.saliency, None)
        file.split(split)


def _document(
    loaded: LoadedPolicy,
    backbone: LoadedBackbone | None,
    table: FeatureRows,
    source: Path,
    made_from: dict[str, str],
    scenes_config: dict[str, Any],
    settings: EvalSettings,
    device: torch.device | str,
    reporter: Reporter,
    train_labels: torch.Tensor | None,
) -> dict[str, Any]:
    """Scores, and what they are scores of."""
    from hsal_cli.features.settings import dataset_of
    from hsal_cli.vision.devices import fitting

    with fitting(device, settings.batch_size):
        found = evaluate(loaded.policy, table, loaded.classes, settings, loaded.max_steps, device, reporter, train_labels, loaded.trust)
    looks = _looks_flops(loaded, scenes_config)
    work: dict[str, float | None] = {"looks": looks, **dict.fromkeys(("backbone", "windows", "image"))}
    if backbone is not None:
        seen, window = backbone_flops(backbone.model)
        # What reads windows and looks nowhere, a direct baseline, reads them all.
        cells, policy = backbone.model.resolution**2, loaded.policy
        if isinstance(policy, HSAL):
            cells = found["cells_looked_at"] if policy.variant.glimpse == "window" else 0
        work |= {"backbone": seen, "windows": window * cells}
        if looks is not None:
            work["image"] = looks + seen + window * cells + found["flops"]["policy"]
    found["flops"] |= work
    return {
        "dataset": dataset_of(source, loaded.meta.saliency),
        "split": settings.split,
        **found,
        **made_from,
        "frame": frame_of(scenes_config),
        "checkpoint": str(loaded.checkpoint.path),
        "objective": loaded.meta.objective,
        "parameters": sum(parameter.numel() for parameter in loaded.policy.parameters()),
        "saliency": loaded.meta.saliency,
        "trained_frame": loaded.meta.frame,
    }


def _looks_flops(loaded: LoadedPolicy, scenes_config: dict[str, Any]) -> float | None:
    """FLOPs of the looks that found the frame of an image; None where the network that looked is nowhere."""
    from hsal_cli.vision.backbone import load_backbone

    if frame_of(scenes_config) != "found":
        return 0
    try:
        looked = checked(scenes_config.get("found"), LookedFirst, "found")
        place = place_of_network(loaded, looked.look_digest, looked.look)
        return None if place is None else looked.zooms * backbone_flops(load_backbone(place).model)[0]
    except (Odd, FileError):
        return None


def _as_named(labels: torch.Tensor, classes: list[str], loaded: LoadedPolicy) -> torch.Tensor:
    """Labels (N, L) of a file with these classes, as the policy counts its own."""
    places = torch.tensor([loaded.classes.index(name) for name in classes])
    return torch.where(labels >= 0, places[labels.clamp(min=0)], labels)


def _check_fits(
    source: Path, loaded: LoadedPolicy, classes: list[str], shape: tuple[int, int, int], saliency: str, input_size: int | None
) -> None:
    strange = [name for name in classes if name not in loaded.classes]  # of those it knows, images need not show all
    for what, found, wanted in (
        ("classes", classes if strange else loaded.classes, loaded.classes),
        ("saliency of kind", kind_in(saliency), kind_in(loaded.meta.saliency)),
        ("volumes of shape", list(shape), list(loaded.policy.volume_shape)),
        ("an input_size of", input_size or loaded.meta.input_size, loaded.meta.input_size or input_size),
    ):
        if found != wanted:
            hint = "name features of the --resolution that it was trained on with --data"
            if what == "classes":
                hint = f"train a policy that names those: hsal train --data {source}"
            elif what == "saliency of kind":
                hint = "name another file with --data"
            raise FileError(f"{source} has {what} {found}, the policy was trained with {wanted}", hint)


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
    named, attention, localization = _answers(policy, table, max_steps, batch_size, device)
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
    """Rolls a policy out over a table, or over this worker's stretch of it, batch by batch and without gradients.

    Args:
        seed: samples all actions, each batch with a generator of its own, so that it does not matter who rolls it out; None: greedily.
        choose: names the labels of greedy roll-outs.

    Yields:
        (part, episode): the rows of the table that make the batch, and what the policy did with them.
    """
    from hsal_cli.vision.devices import moved

    device = torch.device(device)
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
            )
        yield part, episode


def _batches(table: FeatureRows, batch_size: int) -> Iterator[tuple[int, FeatureTable]]:
    """(first row, rows) of each batch of this worker's stretch of a table."""
    own = distributed.stretch(len(table), batch_size)
    for start in own[::batch_size]:
        yield start, table.select(slice(start, min(start + batch_size, own.stop)))


def _answers(
    policy: HSAL | CountClassifier | SetPredictor,
    table: FeatureRows,
    max_steps: int,
    batch_size: int,
    device: torch.device | str,
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
