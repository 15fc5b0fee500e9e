"""Parts of a user's own, under names that options take: `@hsal.register_saliency("mine")`, `@hsal.register_reward("mine")`.

A name that is not known is looked for in two places, in this order, and only then, so that nothing of a user's runs unasked:
- HSAL_PLUGINS, an environment variable: Python files or modules, with `os.pathsep` between them, that register parts when imported;
- entry points of installed packages, in the group of the registry (`hsal.saliency`, `hsal.reward`), by their name.
Files that hsal reads hold names alone: none of them can say what code to run.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hsal_cli.errors import UsageError

T = TypeVar("T", bound=Callable[..., Any])

VARIABLE = "HSAL_PLUGINS"
_imported: set[str] = set()  # values of HSAL_PLUGINS whose parts were imported


class Registry:
    """Names of one kind of part.

    Args:
        what: what a part is called in messages, such as "saliency model".
        group: the group of entry points.
        own: names that hsal has itself, and nobody else may take.
    """

    def __init__(self, what: str, group: str, own: tuple[str, ...]):
        self.what, self.group, self.own = what, group, own
        self._parts: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that puts a function or a class under a name; a name taken before means the newer part.

        Args:
            name: lower-case letters, digits, - and _, since it becomes a part of file names.

        Raises:
            UsageError: another kind of name, or one that hsal has itself.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise UsageError(f"{name!r} is no name for a {self.what}", "take lower-case letters, digits, - and _, such as my-own")
        if name in self.own:
            raise UsageError(f"hsal has a {self.what} {name} itself", "register yours under another name")

        def put(part: T) -> T:
            self._parts[name] = part
            return part

        return put

    @property
    def names(self) -> tuple[str, ...]:
        """hsal's own names, and those that have been registered so far."""
        return (*self.own, *self._parts)

    def check(self, name: str, also: str = "") -> str:
        """The name, if there is such a part.

        Args:
            name: as an option gives it.
            also: what else the option takes, for the hint.

        Raises:
            UsageError: there is none; or a plugin cannot be imported.
        """
        if name in self.own or name in self._parts:
            return name
        _import_plugins()
        if name not in self._parts:
            import importlib.metadata  # a tenth of the time that `hsal --help` takes

            for entry in importlib.metadata.entry_points(group=self.group, name=name):
                self.register(name)(_loaded(f"entry point {name} of {entry.dist.name if entry.dist else self.group}", entry.load))
        if name in self._parts:
            return name
        close = difflib.get_close_matches(name, self.names, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"there is no {self.what} {name!r}{meant}",
            f"take one of: {', '.join(self.names)}{also}; or one of your own: {VARIABLE}=FILE.py hsal ... (docs/python.md)",
        )

    def get(self, name: str) -> Any:
        """The part of a name that was registered; raises as `check` does."""
        return self._parts[self.check(name)]


def digest_of_part(part: Any) -> str:
    """sha256 of the file that a part stands in, by which another version of it is told apart; of its name where there is no file."""
    try:
        text = Path(inspect.getfile(part)).read_bytes()
    except (OSError, TypeError):
        text = f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', part)}".encode()
    return hashlib.sha256(text).hexdigest()


def _import_plugins() -> None:
    for named in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if named not in _imported:
            _loaded(f"{VARIABLE}: {named}", functools.partial(_import, named))
            _imported.add(named)


def _import(named: str) -> None:
    if not named.endswith(".py"):
        importlib.import_module(named)
        return
    path = Path(named).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except UsageError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{what} cannot be imported: {type(error).__name__}: {said}", "mend it, or take it out") from error
