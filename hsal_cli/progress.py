"""What a room may say while it works: news, progress, whether to stop. The silent base class serves as the default.

Rooms below `commands/` get a `Reporter` and never print; `console.TerminalReporter` is the one that does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from hsal_cli.errors import Interrupted

LONG_S = 300.0  # work that takes longer is told before it starts


class Reporter:
    """What a room may say while it works; this base class says nothing.

    Attributes:
        stop_signal: the signal that asked the work to stop (1, 2 or 15), 0 while none has. Long loops look at it between steps,
            save their state and raise `Interrupted`.
    """

    stop_signal: int = 0

    def say(self, message: str) -> None:
        """One line of news."""

    def warn(self, message: str) -> None:
        """One line that the user should not miss."""

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        """A progress bar with rate and ETA.

        Args:
            what: a few words.
            total: how many units the whole work has.
            unit: the unit in the plural, such as "images".
            done: how many were done before (a resumed run); they do not count for the rate.

        Yields:
            advance(n, note=""): n more units are done; the note stands below the bar.
        """
        yield lambda n, note="": None

    def expect(self, seconds: float) -> None:
        """What is tracked from now on should take no longer than this in all; if it does, that is said once, with how long it takes yet."""

    def plot(self, curves: Mapping[str, Sequence[float]]) -> None:
        """How work in progress has gone so far, name -> one value an epoch; a terminal shows it below the bar.

        Called while a `track` runs; each call replaces the one before.
        """

    def check_stop(self, hint: str) -> None:
        """Raises `Interrupted` with this hint if a signal asked for it."""
        if self.stop_signal:
            raise Interrupted("stopped on request", hint, self.stop_signal)


SILENT = Reporter()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
