"""Test images of recorded runs, for reports: what each run's best policy did with them, confusion of labels, images worth looking at.

What cannot be had is left out, with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from hsal_cli.errors import FileError
from hsal_cli.evaluation.calibration import choices
from hsal_cli.evaluation.calibration import confidence as sureness
from hsal_cli.evaluation.evaluate import STOPPED_HINT, roll_outs
from hsal_cli.evaluation.examples import look_at_rows
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.features.table import FORMAT, MADE_BY, FeatureTable, check_match, open_features
from hsal_cli.models.load import LoadedPolicy, load_policy
from hsal_cli.models.seen import Look
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs.record import Record
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import SceneFile, open_scenes
from hsal_cli.storage.hdf5 import format_of, open_hdf5
from hsal_cli.vision.devices import on_host

SPLIT = "test"
BATCH = 256  # images rolled out together


@dataclasses.dataclass(frozen=True)
class Detail:
    """Greedy roll-outs of N images.

    Attributes:
        true, named: (N, K) counts of labels.
        confidence: (N,) the lowest probability of an image's choices, stop included; in [0, 1].
        right: (n,) bool, whether each choice of all images was right (see `calibration.choices`).
        sure: whose probabilities -> (n,) that of each choice, in [0, 1]: "calibrated", and "as trained", at temperature 1.
        temperature: of those that are calibrated.
    """

    true: np.ndarray
    named: np.ndarray
    confidence: np.ndarray
    right: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    sure: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0

    @property
    def exact(self) -> np.ndarray:
        """(N,) bool, whether the multiset is right."""
        return (self.true == self.named).all(axis=1)

    @property
    def errors(self) -> np.ndarray:
        """(N,) labels missed plus labels wrongly named."""
        return np.abs(self.true - self.named).sum(axis=1)


def detail(loaded: LoadedPolicy, table: FeatureTable, device: torch.device | str = "cpu", reporter: Reporter = SILENT) -> Detail:
    """Rolls a policy out greedily over a table of at least one image.

    Raises:
        Interrupted: a signal asked to stop.
    """
    classes = loaded.policy.classes
    named, confidence, outcome, probabilities = [], [], [], []
    temperatures = {"calibrated": loaded.trust.temperature, "as trained": 1.0}
    with reporter.track("looking at test images", len(table), "images") as advance:
        for part, episode in roll_outs(loaded.policy, table, loaded.max_steps, BATCH, device):
            named.append(label_counts(episode.labels.T, classes))
            # The lowest probability among the labels chosen at the active meta-steps.
            chosen = (episode.scores / loaded.trust.temperature).softmax(-1).gather(-1, episode.labels.clamp(min=0)[..., None])[..., 0]
            confidence.append(on_host(torch.where(episode.active, chosen, 1.0).amin(0)).numpy())
            scores, right = choices(episode, part.labels)
            outcome.append(right)
            probabilities.append([sureness(scores, temperature) for temperature in temperatures.values()])
            advance(len(part))
            reporter.check_stop(STOPPED_HINT)
    sure = dict(zip(temperatures, map(np.concatenate, zip(*probabilities, strict=True)), strict=True))
    found = label_counts(table.labels, classes), np.concatenate(named), np.concatenate(confidence)
    return Detail(*found, np.concatenate(outcome), sure, loaded.trust.temperature)


def confusion(true: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Which label was named for which, counted in objects.

    A multiset does not say which label was meant for which object. Those on both sides are right; of an image's other labels, each
    missed one is shared evenly among the wrong ones, as the mean over all ways to pair them would. Where there are more missed than
    wrong labels, or the other way round, the rest has no partner.

    Args:
        true, named: (N, K) counts.

    Returns:
        (K + 1, K + 1) float64: rows are true labels, columns named ones; the last row stands for labels named for no object, the last
        column for objects that no label was named for. The sum of row c is the number of objects of class c.
    """
    classes = true.shape[1]
    hits = np.minimum(true, named)
    found = np.zeros((classes + 1, classes + 1))
    found[:classes, :classes] = np.diag(hits.sum(axis=0))
    missed, wrong = (true - hits).astype(np.float64), (named - hits).astype(np.float64)
    most = np.maximum(missed.sum(axis=1), wrong.sum(axis=1))
    rows = most > 0
    missed, wrong, most = missed[rows], wrong[rows], most[rows, None]
    found[:classes, :classes] += (missed / most).T @ wrong
    found[:classes, classes] = (missed * (1 - wrong.sum(axis=1, keepdims=True) / most)).sum(axis=0)
    found[classes, :classes] = (wrong * (1 - missed.sum(axis=1, keepdims=True) / most)).sum(axis=0)
    return found


