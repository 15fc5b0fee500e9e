"""Tables in Markdown, for reports."""

from __future__ import annotations

from collections.abc import Sequence

from hsal_cli.words import CELL, brief


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Lines of a table, the last one empty: the first `left` columns stand to the left, the others, of numbers, to the right."""
    rules = ["---"] * left + ["---:"] * (len(columns) - left)
    return [f"| {' | '.join(map(_cell, cells))} |" for cells in (columns, rules, *rows)] + [""]


def _cell(text: str) -> str:
    return brief(text, CELL).replace("|", "\\|").replace("<", "&lt;")
