"""Test images chosen by rule, not by eye, for trajectories in the form of figures 2 and 12."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hsal_cli.evaluation.evaluate import STOPPED_HINT, roll_outs
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.features.table import check_match, open_features
from hsal_cli.models.load import LoadedPolicy
from hsal_cli.models.look import Look, as_rgb, look_at
from hsal_cli.policy.episode import Episode
from hsal_cli.progress import SILENT, Reporter

if TYPE_CHECKING:
    import numpy as np

REPEAT, MANY, FAILURE = "first with a repeated label, predicted right", "first other with four objects, predicted right", "first failure"
RIGHT = "first predicted right"  # where no label repeats
OBJECTS = 4  # what MANY asks for
READ = 1024  # rows of features in memory at a time


@dataclasses.dataclass(frozen=True)
class ChosenExample:
    """A test image and what a policy did with it.

    Attributes:
        rule: by which it was chosen, in words.
        row: its row in the split, from 0.
        look: the roll-out.
        truth: names of its labels.
    """

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
        loaded: the policy.
        features, scenes: the features it was trained on, and the images they come from.
        split: the split to look through.
        batch_size: images rolled out together.
        device: where the policy is.
        reporter: may ask to stop.

    Returns:
        Those of the three that there are, in that order; where no label repeats, the first image predicted right in place of the first.

    Raises:
        FileError: a file is unusable, or the features are not of these scenes or of the policy's backbone.
        Interrupted: a signal asked to stop.
    """
    from hsal_cli.scenes.scene_file import open_scenes

    found: dict[str, tuple[int, Episode, int]] = {}
    with open_scenes(scenes) as scene_file, open_features(features) as file:
        check_match(file, scenes_digest=scene_file.digest, backbone_digest=loaded.meta.backbone_digest)
        counts = label_counts(file.labels(split), len(file.classes))
        repeats = bool((counts > 1).any())
        wanted = [REPEAT if repeats else RIGHT, MANY, FAILURE]
        for start in range(0, len(counts), READ):
            table, row = file.table(split, slice(start, start + READ)), start
            for part, episode in roll_outs(loaded.policy, table, loaded.max_steps, batch_size, device):
                predicted = label_counts(episode.labels.T, len(file.classes))
                _look_through(counts[row : row + len(part)], predicted, row, episode, found, wanted)
                row += len(part)
                reporter.check_stop(STOPPED_HINT)
                if len(found) == len(wanted):
                    break
            if len(found) == len(wanted):
                break
        pictures = scene_file.split(split)
        examples = []
        for rule in wanted:
            if rule in found:
                row, episode, place = found[rule]
                image = as_rgb(torch.from_numpy(pictures.read(row, row + 1)[0])).numpy()
                name = f"{split} image {row}, {rule.split(',')[0]}"
                look = look_at(episode, place, name, image, loaded.classes, loaded.trust.temperature)
                truth = [loaded.classes[label] for label in pictures.labels[row] if label >= 0]
                examples.append(ChosenExample(rule, row, look, truth))
    return examples


def _look_through(
    true: np.ndarray, predicted: np.ndarray, first: int, episode: Episode, found: dict[str, tuple[int, Episode, int]], wanted: list[str]
) -> None:
    """Adds what a batch, whose first row is `first`, has of what is still wanted."""
    right = (true == predicted).all(1)
    for place, is_right in enumerate(right):
        passing = {
            REPEAT: is_right and (true[place] > 1).any(),
            RIGHT: is_right,
            MANY: is_right and true[place].sum() == OBJECTS,
            FAILURE: not is_right,
        }
        # An image that a rule before has taken is not shown twice.
        rule = next((rule for rule in wanted if rule not in found and passing[rule]), None)
        if rule is not None:
            found[rule] = (first + place, episode, place)
