"""What eval, visualize and predict share: the run or pretrained policy that is meant, and a policy with its backbone for images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.options import recipe_for
from hsal_cli.errors import FileError, HsalError, UsageError

if TYPE_CHECKING:
    import torch

    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.models.look import Look
    from hsal_cli.vision.backbone import LoadedBackbone

RunOption = Annotated[
    Optional[Path],
    typer.Option(
        "--run", help="Run of a trained policy, or one of its checkpoints.", show_default="the newest in runs/, trained if missing"
    ),
]
LookRunOption = Annotated[
    Optional[Path],
    typer.Option(
        "--run",
        help="Run of a trained policy, or one of its checkpoints.",
        show_default="the newest in runs/, else the pretrained mnist-multiset",
    ),
]
PretrainedOption = Annotated[
    Optional[str],
    typer.Option(
        "--pretrained",
        metavar="NAME",
        help="Instead of a run, a policy that comes with hsal: DATASET.OBJECTIVE, or DATASET alone for its rl policy.",
        show_default=False,
    ),
]


def check_one(run: Path | None, pretrained: str | None) -> None:
    """Refuses a run and a pretrained policy at once."""
    if run is not None and pretrained is not None:
        raise UsageError(f"--run {run} and --pretrained {pretrained} exclude each other", "leave one of them out")


def policy_run(
    run: Path | None,
    device: torch.device,
    reporter: console.Reporter,
    preset: str | None = None,
    config: Path | None = None,
    counts: bool = False,
) -> Path:
    """The run that is named, else the newest finished one, else one that is trained now.

    Args:
        counts: whether the run of a count classifier will do too.

    Raises:
        FileError: there is no run where one is named.
    """
    from hsal_cli.experiments.pipeline import ensure_policy
    from hsal_cli.runs import run as runs

    if run is None:
        newest = distributed.broadcast(lambda: runs.newest(runs.EVALUATED if counts else "policy", reporter=reporter))
        if newest is not None:
            return newest.path
        return ensure_policy(recipe_for(preset, config), device, reporter)
    if not run.is_dir():
        raise FileError(f"there is no run at {run}", "train one with: hsal train")
    return run


def load(run: Path, device: object, reporter: console.Reporter, counts: bool = False) -> LoadedPolicy:
    """Loads the best policy of a run; a damaged checkpoint that was passed over is said.

    Args:
        counts: whether a count classifier, which takes no glimpses, will do too.
    """
    from hsal_cli.models.load import load_model, load_policy

    loaded = (load_model if counts else load_policy)(run, "best", device)
    if loaded.checkpoint.note:
        reporter.warn(loaded.checkpoint.note)
    return loaded


def looks(
    images: Sequence[Path],
    run: Path | None,
    device: str,
    max_steps: int | None,
    reporter: console.Reporter,
    pretrained: str | None = None,
) -> Iterator[tuple[Path, Look | HsalError]]:
    """Shows images to the policy that is meant, through the backbone it was trained with (see `look.look_at_files`)."""
    from hsal_cli.models.look import look_at_files
    from hsal_cli.vision.images import read_image

    check_one(run, pretrained)
    if not any(path.is_file() for path in images):  # nothing is loaded, let alone trained, for images that are not there
        for path in images:
            try:
                read_image(path)
            except HsalError as error:
                yield path, error
        return
    loaded, backbone = load_with_backbone(run, device, reporter, pretrained)
    for path, found in look_at_files(images, backbone, loaded, max_steps):
        for why in () if isinstance(found, HsalError) else found.warnings:
            reporter.warn(f"{path}: {why}")
        yield path, found


def load_with_backbone(
    run: Path | None, device: str, reporter: console.Reporter, pretrained: str | None = None
) -> tuple[LoadedPolicy, LoadedBackbone]:
    """The policy that is meant and the backbone it was trained with, on a device.

    Where neither a run nor a pretrained policy is named: the newest finished run, else the pretrained policy that hsal comes with, and
    only where it came without any, one that is trained now.
    """
    from hsal_cli.models.load import find_backbone
    from hsal_cli.models.shipped import DEFAULT, load_shipped, own_folder
    from hsal_cli.runs import run as runs
    from hsal_cli.vision.devices import choose_device

    check_one(run, pretrained)
    chosen = choose_device(device)
    if run is None and pretrained is None:
        newest = runs.newest("policy", reporter=reporter)
        if newest is not None:
            run = newest.path
        elif own_folder() is not None:
            reporter.say(f"there is no trained policy in runs/: using the pretrained {DEFAULT}")
            pretrained = DEFAULT
    if pretrained is not None:
        shipped = load_shipped(pretrained, chosen)
        return shipped.policy, shipped.backbone
    loaded = load(policy_run(run, chosen, reporter), chosen, reporter)
    return loaded, find_backbone(loaded, chosen)
