"""hsal export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json, Overwrite, backbone_in


def export(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Evaluated runs of one backbone, as RUN or NAME=RUN.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("data/pretrained"),
    backbone: Annotated[
        Optional[Path],
        typer.Option("--backbone", help="The run of their backbone.", show_default="where the runs say, or in runs/", callback=backbone_in),
    ] = None,
    look: Annotated[
        Optional[Path],
        typer.Option("--look", help="The network that looks first for them: a run of hsal finetune on whole images.", show_default="none"),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Export trained policies and their backbone in float16, with checksums, as the folder that --pretrained reads.

    A policy is called DATASET.OBJECTIVE, as it was evaluated, or what NAME=RUN says. --pretrained FOLDER/NAME uses it.
    """
    from hsal_cli.models.export import export as export_runs

    reporter = console.TerminalReporter()
    with console.stopping(reporter):
        manifest = export_runs(runs, out, backbone, reporter, overwrite, look)
    if json:
        console.print_json({"out": str(out), **manifest})
        return
    rows = [[name, _size(manifest[name]), "", ""] for name in ("backbone", "look") if name in manifest]
    for name, entry in manifest["policies"].items():
        rows.append([name, _size(entry), *(f"{entry['result'][score]:.4f}" for score in ("exact_match", "macro_f1"))])
    console.print_table(str(out), ["name", "size", "exact match", "macro F1"], rows)
    name = next(iter(manifest["policies"]))
    console.print_line(f"next: hsal eval --pretrained {out / name}")


def _size(entry: dict[str, Any]) -> str:
    return f"{entry['bytes'] / 1e6:.1f} MB"
