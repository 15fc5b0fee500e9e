"""hsal check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Scene files, feature files, runs, checkpoints, or folders that hold such things.", show_default=False),
    ],
    json: Json = False,
) -> None:
    """Check files and runs for damage: checksums, digests, completeness, labels, boxes, numbers that are not finite."""
    from hsal_cli.upkeep.check import check_paths, to_json

    reporter = console.TerminalReporter()
    reports = []
    with console.stopping(reporter):
        for report in check_paths(paths, reporter):
            reports.append(report)
            if not json:
                said = "; ".join(report.faults) if report.faults else f"{report.kind}: {report.summary}"
                notes = f" (note: {'; '.join(report.notes)})" if report.notes else ""
                console.print_line(f"{'ok   ' if report.ok else 'FAULT'} {report.path}: {' '.join(said.split())}{notes}")
    if json:
        console.print_json([to_json(report) for report in reports])
    if not all(report.ok for report in reports):
        raise typer.Exit(1)
