"""The Typer app: names the commands, nothing else."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hsal_cli import __version__, console, distributed
from hsal_cli.commands import (
    bench,
    check,
    compare,
    doctor,
    export,
    finetune,
    inspect,
    make_data,
    play,
    precompute,
    predict,
    report,
    reproduce,
    saliency,
    sweep,
    train,
    visualize,
)
from hsal_cli.commands import eval as eval_
from hsal_cli.errors import UsageError
from hsal_cli.policy.variant import value_names

PARSER_ERROR = typer.BadParameter.__bases__[0]  # what the parser raises; its module differs between versions of Typer

FIVE, PICTURES, GRIDS, CARE = "From data to pictures", "Results and pictures", "Whole grids", "Files and machine"
COMMANDS = {  # name -> where help shows it, and what runs; make-data is a group of commands
    "make-data": (FIVE, make_data.make_data),
    "finetune": (FIVE, finetune.finetune),
    "train": (FIVE, train.train),
    "eval": (FIVE, eval_.eval_),
    "visualize": (FIVE, visualize.visualize),
    "predict": (PICTURES, predict.predict),
    "play": (PICTURES, play.play),
    "report": (PICTURES, report.report),
    "compare": (PICTURES, compare.compare),
    "saliency": (PICTURES, saliency.saliency),
    "reproduce": (GRIDS, reproduce.reproduce),
    "sweep": (GRIDS, sweep.sweep),
    "precompute": (CARE, precompute.precompute),
    "export": (CARE, export.export),
    "inspect": (CARE, inspect.inspect),
    "check": (CARE, check.check),
    "doctor": (CARE, doctor.doctor),
    "bench": (CARE, bench.bench),
}


class InOrder(TyperGroup):
    """The commands in the order above; Typer would list groups of commands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)


app = typer.Typer(
    name="hsal",
    cls=InOrder,
    help="Name every object in an image, repeats included, one covert and a few overt looks at a time (HSAL, NIPS 2017).",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for _name, (_panel, _command) in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name, rich_help_panel=_panel)
    else:
        examples = getattr(sys.modules[_command.__module__], "EXAMPLES", None)
        app.command(_name, rich_help_panel=_panel, epilog=examples)(_command)


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
        command = error.ctx.command_path if error.ctx else "hsal"
        option = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
        known = command.endswith("train") and option in value_names()
        hint = f"it is a value of the variant: --set {option}=VALUE" if known else f"{command} --help"
        raise UsageError(error.format_message(), hint) from None
    if code:
        sys.stdout.flush()
        sys.exit(code)
