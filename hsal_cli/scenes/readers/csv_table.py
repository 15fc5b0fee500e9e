"""Tables: a row an object, perhaps with its box; or a row an image with its labels; or a row an image with a count for each class."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hsal_cli.errors import FileError
from hsal_cli.scenes.readers.labels import (
    HINT,
    Corners,
    Labelled,
    Notes,
    Thing,
    around,
    class_name,
    corners,
    number,
    row_of,
    size_of,
    text_of,
    thing,
    unread,
)
from hsal_cli.scenes.readers.names import IMAGE_COLUMNS, images_of
from hsal_cli.words import brief, slip

LABEL_COLUMNS = ("labels", "label", "class", "category", "classes", "class_name", "classname", "category_name", "labelname", "label_name")
LABEL_COLUMNS += ("tags", "choice", "categories", "class_id", "classid", "category_id", "label_id")
SEVERAL = ("labels", "classes", "tags", "categories", "choice")  # columns that hold several, by their name
BOX_COLUMNS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"))
BOX_COLUMNS += (("left", "top", "right", "bottom"), ("bbox_x0", "bbox_y0", "bbox_x1", "bbox_y1"))
SIZED_COLUMNS = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "width", "height"),
)
SIZED_COLUMNS += (("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("x_min", "y_min", "width", "height"))
PICTURE_SIZE = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"), ("original_width", "original_height"))
COUNTS = ("count", "counts", "number", "quantity")
CROWDS = ("iscrowd", "isgroupof", "is_crowd", "is_group_of")
BOX_LIKE = re.compile(
    r".*(box|poly|segment|region|geometry|center|centre)|c[xy]|[xy]c|[xy]_?(min|max|[0-9])|left|top|right|bottom", re.IGNORECASE
)
MOST = 64  # more objects than this in one cell are no count


def read_csv(source: Path, notes: Notes, counts: bool = False) -> tuple[list[Labelled], list[str]]:
    """Reads a table with a header line; commas, tabs or semicolons stand between its cells.

    With `counts` every column beside the image's is a class, and its cells count the objects. `notes` hears of rows without an image,
    and of columns that look like boxes and are not understood. FileError: another encoding, or no column of images or of labels.
    """
    text = text_of(source)
    told = re.match(r'"?sep=(.)"?\n', text)
    text = text[told.end() :] if told else text
    first = text.lstrip("\n").split("\n", 1)[0]
    mark = told[1] if told else max(",\t;", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise FileError(f"cannot read {source} as csv: {error}", HINT) from error
    lines = [(place, row) for place, row in enumerate(rows, 1 + bool(told)) if any(cell.strip() for cell in row)]
    if not lines:
        raise FileError(f"{source} is empty", HINT)
    header = [cell.strip() for cell in lines[0][1]]
    columns: dict[str, int] = {}
    for place, name in enumerate(header):
        if name and name.lower() in columns and name.lower() in (*IMAGE_COLUMNS, *LABEL_COLUMNS):
            raise FileError(f"{source} has two columns {name}", "keep one of them")
        columns.setdefault(name.lower(), place)
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if image is None or (label is None and not counts):
        raise _not_a_header(source, header, image, label is None and not counts, lines[1:])
    table = _Counts(header, columns[image]) if counts else _Table(columns, label, mark, notes)
    found = []
    for place, cells in lines[1:]:
        where, spare = f"line {place}", any(cell.strip() for cell in cells[len(header) :])
        cells = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
        row = {name: cells[place] for name, place in columns.items()}
        names = images_of({image: row[image]} if counts else row)
        if not names:
            notes.skip(where, "no image is named")

        def read(labelled: Labelled, row=row, cells=cells, where=where, spare=spare, names=names) -> list[Thing]:
            if len(names) > 1:
                raise ValueError(f"different images are named: {' and '.join(names)}")
            if spare:
                raise ValueError(f"{len(cells)} cells where the header has {len(header)}")
            return table.objects(labelled, cells if counts else row, where)

        size = [row.get(name) for name in table.size]
        found += [row_of(source, name, where, read, None if counts else row.get("split"), *size, whole=counts) for name in names]
    return found, table.classes


def _not_a_header(source: Path, header: list[str], image: str | None, unlabelled: bool, lines: list[tuple[int, list[str]]]) -> FileError:
    """The error for a table without the columns that are needed."""

    def column(what: str, known: Sequence[str]) -> str:
        meant = next((f" (did you mean {name} by {odd}?)" for odd in header for name in known if slip(odd, name)), "")
        return f"column {what}{meant}"

    lacks = [column("image", IMAGE_COLUMNS)] if image is None else []
    lacking = " and ".join([*lacks, *([column("labels", LABEL_COLUMNS)] if unlabelled else [])])
    hint = f"name the columns in its first line, such as image,label or image,label,x0,y0,x1,y1; {HINT}"
    if image is not None:
        rest = [[cell for name, cell in zip(header, row, strict=False) if name.lower() != image] for _, row in lines]
        if any(rest) and all(cell.strip().isdecimal() for row in rest for cell in row):
            hint = "if its columns count the objects of each class, add --labels-format counts"
    return FileError(f"{source}: its header {','.join(header)[:80]!r} has no {lacking}", hint)


class _Counts:
    """Columns that are classes, and cells that count."""

    size = (None, None)

    def __init__(self, header: list[str], image: int):
        self.names = {place: class_name(name) for place, name in enumerate(header) if place != image and name}
        self.classes = list(self.names.values())
        if len(set(self.classes)) < len(self.classes):
            raise FileError(f"two columns of counts have one name: {', '.join(self.classes)}", "give each class a column of its own")

    def objects(self, labelled: Labelled, cells: list[str], where: str) -> list[Thing]:
        found = []
        for place, name in self.names.items():
            try:
                found += [Thing(name, None, where)] * _count(cells[place] or "0")
            except ValueError as error:
                found.append(Thing(name, None, f"{where}: {name} = {brief(cells[place])!r}", str(error)))
        return found


class _Table:
    """Columns of labels and perhaps of boxes, sizes, splits and counts."""

    def __init__(self, columns: dict[str, int], label: str, mark: str, notes: Notes):
        def first(choices: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
            return next((names for names in choices if set(names) <= set(columns)), ())

        self.label, self.mark, self.notes = label, mark, notes
        self.classes: list[str] = []  # a table lists none
        edges = first(BOX_COLUMNS)
        self.sized = not edges
        self.edges = edges or first(SIZED_COLUMNS)
        sizes = [names for names in PICTURE_SIZE if not set(names) & set(self.edges)]
        # Of a size that is stated in half, that half counts.
        self.size = first(sizes) or next((names for names in sizes if set(names) & set(columns)), (None, None))
        self.count = next((name for name in COUNTS if name in columns), None)
        self.crowd = next((name for name in CROWDS if name in columns), None)
        self.several = label in SEVERAL and not self.edges
        odd = [name for name in columns if BOX_LIKE.fullmatch(name) and name not in self.edges]
        if odd and not self.edges:
            notes.remark(f"columns that are not read as boxes: {', '.join(odd)}; {HINT}")
        roles = [(self.count, COUNTS), (self.crowd, CROWDS), ("split" in columns, ("split",)), (self.size[0], PICTURE_SIZE[0])]
        free = [name for taken, names in roles if not taken for name in names]
        read = {"", "unnamed: 0", *IMAGE_COLUMNS, label, "split", *self.size, self.count, self.crowd, *(self.edges or odd)}
        if rest := unread([name for name in columns if name not in read], free):
            notes.remark(f"columns that are not read: {rest}")

    def objects(self, labelled: Labelled, row: dict[str, str], where: str) -> list[Thing]:
        """A row's objects."""
        given = [row[name].replace(",", "." if self.mark != "," else ",") for name in self.edges]
        found = self._named(row[self.label], labelled, where)
        many = _count(row[self.count]) if self.count and row[self.count] else 1
        if any(given):
            if len(found) != 1 or found[0].box or many != 1:
                raise ValueError("a box without a label" if not found else "several labels for one box")
            found = [thing(found[0].name, lambda: corners(given, self.sized), where)]
        if self.crowd and row[self.crowd].lower() not in ("", "0", "0.0", "false"):
            found = [item._replace(fault="a crowd, not one object") for item in found]
        return found * many

    def _named(self, cell: str, labelled: Labelled, where: str) -> list[Thing]:
        """What a cell of labels names: one label, several with ; or | between them, a list in JSON or Python, or Label Studio's regions."""
        if cell[:1] in ("[", "{"):
            return _structured(_literal(cell), labelled, where)
        if cell.startswith(("('", '("')):
            raise ValueError("a tuple of labels: write a list")
        names = [cell]
        if ";" in cell or "|" in cell:
            names = cell.replace("|", ";").split(";")
        elif "," in cell and not self.edges:
            if not self.several:
                raise ValueError('a comma in a label: cat;dog is two, and ["cat, dog"] is one of that name')
            names = cell.split(",")
        elif " " in cell and self.several:
            self.notes.remark(f"labels with blanks, such as {cell[:40]}, are one class each; several have ; between them")
        return [Thing(class_name(name), None, where) for name in names if name.strip()]


