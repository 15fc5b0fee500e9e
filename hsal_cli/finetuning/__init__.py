"""Section 5: the activation model, fine-tuned on single objects, crowds, own images."""

from typing import TYPE_CHECKING

from hsal_cli.faces import show

if TYPE_CHECKING:
    from hsal_cli.finetuning.finetune import finetune as finetune
    from hsal_cli.runs.settings import FinetuneSettings as FinetuneSettings

__all__ = show(
    __name__, {"finetune": "hsal_cli.finetuning.finetune:finetune", "FinetuneSettings": "hsal_cli.runs.settings:FinetuneSettings"}
)
