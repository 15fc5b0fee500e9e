"""Section 4: rewards, objectives, tasks, training; verdicts on a run."""

from typing import TYPE_CHECKING

from hsal_cli.faces import show

if TYPE_CHECKING:
    from hsal_cli.runs.settings import TrainSettings as TrainSettings
    from hsal_cli.training.train import resume as resume
    from hsal_cli.training.train import train as train

__all__ = show(
    __name__,
    {
        "train": "hsal_cli.training.train:train",
        "resume": "hsal_cli.training.train:resume",
        "TrainSettings": "hsal_cli.runs.settings:TrainSettings",
    },
)
