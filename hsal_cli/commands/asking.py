"""Work of over five minutes is told before it begins: asked for on a terminal; elsewhere --yes begins what no command is named for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsal_cli import console, distributed
from hsal_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from hsal_cli.bench.estimate import Work
    from hsal_cli.experiments.pipeline import Recipe

Yes = Annotated[bool, typer.Option("--yes", help="Begin work of over five minutes without being asked.")]
SHARE = 0.05  # of the time; what takes less is not named


def begin(
    works: Callable[[], list[Work]],
    yes: bool,
    recipe: Recipe,
    device: torch.device,
    reporter: console.Reporter,
    backbone: Path | None = None,
) -> None:
    """Says what work of over five minutes is ahead, and asks whether to begin it.

    Args:
        works: says what is to be done.
        yes: whether the user said so already.
        recipe, device, backbone: as in `estimate.seconds_of`.
        reporter: says the estimate.

    Raises:
        UsageError: there is nobody to ask, and the work is not what the command is named for.
        typer.Exit: the answer was no.
    """
    from hsal_cli.bench.estimate import LONG_S, may_be_long, seconds_of

    if distributed.asked().size > 1:  # torchrun was typed for long work
        return
    todo = works()
    if not may_be_long(todo):
        return
    reporter.say("measuring how long this will take")
    seconds = seconds_of(todo, recipe, device, backbone, reporter)
    reporter.check_stop("run the same command again")
    total = sum(seconds)
    if total <= LONG_S:
        return
    parts = [f"{work.what} {about(took)}" for work, took in zip(todo, seconds, strict=True) if took > SHARE * total]
    disk = size(sum(work.bytes for work in todo))
    said = f"this takes about {about(total)} here{f' and {disk} of disk' if disk else ''} ({', '.join(parts)})"
    asked = sum(took for work, took in zip(todo, seconds, strict=True) if work.asked)
    if console.can_ask() and not yes:
        if not console.confirm(f"{said}. Begin?"):
            reporter.say("nothing was begun")
            raise typer.Exit(1)
    elif asked > LONG_S and not yes:
        raise UsageError(f"{said}, and nobody is there to be asked", f"begin it with: {shlex.join([*_typed(), '--yes'])}")
    else:
        reporter.say(said)


def about(seconds: float) -> str:
    """A time that is only roughly known, in words."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def size(count: float) -> str:
    """Bytes in words; nothing where there are hardly any."""
    return f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.0f} MB" if count > 1e6 else ""


def _typed() -> list[str]:
    return ["hsal", *sys.argv[1:]]
