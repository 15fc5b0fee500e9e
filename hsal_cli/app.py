"""The Typer app: names the commands, nothing else."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hsal_cli import __version__, console, distributed
from hsal_cli.commands.bench import bench
from hsal_cli.commands.check import check
from hsal_cli.commands.compare import compare
from hsal_cli.commands.doctor import doctor
from hsal_cli.commands.eval import eval_
from hsal_cli.commands.export import export
from hsal_cli.commands.finetune import finetune
from hsal_cli.commands.inspect import inspect
from hsal_cli.commands.make_data import make_data
from hsal_cli.commands.play import play
from hsal_cli.commands.precompute import precompute
from hsal_cli.commands.predict import predict
from hsal_cli.commands.report import report
from hsal_cli.commands.reproduce import reproduce
from hsal_cli.commands.saliency import saliency
from hsal_cli.commands.sweep import sweep
from hsal_cli.commands.train import EXAMPLES as TRAIN_EXAMPLES
from hsal_cli.commands.train import train
from hsal_cli.commands.visualize import visualize
from hsal_cli.errors import UsageError
from hsal_cli.policy.variant import value_names

PARSER_ERROR = typer.BadParameter.__bases__[0]  # what the parser raises; its module differs between versions of Typer

app = typer.Typer(
    name="hsal",
    help="Name every object in an image, repeats included, one covert and a few overt looks at a time (HSAL, NIPS 2017).",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(make_data, name="make-data")
app.command("finetune")(finetune)
app.command("precompute")(precompute)
app.command("train", epilog=TRAIN_EXAMPLES)(train)
app.command("eval")(eval_)
app.command("compare")(compare)
app.command("visualize")(visualize)
app.command("predict")(predict)
app.command("play")(play)
app.command("export")(export)
app.command("reproduce")(reproduce)
app.command("report")(report)
app.command("inspect")(inspect)
app.command("saliency")(saliency)
app.command("sweep")(sweep)
app.command("bench")(bench)
app.command("check")(check)
app.command("doctor")(doctor)


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
