"""hsal compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json


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
    """Put evaluated runs side by side, with the trivial baselines of their data."""
    from hsal_cli.runs.run import evaluations

    found = evaluations(runs, data)
    if json:
        console.print_json(found)
        return
    rows: list[list[str]] = []
    for document in found:
        rows.append([document["objective"], *_scores(document), document["run"]])
    for name, scores in found[0]["baselines"].items():
        rows.append([name.replace("_", " "), f"{scores['exact_match']:.3f}", "", f"{scores['macro_f1']:.3f}", "", "", "", ""])
    first = found[0]
    title = f"{first['dataset']}, {first['split']} split, {first['examples']:,} images"
    console.print_table(
        title, ["objective", "exact match", "95% interval", "macro F1", "glimpse_hit", "mask_mass", "parameters", "run"], rows
    )


def _scores(document: dict[str, Any]) -> list[str]:
    local = document.get("localization", {})
    low, high = document["ci95"]["exact_match"]
    shown = [local.get(name) for name in ("glimpse_hit", "mask_mass")]
    parameters = document.get("parameters")  # evaluations by older versions do not tell
    return [
        f"{document['exact_match']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{document['macro_f1']:.3f}",
        *("-" if value is None else f"{value:.3f}" for value in shown),
        "-" if parameters is None else f"{parameters:,}",
    ]
