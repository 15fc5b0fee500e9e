"""The group that commands with commands of their own are made of."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """A group of commands whose own flags cost nothing where they are not typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for flag in self.get_params(ctx):  # Typer's own flags have no default, and it would load pydantic to find that they were not typed
            if getattr(flag, "is_flag", False) and flag.default is None:
                flag.default = False
        return super().parse_args(ctx, args)
