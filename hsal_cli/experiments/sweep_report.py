"""The report of a generalisation sweep: a table and a panel a part.

FOLDER/
    sweep.json, sweep.md    every score; the same as tables, with the command
    sweep.png               a panel a part
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hsal_cli import __version__
from hsal_cli.pictures.charts.panels import Bars, Curves, Panel, draw_panels
from hsal_cli.report.markdown import markdown_table
from hsal_cli.storage.atomic import json_bytes, write_together
from hsal_cli.storage.files import own_pictures

TITLES = {
    "trained": "Images like those trained on",
    "count": "More objects than were trained on",
    "size": "Size of the digits",
    "clutter": "Clutter",
    "spacing": "Spacing of the digits",
    "contrast": "Contrast",
    "glimpses": "Glimpse budget, short runs",
    "saliency": "Saliency models, short runs",
}
NUMBERS = {
    "count": "digits in an image",
    "size": "size of the digits, px (middle of the range)",
    "clutter": "pieces of clutter",
    "contrast": "contrast",
    "glimpses": "glimpses a meta-step, k",
}
KINDS = {"spacing": "spacing: in a grid, apart (free), may touch (tight)", "saliency": "saliency model"}
NOTE = (
    "The interval is that over the row's test images (bootstrap). Cardinality error: mean difference between how many labels are named and "
    "how many there are. Max of S on it: how often the highest saliency lies on an object of the class that is named."
)
PICTURE = "sweep.png"
SCORES = {"exact_match": "exact match", "macro_f1": "macro F1", "glimpse_hit": "glimpse on the digit"}


def write_report(folder: Path, document: dict[str, Any]) -> None:
    """Writes the report; files of an earlier one are replaced.

    Args:
        document: "command", "run", "data", "settings", and "parts": part -> rows as `sweep.row_of` gives them.

    Raises:
        FileError: the folder cannot be written.
    """
    drawn = panels(document["parts"])
    contents = {PICTURE: draw_panels(drawn, columns=3)} if drawn else {}
    contents |= {"sweep.json": json_bytes(document), "sweep.md": markdown(document, PICTURE if drawn else None).encode()}
    write_together({folder / name: content for name, content in contents.items()})
    if not drawn and folder / PICTURE in own_pictures(folder):
        (folder / PICTURE).unlink()


def markdown(document: dict[str, Any], picture: str | None) -> str:
    """What sweep.md holds; `picture`: the file with the curves, None where there is none."""
    lines = ["# Generalisation sweep", "", f"Made by `{document['command']}` with hsal {__version__}.", ""]
    lines += [f"![Scores over what is varied, a panel each]({picture})", ""] if picture else []
    for part, rows in document["parts"].items():
        lines += [f"## {TITLES[part]}", "", *markdown_table(*table(rows), left=1)]
    lines.append(NOTE)
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of one part's table."""
    columns = ["", "images", "exact match", "95% interval", "macro F1", "cardinality error", "glimpse_hit", "max of S on it"]
    cells = []
    for row in rows:
        low, high = row["exact_match_ci95"]
        scores = [row[name] for name in ("macro_f1", "cardinality_error", "glimpse_hit", "saliency_hit")]
        shown = ["-" if score is None else f"{score:.3f}" for score in scores]
        cells.append([row["value"], f"{row['examples']:,}", f"{row['exact_match']:.3f}", f"{low:.3f} to {high:.3f}", *shown])
    return columns, cells


def panels(found: dict[str, list[dict[str, Any]]]) -> list[Panel]:
    """A panel for each part: curves where what is varied is a number, bars where it is one of several kinds."""
    made: list[Panel] = []
    level = {"exact match as trained": found["trained"][0]["exact_match"]}
    for part, rows in found.items():
        names = {name: text for name, text in SCORES.items() if any(row[name] is not None for row in rows)}
        if part in KINDS and rows:
            heights = {text: [row[name] for row in rows] for name, text in names.items()}
            made.append(Bars(TITLES[part], KINDS[part], "share", [row["value"] for row in rows], heights, top=1.0))
        elif part in NUMBERS and rows:
            series = {text: [[(row["x"], row[name]) for row in rows if row[name] is not None]] for name, text in names.items()}
            made.append(Curves(TITLES[part], NUMBERS[part], "share", series, 0.0, 1.0, {} if part == "glimpses" else level))
    return made
