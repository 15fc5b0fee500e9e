"""The HDF5 conventions that scene and feature files share: attributes, what makes a file whole, and opening one that may be damaged."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hsal_cli import __version__
from hsal_cli.errors import FileError, HsalError, first_line, out_of_memory
from hsal_cli.storage.files import digest_of

if TYPE_CHECKING:
    import h5py

F = TypeVar("F")
FORMAT_VERSION = 1
HEAP = b"GCOL\x01\0\0\0"  # how a global heap begins: where HDF5 keeps strings of variable length
REACH = 1 << 24  # bytes at each end of a file in which they are looked for
HEAP_ENTRY = 16  # bytes before an object in it: index (2), references (2), reserved (4), size (8)


def put_text(holder: Any, name: str, text: str) -> None:
    """Writes an attribute of a file, group or dataset, in UTF-8 and of fixed length.

    A string of variable length, as h5py writes it by itself, lies in a heap that has no checksum: one changed byte there can make HDF5
    loop without end.
    """
    import h5py
    import numpy as np

    data = text.encode()
    holder.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def attribute(holder: Any, name: str, default: Any = None) -> Any:
    """An attribute as a JSON type, whatever kind of string it is; `default` where there is none."""
    return _plain(holder.attrs[name]) if name in holder.attrs else default


def stamp(file: h5py.File, kind: str, config: dict[str, Any]) -> None:
    """Writes the root attributes every HDF5 file of ours begins with; `seal` adds the rest when the data is in."""
    put_text(file, "format", kind)
    put_text(file, "hsal_version", __version__)
    put_text(file, "config", json.dumps(config, sort_keys=True))
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["complete"] = False


def seal(file: h5py.File, digest: str) -> None:
    """Marks an HDF5 file as complete, with the digest of what it holds; to be called last.

    `attributes_digest` covers all attributes, with the shapes and types of the data.
    """
    put_text(file, "digest", digest)
    put_text(file, "attributes_digest", _attributes_digest(file))
    file.attrs["complete"] = True


def _attributes_digest(file: h5py.File) -> str:
    """sha256 of all attributes and of the shapes and types of all datasets, but for the attributes that change after sealing."""
    found: dict[str, Any] = {}

    def describe(name: str, thing: Any) -> None:
        held = {key: _plain(value) for key, value in thing.attrs.items()}
        if hasattr(thing, "dtype"):
            held["."] = [list(thing.shape), thing.dtype.str]
        found[name] = held

    describe("/", file)
    file.visititems(describe)
    for changing in ("attributes_digest", "complete", "open"):
        found["/"].pop(changing, None)
    return digest_of(found)


def _plain(value: Any) -> Any:
    """An attribute as a JSON type."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def format_of(source: Path) -> str | None:
    """The `format` attribute of an HDF5 file; None where there is none, or no such file can be read."""
    try:
        with opened(source) as file:
            return attribute(file, "format")
    except Exception:  # on damaged files h5py raises almost anything
        return None


def opened(source: Path) -> h5py.File:
    """Opens an HDF5 file of any kind for reading, unless HDF5 would loop without end over its strings.

    Raises:
        OSError: it is missing, not HDF5, being written, or damaged in that way.
    """
    import h5py

    file = h5py.File(source, "r")
    try:
        if not _has_variable_text(file) or _heaps_end(source):
            return file
        said = "a heap of strings has an object of no length"
    except Exception as error:  # on damaged files h5py raises almost anything
        said = first_line(error)
    file.close()
    raise OSError(f"it is damaged: {said}")


def _has_variable_text(file: h5py.File) -> bool:
    """Whether an attribute is a string of variable length, as in files of other programs; nothing of it is read."""
    import h5py

    def found(_: str, thing: Any) -> bool | None:
        kinds = [thing.attrs.get_id(name).get_type() for name in thing.attrs]
        text, lists = h5py.h5t.TypeStringID, h5py.h5t.TypeVlenID
        return any(isinstance(kind, lists) or (isinstance(kind, text) and kind.is_variable_str()) for kind in kinds) or None

    return bool(found("/", file) or file.visititems(found))


