"""YOLO: a text file an image, a line an object: class number, then a box or a polygon as shares of the image; the names stand elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from hsal_cli.errors import FileError
from hsal_cli.scenes.readers.labels import Corners, Labelled, Thing, around, class_name, faulty, json_of, number, text_of, thing

LISTS = ("classes.txt", "names.txt", "obj.names", "_darknet.labels")
SURE = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # these have class names; another YAML file may be about anything
OTHERS = re.compile(r"(readme|licen[cs]e)\b.*|(train|trainval|val|valid|test|classes|names|labels|autosplit\w*)", re.IGNORECASE)
ABOVE = 3  # folders above the labels in which class names are looked for
LOOSE = 0.05  # so far a point may leave the image, as a share of its side
NO_NAMES = "write the class names, one a line, into {}"


def read_yolo(files: list[Path], root: Path, listed: Path | None = None) -> tuple[list[Labelled], list[str]]:
    """Reads text files; those that are no labels (README, train.txt) are passed over.

    Folders below `root`, the one that was named, are those of the images, with "labels" for "images"; `listed` is the data.yaml that was
    named. FileError: the class names are missing, cannot be understood, or one stands twice.
    """
    names, points = _names(root, listed)
    found = []
    for path in files:
        try:
            text = text_of(path)
        except FileError as error:
            text, fault = "", [faulty(path.name, error.message.removeprefix(f"{path}: "))]
        else:
            fault = []
        if is_aside(path) and (path.name.lower() in LISTS or not has_objects(text)):
            continue
        parts = path.relative_to(root).with_name(path.name.removesuffix(path.suffix)).parts
        swapped = _images_for_labels(parts)
        beside = path.with_name(parts[-1])
        places = (Path(*_images_for_labels(beside.parts)), beside)
        lines = [(f"line {place}", line.strip()) for place, line in enumerate(text.split("\n"), 1) if line.strip()]
        objects = fault + [_object(line, names, points, where) for where, line in lines]
        folder = path.parent.relative_to(root).as_posix()
        found.append(Labelled("/".join(swapped), objects, shares=True, places=places, stem=True, folder=folder))
    return found, [names[key] for key in sorted(names)]


def is_aside(path: Path) -> bool:
    """Whether a text file is no labels by its name, as README.txt and classes.txt; train.txt may yet be a picture's."""
    return path.name.lower() in LISTS or (path.suffix.lower() == ".txt" and OTHERS.fullmatch(path.stem) is not None)


def has_objects(text: str) -> bool:
    """Whether a line of it is a number and four or more others."""
    return any(re.match(r"\s*[\d.]+([\s,]+[-+\d.eE]+){4,}\s*$", line) for line in text.split("\n"))


