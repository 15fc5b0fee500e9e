"""Reading documents, JSON files that hsal wrote: each is held against a frozen dataclass once, where it is read (see `typed`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hsal_cli.errors import FileError
from hsal_cli.storage.files import digest_of
from hsal_cli.typed import Odd, checked, parsed, read_text, short

D = TypeVar("D")


def read_document(source: Path, kind: type[D], made_by: str, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> D:
    """Reads a JSON file, verifies the digest in it, where it has one (see `atomic.write_sealed`), and holds it against a dataclass.

    Args:
        kind: a dataclass, or `dict` for any object.
        made_by: the command that writes such a file, for the hint.
        change: what the object is put through before it is held against the dataclass.

    Raises:
        FileError: missing, not a file, too large, not JSON, its digest is not that of its content, or a value is missing or of another
            type; names the file, the place in it and the value.
    """
    hint = f"make it again with: {made_by}"
    try:
        document = parsed(read_text(source))
        if not isinstance(document, dict):
            raise Odd("", f"does not hold a JSON object, but {short.repr(document)}")
        digest = document.pop("digest", None)
        if digest is not None and digest != digest_of(document):
            raise Odd("", "is damaged or was changed by hand: its digest is not that of its content")
        return checked(document if change is None else change(document), kind)
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror}", f"make it with: {made_by}") from error
    except Odd as odd:
        raise FileError(odd.said_of(source), hint) from odd


def refuse_foreign_results(document: Path, key: str, *beside: Path) -> None:
    """Keeps hsal from replacing a JSON file, and texts beside it, that it did not write.

    Args:
        document: where the results go; every such document of hsal's holds `key`.
        beside: what is replaced along with it.

    Raises:
        FileError: one of them is there, and `document` is not a file of hsal's.
    """
    there = next((path for path in (document, *beside) if os.path.lexists(path)), None)
    if there is None:
        return
    try:
        ours = not document.is_symlink() and key in read_document(document, dict, "")
    except (FileError, TypeError):
        ours = False
    if not ours:
        raise FileError(f"{there} exists and was not made by hsal, so it is not replaced", "name another place with --out")
