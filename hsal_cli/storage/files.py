"""Writing files whole or not at all, and digests."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli.errors import FileError

if TYPE_CHECKING:
    import numpy as np

PICTURE_MARK = b"Software\x00hsal "  # in every PNG that hsal writes
SPARE_BYTES = 1 << 23  # what HDF5 may hold back, and some more


@contextlib.contextmanager
def atomic_write(target: Path, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target` that takes its place when the block ends well, else is removed.

    Args:
        target: the file (or, with `folder`, the folder that does not exist yet) to write.
        folder: make a folder instead of naming a file.

    Raises:
        FileError: the place cannot be written, or the disk is full.
    """
    temporary, mine = None, f"{_beginning_of_temporary(target)}{os.getpid()}."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_after_the_dead(target)
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=mine, suffix=".tmp", dir=target.parent))
            temporary.chmod(0o755)
        else:
            handle, name = tempfile.mkstemp(prefix=mine, suffix=".tmp", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            temporary.chmod(0o644)
        yield temporary
        # Some disks (quotas, networks) say only now that there was no room, and a power cut must not leave an empty file under the name.
        for file in filter(Path.is_file, temporary.iterdir()) if folder else (temporary,):
            sync(file)
        os.replace(temporary, target)
    except FileError as error:
        raise FileError(error.message.replace(str(temporary), str(target)), error.hint) from error
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary) if folder else temporary.unlink()


@functools.cache
def _place_of_processes() -> str:
    """Names the set of processes whose numbers mean something here: this machine, and in it this container."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return digest_of([platform.node(), space])[:8]


def _beginning_of_temporary(target: Path) -> str:
    return f".{target.name}.{_place_of_processes()}-"


def clear_after_the_dead(target: Path) -> None:
    """Removes temporary files beside a target whose writers were killed."""
    if os.name != "posix":
        return
    beginning = _beginning_of_temporary(target)
    for left in target.parent.glob(f"{glob.escape(beginning)}*.tmp"):
        number = left.name.removeprefix(beginning).partition(".")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        except (OSError, ValueError, OverflowError):  # somebody else's process, or somebody else's name
            continue


def sync(file: Path) -> None:
    """Waits until what was written to a file is on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps every other process from entering a block of this kind for the same folder; the lock ends with the process, however it ends.

    Raises:
        FileError: another process is in such a block, or the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    place = folder / ".lock"
    try:
        stream = place.open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(stream.fileno()).st_ino != place.stat().st_ino:  # the one before has just removed it, and another one made its own
                raise BlockingIOError
        except OSError as error:
            raise FileError(f"{folder} is being written by another process", "wait for it, or name another place with --out") from error
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError) -> FileError:
    """The error to raise when `target` could not be written."""
    # HDF5 puts half a page into its message; the system's own words for the number say the same.
    reason = os.strerror(error.errno) if error.errno else error
    return FileError(f"cannot write {target}: {reason}", "name another place with --out, or free some space")


def write_text(target: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_pictures(folder: Path, keep: Sequence[str] = ()) -> None:
    """Removes the PNG files of a folder that hsal wrote, known by their mark, but those named; of a folder that is not there, none."""
    for picture in folder.glob("*.png"):
        if picture.name not in keep and PICTURE_MARK in picture.read_bytes()[:4096]:
            picture.unlink()


def write_json(target: Path, document: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(target, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_sealed(target: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Writes a JSON object with its own digest in it, whole or not at all; returns what was written."""
    plain = json.loads(json.dumps(document))
    sealed = {**plain, "digest": digest_of(plain)}
    write_json(target, sealed)
    return sealed


def digest_of(document: Any) -> str:
    """sha256 of a document's canonical JSON, as hexadecimal."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(source: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal."""
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_array(values: np.ndarray) -> str:
    """sha256 of an integer array's shape and values, whatever its integer type."""
    return hashlib.sha256(f"{values.shape}".encode() + values.astype("<i8").tobytes()).hexdigest()


def check_space(place: Path, needed: int) -> None:
    """Refuses to go on writing to a disk that is nearly full.

    HDF5 crashes the process when it cannot write what it holds back until a file is closed, so room is asked for before each write.

    Args:
        place: the file being written.
        needed: bytes that are about to be written; as much again must stay free.

    Raises:
        OSError: there is less room than that.
    """
    if shutil.disk_usage(place.parent).free < 2 * needed + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
