"""Texts of reports from jinja templates, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hsal_cli.words import CELL, brief


def rendered(room: str, template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A template that lies in a room, filled in; `filters`: name -> what it makes of a value, beside `cell`."""
    import jinja2

    loader = jinja2.PackageLoader("hsal_cli", room)
    rooms = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    rooms.filters |= {"cell": cell, **filters}
    return rooms.get_template(template).render(**values)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Lines of a table, the last one empty: the first `left` columns stand to the left, the others, of numbers, to the right."""
    rules = ["---"] * left + ["---:"] * (len(columns) - left)
    return [f"| {' | '.join(map(cell, cells))} |" for cells in (columns, rules, *rows)] + [""]


def cell(text: str) -> str:
    """A text as it stands in a cell of a Markdown table."""
    return brief(text, CELL).replace("|", "\\|").replace("<", "&lt;")
