"""Reading labels that other tools wrote: CSV, JSONL, COCO JSON, YOLO text files, Pascal VOC XML.

Each reader gives one `Labelled` an image, objects by class name; boxes in px, or for YOLO as shares of the image. A row that cannot be used
is reported and left out; a file of another form is an error.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hsal_cli.errors import FileError
from hsal_cli.storage.files import regular

FORMATS = ("csv", "jsonl", "coco", "yolo", "voc")
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "name")
LABEL_COLUMNS = ("labels", "label", "class", "category")
BOX_COLUMNS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
SIZED_COLUMNS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "test", "valid": "test", "validation": "test"}
HINT = "docs/own-images.md shows the forms that labels may have"

Report = Callable[[str, str], None]
Corners = tuple[float, float, float, float]


@dataclasses.dataclass
class Labelled:
    """What labels say of one image.

    Attributes:
        image: its path, relative to the folder of images or absolute; without an ending for YOLO.
        objects: (class name, x0, y0, x1, y1 or None) of each.
        split: "train", "test", or None where the labels do not say.
        shares: boxes are shares of the image's width and height, not px.
    """

    image: str
    objects: list[tuple[str, Corners | None]]
    split: str | None = None
    shares: bool = False


def read_labels(source: Path, kind: str, report: Report) -> tuple[list[Labelled], list[str]]:
    """Reads labels.

    Args:
        source: the file or folder.
        kind: one of FORMATS, or "auto".
        report: hears (what, reason) of all that is skipped.

    Returns:
        The images in the order of the labels, and the class names in the order of the labels' own list; where they have none, sorted:
        numbers by value.

    Raises:
        FileError: missing, unreadable, or of no form that is known; names the line.
    """
    if not source.exists():
        raise FileError(f"the labels {source} do not exist", HINT)
    kind = kind_of_labels(source) if kind == "auto" else kind
    reader = {"csv": _csv, "jsonl": _jsonl, "coco": _coco, "yolo": _yolo, "voc": _voc}[kind]
    try:
        found, listed = reader(source, report)
    except (OSError, UnicodeDecodeError, csv.Error, ElementTree.ParseError, json.JSONDecodeError) as error:
        raise FileError(f"cannot read {source} as {kind}: {getattr(error, 'strerror', None) or error}", HINT) from error
    merged: dict[str, Labelled] = {}
    for row in found:
        if row.image in merged:
            merged[row.image].objects += row.objects
            merged[row.image].split = merged[row.image].split or row.split
        else:
            merged[row.image] = row
    used = {name for row in merged.values() for name, _ in row.objects}
    return list(merged.values()), [name for name in listed if name in used] + sorted(used - set(listed), key=_by_value)


def kind_of_labels(source: Path) -> str:
    """Tells the form of labels from their names.

    Raises:
        FileError: it cannot be told.
    """
    if source.is_dir():
        if any(source.glob("*.xml")):
            return "voc"
        if any(source.glob("*.txt")):
            return "yolo"
        raise FileError(f"{source} holds neither .txt files (YOLO) nor .xml files (Pascal VOC)", HINT)
    kinds = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "coco", ".xml": "voc"}
    if source.suffix.lower() not in kinds:
        raise FileError(f"it cannot be told from its name what {source} is", "say so with --labels-format")
    return kinds[source.suffix.lower()]


def _by_value(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if name.isdecimal() else (1, 0.0, name)


def _corners(values: Iterable[Any], sized: bool = False) -> Corners:
    """Four numbers as x0, y0, x1, y1.

    Raises:
        ValueError: not four finite numbers, or an empty box.
    """
    x0, y0, x1, y1 = (float(value) for value in values)
    if sized:
        x1, y1 = x0 + x1, y0 + y1
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise ValueError("a box that is empty")
    return x0, y0, x1, y1


def _split_of(word: Any) -> str | None:
    text = str(word or "").strip().lower()
    if text and text not in SPLITS:
        raise ValueError(f"an unknown split {text}")
    return SPLITS.get(text)


def _names(cell: str) -> list[str]:
    """A cell that holds one label, or several with ; or | between them."""
    return [name.strip() for name in cell.replace("|", ";").split(";") if name.strip()]


def _csv(source: Path, report: Report) -> tuple[list[Labelled], list[str]]:
    """A header line; a row an object with its box, or a row an image with its labels."""
    with regular(source).open(encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        mark = max(",\t;", key=first.count) if first.count(",") + first.count("\t") + first.count(";") else ","
        stream.seek(0)
        rows = csv.DictReader(stream, delimiter=mark)
        columns = {(name or "").strip().lower(): name for name in rows.fieldnames or []}
        image = next((columns[name] for name in IMAGE_COLUMNS if name in columns), None)
        label = next((columns[name] for name in LABEL_COLUMNS if name in columns), None)
        if image is None or label is None:
            raise FileError(f"{source}: its header {first.strip()!r} has no column image or no column labels", HINT)
        edges = next(((names, False) for names in BOX_COLUMNS if set(names) <= set(columns)), None)
        edges = edges or next(((names, True) for names in SIZED_COLUMNS if set(names) <= set(columns)), None)
        found = []
        for row in rows:
            where = f"line {rows.line_num}"
            try:
                names = _names(row[label] or "")
                if not (row[image] or "").strip() or not names:
                    raise ValueError("no image or no label")
                given = [row[columns[name]] for name in edges[0]] if edges else []
                box = _corners(given, edges[1]) if any((value or "").strip() for value in given) else None
                if box is not None and len(names) > 1:
                    raise ValueError("several labels for one box")
                objects = [(name, box) for name in names]
                found.append(Labelled(row[image].strip(), objects, _split_of(row[columns["split"]]) if "split" in columns else None))
            except (ValueError, TypeError) as error:
                report(where, _reason(error))
    return found, []


def _jsonl(source: Path, report: Report) -> tuple[list[Labelled], list[str]]:
    """A JSON object a line: image, labels, and if known boxes (x0, y0, x1, y1 each) and split."""
    found = []
    for number, line in enumerate(regular(source).read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image = next(row[name] for name in IMAGE_COLUMNS if name in row)
            labels = next(row[name] for name in LABEL_COLUMNS if name in row)
            labels = [str(label) for label in (labels if isinstance(labels, list) else [labels])]
            boxes = row.get("boxes")
            if boxes is not None and len(boxes) != len(labels):
                raise ValueError("boxes and labels of different number")
            corners = [None] * len(labels) if boxes is None else [None if box is None else _corners(box) for box in boxes]
            found.append(Labelled(str(image), list(zip(labels, corners, strict=True)), _split_of(row.get("split"))))
        except StopIteration:
            report(f"line {number}", "no image or no labels")
        except (ValueError, TypeError, AttributeError) as error:
            report(f"line {number}", _reason(error))
    return found, []


def _coco(source: Path, report: Report) -> tuple[list[Labelled], list[str]]:
    """COCO's instances: images, categories and annotations whose bbox is x, y, width, height."""
    document = json.loads(regular(source).read_text(encoding="utf-8"))
    try:
        names = {row["id"]: str(row["name"]) for row in sorted(document["categories"], key=lambda row: row["id"])}
        images = {row["id"]: Labelled(str(row["file_name"]), []) for row in document["images"]}
        annotations = document["annotations"]
    except (KeyError, TypeError) as error:
        raise FileError(f"{source} is not COCO's JSON: it lacks {error}", HINT) from error
    for number, row in enumerate(annotations):
        where = f"annotation {row.get('id', number)}"
        try:
            if row.get("iscrowd"):
                report(where, "a crowd, not one object")
                continue
            box = _corners(row["bbox"], sized=True) if row.get("bbox") else None
            images[row["image_id"]].objects.append((names[row["category_id"]], box))
        except KeyError as error:
            report(where, f"unknown or missing {error}")
        except (ValueError, TypeError) as error:
            report(where, _reason(error))
    if len(set(names.values())) < len(names):
        raise FileError(f"{source}: two categories have one name", HINT)
    return list(images.values()), list(names.values())


