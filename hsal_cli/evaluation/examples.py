"""Test images chosen by rule, not by eye, for trajectories in the form of figures 2 and 12."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hsal_cli.evaluation.evaluate import STOPPED_HINT, roll_outs
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.features.table import check_match, open_features
from hsal_cli.models.load import LoadedPolicy
from hsal_cli.models.look import as_rgb, look_at
from hsal_cli.models.seen import Look
from hsal_cli.progress import SILENT, Reporter

if TYPE_CHECKING:
    import numpy as np

    from hsal_cli.features.table import FeatureFile
    from hsal_cli.scenes.scene_file import SceneFile

REPEAT, MANY, FAILURE = "first with a repeated label, predicted right", "first other with four objects, predicted right", "first failure"
RIGHT = "first predicted right"  # where no label repeats
OBJECTS = 4  # what MANY asks for
READ = 1024  # rows of features in memory at a time


@dataclasses.dataclass(frozen=True)
class ChosenExample:
    """A test image, by its row in the split, the rule by which it was chosen, what a policy did with it, and names of its labels."""

    rule: str
    row: int
    look: Look
    truth: list[str]


def choose_examples(
    loaded: LoadedPolicy,
    features: Path,
    scenes: Path,
    split: str = "test",
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
) -> list[ChosenExample]:
    """The first image of a split with a repeated label that a policy predicts right, the first other one with four objects, and its first
    failure, by greedy roll-outs on the stored features, which is how the policy is evaluated.

    Args:
        features, scenes: the features it was trained on, and the images they come from.

    Returns:
        Those of the three that there are, in that order; where no label repeats, the first image predicted right in place of the first.

    Raises:
        FileError: a file is unusable, or the features are not of these scenes or of the policy's backbone.
        Interrupted: a signal asked to stop.
    """
    from hsal_cli.scenes.scene_file import open_scenes

    found: dict[str, int] = {}
    with open_scenes(scenes) as scene_file, open_features(features) as file:
        check_match(file, scenes_digest=scene_file.digest, backbone_digest=loaded.meta.backbone_digest)
        true = label_counts(file.labels(split), len(file.classes))
        wanted = [REPEAT if (true > 1).any() else RIGHT, MANY, FAILURE]
        for row, (counts, right) in enumerate(zip(true, _right(loaded, file, split, true, batch_size, device, reporter), strict=True)):
            passing = {REPEAT: right and (counts > 1).any(), RIGHT: right, MANY: right and counts.sum() == OBJECTS, FAILURE: not right}
            # An image that a rule before has taken is not shown twice.
            rule = next((rule for rule in wanted if rule not in found and passing[rule]), None)
            if rule is not None:
                found[rule] = row
            if len(found) == len(wanted):
                break
        rules = [rule for rule in wanted if rule in found]
        names = [f"{split} image {found[rule]}, {rule.split(',')[0]}" for rule in rules]
        looks = look_at_rows(loaded, file, scene_file, split, [found[rule] for rule in rules], names, device)
    return [ChosenExample(rule, found[rule], look, truth) for rule, (look, truth) in zip(rules, looks, strict=True)]


def _right(
    loaded: LoadedPolicy, file: FeatureFile, split: str, true: np.ndarray, batch_size: int, device: torch.device | str, reporter: Reporter
) -> Iterator[bool]:
    """Whether each image of a split is named rightly, in order."""
    for start in range(0, len(true), READ):
        table = file.table(split, slice(start, start + READ))
        for part, episode in roll_outs(loaded.policy, table, loaded.max_steps, batch_size, device):
            yield from (true[start : start + len(part)] == label_counts(episode.labels.T, len(file.classes))).all(1)
            start += len(part)
            reporter.check_stop(STOPPED_HINT)


def look_at_rows(
    loaded: LoadedPolicy,
    features: FeatureFile,
    scenes: SceneFile,
    split: str,
    rows: Sequence[int],
    names: Sequence[str],
    device: torch.device | str = "cpu",
) -> list[tuple[Look, list[str]]]:
    """Trajectories of chosen rows of a split, at least one, called by these names, with the names of their true labels."""
    pictures, table = scenes.split(split), features.table(split, torch.tensor(rows))
    episode = next(roll_outs(loaded.policy, table, loaded.max_steps, len(rows), device))[1]
    found = []
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        image = as_rgb(torch.from_numpy(pictures.read(row, row + 1)[0])).numpy()
        truth = [loaded.classes[label] for label in table.labels[place].tolist() if label >= 0]
        look = look_at(episode, place, name, image, loaded.classes, loaded.trust.temperature, loaded.policy.variant.reads)
        found.append((look, truth))
    return found