def _literal(cell: str) -> Any:
    """A list or an object in JSON or as Python prints it."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    if re.search(r"""['"]\s+['"]""", cell):
        raise ValueError("a list of labels without commas, as numpy prints it")  # Python would join them to one
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("a list of labels that cannot be read") from None


def _structured(value: Any, row: Labelled, where: str) -> list[Thing]:
    """The objects of a list of labels, of {"choices": [...]}, or of Label Studio's regions, whose numbers are percents."""
    if isinstance(value, dict):
        value = value.get("choices", [value])
        value = value if isinstance(value, list) else [value]
    if not isinstance(value, list):
        raise ValueError("a list of labels that cannot be read")
    found = []
    for item in value:
        if not isinstance(item, dict):
            found.append(Thing(class_name(item), None, where))
            continue
        kind = next((key for key in item if key.endswith("labels")), None)
        names = item.get(kind or "")
        if not isinstance(names, list) or len(names) != 1:
            raise ValueError("a region that does not have one label")
        row.shares = True
        row.size = size_of(item.get("original_width"), item.get("original_height")) or row.size
        found.append(thing(names[0], _region(kind, item), where))
    return found


def _region(kind: str, item: dict[str, Any]) -> Callable[[], Corners | None]:
    def box() -> Corners | None:
        if number(item.get("rotation") or 0) % 360:
            raise ValueError("a box that is turned")
        if kind == "rectanglelabels":
            edges = corners([item.get(key) for key in ("x", "y", "width", "height")], sized=True)
        elif kind == "ellipselabels":
            x, y, across, down = (number(item.get(key)) for key in ("x", "y", "radiusX", "radiusY"))
            edges = corners((x - across, y - down, x + across, y + down))
        elif kind == "polygonlabels":
            points = item.get("points")
            if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
                raise ValueError("a polygon without points")
            edges = around([(x, y) for x, y in points])
        else:
            return None
        return tuple(value / 100 for value in edges)

    return box


def _count(cell: str) -> int:
    """A count of objects; ValueError where it is none."""
    count = number(cell)
    if count != int(count) or not 0 <= count <= MOST:
        raise ValueError(f"a count that is not 0 to {MOST}")
    return int(count)
