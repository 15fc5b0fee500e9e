"""What commands, and the groups that have commands of their own, are made of."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from typer.core import TyperCommand, TyperGroup

NEVER_DRAWN = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}  # no help is written in the one or holds the other


class _Helpful:
    """Shows its help without the parts of Rich that draw none of it: to import them takes half as long as all else that help needs."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        standing_in = [name for name in NEVER_DRAWN if "typer.rich_utils" not in sys.modules and name not in sys.modules]
        for name in standing_in:
            module = ModuleType(name)
            setattr(module, NEVER_DRAWN[name], type(NEVER_DRAWN[name], (), {}))
            sys.modules[name] = module
        try:
            import typer.rich_utils  # noqa: F401
        finally:
            for name in standing_in:  # for whoever needs the real one
                del sys.modules[name]
        super().format_help(ctx, formatter)  # type: ignore[misc]


class Command(_Helpful, TyperCommand):
    """A command."""


class Group(_Helpful, TyperGroup):
    """A group of commands whose own flags cost nothing where they are not typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for flag in self.get_params(ctx):  # Typer's own flags have no default, and it would load pydantic to find that they were not typed
            if getattr(flag, "is_flag", False) and flag.default is None:
                flag.default = False
        return super().parse_args(ctx, args)