def _images_for_labels(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A path with its last folder "labels" called "images"."""
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "labels":
            return (*parts[:place], "images", *parts[place + 1 :])
    return parts


def _object(line: str, names: dict[int, str], points: int | None, where: str) -> Thing:
    """The object of a line: class and numbers, with blanks or commas between them; `points` as in `_names`."""
    if "," in line and re.search(r"[^\s,]\s+[^\s,]", line):
        return faulty(where, "blanks and commas in one line")
    words = line.replace(",", " ").split()
    try:
        label = number(words[0])
        if label != int(label) or label < 0:
            raise ValueError
    except ValueError:
        return faulty(where, f"{words[0][:20]}, which is no class number")
    if int(label) not in names:
        return faulty(where, f"class {int(label)}, which has no name")
    return thing(names[int(label)], lambda: _box(words[1:], points), where)


def _box(words: list[str], points: int | None) -> Corners:
    """Centre, width and height, and perhaps a confidence; or the points of a polygon or of a turned box; else a ValueError."""
    values = [number(word) for word in words]
    count = len(values)
    if points is not None and count == 4 + points:
        values = values[:4]
    elif count >= 7 and (count - 4) % 3 == 0 and all(value in (0, 1, 2) for value in values[6::3]):
        raise ValueError("keypoints, or a polygon: kpt_shape in data.yaml would tell")
    if any(not -LOOSE <= value <= 1 + LOOSE for value in values):
        raise ValueError("numbers that are no shares of the image, 0 to 1")
    if len(values) in (4, 5):
        x, y, width, height = values[:4]
        if width <= 0 or height <= 0:
            raise ValueError("a box that is empty")
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{count} numbers behind the class: neither a box nor a polygon")
    return around(list(zip(values[::2], values[1::2], strict=True)))


def _names(root: Path, listed: Path | None) -> tuple[dict[int, str], int | None]:
    """Class names by number, and how many numbers stand behind a box for keypoints, if the data set says so.

    They stand in classes.txt, obj.names or the like, in Label Studio's notes.json, or under `names` of a data.yaml: in the folder of the
    labels or in the nearest one above it that has any.
    """
    if listed is not None:
        found, points = _of_yaml(listed)
        if not found:
            raise FileError(f"{listed} has no names", "list the class names under names:, or name the folder of the labels with --labels")
        return _checked(found, listed), points
    for folder in [root, *Path(root.absolute()).parents[:ABOVE]]:
        lists: dict[Path, dict[int, str]] = {}
        points = None
        for path in _files_of(folder):
            name = path.name.lower()
            if name in LISTS or name.endswith(".names"):
                lists[path] = _of_lines(text_of(path))
            elif name == "notes.json":
                lists[path] = _of_notes(path)
            elif path.suffix.lower() in (".yaml", ".yml"):
                lists[path], found_points = _of_yaml(path)
                points = found_points if lists[path] else points
        lists = {path: _checked(names, path) for path, names in lists.items() if names}
        if lists:
            first, *more = lists
            for path in more:
                if lists[path] != lists[first]:
                    raise FileError(
                        f"{first} and {path.name} list different class names", "keep the one that is right, and move the other away"
                    )
            return lists[first], points
    raise FileError(f"there are no class names for the labels in {root}", NO_NAMES.format(root / "classes.txt"))


def _files_of(folder: Path) -> list[Path]:
    """The files right in a folder, sorted; none of one that may not be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _checked(names: dict[int, str], path: Path) -> dict[int, str]:
    seen: dict[str, int] = {}
    for key, name in names.items():
        if name in seen:
            raise FileError(f"{path}: classes {seen[name]} and {key} are both called {name}", "give each class a name of its own")
        seen[name] = key
    return names


def _of_lines(text: str) -> dict[int, str]:
    """A name a line; a blank line is a class without one. Where each line begins with its number, that is no part of the name."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines if line]
    if numbered and all(numbered) and [int(match[1]) for match in numbered] == list(range(len(numbered))):
        return {int(match[1]): class_name(match[2]) for match in numbered}
    return {place: class_name(line) for place, line in enumerate(lines) if line}


def _of_notes(path: Path) -> dict[int, str]:
    """Label Studio's notes.json."""
    try:
        return {int(row["id"]): class_name(row["name"]) for row in json_of(text_of(path), "")["categories"]}
    except (ValueError, TypeError, KeyError, FileError):
        return {}  # of another program, which uses the name too


def _of_yaml(path: Path) -> tuple[dict[int, str], int | None]:
    """The `names` and the `kpt_shape` of a YAML file; none where it is about something else.

    FileError: it has names that cannot be understood, or is data.yaml and no YAML.
    """
    hint = "write them as names: [cat, dog], or as names: and a line 0: cat for each"
    try:
        loader = yaml.SafeLoader(text_of(path).lstrip("\ufeff"))
        node = loader.get_single_node()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        top = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
        if [key.value for key, _ in pairs].count("names") > 1:
            raise yaml.YAMLError("names stands twice")
    except (yaml.YAMLError, FileError, RecursionError) as error:
        if path.name.lower() not in SURE:
            return {}, None
        raise FileError(f"cannot read the class names in {path}: {' '.join(str(error).split())}", hint) from error
    names, shape = top.get("names"), top.get("kpt_shape")
    if names is None:
        return {}, None
    try:
        loader.construct_document(names)  # refuses the tags that would run code
        if isinstance(names, yaml.SequenceNode):
            pairs = list(enumerate(names.value))
        elif isinstance(names, yaml.MappingNode):
            if wrong := [str(key.value) for key, _ in names.value if not str(key.value).strip().isdecimal()]:
                raise ValueError(f"{wrong[0][:40]} is no class number")
            pairs = [(int(key.value), value) for key, value in names.value]
        else:
            raise ValueError(f"names is {str(names.value)[:40]!r}")
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a number has two names")
        if not all(isinstance(value, yaml.ScalarNode) for _, value in pairs):
            raise ValueError("a name that is no text")
        found = {key: class_name(value.value) for key, value in pairs if value.tag != "tag:yaml.org,2002:null"}
        points = _points(shape)
    except (ValueError, yaml.YAMLError) as error:
        raise FileError(f"the class names in {path} are not understood: {' '.join(str(error).split())}", hint) from error
    count = top.get("nc")
    if count is not None and str(count.value).strip().isdecimal() and int(count.value) != len(pairs):
        raise FileError(f"{path} has {len(pairs)} names, but nc: {count.value}", "mend nc, or the names")
    return found, points


def _points(shape: yaml.Node | None) -> int | None:
    """How many numbers keypoints take, by `kpt_shape`: their count, and how many numbers each has."""
    if shape is None:
        return None
    sides = shape.value if isinstance(shape, yaml.SequenceNode) else []
    if len(sides) != 2 or not all(str(side.value).strip().isdecimal() for side in sides):
        raise ValueError("kpt_shape is not two numbers")
    return int(sides[0].value) * int(sides[1].value)
