"""The Typer app: names the commands, nothing else."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hsal_cli import __version__, console, distributed
from hsal_cli.commands.groups import Command, Group
from hsal_cli.errors import UsageError

PARSER_ERROR = typer.BadParameter.__bases__[0]  # what the parser raises; its module differs between versions of Typer

FIVE, PICTURES, GRIDS, CARE = "From data to pictures", "Results and pictures", "Whole grids", "Files and machine"
COMMANDS = {  # name -> where help shows it, and its function, in a module of `commands` of that name
    "make-data": (FIVE, "make_data"),
    "finetune": (FIVE, "finetune"),
    "train": (FIVE, "train"),
    "eval": (FIVE, "eval_"),
    "visualize": (FIVE, "visualize"),
    "predict": (PICTURES, "predict"),
    "play": (PICTURES, "play"),
    "report": (PICTURES, "report"),
    "compare": (PICTURES, "compare"),
    "saliency": (PICTURES, "saliency"),
    "reproduce": (GRIDS, "reproduce"),
    "sweep": (GRIDS, "sweep"),
    "precompute": (CARE, "precompute"),
    "export": (CARE, "export"),
    "inspect": (CARE, "inspect"),
    "check": (CARE, "check"),
    "doctor": (CARE, "doctor"),
    "bench": (CARE, "bench"),
}


class Commands(Mapping[str, Any]):
    """The commands in the order above, each imported when it is asked for: most of a start would go into those that were not typed."""

    def __getitem__(self, name: str) -> Any:
        return _loaded(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@functools.cache
def _loaded(name: str) -> Any:
    function = COMMANDS[name][1]
    module = importlib.import_module(_module_of(function))
    group = getattr(module, "app", None)  # make-data is a group of commands
    if group is None:
        group = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        group.command(cls=Command, epilog=getattr(module, "EXAMPLES", None))(getattr(module, function))
    command = typer.main.get_command(group)
    command.name = name
    return command


def _module_of(function: str) -> str:
    return f"hsal_cli.commands.{function.rstrip('_')}"  # of `eval_`, eval


def _docstring(function: str) -> str:
    """What a command says of itself, out of its compiled module, which is not run."""
    spec = importlib.util.find_spec(_module_of(function))
    code = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    return next(part.co_consts[0] for part in code.co_consts if getattr(part, "co_name", None) == function) or ""


class InOrder(Group):
    """The group of all `Commands`; its help imports none of them."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.commands = Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = copy.copy(self)
        shown.commands = {
            name: TyperCommand(name, help=_docstring(function), rich_help_panel=panel) for name, (panel, function) in COMMANDS.items()
        }
        super(InOrder, shown).format_help(ctx, formatter)


app = typer.Typer(
    name="hsal",
    cls=InOrder,
    help="Name every object in an image, repeats included, one covert and a few overt looks at a time (HSAL, NIPS 2017).",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print_line(f"hsal {__version__}")
        raise typer.Exit


@app.callback()
def hsal(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and stop.")] = False,
) -> None:
    """Options that stand before a command."""
    distributed.prepare(context.invoked_subcommand)


def call() -> None:
    """Runs the command that was typed.

    Raises:
        HsalError: what the command raises; UsageError: it was typed wrongly.
    """
    try:
        code = app(standalone_mode=False)
    except PARSER_ERROR as error:
        if not (message := error.format_message()):  # nothing was typed, and help was shown for it
            sys.stdout.flush()
            sys.exit(error.exit_code)
        from hsal_cli.policy.variant import value_names

        command = error.ctx.command_path if error.ctx else "hsal"
        option = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
        known = command.endswith("train") and option in value_names()
        hint = f"it is a value of the variant: --set {option}=VALUE" if known else f"{command} --help"
        raise UsageError(message, hint) from None
    if code:
        sys.stdout.flush()
        sys.exit(code)
