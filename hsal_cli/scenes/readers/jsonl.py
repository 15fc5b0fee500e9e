"""JSON lines: an object a line, with the image, its labels and perhaps their boxes; or Hugging Face's metadata.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsal_cli.scenes.readers.labels import (
    HINT,
    Corners,
    Labelled,
    Notes,
    Thing,
    class_name,
    corners,
    json_of,
    row_of,
    text_of,
    thing,
    unread,
)
from hsal_cli.scenes.readers.names import IMAGE_COLUMNS, images_of

LABEL_KEYS = ("labels", "label", "classes", "class", "categories", "category")
OTHER_KEYS = ("boxes", "box", "objects", "width", "height", "split")
NAME_KEYS = ("categories", "category", "labels", "label", "names", "name")  # in Hugging Face's objects


def read_jsonl(source: Path, notes: Notes) -> tuple[list[Labelled], list[str]]:
    r"""Reads a document a line; lines end in \n alone.

    `image` (or file_name ...), `labels`: a list of texts or numbers, or `label`: one; `boxes`: x0, y0, x1, y1 each, or null; `split`. In
    place of labels and boxes, `objects`: lists `bbox` (x, y, width, height) and `categories`, as Hugging Face's data sets have them, or a
    list of objects with one of each.
    """
    found, keys = [], {}
    for place, line in enumerate(text_of(source).split("\n"), 1):
        where = f"line {place}"
        if not line.strip():
            continue
        try:
            row = json_of(line, "")
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            names = images_of(row)
            if not names:
                raise ValueError("no image is named")
        except ValueError as error:
            notes.skip(where, str(error))
            continue
        size = row.get("width"), row.get("height")
        keys |= dict.fromkeys(row)

        def read(labelled: Labelled, row=row, where=where, names=names) -> list[Thing]:
            if len(names) > 1:
                raise ValueError(f"different images are named: {' and '.join(names)}")
            objects, labelled.whole = _objects(row, where)
            if odd := [key for key in row if "box" in key.lower() and key not in ("boxes", "box")]:
                notes.remark(f"keys that are not read as boxes: {', '.join(odd)}; {HINT}")
            return objects

        found += [row_of(source, name, where, read, row.get("split"), *size) for name in names]
    known = (*LABEL_KEYS, *OTHER_KEYS)
    odd = [key for key in keys if key not in (*IMAGE_COLUMNS, *known) and "box" not in key.lower()]
    if rest := unread(odd, [key for key in known if key not in keys]):
        notes.remark(f"keys that are not read: {rest}")
    return found, []


def _objects(row: dict[str, Any], where: str) -> tuple[list[Thing], bool]:
    """The objects of a row, and whether they are all of its image; a row with one label may be one of several."""
    if "objects" in row:
        return _hugging(row["objects"], where), True
    key, *others = [key for key in LABEL_KEYS if key in row] or [None]
    if key is None:
        raise ValueError("no labels")
    if any(row[other] != row[key] and [row[other]] != row[key] for other in others):
        raise ValueError(f"labels under two names that differ: {key} and {', '.join(others)}")
    labels, boxes, listed = row[key], row.get("boxes", row.get("box")), isinstance(row[key], list)
    if not listed:
        if isinstance(labels, str) and set(labels) & set(";|,"):
            raise ValueError("several labels in one text: make them a list")
        labels, boxes = [labels], None if boxes is None else boxes if "boxes" in row else [boxes]
    for label in labels:
        class_name(label)
    return _paired(labels, boxes, where, sized=False), listed


def _hugging(objects: Any, where: str) -> list[Thing]:
    if isinstance(objects, list) and all(isinstance(item, dict) for item in objects):
        keys = [next((key for key in NAME_KEYS if key in item), "") for item in objects]
        return _paired(
            [item.get(key) for key, item in zip(keys, objects, strict=True)], [item.get("bbox") for item in objects], where, True
        )
    key = next((key for key in NAME_KEYS if isinstance(objects, dict) and isinstance(objects.get(key), list)), None)
    if key is None:
        raise ValueError("objects without a list of categories")
    return _paired(objects[key], objects.get("bbox"), where, sized=True)


def _paired(labels: list[Any], boxes: Any, where: str, sized: bool) -> list[Thing]:
    if boxes is None:
        boxes = [None] * len(labels)
    if not isinstance(boxes, list) or len(boxes) != len(labels):
        raise ValueError("boxes and labels of different number")
    return [thing(label, _box(box, sized), where) for label, box in zip(labels, boxes, strict=True)]


def _box(values: Any, sized: bool) -> Callable[[], Corners | None]:
    return lambda: None if values is None else corners(values, sized)
