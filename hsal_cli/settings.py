"""Settings: frozen dataclasses filled from defaults, a preset, a TOML file and the command line, in that order.

A field's `metadata["help"]` is its one sentence; it serves as documentation and as the option's help text.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from hsal_cli.errors import FileError, UsageError, first_line
from hsal_cli.typed import Odd, WrongKind, checked, read_text

S = TypeVar("S")
SEED_LIMIT = 2**63


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    fixed: bool = False,
    one_way: bool = False,
) -> Any:
    """A dataclass field with its sentence and its range.

    Args:
        default: the default value.
        help: one sentence, units included.
        low, high: the smallest and largest value allowed (for a pair: of each of the two).
        above: a bound that the value must exceed.
        fixed: not to be given by users; no option and no TOML key sets it.
        one_way: a switch without its --no- form, where both names are too long for the help of a terminal of 80 columns.
    """
    limits = {"low": low, "high": high, "above": above}
    return dataclasses.field(default=default, metadata={"help": help, **limits, "fixed": fixed, "one_way": one_way})


def kind_of(field_type: Any) -> tuple[Any, tuple[str, ...], bool]:
    """Takes a field's type apart.

    Returns:
        (base, choices, optional): base is int, float, bool, str or `tuple[x, x]`; choices are those of a Literal, else empty.
    """
    optional = False
    if typing.get_origin(field_type) in (typing.Union, types.UnionType):
        arguments = [a for a in typing.get_args(field_type) if a is not type(None)]
        optional, field_type = True, arguments[0]
    if typing.get_origin(field_type) is Literal:
        return str, typing.get_args(field_type), optional
    return field_type, (), optional


def parse(name: str, field_type: Any, value: Any) -> Any:
    """Converts a value from TOML or the command line to the field's type.

    Pairs are written "lo-hi" or as a list of two; one number stands for both.

    Raises:
        UsageError: the value is of another type.
    """
    base, choices, _ = kind_of(field_type)
    pair = typing.get_origin(base) is tuple
    try:
        if pair and value is not None:
            value = _pair(typing.get_args(base)[0], value)
        return checked(str(value) if isinstance(value, Path) else value, field_type, name)
    except WrongKind as odd:
        wanted = "finite" if odd.value in ("nan", "inf", "-inf") else "a range such as 1-4" if pair else odd.wanted
        meant = nearest(str(value), list(choices))
        raise UsageError(f"{name} = {odd.value} is not {wanted}{meant}", f"give {name} a value of that kind") from None


def _pair(item: type, value: Any) -> Any:
    """A pair as a list of two, where it is written "lo-hi", or as one number that stands for both."""
    if isinstance(value, str):
        try:
            value = [item(part) for part in value.split("-")]
        except ValueError:
            return value
    parts = value if isinstance(value, list | tuple) else [value]
    return list(parts) * (2 if len(parts) == 1 else 1)


def check(settings: Any, hint: str = "give values inside the ranges that --help shows") -> None:
    """Checks every field of a settings dataclass against its range; called by each `__post_init__`.

    UsageError, with this hint, names every field that is out of range.
    """
    wrong = []
    for field in dataclasses.fields(settings):
        wrong += _out_of_range(field.name, getattr(settings, field.name), field.metadata)
    if wrong:
        raise UsageError("; ".join(wrong), hint)


def _out_of_range(name: str, value: Any, metadata: typing.Mapping[str, Any]) -> list[str]:
    low, high, above = (metadata.get(key) for key in ("low", "high", "above"))
    wrong = []
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, bool) or not isinstance(part, (int, float)):
            continue
        if not math.isfinite(part):
            wrong.append(f"{name} = {part} is not finite")
        elif low is not None and part < low:
            wrong.append(f"{name} = {part} is below {low}")
        elif high is not None and part > high:
            wrong.append(f"{name} = {part} is above {high}")
        elif above is not None and part <= above:
            wrong.append(f"{name} = {part} is not above {above}")
    if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
        wrong.append(f"{name} = {value[0]}-{value[1]} runs backwards")
    return wrong


def preset_names() -> list[str]:
    """The names that `--preset` takes."""
    folder = importlib.resources.files("hsal_cli.presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_tables(preset: str | None, config: Path | None) -> dict[str, dict[str, Any]]:
    """Reads a preset and a TOML file, the file's values over the preset's.

    Raises:
        UsageError: no such preset, or a file that is missing or not TOML.
    """
    import tomllib  # here, for `--help` reads none

    tables: dict[str, dict[str, Any]] = {}
    for source, text in _sources(preset, config):
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            said = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error).partition("; use sys.")[0]
            raise UsageError(f"{source} is not valid TOML: {said}", "mend that line, or leave --config out") from None
        for name, table in document.items():
            if not isinstance(table, dict):
                raise UsageError(f"{source}: {name} stands outside a table", "put it under a table such as [train]")
            tables.setdefault(name, {}).update(table)
    return tables


def _sources(preset: str | None, config: Path | None) -> typing.Iterator[tuple[str, str]]:
    if preset is not None:
        if preset not in preset_names():
            raise UsageError(f"there is no preset {preset!r}", f"take one of: {', '.join(preset_names())}")
        yield f"preset {preset}", (importlib.resources.files("hsal_cli.presets") / f"{preset}.toml").read_text()
    if config is not None:
        try:
            yield str(config), read_text(config)
        except FileError as error:
            raise UsageError(f"cannot read the settings file: {error.message}", error.hint) from None
        except Odd as odd:
            raise UsageError(f"cannot read the settings file: {odd.said_of(config)}", "name a TOML file with --config") from None
        except OSError as error:
            raise UsageError(f"cannot read the settings file {config}: {error}", "name a TOML file with --config") from None


def check_tables(tables: dict[str, dict[str, Any]], known: dict[str, list[type]]) -> None:
    """Checks names, types and ranges of TOML tables against the settings they may hold.

    Args:
        tables: table name -> key -> value.
        known: table name -> the settings dataclasses whose fields it may hold.

    Raises:
        UsageError: names every fault at once and suggests the nearest key.
    """
    faults = []
    for table, values in tables.items():
        if table not in known:
            faults.append(f"unknown table [{table}]{nearest(table, list(known))}")
            continue
        hints = {name: kind for settings in known[table] for name, kind in typing.get_type_hints(settings).items()}
        fields = _fields_of(known[table])
        for key, value in values.items():
            name = f"{table}.{key}"
            if key not in fields:
                elsewhere = [other for other, kinds in known.items() if key in _fields_of(kinds)]
                faults.append(f"unknown key {name}" + (f" (it stands in [{elsewhere[0]}])" if elsewhere else nearest(key, list(fields))))
                continue
            try:
                faults += _out_of_range(name, parse(name, hints[key], value), fields[key].metadata)
            except UsageError as error:
                faults.append(error.message)
    if faults:
        raise UsageError("; ".join(faults), "mend the settings file; `hsal COMMAND --help` shows every option")


def _fields_of(kinds: list[type]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for kind in kinds for field in dataclasses.fields(kind) if not field.metadata["fixed"]}


def names_in(text: str, known: typing.Sequence[str], what: str) -> list[str]:
    """The names of a text with commas between them, each once.

    Raises:
        UsageError: one is none of those known, or there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = next((name for name in names if name not in known), None if names else text)
    if wrong is not None:
        raise UsageError(f"{what}s = {text}: there is no {what} {wrong!r}", f"take of: {','.join(known)}")
    return names


def nearest(name: str, names: list[str]) -> str:
    """ " (did you mean X?)", X being the name most like this one; "" where none is."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def build(kind: type[S], values: dict[str, Any]) -> S:
    """Makes a settings object from the values that belong to it, ignoring None and the fields of other dataclasses.

    Raises:
        UsageError: a value of a wrong type or out of range.
    """
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    chosen = {name: parse(name, hints[name], value) for name, value in values.items() if name in names and value is not None}
    return kind(**chosen)


def as_dict(settings: Any, asked: bool = False) -> dict[str, Any]:
    """A settings object as plain JSON types; `asked`: what a user may give, without what follows from the data."""
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(settings).items()}
    return {key: found[key] for key in _fields_of([type(settings)])} if asked else found
