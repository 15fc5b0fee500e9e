"""The page of `hsal report`: one self-contained HTML file, without scripts and without a network, and the PNGs beside it."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hsal_cli import __version__
from hsal_cli.errors import FileError, UsageError
from hsal_cli.storage.atomic import json_bytes, write_json, write_together
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import is_plain_name, own_pictures, refuse_foreign, refuse_link, remove_marked
from hsal_cli.words import CELL, PARAGRAPH, brief

FORMAT = "hsal-report"
PAGE, DOCUMENT = "report.html", "report.json"
WIDE, HIGH, EDGE = 132, 30, 3  # of the small curve beside a verdict, px


@dataclasses.dataclass(frozen=True)
class WrittenReport:
    """What is read back of report.json: the `files` that the report consists of, beside report.json."""

    format: Literal["hsal-report"]
    files: list[str]


@dataclasses.dataclass(frozen=True)
class PageFigure:
    """A picture of the page; `name`: of its file, without .png, and of its place in the page."""

    name: str
    title: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class PageFinding:
    """A verdict on a run, with the curve that led to it.

    Attributes:
        text: a sentence.
        kind: good, note or problem.
        figure: name of the figure that led to it.
        metric: what that figure shows, in words.
        curve: (epoch, value), of this run.
        epoch: the place on the curve that is meant; None: all of it.
    """

    text: str
    kind: str
    figure: str
    metric: str
    curve: Sequence[tuple[int, float]]
    epoch: int | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Figures under one heading; `large` ones stand two beside each other, `wide` ones below each other."""

    title: str
    note: str
    figures: Sequence[PageFigure]
    large: bool = False
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything that stands on the page, from top to bottom.

    Attributes:
        columns, rows: the table of runs.
        findings, settings: run -> its verdicts, its settings.
        left_out: what is not there, and why.
    """

    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    findings: Mapping[str, Sequence[PageFinding]]
    sections: Sequence[Section]
    left_out: Sequence[str]
    settings: Mapping[str, Mapping[str, Any]]


def check_folder(folder: Path) -> None:
    """Refuses a place for a report that holds something else.

    Raises:
        UsageError: it is a file, or a folder with files that are not a report of ours.
        FileError: it is a link.
    """
    refuse_link(folder)
    # The rest of a report whose writing was killed before report.json stood is ours, too.
    rest = folder.is_dir() and all(file.name.endswith(".tmp") or file in own_pictures(folder) for file in folder.iterdir())
    if folder.exists() and not rest and not (folder.is_dir() and _old_files(folder)):
        raise UsageError(f"{folder} exists and is not a report of hsal", "name another folder with --out")


def write_report(page: Page, document: dict[str, Any], folder: Path) -> Path:
    """Writes the page, each of its pictures as a PNG, and report.json with `document`; an older report in the folder is replaced.

    The older page stands until the new one takes its place, and only then is what it had and the new one has not removed.

    Returns:
        The page's file.

    Raises:
        FileError: the place cannot be written, or a file of somebody else's has a name that the report needs.
    """
    pictures = {f"{figure.name}.png": figure.png for section in page.sections for figure in section.figures}
    for name in (PAGE, *pictures):
        refuse_foreign(folder / name)
    stale = [name for name in _old_files(folder) if name not in (PAGE, *pictures)]
    described = {"format": FORMAT, "hsal_version": __version__, **document, "files": [PAGE, *pictures]}
    contents = pictures | {DOCUMENT: json_bytes(described | {"files": [PAGE, *pictures, *stale]}), PAGE: render(page).encode()}
    write_together({folder / name: content for name, content in contents.items()})
    if stale:  # they are listed until they are gone
        remove_marked(folder, stale)
        write_json(folder / DOCUMENT, described)
    return folder / PAGE


def _old_files(folder: Path) -> list[str]:
    """Names of the files of the report that a folder holds; empty where it holds none."""
    try:
        found = read_document(folder / DOCUMENT, WrittenReport, "hsal report")
    except FileError:
        return []
    return list(filter(is_plain_name, found.files))


def render(page: Page) -> str:
    """The page as HTML (report.html.jinja): pictures are embedded, nothing is loaded from elsewhere, all words are escaped."""
    import jinja2
    from markupsafe import Markup

    rooms = jinja2.Environment(
        loader=jinja2.PackageLoader("hsal_cli", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda words: words if isinstance(words, Markup) else brief(words, PARAGRAPH),
    )
    rooms.filters["cell"] = lambda words: brief(words, CELL)
    rooms.filters["base64"] = lambda data: Markup(base64.b64encode(data).decode("ascii"))
    return rooms.get_template("report.html.jinja").render(page=page, version=__version__, spark=spark)


def spark(curve: Sequence[tuple[int, float]], epoch: int | None) -> str:
    """A small curve as SVG, with a dot at an epoch; it says nothing to screen readers, for whom the sentence stands beside it."""
    if len(curve) < 2:
        return ""
    (first, _), (last, _) = curve[0], curve[-1]
    low, high = (edge(value for _, value in curve) for edge in (min, max))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / max(last - first, 1e-9)
        up = (y - low) / (high - low) if high > low else 0.5
        return EDGE + across * (WIDE - 2 * EDGE), HIGH - EDGE - up * (HIGH - 2 * EDGE)

    line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in curve)
    dots = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*at(x, y)) for x, y in curve if x == epoch)
    return (
        f'<svg width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}" aria-hidden="true" fill="currentColor">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>{dots}</svg>'
    )
