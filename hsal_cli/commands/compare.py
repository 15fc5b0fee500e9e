"""hsal compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json
from hsal_cli.errors import HsalError

if TYPE_CHECKING:
    from hsal_cli.runs.documents import Evaluation


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated runs.", show_default=False)],
    data: Annotated[
        Optional[str],
        typer.Option(
            "--data", metavar="NAME", help="Scores on another data set, as eval --data NAME.h5 left them.", show_default="their own"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Put evaluated runs side by side, with the trivial baselines of their data and the settings in which they differ."""
    from hsal_cli.runs.documents import predictor
    from hsal_cli.runs.record import evaluations

    found = evaluations(runs, data, console.TerminalReporter())
    if json:
        console.print_json([{"run": str(run), **document.raw} for run, document in found])
        return
    rows = [[document.objective or "-", *_scores(document), str(run)] for run, document in found]
    first = found[0][1]
    for name, scores in first.baselines.items():
        rows.append([predictor(name), f"{scores.exact_match:.3f}", "", f"{scores.macro_f1:.3f}", "", "", "", ""])
    title = f"{first.dataset}, {first.split} split, {first.examples:,} images"
    console.print_table(
        title, ["objective", "exact match", "95% interval", "macro F1", "glimpse_hit", "mask_mass", "parameters", "run"], rows
    )
    for line in _apart([run for run, _ in found]):
        console.print_line(line)


def _apart(runs: list[Path]) -> list[str]:
    """A line for each setting in which the runs differ, where all of them can be read and have it."""
    from hsal_cli.runs.record import differing, read_record

    try:
        held = [read_record(run).flat for run in runs]
    except HsalError:
        return []
    names = [name for name in differing(held) if name.startswith(("train.", "variant.")) and all(name in each for each in held)]
    return [f"{name}: {', '.join(str(each[name]) for each in held)}" for name in names]


def _scores(document: Evaluation) -> list[str]:
    local = document.localization or {}
    low, high = document.ci95.exact_match
    shown = [local.get(name) for name in ("glimpse_hit", "mask_mass")]
    return [
        f"{document.exact_match:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{document.macro_f1:.3f}",
        *("-" if value is None else f"{value:.3f}" for value in shown),
        "-" if document.parameters is None else f"{document.parameters:,}",
    ]
