"""What was found out about one file, run or checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from hsal_cli.errors import HsalError, Interrupted


@dataclasses.dataclass
class Report:
    """What a check found.

    Attributes:
        path: what was checked.
        kind: "scene file", "feature file", "partial feature file", "run" or "checkpoint"; "" where that cannot be told.
        summary: what it holds, in a few words.
        faults: what is wrong with it; empty if it is sound.
        notes: what is worth knowing and not wrong.
    """

    path: Path
    kind: str = ""
    summary: str = ""
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def fault(self, message: str) -> None:
        """Adds a fault, without the path that the report names anyway."""
        for beginning in (f"checkpoint {self.path} ", f"{self.path}: ", f"{self.path} "):
            message = message.removeprefix(beginning)
        if message not in self.faults:
            self.faults.append(message)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Takes errors of the block down as faults, so that the next thing is checked all the same."""
        try:
            yield
        except Interrupted:
            raise
        except HsalError as error:
            self.fault(error.message)
        except OSError as error:
            self.fault(f"cannot be read: {error.strerror or error}")
