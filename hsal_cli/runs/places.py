"""Paths that a run or a checkpoint holds: written so that they hold from any folder, and read back as paths from the one hsal runs in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PLACES = ("features", "backbone", "scenes")  # in config.json and a checkpoint's meta; what lies there is told by digests
START = "init_from"  # {"path", "digest"} of the checkpoint that a run started from


def stored(path: str | Path, run: Path) -> str:
    """A path as a run holds it: relative to the run's folder where both lie under the current one and may move together, else absolute."""
    here, target, base = os.getcwd(), os.path.abspath(path), os.path.abspath(run)
    together = all(os.path.commonpath([here, place]) == here for place in (target, base))
    return os.path.relpath(target, base) if together else target


def found(text: str, run: Path) -> Path:
    """The path that a run holds as `text`, relative to the current folder where it lies under it.

    Runs of earlier versions hold paths relative to the folder that hsal was started in: where the run's own folder has nothing of that
    name, the current one and the one that holds runs/ are tried.
    """
    if os.path.isabs(text):
        return _short(text)
    base, real = os.path.abspath(run), os.path.realpath(run)
    tried = [os.path.normpath(os.path.join(place, text)) for place in (base, real, os.getcwd(), os.path.dirname(os.path.dirname(real)))]
    return _short(next((place for place in tried if os.path.exists(place)), tried[0] if text.startswith(os.pardir) else tried[2]))


def with_stored(document: dict[str, Any], run: Path) -> dict[str, Any]:
    """A config or meta as it is written, its paths as `stored` has them."""
    return _mapped(document, lambda text: stored(text, run))


def with_found(document: dict[str, Any], run: Path) -> dict[str, Any]:
    """A config or meta as it is used, its paths as `found` has them."""
    return _mapped(document, lambda text: str(found(text, run)))


def _mapped(document: dict[str, Any], change: Any) -> dict[str, Any]:
    changed = {name: change(document[name]) for name in PLACES if isinstance(document.get(name), str)}
    start = document.get(START)
    if isinstance(start, dict) and isinstance(start.get("path"), str):
        changed[START] = {**start, "path": change(start["path"])}
    return {**document, **changed}


def _short(path: str) -> Path:
    here = os.getcwd()
    under = os.path.isabs(path) and os.path.commonpath([here, path]) == here
    return Path(os.path.relpath(path, here) if under else path)
