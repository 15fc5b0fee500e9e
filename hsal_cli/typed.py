"""Reading regular files only, and holding values against types: JSON and TOML become frozen dataclasses, or the first odd place is named.

A document's dataclass lives with the room that owns the document, a sentence a field. Keys that it does not name are ignored, so that files
of later versions are read; a key that may be missing has a default, what held before there was the key. Where an older file says
something in other words, the dataclass has a static method `stored(values) -> values` that says it in today's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import reprlib
import stat
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from hsal_cli.errors import FileError, UsageError, first_line

D = TypeVar("D")
LARGEST = 1 << 27  # bytes of a document; 100,000 lines of metrics are less
DEEPEST = 50  # levels of nesting; what is deeper ends every recursion over it
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
DIGITS = 19  # of an integer: seeds go up to 2^63
# What UTF-8 cannot hold, but for a byte of a path that is not UTF-8 (U+DC80 to U+DCFF): those name files, and all writers bear them.
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}

short = reprlib.Repr()
short.maxstring = short.maxother = 60
short.maxlevel = short.maxlist = short.maxdict = 3


class Odd(ValueError):
    """Something in a document is not as it must be.

    Args:
        place: where, such as "policy.glimpses"; "" for all of it.
        what: the rest of the sentence, such as "is missing".
    """

    def __init__(self, place: str, what: str):
        super().__init__(f"{place} {what}".strip())
        self.place = place

    def said_of(self, source: str | Path) -> str:
        """The sentence, with the name of the document."""
        return f"{source}: {self}" if self.place else f"{source} {self}"


class WrongKind(Odd):
    """A value of another type than it must have; `value` in short, and the `wanted` type in words."""

    def __init__(self, place: str, value: Any, wanted: str):
        self.value, self.wanted = short.repr(value), wanted
        super().__init__(place, f"is {self.value}, not {wanted}" if place else f"holds {self.value}, not {wanted}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """What documents have in common whose reader also needs them as they stand.

    Attributes:
        raw: all that the document holds, unknown keys included, without its own digest.
    """

    raw: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)


def regular(path: Path, hint: str = "write what it holds to a file, and name that") -> Path:
    """The path itself, unless reading it could hang or never end: `regular(path).read_text()`.

    A missing file and a folder pass: what opens them says so itself.

    Raises:
        FileError: a named pipe, a device or a socket.
    """
    try:
        kind = KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):  # missing, or no name that a system can hold
        return path
    if kind is not None:
        raise FileError(f"{path} is {kind}, not a regular file", hint)
    return path


def read_text(source: Path) -> str:
    """Reads a file of text, in UTF-8.

    Raises:
        OSError: it cannot be read.
        FileError: reading it could hang or never end (see `regular`).
        Odd: it is too large, or not UTF-8.
    """
    with open(regular(source), "rb", opener=_opened_at_once) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):  # what came to stand there since
            raise Odd("", "is not a file")
        if found.st_size > LARGEST:
            raise Odd("", f"is too large for a document: {found.st_size / 1e6:,.0f} MB")
        try:
            return stream.read(LARGEST).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Odd("", f"is not text in UTF-8: {error.reason} at byte {error.start}") from error


def _opened_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for somebody to write to it


def parsed(text: str | bytes) -> Any:
    """A JSON text as Python values that every writer of ours can write again.

    Raises:
        Odd: not JSON, nested too deeply, a key that stands twice, NaN, infinity, an integer too large for 64 bits, half of a surrogate
            pair (but for bytes of a path), a NUL.
    """
    try:
        document = json.loads(text, object_pairs_hook=keys_once, parse_int=_integer)
    except Odd:
        raise
    except RecursionError:
        raise Odd("", f"is not valid JSON: it is nested more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise Odd("", f"is not valid JSON: {first_line(error)}") from error
    _refuse_unwritable(document, "", 0)
    return document


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its keys and values; Odd where a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Odd("", f"gives {short.repr(next(name for name in names if names.count(name) > 1))} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise Odd("", f"holds an integer of {len(digits.lstrip('-')):,} digits, {digits[:20]}...")
    return int(digits)


def _refuse_unwritable(value: Any, place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise Odd("", f"is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_unwritable(key, place, depth)
            _refuse_unwritable(part, _inside(place, key), depth + 1)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _refuse_unwritable(part, f"{place}[{number}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Odd(place, f"is {value}, not a finite number") if place else Odd("", f"holds {value}, not a finite number")
    elif isinstance(value, str):
        if HALVES.search(value):
            raise Odd("", f"holds half of a surrogate pair: {short.repr(value)}")
        if "\0" in value:  # no path may, and HDF5 ends texts there
            raise Odd("", f"holds a text with a NUL in it: {short.repr(value)}")


def _inside(place: str, key: str) -> str:
    key = key if len(key) <= 60 else f"{key[:57]}..."
    return f"{place}.{key}" if place else key


def checked(value: Any, kind: Any, place: str = "") -> Any:
    """A value as an instance of a type.

    Args:
        value: of JSON types, or nested containers of them; an int may stand for a float, and a whole float for an int.
        kind: Any, int, float, str, bool, list[X], dict, dict[str, X], tuple[X, Y], X | None, a Literal or a dataclass.
        place: where the value stands, for the error.

    Raises:
        Odd: it is not; names the first place that is odd.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        [other] = [part for part in arguments if part is not type(None)]
        return None if value is None else checked(value, other, place)
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise WrongKind(place, value, " | ".join(arguments))
    if dataclasses.is_dataclass(kind):
        return _made(value, kind, place)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise WrongKind(place, value, f"a list of {len(arguments)}")
        return tuple(checked(part, of, f"{place}[{number}]") for number, (part, of) in enumerate(zip(value, arguments, strict=True)))
    if origin is list and isinstance(value, list):
        return [checked(part, arguments[0], f"{place}[{number}]") for number, part in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: checked(part, arguments[1], _inside(place, str(key))) for key, part in value.items()}
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if kind is float or float(value) == int(value):
                return kind(value)
        except (OverflowError, ValueError):  # an integer too large for a float; an int of NaN or infinity
            pass
    elif kind in (str, bool, list, dict) and isinstance(value, kind):
        return value
    raise WrongKind(place, value, WORDS[origin or kind])


def _made(value: Any, kind: type[D], place: str) -> D:
    if not isinstance(value, dict):
        raise WrongKind(place, value, WORDS[dict])
    stored = getattr(kind, "stored", lambda values: values)(value)
    held: dict[str, Any] = {"raw": value} if issubclass(kind, Document) else {}
    for field in dataclasses.fields(kind):
        if field.name in stored and field.name != "raw":
            held[field.name] = checked(stored[field.name], _types_of(kind)[field.name], _inside(place, field.name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Odd(_inside(place, field.name), "is missing")
    try:
        return kind(**held)
    except UsageError as error:  # settings that are out of their range
        raise Odd(place, f"cannot be used: {error.message}") from error


@functools.cache
def _types_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
