"""COCO's instances: images, categories, and annotations whose bbox is x, y, width, height; one JSON document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hsal_cli.errors import FileError
from hsal_cli.scenes.readers.labels import Corners, Labelled, Notes, Thing, around, corners, faulty, json_of, row_of, text_of, thing

EXPORT = "export the labels as COCO JSON from the program that wrote them, or write a CSV: docs/own-images.md"
PARTS = ("images", "annotations", "categories")


def read_coco(source: Path, notes: Notes) -> tuple[list[Labelled], list[str]]:
    """Reads one document; an image without annotations is one of no object.

    Raises:
        FileError: not COCO's instances, or an annotation of which it cannot be told which image it is of.
    """
    try:
        document = json_of(text_of(source), f"cannot read {source} as coco: ")
    except ValueError as error:
        raise FileError(str(error), EXPORT) from error
    if not isinstance(document, dict) or not all(isinstance(document.get(part), list) for part in PARTS):
        raise FileError(f"{source} is not COCO's JSON: {_what_it_is(document)}", _way_out(document, source))
    names = _by_id(document["categories"], "category", source)
    images: dict[str, Labelled] = {}
    nameless = set()
    for key, row in _by_id(document["images"], "image", source).items():
        file = row.get("file_name") or row.get("coco_url")
        if isinstance(file, str) and file.strip():
            size = row.get("width"), row.get("height")
            images[key] = row_of(source, file, f"image {key}", lambda _: [], row.get("split"), *size)
        else:
            notes.skip(f"image {key}", "no file_name")
            nameless.add(key)
    strange = 0
    for place, row in enumerate(document["annotations"]):
        where = f"annotation {row.get('id', place)}" if isinstance(row, dict) else f"annotation {place}"
        key = _key(row.get("image_id")) if isinstance(row, dict) else None
        if key is None:
            raise FileError(f"{source}: {where} does not say which image it is of: {str(row)[:80]}", "remove it, or mend its image_id")
        if key in images:
            images[key].objects.append(_object(row, names, where))
        elif key not in nameless:
            notes.skip(where, "of an image that is not listed")
            strange += 1
    if strange and strange == len(document["annotations"]):
        raise FileError(f"{source}: no annotation is of an image that is listed", "image_id must be the id of one of the images")
    listed = [str(name).strip() for row in names.values() if isinstance(name := row.get("name"), str | int)]
    return list(images.values()), listed


def _object(row: dict[str, Any], names: dict[str, dict[str, Any]], where: str) -> Thing:
    category = names.get(_key(row.get("category_id")) or "")
    if category is None:
        return faulty(where, f"an unknown category {row.get('category_id')}")
    found = thing(category.get("name"), lambda: _box(row), where)
    if str(row.get("iscrowd") or 0).strip().lower() not in ("0", "0.0", "false", ""):
        return found._replace(fault="a crowd, not one object")
    return found


def _box(row: dict[str, Any]) -> Corners | None:
    """The bbox; where there is none, the box around the polygons of the segmentation."""
    if row.get("bbox") not in (None, []):
        return corners(row["bbox"], sized=True)
    polygons = row.get("segmentation")
    if not isinstance(polygons, list) or not polygons:
        return None
    values = [value for polygon in polygons for value in (polygon if isinstance(polygon, list) else [None])]
    if len(values) % 2:
        raise ValueError("a polygon with half a point")
    return around(list(zip(values[::2], values[1::2], strict=True)))


def _key(value: Any) -> str | None:
    """An id as text: 10, "10" and 10.0 are one; true is 1, as Python has it."""
    if not isinstance(value, str | int | float):
        return None
    text = str(int(value) if isinstance(value, bool) else value).strip()
    return text.removesuffix(".0") if isinstance(value, float) else text or None


def _by_id(rows: list[Any], what: str, source: Path) -> dict[str, dict[str, Any]]:
    """Images or categories by their ids; categories in the order of their ids, as numbers where they are."""
    found: dict[str, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        key = _key(row.get("id")) if isinstance(row, dict) else None
        if key is None:
            raise FileError(f"{source}: {what} {place} of its list has no id: {str(row)[:80]}", "remove it, or give it an id")
        if key in found:
            raise FileError(f"{source}: the {what} {key} stands twice", f"give each {what} an id of its own")
        found[key] = row
    if what == "category":
        return dict(sorted(found.items(), key=lambda item: (0, int(item[0]), "") if item[0].isdecimal() else (1, 0, item[0])))
    return found


def _what_it_is(document: Any) -> str:
    first = document[0] if isinstance(document, list) and document else document
    keys = set(first) if isinstance(first, dict) else set()
    if isinstance(document, dict) and any(isinstance(value, dict) and "regions" in value for value in document.values()):
        return "it looks like VIA's"
    if isinstance(document, list):
        known = (
            ({"category_id", "image_id"}, "a list of COCO's results"),
            ({"data", "annotations"}, "Label Studio's"),
            ({"label"}, "Label Studio's"),
        )
        return next((f"it looks like {name}" for wanted, name in known if wanted <= keys), "it is a list, not an object")
    if not isinstance(document, dict):
        return f"it is {str(document)[:40]}"
    if "shapes" in keys:
        return "it looks like LabelMe's"
    if set(PARTS[2:]) <= keys and not keys & set(PARTS[:2]):
        return "it has categories and no images, like the class names of a YOLO export"
    missing = [part for part in PARTS if not isinstance(document.get(part), list)]
    return f"it has no list of {' and '.join(missing)}"


def _way_out(document: Any, source: Path) -> str:
    labels = source.parent / "labels"
    if isinstance(document, dict) and "categories" in document and not {"images", "annotations"} & set(document) and labels.is_dir():
        return f"name the folder of its text files: --labels {labels}"
    return EXPORT
