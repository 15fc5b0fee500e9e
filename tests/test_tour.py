"""docs/tour.ipynb runs from its top to its end, and prints what stands in it."""

import ast
import importlib
from pathlib import Path

import pytest
from notebook_parts import cells_of, run_cells

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def text_of(cell) -> str:
    return "".join("".join(output.get("text", [])) for output in cell["outputs"])


@pytest.mark.slow
def test_the_tour_runs_and_prints_what_stands_in_it(monkeypatch):
    monkeypatch.chdir(TOUR.parent)
    cells = cells_of(TOUR)
    found = run_cells(cells)
    assert [printed for printed, _ in found] == [text_of(cell) for cell in cells]
    shown = [value for _, value in found if hasattr(value, "save")]
    assert len(shown) == sum("data" in output for cell in cells for output in cell["outputs"]) > 0


def test_the_tour_is_small_and_its_cells_are_plain_python():
    assert TOUR.stat().st_size < 300_000
    cells = cells_of(TOUR)
    assert cells and all(cell["outputs"] for cell in cells if "print(" in "".join(cell["source"]))
    for cell in cells:
        compile("".join(cell["source"]), "cell", "exec")  # no magics: `run_cells` runs it without Jupyter


def test_what_the_tour_imports_is_there():
    nodes = [node for cell in cells_of(TOUR) for node in ast.walk(ast.parse("".join(cell["source"])))]
    imported = [(node.module, name.name) for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names]
    assert imported and all(hasattr(importlib.import_module(module), name) for module, name in imported)
