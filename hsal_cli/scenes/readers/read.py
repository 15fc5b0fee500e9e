"""Which form labels have, and reading them: one file, or a folder in which they lie."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hsal_cli.errors import FileError
from hsal_cli.scenes.readers.coco import read_coco
from hsal_cli.scenes.readers.csv_table import read_csv
from hsal_cli.scenes.readers.jsonl import read_jsonl
from hsal_cli.scenes.readers.labels import HINT, SPLITS, Corners, Labelled, Notes
from hsal_cli.scenes.readers.names import files_below
from hsal_cli.scenes.readers.voc import read_voc
from hsal_cli.scenes.readers.yolo import has_objects, is_aside, read_yolo
from hsal_cli.storage.files import did_you_mean, regular

FILES = {"voc": (".xml",), "coco": (".json",), "jsonl": (".jsonl", ".ndjson"), "csv": (".csv", ".tsv")}
ENDINGS = {ending: kind for kind, its in FILES.items() for ending in its} | {".yaml": "yolo", ".yml": "yolo"}
FILES |= {"yolo": (".txt",), "counts": FILES["csv"]}
ASIDE = ("notes.json", "info.json", "dataset_info.json")  # beside labels, and none
SLIGHT = 0.01  # so far a share may lie outside of 0 to 1


def read_labels(source: Path, kind: str, notes: Notes) -> tuple[list[Labelled], list[str]]:
    """Reads labels.

    Args:
        source: the file or folder; in a folder all label files of one form, at any depth. Folders named train and val, valid or test
            are the splits, where there are both.
        kind: "csv", "counts", "jsonl", "coco", "yolo", "voc" or "auto".
        notes: hears of all that is skipped.

    Returns:
        The images in the order of the labels, and the class names in the order of the labels' own list; where they have none, sorted:
        numbers by value. Names that no object has are left out.

    Raises:
        FileError: missing, unreadable, or of no form that is known; or it cannot be told what an object is, or of which image.
    """
    if not source.exists():
        raise FileError(f"the labels {source} do not exist", HINT + did_you_mean(source))
    files, kind = _files(source, kind)
    root = source if source.is_dir() else source.parent
    if kind == "voc":
        found, listed = read_voc(files, root, notes)
    elif kind == "yolo":
        found, listed = read_yolo(files, root, source if source.suffix.lower() in (".yaml", ".yml") else None)
    else:
        found, listed = [], []
        for path in files:
            rows, names = TABLES[kind](path, notes)
            for row in rows if len(files) > 1 else ():
                folder = path.parent.relative_to(root).as_posix()
                row.folder = f"{folder}/{'/'.join(re.findall('[a-z]+', path.stem.lower()))}"
                row.image = f"{folder}/{row.image}" if _split_of_folders(folder) else row.image
            found += rows
            listed += names
    by_folder = [_split_of_folders(row.folder) for row in found]
    if {"train", "test"} <= set(by_folder):
        for row, split in zip(found, by_folder, strict=True):
            row.split = row.split or split
    _hold_against_px(found, notes)
    used = {item.name for row in found for item in row.objects if item.name is not None}
    return found, [name for name in dict.fromkeys(listed) if name in used] + sorted(used - set(listed), key=_by_value)


TABLES: dict[str, Callable[[Path, Notes], tuple[list[Labelled], list[str]]]] = {
    "csv": read_csv,
    "counts": lambda source, notes: read_csv(source, notes, counts=True),
    "jsonl": read_jsonl,
    "coco": read_coco,
}


def _by_value(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isascii() and name.isdecimal() and len(name) < 100 else (1, 0, name)


def _split_of_folders(folder: str) -> str | None:
    """The split that a path's folders name: the last of them that is a split's name."""
    return next((SPLITS[part] for part in reversed(folder.lower().split("/")) if part in SPLITS), None)


def _files(source: Path, kind: str) -> tuple[list[Path], str]:
    """The label files, and their form; FileError where there are none, or where the form cannot be told."""
    ending = source.suffix.lower()
    if not source.is_dir():
        if kind == "auto" and ending not in ENDINGS:
            hint = "name the folder of the text files" if ending == ".txt" else "say so with --labels-format"
            raise FileError(f"it cannot be told from its name what {source} is", hint)
        kind = ENDINGS[ending] if kind == "auto" else kind
        if kind != "yolo" or ending not in (".yaml", ".yml"):
            return [source], kind
        folder = source.parent
    else:
        folder = source
    below = list(files_below(folder))
    by_kind = {
        name: [path for path in below if path.suffix.lower() in endings and path.name not in ASIDE] for name, endings in FILES.items()
    }
    if kind == "auto":
        there = [name for name, files in by_kind.items() if name != "counts" and not all(map(is_aside, files))]
        if {"voc", "yolo"} <= set(there) and not any(has_objects(regular(path).read_text(errors="replace")) for path in by_kind["yolo"]):
            there.remove("yolo")  # Pascal VOC's lists of images
        first = [name for name in there if name in ("voc", "yolo")] or there  # tables and JSON lie beside those, too
        kind = first[0] if len(first) == 1 else ""
        if not kind and there:
            every = ", ".join(by_kind[name][0].relative_to(folder).as_posix() for name in first)
            raise FileError(
                f"{folder} holds labels of several forms: {every}", "name one file with --labels, or the form with --labels-format"
            )
    if not by_kind.get(kind):
        wanted = ", ".join(FILES.get(kind, sorted({ending for endings in FILES.values() for ending in endings})))
        raise FileError(f"{folder} holds no labels: no file that ends in {wanted}", HINT)
    instances = [path for path in by_kind[kind] if kind == "coco" and path.name.startswith("instances_")]
    return instances or by_kind[kind], kind


def _hold_against_px(found: list[Labelled], notes: Notes) -> None:
    """Where a form counts in px and all boxes lie between 0 and 1, they are shares; a few that do among others cannot be used."""
    rows = [row for row in found if not row.shares]
    boxes = [_as_written(item.box, row) for row in rows for item in row.objects if item.box]
    shares = all(map(_within_one, boxes)) and any(map(_looks_shared, boxes))
    if shares:
        notes.remark("all boxes lie between 0 and 1: taken as shares of the image's width and height, not px")
    for row in rows:
        row.shares = shares
        for place, item in enumerate(row.objects):
            box = item.box and _as_written(item.box, row)
            if box and shares:
                row.objects[place] = item._replace(box=box)
            elif box and _looks_shared(box):
                row.objects[place] = item._replace(box=None, box_fault="a box within the first pixel: are these shares of the image?")


def _as_written(box: Corners, row: Labelled) -> Corners:
    return box[0] + row.first, box[1] + row.first, box[2], box[3]


def _within_one(box: Corners) -> bool:
    return max(box) <= 1 + SLIGHT and min(box) >= -SLIGHT


def _looks_shared(box: Corners) -> bool:
    return _within_one(box) and any(value != int(value) for value in box)
