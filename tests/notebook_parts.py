"""Runs a notebook without Jupyter, whose kernel would bring some twenty packages to run what is plain Python."""

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """The code cells."""
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_cells(cells: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """What each cell prints, and the value of the expression that it ends with, else None; the cells share their names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(cells, 1):
        tree = ast.parse("".join(cell["source"]), f"cell {number}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last is not None else None
        found.append((printed.getvalue(), value))
    return found