def _yolo(source: Path, report: Report) -> tuple[list[Labelled], list[str]]:
    """A text file an image, a line an object: class number, then centre, width and height as shares of the image."""
    names = _yolo_names(source)
    found = []
    for path in sorted(source.glob("*.txt")):
        if path.name in ("classes.txt", "names.txt"):
            continue
        row = Labelled(path.stem, [], shares=True)
        for number, line in enumerate(regular(path).read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            try:
                label = int(words[0])
                if label < 0 or (names and label >= len(names)):
                    raise ValueError(f"class {label}, which has no name")
                x, y, width, height = (float(word) for word in words[1:5])
                box = _corners((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
                row.objects.append((names[label] if names else str(label), box))
            except ValueError as error:
                report(f"{path.name} line {number}", _reason(error))
        found.append(row)
    return found, names


def _yolo_names(source: Path) -> list[str]:
    """Class names from classes.txt in the folder or beside it, or from the `names` of a data.yaml there; none: numbers are the names."""
    for folder in (source, source.parent, source.parent.parent):
        for name in ("classes.txt", "names.txt"):
            if (folder / name).is_file():
                return [line.strip() for line in regular(folder / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            if names := _yaml_names(regular(path).read_text(encoding="utf-8")):
                return names
    return []


def _yaml_names(text: str) -> list[str]:
    """The `names` of a YOLO data.yaml: a list in brackets, or lines behind it, "- name" or "0: name"; no other YAML is understood."""
    lines = [line.split(" #")[0].rstrip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        if not line.startswith("names:"):
            continue
        rest = line.removeprefix("names:").strip()
        if rest.startswith("["):
            while "]" not in rest and number + 1 < len(lines):
                number += 1
                rest += " " + lines[number].strip()
            return [name.strip().strip("'\"") for name in rest.strip("[] ").split(",") if name.strip()]
        names = []
        for below in lines[number + 1 :]:
            word = below.strip()
            if not word:
                continue
            if not below.startswith((" ", "-")):
                break
            names.append((word[1:] if word.startswith("-") else word.partition(":")[2]).strip().strip("'\""))
        return names
    return []


def _voc(source: Path, report: Report) -> tuple[list[Labelled], list[str]]:
    """An XML file an image: filename, and for each object its name and bndbox (xmin, ymin, xmax, ymax; the first pixel is 1)."""
    found = []
    for path in sorted(source.glob("*.xml")) if source.is_dir() else [source]:
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            report(path.name, f"not XML: {error}")
            continue
        row = Labelled((root.findtext("filename") or path.stem).strip(), [])
        for item in root.iter("object"):
            try:
                name = (item.findtext("name") or "").strip()
                if not name:
                    raise ValueError("an object without a name")
                edges = item.find("bndbox")
                box = None
                if edges is not None:
                    x0, y0, x1, y1 = (float(edges.findtext(edge) or "nan") for edge in ("xmin", "ymin", "xmax", "ymax"))
                    box = _corners((x0 - 1, y0 - 1, x1, y1))
                row.objects.append((name, box))
            except ValueError as error:
                report(path.name, _reason(error))
        found.append(row)
    return found, []


def _reason(error: Exception) -> str:
    text = str(error)
    return "a value that is not a number" if "could not convert" in text or "invalid literal" in text else text or type(error).__name__
