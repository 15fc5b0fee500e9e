"""The form that every reader gives, and what readers share: text in any encoding, numbers, names and corners.

One rule for what cannot be read. It stays on its object as a `fault`, and whoever takes the labels leaves the whole image out, with the
reason: an image never stays with a label less.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hsal_cli.errors import FileError
from hsal_cli.settings import nearest
from hsal_cli.storage.files import regular
from hsal_cli.typed import keys_once
from hsal_cli.words import brief

MOST_UNREAD = 8  # names that one line lists
HINT = "docs/own-images.md shows the forms that labels may have"
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"), "test"),
}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Corners = tuple[float, float, float, float]


class Thing(NamedTuple):
    """One object.

    Attributes:
        name: its class; None where that could not be read.
        box: x0, y0, x1, y1; None where the labels state none.
        where: the line or entry that says so, for messages.
        fault: why it cannot be told what, or how many, this is.
        box_fault: why the box that is stated cannot be used.
    """

    name: str | None
    box: Corners | None = None
    where: str = ""
    fault: str | None = None
    box_fault: str | None = None


@dataclasses.dataclass
class Labelled:
    """What labels say of one image.

    Attributes:
        image: what they call it.
        objects: what is in it; none: an image of no object.
        whole: they say all of the image here, and not, as a table does, an object here and one further down.
        split: "train", "test", or None where they do not say.
        size: width and height that they state, px; NaN for one that they do not.
        shares: boxes are shares of the image's width and height, not px.
        first: what the labels' form counts the first pixel as; boxes here count from 0.
        places: where the image lies if it lies beside the labels, without its ending for YOLO; looked at before the name.
        stem: the name has no ending.
        other: another name without ending, taken where there is no image of the first.
        folder: where the labels lie, below the folder that was named.
    """

    image: str
    objects: list[Thing]
    whole: bool = True
    split: str | None = None
    size: tuple[float, float] | None = None
    shares: bool = False
    first: int = 0
    places: tuple[Path, ...] = ()
    stem: bool = False
    other: str | None = None
    folder: str = ""


class Notes:
    """What a user should hear: images and rows that were left out, and what was taken for granted.

    Attributes:
        skipped: a dict of `what` and `reason` each.
        remarks: sentences.
    """

    def __init__(self) -> None:
        self.skipped: list[dict[str, str]] = []
        self.remarks: list[str] = []

    def skip(self, what: str, reason: str) -> None:
        """This was left out."""
        self.skipped.append({"what": what, "reason": reason})

    def remark(self, sentence: str) -> None:
        """This was taken for granted; said once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)


def unread(names: Iterable[str], known: Iterable[str]) -> str:
    """Names that labels have and nobody reads, each with the free name that it may have been meant as, for a sentence; "" for none."""
    free = list(known)
    said = [f"{brief(name)}{nearest(name.lower(), free)}" for name in names]
    said.sort(key=lambda name: "(" not in name)  # what may be a slip comes first
    return ", ".join([*said[:MOST_UNREAD], *([f"{len(said) - MOST_UNREAD} more"] if len(said) > MOST_UNREAD else [])])


def text_of(source: Path) -> str:
    r"""Reads a text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; lines end in \n.

    Raises:
        FileError: it cannot be read, or is in another encoding.
    """
    try:
        data = regular(source).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror or error}", HINT) from error
    try:
        return decoded(data).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FileError(
            f"{source}: line {line} is not {error.encoding.upper()}",
            f"save it as UTF-8, such as by: iconv -f cp1252 -t utf-8 {shlex.quote(str(source))} > new{source.suffix}",
        ) from error


def decoded(data: bytes) -> str:
    """A text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; UnicodeDecodeError where it is in another encoding."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None)
    if encoding is None and data[:200].count(b"\0") > len(data[:200]) // 4:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    return data.decode(encoding or "utf-8")


def json_of(text: str, where: str) -> Any:
    """Reads JSON; ValueError, with `where` before its reason, where it is none."""
    try:
        return json.loads(text, object_pairs_hook=keys_once)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{where}not JSON: {said}") from error


def class_name(value: Any) -> str:
    """A class's name: a text or a number; 3.0 is 3, blanks around it do not count, and accents are composed (NFC); else a ValueError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"a label is a text or a number, not {json.dumps(value, default=str, ensure_ascii=False)[:60]}")
    text = unicodedata.normalize("NFC", " ".join(str(value).split()))
    if not text:
        raise ValueError("a label without a text")
    if any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("a label with a NUL or half of a surrogate pair in it")
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0+", text) else text


def number(value: Any) -> float:
    """A finite number, also one that is written as text; ValueError where it is none."""
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        found = float("nan")
    if not math.isfinite(found):
        raise ValueError("a value that is not a number")
    return found


def corners(values: Any, sized: bool = False) -> Corners:
    """Four numbers as x0, y0, x1, y1; where `sized`, they are x0, y0, width, height. ValueError: no such four, or an empty box."""
    if not isinstance(values, Iterable) or isinstance(values, str | dict) or len(values := list(values)) != 4:
        raise ValueError("a box that is not four numbers")
    x0, y0, x1, y1 = map(number, values)
    if sized:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        raise ValueError("a box that is empty")
    return x0, y0, x1, y1


def around(points: Iterable[tuple[Any, Any]]) -> Corners:
    """The box around a polygon's points; ValueError where they are no numbers, fewer than three, or all on one line of the grid."""
    xs, ys = zip(*[(number(x), number(y)) for x, y in points], strict=True) if points else ((), ())
    if len(xs) < 3:
        raise ValueError("a polygon of fewer than three points")
    return corners((min(xs), min(ys), max(xs), max(ys)))


def thing(name: Any, box: Callable[[], Corners | None], where: str) -> Thing:
    """An object of this name, of any type, and the box that `box` gives; what of both is a ValueError becomes its fault."""
    try:
        text = class_name(name)
    except ValueError as error:
        return Thing(None, None, where, str(error))
    try:
        return Thing(text, box(), where)
    except ValueError as error:
        return Thing(text, None, where, box_fault=str(error))


def faulty(where: str, reason: str) -> Thing:
    """Something of which it is not known what it is."""
    return Thing(None, None, where, reason)


def size_of(width: Any, height: Any) -> tuple[float, float] | None:
    """Width and height that labels state, NaN for one of which they state nothing, or 0; None where they state neither."""
    size = tuple(side if side > 0 else math.nan for side in map(_side, (width, height)))
    return None if all(map(math.isnan, size)) else size


def _side(value: Any) -> float:
    try:
        return number(value)
    except ValueError:
        return 0.0


def row_of(source: Path, image: str, where: str, read: Callable[[Labelled], list[Thing]], split: Any, *size: Any, **more: Any) -> Labelled:
    """What a row or an entry (`where`) of a file says of an image, which may lie beside it; what cannot be read is the image's fault.

    Args:
        read: gives the objects, and may note more; may raise ValueError.
        split: a word for it, or nothing.
        size: the width and the height that it states, or nothing.
        more: further attributes.
    """
    found = Labelled(image, [], places=(source.parent / image,), **more)
    try:
        found.split, found.size = split_of(split), size_of(*size)
        found.objects = read(found)
    except ValueError as error:
        found.objects = [faulty(where, str(error))]
    return found


def split_of(word: Any) -> str | None:
    """The split that a word means; None where there is no word; ValueError where it is another one."""
    text = str("" if word is None else word).strip().lower()
    if text and text not in SPLITS:
        raise ValueError(f"an unknown split {text}")
    return SPLITS.get(text)
