"""The HDF5 conventions that scene and feature files share: attributes, what makes a file whole, and opening one that may be damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Self, TypeVar

from hsal_cli import __version__
from hsal_cli.errors import FileError, HsalError, first_line, out_of_memory
from hsal_cli.storage.atomic import LOCKING
from hsal_cli.storage.files import digest_of, regular
from hsal_cli.typed import Odd, checked, parsed

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

    data = text.encode("utf-8", "backslashreplace")
    holder.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def attribute(holder: Any, name: str, default: Any = None) -> Any:
    """An attribute as a JSON type, whatever kind of string it is; `default` where there is none."""
    return _plain(holder.attrs[name]) if name in holder.attrs else default


def described(holder: Any, name: str, kind: Any, default: str | None = None) -> Any:
    """An attribute that holds JSON, as an instance of a type (see `typed.checked`); `default` stands for one that is not there.

    Raises:
        Odd: it is missing, or is not as it must be.
    """
    text = attribute(holder, name, default)
    if not isinstance(text, str):
        raise Odd(f"the attribute {name}", "is missing" if text is None else "is no text")
    try:
        document = parsed(text)
    except Odd as odd:
        raise Odd(f"the attribute {name}", f"{'at ' * bool(odd.place)}{odd}") from odd
    return checked(document, kind, f"the attribute {name}")


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
    """The `format` attribute of an HDF5 file; None where there is none, or no such file can be read.

    Raises:
        FileError: it is no regular file, or reaches out of itself.
    """
    try:
        with opened(source) as file:
            return attribute(file, "format")
    except HsalError:
        raise
    except Exception:  # on damaged files h5py raises almost anything
        return None


def format_told(source: Path, hint: str, missing: str = "check the path") -> str | None:
    """`format_of` a file that must be HDF5; FileError, with one of these hints, where it is not, or is missing."""
    import h5py

    if not source.is_file():
        raise FileError(f"{source} is missing", missing)
    if not h5py.is_hdf5(source):
        raise FileError(f"{source} is not an HDF5 file", hint)
    return format_of(source)


def open_plain(source: Path | BinaryIO) -> h5py.File:
    """Opens an HDF5 file for reading; without a lock where the file system has none, as on some clusters.

    Raises:
        OSError: it is missing, not HDF5, or being written. FileError: HDF5 is told to lock files where there are no locks.
    """
    import h5py

    try:
        return h5py.File(source, "r")
    except OSError as error:
        if isinstance(error, BlockingIOError) or "unable to lock file" not in str(error):
            raise
        try:
            return h5py.File(source, "r", locking=False)
        except OSError:
            reason = os.strerror(error.errno or errno.ENOLCK)
            raise FileError(f"{source} cannot be locked: {reason}", f"where a file system has no locks, set {LOCKING}=FALSE") from error


def check_filters(name: str, dataset: Any) -> None:
    """Refuses a dataset whose filter this HDF5 lacks, by FileError; other things are let through, so that `visititems` takes it."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        return
    made = dataset.id.get_create_plist()
    for number in (made.get_filter(place)[0] for place in range(made.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            way = "name the folder of that filter's plugin in HDF5_PLUGIN_PATH (pip install hdf5plugin has many), or write it with gzip"
            raise FileError(f"{dataset.file.filename}: {name} needs filter {number}, which this HDF5 lacks", way)


def opened(source: Path) -> h5py.File:
    """Opens an HDF5 file of any kind for reading, unless it reaches out of itself, or HDF5 would loop without end over its strings.

    Raises:
        OSError: it is missing, not HDF5, being written, or damaged in that way.
        FileError: it is no regular file, or takes data from other files (see `refuse_outside`).
    """
    with contextlib.ExitStack() as held:
        file = held.enter_context(open_plain(regular(source)))
        try:
            refuse_outside(file, source)
            if _has_variable_text(file) and not _heaps_end(source):
                raise ValueError("a heap of strings has an object of no length")
        except HsalError:
            raise
        except Exception as error:  # on damaged files h5py raises almost anything
            raise OSError(f"it is damaged: {first_line(error)}") from error
        held.pop_all()
        return file


def refuse_outside(file: h5py.File, where: Path | str) -> None:
    """Refuses an HDF5 file that takes data from other files, which whoever made it may have chosen: any file that its reader may read.

    Every link in it is looked at, and none is followed out of it. FileError, with the name `where`: it has an external link, or a dataset
    that is virtual or stored externally.
    """
    import h5py

    seen, waiting = set(), [file]
    while waiting:  # not recursive: groups may lie in each other as deep as their writer likes
        group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.SoftLink):  # what a soft link names is met on its own way
                held = own(group, name, where)
                if isinstance(held, h5py.Group) and (place := h5py.h5o.get_info(held.id).addr) not in seen:
                    seen.add(place)
                    waiting.append(held)


def own(group: h5py.Group, name: str, where: Path | str) -> Any:
    """What lies right in a group of an HDF5 file, itself in that file; FileError where it is a link or takes data from others."""
    import h5py

    try:
        link = group.get(name, getlink=True)
    except TypeError:  # of a kind that a program defined for itself
        link = None
    if link is not None and not isinstance(link, h5py.HardLink):
        what = f"the file {link.filename}" if isinstance(link, h5py.ExternalLink) else "elsewhere"
        raise _outside(where, f"{group.name.rstrip('/')}/{name} is a link to {what}")
    return in_file(group[name], where)


def in_file(held: Any, where: Path | str) -> Any:
    """An object of an HDF5 file; FileError where it is a dataset whose data lies in other files."""
    import h5py

    if isinstance(held, h5py.Dataset):
        plan = held.id.get_create_plist()
        if plan.get_layout() == h5py.h5d.VIRTUAL:
            raise _outside(where, f"{held.name} is a virtual dataset, made of others")
        if plan.get_external_count():
            raise _outside(where, f"{held.name} is stored in the file {os.fsdecode(plan.get_external(0)[0])}")
    return held


def _outside(where: Path | str, what: str) -> FileError:
    return FileError(
        f"{where} takes data from outside of itself: {what}", "if you trust it, make a file that holds the data itself: h5repack, or h5py"
    )


def _has_variable_text(file: h5py.File) -> bool:
    """Whether an attribute is a string of variable length, as in files of other programs; nothing of it is read."""
    import h5py

    def found(_: str, thing: Any) -> bool | None:
        kinds = [thing.attrs.get_id(name).get_type() for name in thing.attrs]
        text, lists = h5py.h5t.TypeStringID, h5py.h5t.TypeVlenID
        return any(isinstance(kind, lists) or (isinstance(kind, text) and kind.is_variable_str()) for kind in kinds) or None

    return bool(found("/", file) or file.visititems(found))


def _heaps_end(source: Path) -> bool:
    """Whether HDF5 can walk to the end of each global heap at a file's ends, where those of attributes lie, before or behind the data."""
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
    except Odd as odd:
        raise FileError(odd.said_of(source), hint) from odd
    except Exception as error:
        said = first_line(error)
        if out_of_memory(error):
            way = "free some memory, or for hsal train give a --memory-budget; hsal check tells whether the file is sound"
            raise FileError(f"{source}: {what} does not fit into memory ({said})", way) from error
        raise FileError(f"{source} is damaged: {what} cannot be read ({said})", hint) from error


def open_any(source: Path, hint: str) -> h5py.File:
    """Opens an HDF5 file of any kind for reading; FileError says why it cannot be."""
    try:
        return opened(source)
    except BlockingIOError as error:
        raise FileError(f"{source} is being written by another process", "wait for it") from error
    except OSError as error:
        raise FileError(f"{source} is not a readable HDF5 file: {str(error).splitlines()[0]}", hint) from error


def open_hdf5(source: Path, kind: str, made_by: str, opened_as: Callable[[Path, h5py.File], Any] = lambda _, file: file) -> Any:
    """Opens one of our HDF5 files for reading and checks its root attributes.

    Args:
        kind: the value its `format` attribute must have, such as "hsal-scenes".
        made_by: the command that makes such a file, for the hint.
        opened_as: what the open file becomes; checks what is its own.

    Raises:
        FileError: missing, not HDF5, being written, of another format or a newer format version, not complete, or packed by a filter that
            this HDF5 lacks.
    """
    hint = f"make it with: {made_by}"
    regular(source, hint)
    if not source.is_file():
        raise FileError(f"{source} is {'a folder' if source.is_dir() else 'missing'}", hint)
    file = open_any(source, hint)
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
            file.visititems(check_filters)
            noted = attribute(file, "attributes_digest")
            if noted is not None and noted != _attributes_digest(file):
                raise FileError(f"{source} is damaged: its attributes do not have the digest noted when they were written", hint)
        return opened_as(source, file)
    except BaseException:
        file.close()
        raise


class OpenedFile:
    """An open scene or feature file; a context manager."""

    def __init__(self, path: Path, file: h5py.File):
        self.path, self._file = path, file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing that is still in it can be read any more."""
        self._file.close()


def train_first(names: Iterable[str]) -> list[str]:
    """Names of splits: train, test, then the others by their names."""
    return sorted(names, key=lambda name: (name != "train", name != "test", name))


class EachProcess(Generic[F]):
    """A file that each process opens for itself when it first reads it: neither a fork nor a copy may share an open HDF5 file."""

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
