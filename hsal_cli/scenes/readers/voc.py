"""Pascal VOC: an XML file an image, with its filename, its size, and the name and bndbox of each object; the first pixel is 1."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

from hsal_cli.scenes.readers.labels import Corners, Labelled, Notes, Thing, corners, decoded, faulty, number, size_of, thing
from hsal_cli.storage.files import regular

EDGES = ("xmin", "ymin", "xmax", "ymax")
WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252"}  # encodings that are named where the wider one is meant


def read_voc(files: list[Path], root: Path, notes: Notes) -> tuple[list[Labelled], list[str]]:
    """Reads XML files; folders below `root`, the one that was named, are those of the images. Files of no Pascal VOC are noted."""
    found = []
    for path in files:
        try:
            tree = _parse(path)
        except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
            found.append(_row(path, root, path.stem, [faulty(path.name, f"cannot be read: {error}")], stem=True))
            continue
        if tree.tag != "annotation":
            notes.skip(path.name, f"its XML is <{tree.tag}>, not Pascal VOC's <annotation>: export it as that, as COCO or as YOLO")
            continue
        objects = [_object(item, path) for item in tree.findall("object")]
        size = tree.find("size")
        name = (tree.findtext("filename") or "").strip()
        found.append(_row(path, root, name or path.stem, objects, stem=not name))
        if size is not None:
            found[-1].size = size_of(size.findtext("width"), size.findtext("height"))
    return found, []


def _row(path: Path, root: Path, name: str, objects: list[Thing], stem: bool) -> Labelled:
    beside = path.parent / name.replace("\\", "/").rpartition("/")[2]
    inside = path.parent.relative_to(root).as_posix() if path.parent != root else ""
    inside = re.sub(r"(^|/)annotations(?=/|$)", r"\1JPEGImages", inside, flags=re.IGNORECASE)
    asked = f"{inside}/{name}" if inside and "/" not in name.replace("\\", "/") else name
    other = None if PurePosixPath(name.replace("\\", "/")).stem == path.stem else path.stem
    folder = path.parent.relative_to(root).as_posix()
    return Labelled(asked, objects, first=1, places=(beside,), stem=stem, other=other, folder=folder)


def _object(item: ElementTree.Element, path: Path) -> Thing:
    def box() -> Corners | None:
        edges = item.find("bndbox")
        if edges is None:
            if item.find("robndbox") is not None:
                raise ValueError("a box that is turned")
            return None
        x0, y0, x1, y1 = (number(edges.findtext(edge)) for edge in EDGES)
        return corners((x0 - 1, y0 - 1, x1, y1))

    return thing(item.findtext("name") or "", box, path.name)


def _parse(path: Path) -> ElementTree.Element:
    """Parses XML in whatever encoding it declares, and takes namespaces off; one that declares entities could grow without end."""
    data = regular(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([^"']+)["'][^>]*\?>""", data)
    if declared:
        said = codecs.lookup(declared[1].decode("ascii", "replace")).name
        text = data[declared.end() :].decode(WIDER.get(said, said))
    else:
        text = decoded(data)
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError("it declares a document type or entities, which labels need not: remove its <!DOCTYPE ...>")
    tree = ElementTree.fromstring(text.lstrip())
    for item in tree.iter():
        item.tag = str(item.tag).rpartition("}")[2]
    return tree
