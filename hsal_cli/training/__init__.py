"""Section 4: rewards, objectives, tasks, training; verdicts on a run."""

from typing import TYPE_CHECKING

from hsal_cli.faces import show

if TYPE_CHECKING:
    from hsal_cli.training.settings import TrainSettings as TrainSettings
    from hsal_cli.training.train import train_policy as train  # noqa: F401

__all__ = show(
    __name__,
    {
        "train": "hsal_cli.training.train:train_policy",
        "TrainSettings": "hsal_cli.training.settings:TrainSettings",
    },
)
