"""The page of `hsal report`: one self-contained HTML file, without scripts and without a network, and the PNGs beside it."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hsal_cli import __version__
from hsal_cli.errors import FileError, UsageError
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import atomic_write, write_json, write_text

FORMAT = "hsal-report"
PAGE, DOCUMENT = "report.html", "report.json"
WIDE, HIGH, EDGE = 132, 30, 3  # of the small curve beside a verdict, px

STYLE = """
:root { color-scheme: light dark; --ink: #202024; --faint: #62626a; --paper: #fff; --card: #f4f4f6; --line: #d8d8de;
  --problem: #b03f00; --good: #00664d; --note: #005a94; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --faint: #a6a6ae; --paper: #17171a; --card: #232328; --line: #3b3b42;
  --problem: #ff9b5e; --good: #5fd3b3; --note: #7cc4f7; } }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, figcaption { max-width: 46rem; } .faint, figcaption { color: var(--faint); font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; } caption { text-align: left; }
ul.verdicts { list-style: none; margin: 0; padding: 0; }
ul.verdicts li { display: grid; grid-template-columns: 5.2rem 1fr 9rem; gap: .2rem .9rem; align-items: center; padding: .45rem 0;
  border-bottom: 1px solid var(--line); }
.kind { font-weight: 600; } .problem { color: var(--problem); } .good { color: var(--good); } .note { color: var(--note); }
a { color: inherit; } li svg { display: block; } li a { font-size: .85rem; color: var(--faint); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem; }
.figures.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.figures.wide { grid-template-columns: 1fr; }
figure { margin: 0; } figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.wide .scroll img { min-width: 44rem; } figcaption { margin-top: .4rem; } figcaption b { color: var(--ink); }
@media (max-width: 40rem) { ul.verdicts li { grid-template-columns: 5.2rem 1fr; } ul.verdicts li > a { grid-column: 2; } }
"""


@dataclasses.dataclass(frozen=True)
class WrittenReport:
    """What is read back of report.json: the `files` that the report consists of, beside report.json."""

    format: Literal["hsal-report"]
    files: list[str]


@dataclasses.dataclass(frozen=True)
class PageFigure:
    """A picture of the page.

    Attributes:
        name: of its file, without .png, and of its place in the page.
        title, caption: in words.
        png: the bytes.
    """

    name: str
    title: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Finding:
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
        title: of the page.
        lead: a sentence below it.
        columns, rows: the table of runs.
        findings: run -> its verdicts.
        sections: the figures.
        left_out: what is not there, and why.
        settings: run -> its settings.
    """

    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    findings: Mapping[str, Sequence[Finding]]
    sections: Sequence[Section]
    left_out: Sequence[str]
    settings: Mapping[str, Mapping[str, Any]]


def check_folder(folder: Path) -> None:
    """Refuses a place for a report that holds something else.

    Raises:
        UsageError: it is a file, or a folder with files that are not a report of ours.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _old_files(folder))):
        raise UsageError(f"{folder} exists and is not a report of hsal", "name another folder with --out")


def write_report(page: Page, document: dict[str, Any], folder: Path) -> Path:
    """Writes the page, each of its pictures as a PNG, and report.json; an older report in the folder is replaced.

    Args:
        page: what to show.
        document: the figures of the report, as plain JSON types.
        folder: the folder, checked by `check_folder`.

    Returns:
        The page's file.

    Raises:
        FileError: the place cannot be written.
    """
    pictures = {f"{figure.name}.png": figure.png for section in page.sections for figure in section.figures}
    for stale in _old_files(folder):
        if stale not in pictures:
            (folder / stale).unlink(missing_ok=True)
    for name, png in pictures.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(png)
    write_text(folder / PAGE, render(page))
    write_json(folder / DOCUMENT, {"format": FORMAT, "hsal_version": __version__, **document, "files": [PAGE, *pictures]})
    return folder / PAGE


def _old_files(folder: Path) -> list[str]:
    """Names of the files of the report that a folder holds; empty where it holds none."""
    try:
        found = read_document(folder / DOCUMENT, WrittenReport, "hsal report")
    except FileError:
        return []
    return [name for name in found.files if Path(name).name == name]


def render(page: Page) -> str:
    """The page as HTML: pictures are embedded, nothing is loaded from elsewhere."""
    parts = [f"<h1>{_text(page.title)}</h1>", f'<p class="faint">{_text(page.lead)}</p>', _table(page.columns, page.rows)]
    parts.append('<h2 id="verdicts">Verdicts</h2>')
    for run, findings in page.findings.items():
        parts.append(f"<h3>{_text(run)}</h3>" if len(page.findings) > 1 else "")
        lines = "".join(_finding(finding) for finding in findings)
        parts.append(f'<ul class="verdicts">{lines}</ul>' if lines else '<p class="faint">Nothing stands out.</p>')
    for section in page.sections:
        figures = "".join(_figure(figure, section.wide) for figure in section.figures)
        note = f'<p class="faint">{_text(section.note)}</p>' if section.note else ""
        size = " wide" if section.wide else " large" if section.large else ""
        parts.append(f'<h2>{_text(section.title)}</h2>{note}<div class="figures{size}">{figures}</div>')
    if page.left_out:
        parts.append("<h2>Left out</h2><ul>" + "".join(f"<li>{_text(line)}</li>" for line in page.left_out) + "</ul>")
    parts.append("<h2>Settings</h2>")
    for run, settings in page.settings.items():
        rows = [[key, str(value)] for key, value in settings.items()]
        parts.append(f"<details><summary>{_text(run)}</summary>{_table(['setting', 'value'], rows)}</details>")
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(page.title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="generator" content="hsal {__version__}">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _text(words: str) -> str:
    return html.escape(str(words))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: PageFigure, wide: bool) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    picture = f'<img src="data:image/png;base64,{data}" alt="{_text(figure.title)}" loading="lazy">'
    picture = f'<div class="scroll">{picture}</div>' if wide else picture
    caption = f"<figcaption><b>{_text(figure.title)}</b> {_text(figure.caption)}</figcaption>"
    return f'<figure id="{_text(figure.name)}">{picture}{caption}</figure>'


def _finding(finding: Finding) -> str:
    kind = _text(finding.kind)
    link = f'<a href="#{_text(finding.figure)}">{spark(finding.curve, finding.epoch)}{_text(finding.metric)}</a>'
    return f'<li><span class="kind {kind}">{kind}</span><span>{_text(finding.text)}</span>{link}</li>'


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
