"""Test images of recorded runs: roll-outs of each run's best policy, for reports; what cannot be had is left out, with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import h5py
import torch

from hsal_cli.errors import FileError
from hsal_cli.evaluation.examples import look_at_rows
from hsal_cli.features.table import FORMAT, MADE_BY, FeatureTable, check_match, open_features
from hsal_cli.models.load import LoadedPolicy, load_policy
from hsal_cli.models.look import Look
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.report.detail import Detail, choose, detail
from hsal_cli.runs.record import Record
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import SceneFile, open_scenes
from hsal_cli.storage.hdf5 import format_of, open_hdf5

SPLIT = "test"


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
    """Trajectories of images chosen by rule, at most `most` of each kind: kind (see `detail.choose`) -> (look, true labels) of each.

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
