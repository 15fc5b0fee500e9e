"""The face of a package: the names that it gives, each imported when it is first asked for, so that importing the package stays light."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any


def show(package: str, places: Mapping[str, str]) -> list[str]:
    """Gives a package its public names.

    A name may be that of a file of the package, too: `hsal_cli.training.train` is the function, whoever has imported the file before. (A
    module's `__getattr__`, PEP 562, is not asked then, since importing a file makes it an attribute of its package.)

    Args:
        package: its `__name__`.
        places: name -> "module:object" that it stands for; "module" alone is the module.

    Returns:
        The names, for the package's `__all__`.
    """
    module = sys.modules[package]
    body: dict[str, Any] = {name: _attribute(name, place) for name, place in places.items()}
    body["__dir__"] = lambda self: sorted({*types.ModuleType.__dir__(self), *places})
    module.__class__ = type("Face", (types.ModuleType,), body)
    return list(places)


def _attribute(name: str, place: str) -> property:
    source, _, part = place.partition(":")

    def find(module: types.ModuleType) -> Any:
        if name not in module.__dict__:
            found = importlib.import_module(source)
            module.__dict__[name] = getattr(found, part) if part else found
        return module.__dict__[name]

    def put(module: types.ModuleType, value: Any) -> None:
        if not (part and isinstance(value, types.ModuleType)):  # the file of that name has been imported
            module.__dict__[name] = value

    return property(find, put)
