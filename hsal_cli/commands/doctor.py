"""hsal doctor."""

from __future__ import annotations

import dataclasses

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json

MARKS = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}


def doctor(json: Json = False) -> None:
    """Say what hsal finds here: versions, devices, disk, caches, MNIST; each with a hint where it falls short."""
    from hsal_cli.upkeep.doctor import examine

    findings = examine()
    if json:
        console.print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            console.print_line(f"{MARKS[finding.state]} {finding.what:<{width}}  {finding.found}")
            if finding.hint:
                console.print_line(f"{'':<{width + 8}}Hint: {finding.hint}")
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(1)