def choose(found: Detail, most: int = 3) -> dict[str, list[int]]:
    """Images worth looking at, by rule; of equals the first.

    Returns:
        kind -> rows, best example first; kinds without an image are left out:
        `best`: exact matches with the most objects, the surest first;
        `worst`: most errors, the surest first;
        `repeats`: the first images in which a label repeats, right or wrong;
        `uncertain`: the least confident choices.
    """
    every = np.arange(len(found.true))
    right, wrong = every[found.exact], every[~found.exact]
    sizes, repeated = found.true.sum(axis=1), every[(found.true > 1).any(axis=1)]
    ordered = {
        "best": right[np.lexsort((-found.confidence[right], -sizes[right]))],
        "worst": wrong[np.lexsort((-found.confidence[wrong], -found.errors[wrong]))],
        "repeats": repeated,
        "uncertain": np.argsort(found.confidence, kind="stable"),
    }
    return {kind: rows[:most].tolist() for kind, rows in ordered.items() if len(rows)}


@dataclasses.dataclass(frozen=True)
class Tested:
    """A run whose test images were looked at: its best policy, the feature file, and what it named."""

    policy: LoadedPolicy
    features: Path
    detail: Detail


def look_at_runs(
    records: Sequence[Record], data: Path | None, device: torch.device | str = "cpu", reporter: Reporter = SILENT
) -> tuple[dict[Path, Tested], list[str]]:
    """Rolls the best policy of each run out over its test images.

    Args:
        records: runs of policies.
        data: a feature file to take instead of those that the runs were trained on; a scene file serves `gallery` alone.

    Returns:
        (found, left_out): run -> what was seen; and a sentence for each run whose policy or features cannot be had.

    Raises:
        Interrupted: a signal asked to stop.
    """
    found: dict[Path, Tested] = {}
    left_out: list[str] = []
    held: tuple[Path, FeatureTable] | None = None  # one table at a time: it may be half a gigabyte
    given = data if data is not None and _format_of(data) == FORMAT else None
    for record in records:
        try:
            features = given or Path(record.config["features"])
            if not features.is_file():
                raise FileError(f"its features are not at {features}", "name them with --data")
            policy = load_policy(record.path, "best", device)
            if held is None or held[0] != features:
                reporter.say(f"reading the test images of {features}")
                held = features, _read(features)
            _check(policy, features)
            found[record.path] = Tested(policy, features, detail(policy, held[1], device, reporter))
        except FileError as error:
            left_out.append(f"{record.path}: what needs test images, because {error.message}")
    return found, left_out


def gallery(
    tested: Tested, data: Path | None, most: int = 4, device: torch.device | str = "cpu"
) -> dict[str, list[tuple[Look, list[str]]]]:
    """Trajectories of images chosen by rule, at most `most` of each kind: kind (see `choose`) -> (look, true labels) of each.

    Args:
        data: a scene file that holds the images, instead of the one that its features were made from.

    Raises:
        FileError: the scene file is not to be found, or is another one.
    """
    chosen = choose(tested.detail, most)
    rows = sorted({row for some in chosen.values() for row in some})
    scenes = data if data is not None and _format_of(data) == SCENES else None
    with find_scenes(tested.features, scenes) as file, open_features(tested.features) as features:
        found = look_at_rows(tested.policy, features, file, SPLIT, rows, [f"{SPLIT} image {row}" for row in rows], device)
    looks = dict(zip(rows, found, strict=True))
    return {kind: [looks[row] for row in some] for kind, some in chosen.items()}


def find_scenes(features: Path, named: Path | None = None) -> SceneFile:
    """Opens the scene file that features were made from: where they say, beside them, or by their name; or the one that is `named`.

    Raises:
        FileError: it is not to be found, or `named` is another one.
    """
    hint = "name the scene file with --data"
    with open_features(features) as file:
        digest, said = file.scenes_digest, file.config.scenes
    places = [Path(said), features.parent / Path(said).name] if said else []
    places.append(features.with_name(features.name.removesuffix(".h5").removesuffix(".features") + ".h5"))
    for place in [named] if named else places:
        try:
            scenes = open_scenes(place)
        except FileError:
            if named:
                raise
            continue
        if scenes.digest == digest:
            return scenes
        scenes.close()
    if named:
        raise FileError(f"{named} is not the scene file that {features} was made from", hint)
    raise FileError(f"the scene file of {features} is not at {' or '.join(dict.fromkeys(map(str, places)))}", hint)


def _format_of(path: Path) -> str | None:
    """The `format` attribute of an HDF5 file, None where there is none; FileError where it is missing or is not HDF5."""
    if not path.is_file() or not h5py.is_hdf5(path):
        open_hdf5(path, SCENES, MADE_BY).close()  # says what is wrong with it
    return format_of(path)


def _read(features: Path) -> FeatureTable:
    with open_features(features) as file:
        table = file.table(SPLIT)
    if not len(table):
        raise FileError(f"split {SPLIT} of {features} holds no image", "name other features with --data")
    return table


def _check(policy: LoadedPolicy, features: Path) -> None:
    with open_features(features) as file:
        check_match(file, backbone_digest=policy.meta.backbone_digest)
        if file.classes != policy.classes or list(file.volume_shape) != list(policy.policy.volume_shape):
            raise FileError(f"{features} has other classes or volumes than the policy was trained with", "name other features with --data")
