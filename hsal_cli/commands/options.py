"""The options that all commands share, and options made from the fields of a settings dataclass.

A command is written as `def train(settings: TrainSettings, *, device: Device = "auto", ...)` under
`@options(settings=TrainSettings)`: every field of the dataclasses becomes an option with the field's
sentence, range and default, and a TOML table of the same name may set it too (`--preset`, `--config`).
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli.errors import UsageError
from hsal_cli.settings import SEED_LIMIT, as_dict, build, check_tables, kind_of, read_tables

if TYPE_CHECKING:
    from hsal_cli.experiments.pipeline import Recipe
    from hsal_cli.policy.variant import Variant
    from hsal_cli.runs.documents import BackboneConfig, Kind, PolicyConfig

Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[Optional[int], typer.Option("--workers", min=1, help="How many processes to use.", show_default="one a core")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if hsal made it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, all else to stderr.")]
Preset = Annotated[Optional[str], typer.Option("--preset", help="Settings that come with hsal: paper or quick.", show_default=False)]


def backbone_in(place: Path | None) -> Path | None:
    """A value of `--backbone`: where it is a folder that `hsal export` wrote, the backbone in it."""
    if place is None:
        return None
    from hsal_cli.models.shipped import BACKBONE, part_of

    return part_of(place, BACKBONE)


Backbone = Annotated[
    Optional[Path],
    typer.Option(
        "--backbone",
        help="A run of hsal finetune, one of its checkpoints, or a folder that hsal export wrote.",
        show_default="the newest finished in runs/",
        callback=backbone_in,
    ),
]
Images = Annotated[list[Path], typer.Argument(help="Images of any size, or folders of them.", show_default=False)]
Resume = Annotated[
    Optional[Path],
    typer.Option("--resume", help="Go on with this run; only device, data folder and more epochs may differ.", show_default=False),
]
Given = dict[str, set[str]]  # TOML table -> the settings that the user gave, on the command line or in a settings file
Config = Annotated[Optional[Path], typer.Option("--config", help="A TOML file of settings.", show_default=False)]


def known_tables() -> dict[str, list[type]]:
    """TOML table -> the settings dataclasses it may hold; none of these imports torch."""
    from hsal_cli.bench.settings import BenchSettings
    from hsal_cli.evaluation.settings import EvalSettings
    from hsal_cli.experiments.settings import SweepSettings
    from hsal_cli.features.settings import LookSettings, PrecomputeSettings
    from hsal_cli.policy.variant import Variant, VariantName
    from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
    from hsal_cli.scenes.settings import FolderSettings, SceneSettings, SearchSettings, StreetSettings, SvhnSettings

    return {
        "make-data": [SceneSettings],
        "mnist-search": [SearchSettings],
        "street-numbers": [StreetSettings],
        "svhn-multiset": [SvhnSettings],
        "folder": [FolderSettings],
        "found": [LookSettings],
        "finetune": [FinetuneSettings],
        "precompute": [PrecomputeSettings],
        "variant": [VariantName, Variant],
        "train": [TrainSettings],
        "eval": [EvalSettings],
        "sweep": [SweepSettings],
        "bench": [BenchSettings],
    }


def settings_for(kind: type, preset: str | None, config: Path | None, **overrides: Any) -> Any:
    """The settings of one step: defaults, then preset, then config file, then `overrides` that are not None.

    Args:
        kind: the settings dataclass; its TOML table is the one that `known_tables` lists it under.
    """
    known = known_tables()
    tables = read_tables(preset, config)
    check_tables(tables, known)
    table = next(name for name, kinds in known.items() if kind in kinds)
    return build(kind, {**tables.get(table, {}), **{k: v for k, v in overrides.items() if v is not None}})


def variant_for(preset: str | None, config: Path | None, name: str | None = None, texts: typing.Sequence[str] = ()) -> Variant:
    """The variant that a preset, a settings file and the command line ask for, the later over the earlier.

    Args:
        preset, config: their tables [variant]: `name` picks one, every other key changes a value of it.
        name: the value of --variant.
        texts: the values of --set.

    Raises:
        UsageError: there is no such variant or value, or two values do not go together.
    """
    from hsal_cli.policy.variant import changed, named, values_of

    tables = read_tables(preset, config)
    check_tables(tables, known_tables())
    table = dict(tables.get("variant", {}))
    picked = table.pop("name", "default")
    return changed(named(picked if name is None else name), {**table, **values_of(texts)})


def variant_given(preset: str | None, config: Path | None, name: str | None, texts: typing.Sequence[str]) -> set[str]:
    """Which values of the variant the user gave: all where a variant was picked."""
    from hsal_cli.policy.variant import value_names, values_of

    table = read_tables(preset, config).get("variant", {})
    return set(value_names()) if name is not None or "name" in table else set(table) | set(values_of(texts))


def recipe_for(preset: str | None, config: Path | None, **settled: Any) -> Recipe:
    """The settings of every step up to a trained policy; `settled` are those that the command line has settled already."""
    from hsal_cli.experiments.pipeline import Recipe
    from hsal_cli.features.settings import OWN
    from hsal_cli.runs.settings import DIRECT

    settled = {"variant": settled.get("variant") or variant_for(preset, config), **settled}
    hints = typing.get_type_hints(Recipe)
    recipe = Recipe(**{name: settled.get(name) or settings_for(kind, preset, config) for name, kind in hints.items()})
    resolution = recipe.precompute.resolution
    if resolution is None and recipe.variant.glimpse != "column" and recipe.train.objective not in DIRECT:
        resolution = recipe.variant.glimpse  # what such glimpses read
    elif resolution == OWN:
        resolution = None
    return dataclasses.replace(recipe, precompute=dataclasses.replace(recipe.precompute, resolution=resolution))


def options(
    *, panels: dict[str, str] | None = None, leave_out: tuple[str, ...] = (), **kinds: type
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turns each named parameter, a settings dataclass, into one option a field; adds --preset and --config where there are any.

    Args:
        panels: title -> names of the parameters that `--help` shows under it; None: all under one.
        leave_out: parameters that keep their defaults, and become no options; --preset and --config may be among them.
        kinds: parameter name -> settings dataclass. Where two share a field name, one option sets both.

    A command that has a parameter `given: Given` learns by it which settings the user gave.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields: dict[str, inspect.Parameter] = {}
        for kind in kinds.values():
            for name, annotation in _field_options(kind).items():
                fields.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
        wants = inspect.signature(command, eval_str=True).parameters
        own = [parameter for name, parameter in wants.items() if name not in kinds and name not in ("given", *leave_out)]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in (("preset", Preset), ("config", Config))
            if kinds and name not in (*wants, *leave_out)
        ]

        @functools.wraps(command)
        def call(**values: Any) -> Any:
            given = {name: getattr(value, "value", value) for name, value in ((name, values.pop(name)) for name in fields)}
            preset, config = values.get("preset"), values.get("config")
            for parameter in shared:
                values.pop(parameter.name)
            for name, kind in kinds.items():
                values[name] = settings_for(kind, preset, config, **given)
            if "given" in wants:
                values["given"] = _given(kinds, preset, config, given)
            return command(**values)

        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = _in_panels([*own, *fields.values(), *shared], panels or {})
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del call.__wrapped__  # or typer would read the signature of the function underneath
        return call

    return decorate


def _in_panels(parameters: list[inspect.Parameter], panels: dict[str, str]) -> list[inspect.Parameter]:
    """The parameters in the order of the panels, each with its title; those that no panel names come last, under the usual one."""
    known, placed = {parameter.name: parameter for parameter in parameters}, []
    for title, names in panels.items():
        for name in names.split():
            parameter = known.pop(name)
            kind, option = typing.get_args(parameter.annotation)
            option = copy.copy(option)
            option.rich_help_panel = title
            placed.append(parameter.replace(annotation=Annotated[kind, option]))
    return [*placed, *known.values()]


def _given(kinds: dict[str, type], preset: str | None, config: Path | None, options: dict[str, Any]) -> Given:
    tables = read_tables(preset, config)
    found: Given = {}
    for table, known in known_tables().items():
        names = {field.name for kind in kinds.values() if kind in known for field in dataclasses.fields(kind)}
        chosen = {name for name, value in options.items() if value is not None} | set(tables.get(table, {}))
        found[table] = names & chosen
    return found


def numbers_in(option: str, text: str, what: str, example: str, most: int, too_many: tuple[str, str]) -> list[int]:
    """Numbers written as "0-2,7", in their order.

    Args:
        option, text: as typed.
        what, example: for the message: what the numbers are, and how to write them.
        most: so many at most; where there are more, `too_many` is the rest of the message, with {} for their number, and the hint.

    Raises:
        UsageError: they are not written so, or are too many.
    """
    ranges = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal()) or int(last) < int(first):
            raise UsageError(f"{option} {text} is not a list of {what}", f"write {what} as {example}")
        ranges.append(range(int(first), int(last) + 1))
    count = sum(map(len, ranges))
    if count > most:
        raise UsageError(f"{option} {text} {too_many[0].format(count)}", too_many[1])
    return [number for numbers in ranges for number in numbers]


def one_of(choices: tuple[str, ...]) -> type[enum.Enum]:
    """The type of an option or argument that takes one of these words; Typer hands over a member, its `value` is the word."""
    return enum.StrEnum("Choice", {choice: choice for choice in choices})


def _field_options(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        base, choices, _ = kind_of(hints[field.name])
        default = field.default
        shown = "-".join(map(str, default)) if isinstance(default, tuple) else str(default)
        extra: dict[str, Any] = {"help": field.metadata["help"].replace("[", "\\["), "show_default": False if default is None else shown}
        flag = "--" + field.name.replace("_", "-")
        if choices:
            base = one_of(choices)
        elif typing.get_origin(base) is tuple:
            base = str
            extra["metavar"] = "LO-HI"
        if base is bool:
            if not field.metadata["one_way"]:
                flag += "/--no-" + field.name.replace("_", "-")
            extra["show_default"] = "on" if default else "off"
        if base in (int, float):
            extra["help"] += _range_of(field.metadata)
        found[field.name] = Annotated[Optional[base], typer.Option(flag, **extra)]
    return found


def _range_of(metadata: Any) -> str:
    low, high, above = metadata["low"], metadata["high"], metadata["above"]
    if high == SEED_LIMIT:
        high = None
    if low is not None and high is not None:
        return f" ({low} to {high})"
    if low is not None:
        return f" (at least {low})"
    if above is not None:
        return f" (above {above})" if high is None else f" (above {above}, up to {high})"
    return ""


def check_resumed(
    run: Path, kind: Kind | tuple[Kind, ...], out: Path | None, given: Given, may_change: tuple[str, ...] = (), **settings: Any
) -> PolicyConfig | BackboneConfig:
    """Refuses settings that a run to be resumed does not have, instead of ignoring them.

    Args:
        run: the run directory.
        kind: what kind, or kinds, of run it must be.
        out: the value of --out.
        given: which settings the user gave, on the command line or in a settings file.
        may_change: names of those that may differ from the run's.
        settings: TOML table -> settings object of this call.

    Returns:
        The run's config.

    Raises:
        UsageError: --out is given too, or a setting that is not the run's.
        FileError: there is no such run, its config cannot be read, or it holds a variant that there is no more.
    """
    from hsal_cli.runs.run import open_run

    if out is not None:
        raise UsageError(f"--out {out} and --resume {run} exclude each other", "leave --out out: a resumed run stays where it is")
    config = open_run(run, kind).config
    if "variant" in settings and config.variant is not None:
        settings["variant"] = settings["variant"].on_map(config.variant.cells)
    wrong = []
    for table, asked in settings.items():
        if getattr(config, table) is None:  # what trains no policy has no variant
            wrong += [f"it has no {table}"] if given.get(table) else []
            continue
        held = as_dict(getattr(config, table))
        wrong += [
            f"{key} is {held[key]}, not {value}"
            for key, value in as_dict(asked).items()
            if key in given.get(table, ()) and value != held[key] and key not in may_change
        ]
    if wrong:
        raise UsageError(f"{run} goes on with its own settings: {'; '.join(wrong)}", "leave these settings out, or train a new run")
    return config


def check_out(out: Path, overwrite: bool, marker: str) -> None:
    """Refuses an output file that exists, unless `--overwrite` and hsal made it.

    Args:
        out: the file to write.
        overwrite: whether the user allows to replace it.
        marker: the `format` attribute of the HDF5 files that may be replaced.

    Raises:
        UsageError: it exists, or it is not ours to replace.
    """
    if not out.exists():
        return
    from hsal_cli.storage.hdf5 import format_of

    if not out.is_file():
        raise UsageError(f"{out} is not a file", "name a file with --out")
    if not overwrite:
        raise UsageError(f"{out} exists", "add --overwrite to replace it, or name another file with --out")
    if format_of(out) != marker:
        raise UsageError(f"{out} was not made by hsal, so it is not replaced", "name another file with --out")
