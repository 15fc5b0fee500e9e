"""Section 5 of the paper: multiset metrics, attention scores, and the evaluation of a policy."""

from typing import TYPE_CHECKING

from hsal_cli.faces import show

if TYPE_CHECKING:
    from hsal_cli.evaluation.evaluate import evaluate as evaluate
    from hsal_cli.evaluation.files import evaluate_file as evaluate_file
    from hsal_cli.evaluation.files import evaluate_scenes as evaluate_scenes
    from hsal_cli.evaluation.settings import EvalSettings as EvalSettings

__all__ = show(
    __name__,
    {
        "evaluate": "hsal_cli.evaluation.evaluate:evaluate",
        "evaluate_file": "hsal_cli.evaluation.files:evaluate_file",
        "evaluate_scenes": "hsal_cli.evaluation.files:evaluate_scenes",
        "EvalSettings": "hsal_cli.evaluation.settings:EvalSettings",
    },
)
