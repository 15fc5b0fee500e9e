"""The entry point of `hsal`: signals are looked after before anything that takes time is imported; `app` has the commands.

The console script imports this module before it can call `run`, so it imports next to nothing. A signal ends the process where it strikes:
an exception in the middle of an import may be swallowed, or come out as another one. Once a command runs, it raises `Stopped`, so that
temporary files go; and long work asks for more (see `console.stopping`).
"""

import os
import sys
from types import FrameType
from typing import Any

_raises = False  # whether a signal raises where it strikes


def run() -> None:
    """Runs a command; errors become two lines and an exit code."""
    try:
        _watch()
    except KeyboardInterrupt:
        _leave(2)
    from hsal_cli import console

    console.prepare_streams()
    sys.exit(console.exit_code_of(_call))


def _call() -> None:
    global _raises
    from hsal_cli import threads

    threads.prepare()
    from hsal_cli.app import call

    _raises = True
    try:
        call()
    finally:
        _raises = False


def _watch() -> None:
    import signal

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    if _raises and not _imports(frame):
        from hsal_cli.errors import Stopped

        raise Stopped(number)
    _leave(number)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(number: int) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several workers one says it
        try:
            os.write(2, b"Error: interrupted\nHint: run the same command again\n")
        except OSError:
            pass
    os._exit(128 + number)


def __getattr__(name: str) -> Any:
    """`app`, the Typer app, for whoever wants it without running it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hsal_cli.app import app

    return app
