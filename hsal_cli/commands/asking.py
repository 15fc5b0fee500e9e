"""Work of over five minutes is told before it begins: asked for on a terminal; elsewhere --yes begins what no command is named for.

`begin` measures a piece of what is ahead; `paced` lets the first of many images, one like the other, show how long they will take.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hsal_cli import console, distributed
from hsal_cli.errors import UsageError
from hsal_cli.progress import LONG_S

if TYPE_CHECKING:
    import torch

    from hsal_cli.bench.estimate import Work
    from hsal_cli.experiments.pipeline import Recipe

Yes = Annotated[bool, typer.Option("--yes", help="Begin work of over five minutes without being asked.")]
SHARE = 0.05  # of the time; what takes less is not named
FIRST_S = 3.0  # images are worked on for so long before it is said how long all of them will take
Item = TypeVar("Item")


def begin(
    works: Callable[[], list[Work]],
    yes: bool,
    recipe: Recipe,
    device: torch.device,
    reporter: console.Reporter,
    backbone: Path | None = None,
) -> None:
    """Says what work of over five minutes is ahead, and asks whether to begin it; shorter work says so if it takes that long after all.

    Args:
        works: says what is to be done.
        yes: whether the user said so already.
        recipe, device, backbone: as in `estimate.seconds_of`.
        reporter: says the estimate.

    Raises:
        UsageError: there is nobody to ask, and the work is not what the command is named for.
        typer.Exit: the answer was no.
    """
    from hsal_cli.bench.estimate import may_be_long, seconds_of

    if distributed.asked().size > 1:  # torchrun was typed for long work
        return
    todo = works()
    if not may_be_long(todo):
        reporter.expect(LONG_S)
        return
    reporter.say("measuring how long this will take")
    seconds = seconds_of(todo, recipe, device, backbone, reporter)
    reporter.check_stop("run the same command again")
    total = sum(seconds)
    if total <= LONG_S:
        reporter.expect(LONG_S)
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


def paced(items: Iterable[Item], count: int, yes: bool, reporter: console.Reporter) -> Iterator[Item]:
    """Images as they come; once the first ones have shown that the rest takes over five minutes, says so, and asks whether to go on.

    Args:
        items: `count` of them; the first one is not timed, as loading and warming up are in it.
        yes, reporter: as in `begin`.

    Raises:
        typer.Exit: the answer was no.
    """
    start = None
    for done, item in enumerate(items, 1):
        yield item
        if done == 1:
            start = time.monotonic()
        if start is None or (took := time.monotonic() - start) <= FIRST_S:
            continue
        start, left = None, took / (done - 1) * (count - done)
        if left <= LONG_S:
            continue
        said = f"the other {count - done:,} images take about {about(left)}"
        if yes or not console.can_ask():
            reporter.say(said)
        elif not console.confirm(f"{said}. Go on?"):
            reporter.say(f"stopped after {done:,} images")
            raise typer.Exit(1)


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
