"""hsal predict."""

from __future__ import annotations

import csv
import functools
import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.asking import Yes, paced
from hsal_cli.commands.options import Device, Images, Json, Overwrite, options
from hsal_cli.commands.policies import LOOKING, FrameOption, PretrainedOption, RunOption, images_in, looks, model_for
from hsal_cli.errors import HsalError, UsageError
from hsal_cli.evaluation.settings import STOP_HELP
from hsal_cli.features.settings import LookSettings
from hsal_cli.words import brief

if TYPE_CHECKING:
    from hsal_cli.models.seen import Look

EXAMPLES = """Examples:

  hsal predict photos --csv counts.csv
      how often each class occurs in each image of a folder

  hsal predict image.png --json
      with glimpses, in cells and in pixels, and maps
"""
PANELS = {"What": "run pretrained max_steps stop_threshold device yes", "The frame": LOOKING, "Output": "counts overwrite json"}
HEAD = "image"  # the first column of a table of counts
MaxSteps = Annotated[
    Optional[int],
    typer.Option("--max-steps", min=1, max=1000, help="Cap on meta-steps.", show_default="most labels seen in training plus 2"),
]
StopThreshold = Annotated[
    Optional[float], typer.Option("--stop-threshold", min=0, max=1, help=STOP_HELP, show_default="stop is the likeliest")
]


@options(panels=PANELS, leave_out=("preset", "config"), first=LookSettings)
def predict(
    first: LookSettings,
    images: Images,
    run: RunOption = None,
    pretrained: PretrainedOption = None,
    frame: FrameOption = None,
    max_steps: MaxSteps = None,
    stop_threshold: StopThreshold = None,
    counts: Annotated[
        Optional[Path],
        typer.Option("--csv", help="Also a table: a row an image, a column a class, how often it was named.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Name every object in images, repeats included, in the order it looked at them; --json adds glimpses and maps of each meta-step.

    A run of `hsal train --objective count` or `set` does too, in the order of the classes: it looks nowhere, so there are no meta-steps.
    Where nothing is named it is taken if runs/ holds no policy.
    """
    from hsal_cli.models.seen import to_json
    from hsal_cli.storage.atomic import write_text

    reporter = console.TerminalReporter()
    if counts is not None:
        _check_table(counts, overwrite)
    documents: list[dict[str, Any]] = []
    table: list[tuple[Path, Look]] = []
    failed = False
    with console.stopping(reporter):
        wanted = images_in(images)
        model_of = functools.partial(model_for, run, device, reporter, pretrained, frame, first, stop_threshold, counts=True)
        shown = looks(wanted, model_of, max_steps, reporter)
        for path, found in paced(shown, len(wanted), yes, reporter):
            if isinstance(found, HsalError):
                failed = True
                console.print_error(found.message, found.hint)
                continue
            table.append((path, found))
            if json:
                documents.append(to_json(found))
            else:
                sure = f"   lowest probability {found.lowest:.2f}" if found.counts is None else ""
                console.print_line(f"{path}: {words(found.labels)}{sure}")
            reporter.check_stop("run the same command again")
    if counts is not None and table:
        write_text(counts, _table(table))
        reporter.say(f"counts of {len(table):,} images: {counts}")
    if json:
        console.print_json(documents)
    if failed:
        raise typer.Exit(1)


def _table(looks_: list[tuple[Path, Look]]) -> str:
    """The counts as CSV, in the form that `hsal make-data folder --labels-format counts` reads."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    classes = looks_[0][1].known
    table.writerow([HEAD, *classes])
    for path, look in looks_:
        counted = Counter(look.labels)
        table.writerow([path, *(counted[name] for name in classes)])
    return text.getvalue()


def _check_table(target: Path, overwrite: bool) -> None:
    """Refuses to replace a file, unless it is such a table and may be replaced."""
    if not target.exists():
        return
    if target.is_dir() or not overwrite:
        raise UsageError(f"{target} exists", "add --overwrite to replace it, or name another file with --csv")
    try:
        with target.open(encoding="utf-8") as file:
            ours = file.read(len(HEAD) + 1) == f"{HEAD},"
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UsageError(f"{target} is no table of counts, so it is not replaced", "name another file with --csv")


def words(labels: list[str]) -> str:
    """A multiset on one line; a dash for the empty one."""
    return (", " if any(" " in label for label in labels) else " ").join(map(brief, labels)) or "-"
