"""What eval, visualize and predict share: the run that is meant, and a policy with its backbone shown to images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import recipe_for
from hsal_cli.errors import FileError, HsalError

if TYPE_CHECKING:
    import torch

    from hsal_cli.evaluation.loading import LoadedPolicy
    from hsal_cli.evaluation.look import Look
    from hsal_cli.vision.backbone import LoadedBackbone

RunOption = Annotated[
    Optional[Path],
    typer.Option(
        "--run", help="Run of a trained policy, or one of its checkpoints.", show_default="the newest in runs/, trained if missing"
    ),
]


def policy_run(
    run: Path | None, device: torch.device, reporter: console.Reporter, preset: str | None = None, config: Path | None = None
) -> Path:
    """The run that is named, else the newest finished one, else one that is trained now.

    Raises:
        FileError: there is no run where one is named.
    """
    from hsal_cli.learning.pipeline import ensure_policy

    if run is None:
        return ensure_policy(recipe_for(preset, config), device, reporter)
    if not run.is_dir():
        raise FileError(f"there is no run at {run}", "train one with: hsal train")
    return run


def load(run: Path, device: object, reporter: console.Reporter) -> LoadedPolicy:
    """Loads the best policy of a run; a damaged checkpoint that was passed over is said."""
    from hsal_cli.evaluation.loading import load_policy

    loaded = load_policy(run, "best", device)
    if loaded.checkpoint.note:
        reporter.warn(loaded.checkpoint.note)
    return loaded


def looks(
    images: Sequence[Path], run: Path | None, device: str, max_steps: int | None, reporter: console.Reporter
) -> Iterator[tuple[Path, Look | HsalError]]:
    """Shows images to the policy of a run, through the backbone it was trained with (see `look.look_at_files`)."""
    from hsal_cli.evaluation.look import look_at_files
    from hsal_cli.vision.images import read_image

    if not any(path.is_file() for path in images):  # nothing is loaded, let alone trained, for images that are not there
        for path in images:
            try:
                read_image(path)
            except HsalError as error:
                yield path, error
        return
    loaded, backbone = load_with_backbone(run, device, reporter)
    yield from look_at_files(images, backbone, loaded, max_steps)


def load_with_backbone(run: Path | None, device: str, reporter: console.Reporter) -> tuple[LoadedPolicy, LoadedBackbone]:
    """The policy of a run and the backbone it was trained with, on a device."""
    from hsal_cli.evaluation.loading import find_backbone
    from hsal_cli.vision.devices import choose_device

    chosen = choose_device(device)
    loaded = load(policy_run(run, chosen, reporter), chosen, reporter)
    return loaded, find_backbone(loaded.meta, device=chosen)
