"""Printing and progress: results on stdout, everything else on stderr; two-line errors; Ctrl-C and SIGTERM.

Rooms below `commands/` get a `Reporter` and never print. The silent base class serves as the default, so that everything
can be used from Python without a terminal.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hsal_cli import distributed
from hsal_cli.errors import HsalError, out_of_memory
from hsal_cli.progress import Reporter, clock

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 40  # blocks in a line, at most
LINE_EVERY_S = 5.0  # without a terminal, long work says where it is this often


class TerminalReporter(Reporter):
    """Reports on stderr: a live bar on a terminal, plain lines every few seconds elsewhere. Of several workers the first one alone does."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, emoji=False, quiet=not distributed.asked().leads)
        self._curves: Mapping[str, Sequence[float]] = {}

    def say(self, message: str) -> None:
        self.console.print(message, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.console.print(f"Note: {message}", markup=False, soft_wrap=True, style="yellow")

    def plot(self, curves: Mapping[str, Sequence[float]]) -> None:
        self._curves = curves

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        self._curves = {}
        if self.console.is_terminal and not self.console.quiet:
            with self._bar(what, total, unit, done) as advance:
                yield advance
        else:
            yield self._lines(what, total, unit, done)

    @contextlib.contextmanager
    def _bar(self, what: str, total: int, unit: str, done: int) -> Iterator[Callable[..., None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        reporter = self

        class Live(Progress):
            """The bar, below it the note, for which a terminal of 80 columns has no room beside it, and the curves so far."""

            def get_renderables(self) -> Iterator[Any]:
                yield self.make_tasks_table(self.tasks)
                yield from (Text(task.fields["note"], style="dim") for task in self.tasks if task.fields["note"])
                if reporter._curves:
                    yield reporter._sparklines()

        start, fresh = time.monotonic(), 0
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        )
        with Live(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total, completed=done, rate="", note="")

            def advance(n: int, note: str = "") -> None:
                nonlocal fresh
                fresh += n
                rate = fresh / max(time.monotonic() - start, 1e-6)
                progress.update(task, advance=n, rate=f"{rate:,.0f} {unit}/s", note=note)

            yield advance

    def _sparklines(self) -> Any:
        """A line a curve: its name, its course, its last value."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        drawn = self.console.encoding.lower().startswith("utf")  # elsewhere the blocks cannot be written
        for name, values in self._curves.items():
            if values:
                shape = sparkline(values) if drawn else ""
                table.add_row(Text(name, style="dim"), Text(shape, style="cyan"), Text(f"{values[-1]:.3f}"))
        return table

    def _lines(self, what: str, total: int, unit: str, done: int) -> Callable[..., None]:
        start = last = time.monotonic()
        count = done

        def advance(n: int, note: str = "") -> None:
            nonlocal last, count
            count += n
            now = time.monotonic()
            if now - last < LINE_EVERY_S:
                return
            last = now
            rate = (count - done) / max(now - start, 1e-6)
            eta = (total - count) / max(rate, 1e-9)
            self.say(f"{what}: {count:,}/{total:,} {unit}, {rate:,.1f}/s, {clock(eta)} left{'  ' + note if note else ''}")

        return advance


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """A curve in a line of blocks, from its lowest value to its highest.

    Args:
        values: at least one; of more than `width`, neighbours are averaged. Those that are not finite show as "?".
        width: most blocks.
    """
    count = min(width, len(values))
    edges = [len(values) * place // count for place in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    known = [mean for mean in means if math.isfinite(mean)]
    least, most = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BLOCKS) - 1) / (most - least) if most > least else 0.0
    return "".join(BLOCKS[round((mean - least) * scale)] if math.isfinite(mean) else "?" for mean in means)


def prepare_streams() -> None:
    """Makes printing safe: closed streams swallow what is printed, and signs that an encoding lacks are shown as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _unicode() -> bool:
    """Whether stdout can show every sign."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def print_json(document: Any) -> None:
    """Writes the one JSON document of a `--json` call to stdout."""
    _write(json.dumps(document, indent=2, ensure_ascii=not _unicode(), allow_nan=False) + "\n")


def print_line(text: str = "") -> None:
    """Writes one line of a result to stdout."""
    _write(text + "\n")


def _write(text: str) -> None:
    """Writes to stdout; of several workers the first one alone does."""
    if distributed.asked().leads:
        sys.stdout.write(text)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Draws a table on stdout: the first column to the left, the others to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.HEAVY_HEAD if _unicode() else box.ASCII)
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    # Without a terminal the width is unknown; narrower than the table's words would only break them.
    terminal, text = sys.stdout.isatty(), io.StringIO()
    Console(file=text, highlight=False, force_terminal=terminal, width=None if terminal else 140).print(table)
    # Written by ourselves: where the reader has left (`| head`), Rich would exit with 1.
    _write(text.getvalue())


@contextlib.contextmanager
def stopping(reporter: Reporter) -> Iterator[None]:
    """While the block runs, the first SIGINT or SIGTERM only sets `reporter.stop_signal`; the next one leaves at once.

    Not so under torchrun, which repeats signals, and itself ends workers that take too long.
    """

    def handle(number: int, frame: object) -> None:
        alone = distributed.asked().size == 1
        if reporter.stop_signal and alone:
            os._exit(128 + number)
        if not reporter.stop_signal:
            reporter.stop_signal = number
            reporter.warn("stopping at the next safe point" + (" (once more: leave at once)" if alone else ""))

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def exit_code_of(call: Callable[[], Any]) -> int:
    """Runs a command and turns what it raises into the two-line error on stderr and an exit code.

    A traceback is shown only with HSAL_DEBUG=1.
    """
    debug = os.environ.get("HSAL_DEBUG") == "1"
    try:
        call()
        sys.stdout.flush()
        return 0
    except HsalError as error:
        if debug:
            raise
        print_error(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted", "run the same command again")
        return 130
    except BrokenPipeError:
        # The reader left (`| head`): nothing is wrong. Keep the interpreter from flushing into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if out_of_memory(error):
            print_error(f"out of memory: {error}", "close other programs, or ask for fewer or smaller images")
        else:
            print_error(f"unexpected {type(error).__name__}: {error}", "HSAL_DEBUG=1 shows where; please report it")
        return 1


def print_error(message: str, hint: str) -> None:
    """The two lines of an error, on stderr; of several workers that have it, one says it."""
    if not distributed.may_speak():
        return
    sys.stderr.write(f"Error: {' '.join(message.split())}\nHint: {' '.join(hint.split())}\n")
    sys.stderr.flush()
    distributed.has_spoken()
