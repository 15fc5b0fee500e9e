"""Printing and progress: results on stdout, everything else on stderr; two-line errors; Ctrl-C and SIGTERM.

Everything printed passes through `words.plain` here, so that no class name, path or message of a file can steer the terminal.

Rooms below `commands/` get a `Reporter` and never print. The silent base class serves as the default, so that everything
can be used from Python without a terminal.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hsal_cli import distributed
from hsal_cli.errors import HsalError, Stopped, out_of_memory
from hsal_cli.progress import Reporter, clock
from hsal_cli.words import CELL, PARAGRAPH, brief, json_text, plain

if TYPE_CHECKING:
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 40  # blocks in a line, at most
TABLES = 12  # that one is laid out in, at most
SHOWN_OF_PATH = 300  # letters of a path that no file system takes
LINE_EVERY_S, LATER_EVERY_S = 5.0, 20.0  # without a terminal, work says where it is this often; the latter after its first minute


class Stderr(io.TextIOBase):
    """stderr, whose failures (a full disk, a closed pipe, a terminal that has gone) end no work: what it does not take is not said."""

    @property
    def encoding(self) -> str:
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed; a signal that speaks while something is being said
            self._stream().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._stream().flush()

    def isatty(self) -> bool:
        return self._stream().isatty()

    def fileno(self) -> int:
        return self._stream().fileno()

    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # while a bar is shown, Rich has put itself before it


class TerminalReporter(Reporter):
    """Reports on stderr: a live bar on a terminal, plain lines every few seconds elsewhere. Of several workers the first one alone does."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(file=Stderr(), highlight=False, emoji=False, quiet=not distributed.asked().leads)
        self._curves: Mapping[str, Sequence[float]] = {}
        self._expected: tuple[float, float] | None = None  # when work began, and the seconds that it should take

    def say(self, message: str) -> None:
        self.console.print(plain(message), markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.console.print(plain(f"Note: {message}"), markup=False, soft_wrap=True, style="yellow")

    def expect(self, seconds: float) -> None:
        self._expected = time.monotonic(), seconds

    def plot(self, curves: Mapping[str, Sequence[float]]) -> None:
        self._curves = curves

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        self._curves = {}
        what = plain(what)
        if self.console.is_terminal and not self.console.quiet:
            with self._bar(what, total, unit, done) as advance:
                yield self._held_to(advance, what, total - done)
        else:
            yield self._held_to(self._lines(what, total, unit, done), what, total - done)

    def _held_to(self, advance: Callable[..., None], what: str, total: int) -> Callable[..., None]:
        """The same, which says so where work takes longer than was expected."""
        start, count = time.monotonic(), 0

        def held(n: int, note: str = "") -> None:
            nonlocal count
            count += n
            advance(n, note)
            now = time.monotonic()
            if self._expected is None or now - self._expected[0] <= self._expected[1] or not count:
                return
            so_far, left = clock(now - self._expected[0]), clock((now - start) / count * (total - count))
            self._expected = None
            self.warn(f"this takes longer than was expected: {so_far} so far, and {what} alone about {left} more; Ctrl-C stops it")

        return held

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
                progress.update(task, advance=n, rate=f"{rate:,.0f} {unit}/s", note=plain(note))

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
                table.add_row(Text(brief(name), style="dim"), Text(shape, style="cyan"), Text(f"{values[-1]:.3f}"))
        return table

    def _lines(self, what: str, total: int, unit: str, done: int) -> Callable[..., None]:
        start = last = time.monotonic()
        count = done

        def advance(n: int, note: str = "") -> None:
            nonlocal last, count
            count += n
            now = time.monotonic()
            if now - last < (LINE_EVERY_S if now - start < 60 else LATER_EVERY_S):
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
    _write(json_text(document, ascii_only=not _unicode(), nan=False))


def print_line(text: str = "") -> None:
    """Writes one line of a result to stdout."""
    _write(plain(text) + "\n")


def _write(text: str) -> None:
    """Writes to stdout; of several workers the first one alone does."""
    if distributed.asked().leads:
        with _results():
            sys.stdout.write(text)


@contextlib.contextmanager
def _results() -> Iterator[None]:
    """Turns a stdout that takes no more into an error that says so; one whose reader has left (`| head`) is for `exit_code_of`.

    Raises:
        HsalError: it is on a disk that is full, say.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HsalError(
            f"the result cannot be written to standard output: {error.strerror or error}", "free some space, and run the same command again"
        ) from error


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Draws a table on stdout, the first column to the left; on a terminal too narrow for it rows are columns, of several tables."""
    from rich.console import Console

    # Without a terminal the width is unknown; narrower than the table's words would only break them.
    terminal, text = sys.stdout.isatty(), io.StringIO()
    console = Console(file=text, highlight=False, force_terminal=terminal, width=None if terminal else 160)
    free = console.options.update(max_width=sys.maxsize)

    def flipped(part: list[list[str]]) -> Table:
        return _table(title, *itertools.zip_longest(columns, *part, fillvalue=""))

    def width(shown: Table) -> int:
        return max(console.measure(shown, options=free).maximum, console.width)

    layouts = [[_table(title, columns, *rows)]]
    if rows and width(layouts[0][0]) > console.width:
        parts: list[list[list[str]]] = [[]]
        for row in rows:
            if parts[-1] and width(flipped([*parts[-1], row])) > console.width:
                parts.append([])
            parts[-1].append(row)
        layouts += [[flipped(part) for part in parts]] if len(parts) <= TABLES else []
    for shown in min(layouts, key=lambda layout: max(map(width, layout))):
        console.print(shown)
    # Written by ourselves: where the reader has left (`| head`), Rich would exit with 1.
    _write(text.getvalue())


def _table(title: str, columns: Sequence[str], *rows: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(brief(title, CELL)), title_justify="left", box=box.HEAVY_HEAD if _unicode() else box.ASCII)
    for place, name in enumerate(columns):
        table.add_column(Text(brief(name, CELL)), justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[Text(brief(cell, CELL)) for cell in row])
    return table


def can_ask() -> bool:
    """Whether somebody sits at a terminal who sees questions and can answer them."""
    return sys.stdin is not None and sys.stdin.isatty() and Stderr().isatty()


def confirm(question: str) -> bool:
    """Asks on stderr, and reads the answer; anything but yes is no, and Ctrl-C leaves at once."""
    stream = Stderr()
    stream.write(f"{plain(question)} [y/N] ")
    stream.flush()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def stopping(reporter: Reporter) -> Iterator[None]:
    """While the block runs, the first SIGINT, SIGTERM or SIGHUP (the terminal has gone) only sets `reporter.stop_signal`; the next leaves.

    Not so under torchrun, which repeats signals, and itself ends workers that take too long; nor does another SIGHUP leave, for a shell and
    its terminal both send it.
    """
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none

    def handle(number: int, frame: object) -> None:
        alone = distributed.asked().size == 1
        if reporter.stop_signal and alone and number != hang_up:
            os._exit(128 + number)
        if not reporter.stop_signal:
            reporter.stop_signal = number
            reporter.warn("stopping at the next safe point" + (" (once more: leave at once)" if alone else ""))

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [hang_up] if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN else []  # nohup ignores it
    before = {number: signal.signal(number, handle) for number in numbers}
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
        with _results():
            sys.stdout.flush()
        return 0
    except HsalError as error:
        if debug:
            raise
        print_error(error.message, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, Stopped) as error:
        print_error("interrupted", "run the same command again")
        return 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:
        return 0  # the reader left (`| head`): nothing is wrong
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None and error.strerror:  # such as a name that is too long
            print_error(f"{str(error.filename)[:SHOWN_OF_PATH]}: {error.strerror}", "check that path, and who may read and write it")
        elif out_of_memory(error):
            print_error(f"out of memory: {error}", "close other programs, or ask for fewer or smaller images")
        else:
            print_error(f"unexpected {type(error).__name__}: {error}", "HSAL_DEBUG=1 shows where; please report it")
        return 1
    finally:
        _give_up_unwritable()


def _give_up_unwritable() -> None:
    """Lets go of what a stream does not take, for the interpreter would try again when it ends, and fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_error(message: str, hint: str) -> None:
    """The two lines of an error, on stderr; of several workers that have it, one says it."""
    if not distributed.may_speak():
        return
    said, help_ = (brief(" ".join(text.split()), PARAGRAPH) for text in (message, hint))
    stream = Stderr()
    stream.write(f"Error: {said}\nHint: {help_}\n")
    stream.flush()
    distributed.has_spoken()