def _heaps_end(source: Path) -> bool:
    """Whether each global heap in the first and last `REACH` bytes of a file is one whose objects HDF5 can walk to the end.

    Attributes are written before or behind the data, so that is where their heaps lie; reading a large file whole would take minutes.
    """
    with source.open("rb") as stream:
        length = stream.seek(0, os.SEEK_END)
        for start in {0, max(0, length - REACH)}:
            stream.seek(start)
            data = stream.read(REACH)
            place = data.find(HEAP)
            while place >= 0:
                size = int.from_bytes(data[place + 8 : place + 16], "little")
                if not _walk_ends(data[place : place + size]):
                    return False
                place = data.find(HEAP, place + 16)
    return True


def _walk_ends(heap: bytes) -> bool:
    """Walks over the objects of a heap as HDF5 does: the free space, index 0, counts its own entry in its size, others are padded to 8."""
    place = 16
    while place + HEAP_ENTRY <= len(heap):
        size = int.from_bytes(heap[place + 8 : place + 16], "little")
        taken = HEAP_ENTRY + (size + 7 & ~7) if heap[place] or heap[place + 1] else size
        if not taken % (1 << 64):
            return False
        place += taken
    return True


@contextlib.contextmanager
def reading(source: Path, what: str, hint: str) -> Iterator[None]:
    """Turns whatever h5py raises in the block into a FileError: on damaged files it raises almost anything."""
    try:
        yield
    except (HsalError, BlockingIOError, IndexError):  # an index is the caller's fault
        raise
    except Exception as error:
        said = first_line(error)
        if out_of_memory(error):
            way = "free some memory, or for hsal train give a --memory-budget; hsal check tells whether the file is sound"
            raise FileError(f"{source}: {what} does not fit into memory ({said})", way) from error
        raise FileError(f"{source} is damaged: {what} cannot be read ({said})", hint) from error


def open_hdf5(source: Path, kind: str, made_by: str) -> h5py.File:
    """Opens one of our HDF5 files for reading and checks its root attributes.

    Args:
        source: the file.
        kind: the value its `format` attribute must have, such as "hsal-scenes".
        made_by: the command that makes such a file, for the hint.

    Raises:
        FileError: missing, not HDF5, of another format or a newer format version, or not complete.
    """
    hint = f"make it with: {made_by}"
    if not source.is_file():
        raise FileError(f"{source} is {'a folder' if source.is_dir() else 'missing'}", hint)
    try:
        file = opened(source)
    except OSError as error:
        raise FileError(f"{source} is not a readable HDF5 file: {str(error).splitlines()[0]}", hint) from error
    try:
        with reading(source, "its description", hint):
            found = attribute(file, "format")
            if found != kind:
                raise FileError(f"{source} is not a file of format {kind}: its format is {found or 'not given'}", hint)
            if int(file.attrs.get("format_version", 1)) > FORMAT_VERSION:
                raise FileError(
                    f"{source} has format version {file.attrs['format_version']}; this hsal reads up to {FORMAT_VERSION}",
                    "pip install --upgrade hsal",
                )
            if not file.attrs.get("complete", True):
                raise FileError(f"{source} is not complete: its writer was interrupted", hint)
            noted = attribute(file, "attributes_digest")
            if noted is not None and noted != _attributes_digest(file):
                raise FileError(f"{source} is damaged: its attributes do not have the digest noted when they were written", hint)
    except BaseException:
        file.close()
        raise
    return file


class EachProcess(Generic[F]):
    """A file that each process opens for itself when it first reads it: neither a fork nor a copy may share an open HDF5 file.

    Args:
        open_file: opens it.
        path: the file.
    """

    def __init__(self, open_file: Callable[[Path], F], path: Path):
        self._open, self._path = open_file, path
        self._held: tuple[int, F] | None = None

    def get(self) -> F:
        """The file, open in this process."""
        if self._held is None or self._held[0] != os.getpid():
            self._held = os.getpid(), self._open(self._path)
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}
