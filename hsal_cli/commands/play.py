"""hsal play."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from hsal_cli import console
from hsal_cli.commands.options import Device
from hsal_cli.commands.policies import FrameOption, PretrainedOption, RunOption, model_for
from hsal_cli.errors import Stopped, UsageError

EXAMPLES = """Examples:

  hsal play
      opens the page; whatever is drawn is named by the newest run, else by the model that comes with hsal

  hsal play --pretrained mnist-set --no-browser --port 0
      says the page's address, at any free port
"""


def play(
    run: RunOption = None,
    pretrained: PretrainedOption = None,
    frame: FrameOption = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page on this machine; 0: any that is free.")] = 8317,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    device: Device = "auto",
) -> None:
    """Draw digits, or drop an image, on a page in the browser, and watch where the policy looks; Ctrl-C ends it."""
    try:
        from hsal_cli.play.app import HOST, listen, make_app, serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn"):
            raise
        raise UsageError(f"hsal play needs starlette and uvicorn, and {missing} is missing", "pip install starlette uvicorn") from error
    with listen(port) as listening:
        model = model_for(run, device, console.TerminalReporter(), pretrained, frame)
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        console.print_line(f"{address}   Ctrl-C ends it")
        sys.stdout.flush()  # whoever reads it through a pipe waits for it
        if browser and _has_screen():
            import webbrowser

            webbrowser.open(address)
        with contextlib.suppress(Stopped, KeyboardInterrupt):  # the usual way to end it
            serve(make_app(model), listening)
        console.print_line("ended")


def _has_screen() -> bool:
    """Whether a browser has anywhere to open; one for text alone would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
