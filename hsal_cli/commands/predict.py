"""hsal predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Device, Json
from hsal_cli.commands.policies import LookRunOption, PretrainedOption, looks
from hsal_cli.errors import HsalError
from hsal_cli.words import brief

MaxSteps = Annotated[
    Optional[int],
    typer.Option("--max-steps", min=1, max=1000, help="Cap on meta-steps.", show_default="most labels seen in training plus 2"),
]


def predict(
    images: Annotated[list[Path], typer.Argument(help="Images in any format that Pillow reads, of any size.", show_default=False)],
    run: LookRunOption = None,
    pretrained: PretrainedOption = None,
    max_steps: MaxSteps = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Name every object in images, repeats included; --json adds the glimpses and maps of each meta-step."""
    reporter = console.TerminalReporter()
    documents, failed = [], False
    with console.stopping(reporter):
        for path, found in looks(images, run, device, max_steps, reporter, pretrained):
            if isinstance(found, HsalError):
                failed = True
                console.print_error(found.message, found.hint)
            elif json:
                from hsal_cli.models.look import to_json

                documents.append(to_json(found))
            else:
                console.print_line(f"{path}: {words(found.labels)}   lowest probability {found.lowest:.2f}")
            reporter.check_stop("run the same command again")
    if json:
        console.print_json(documents)
    if failed:
        raise typer.Exit(1)


def words(labels: list[str]) -> str:
    """A multiset on one line; a dash for the empty one."""
    return (", " if any(" " in label for label in labels) else " ").join(map(brief, labels)) or "-"
