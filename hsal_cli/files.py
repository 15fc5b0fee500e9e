"""Writing files whole or not at all, digests, and the HDF5 conventions that scene and feature files share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli import __version__
from hsal_cli.errors import FileError

if TYPE_CHECKING:
    import h5py

FORMAT_VERSION = 1
SPARE_BYTES = 1 << 23  # what HDF5 may hold back, and some more


@contextlib.contextmanager
def whole(target: Path, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target` that takes its place when the block ends well, else is removed.

    Args:
        target: the file (or, with `folder`, the folder that does not exist yet) to write.
        folder: make a folder instead of naming a file.

    Raises:
        FileError: the place cannot be written, or the disk is full.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
            temporary.chmod(0o755)
        else:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            temporary.chmod(0o644)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary) if folder else temporary.unlink()


def cannot_write(target: Path, error: OSError) -> FileError:
    """The error to raise when `target` could not be written."""
    # HDF5 puts half a page into its message; the system's own words for the number say the same.
    reason = os.strerror(error.errno) if error.errno else error
    return FileError(f"cannot write {target}: {reason}", "name another place with --out, or free some space")


def write_text(target: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, document: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(target, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def read_json(source: Path, made_by: str) -> Any:
    """Reads a JSON file.

    Args:
        source: the file.
        made_by: the command that writes such a file, for the hint.

    Raises:
        FileError: the file is missing or is not JSON.
    """
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror}", f"make it with: {made_by}") from error
    except ValueError as error:
        raise FileError(f"{source} is not valid JSON: {error}", f"make it again with: {made_by}") from error


def digest_of(document: Any) -> str:
    """sha256 of a document's canonical JSON, as hexadecimal."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(source: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal."""
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def stamp(file: h5py.File, kind: str, config: dict[str, Any]) -> None:
    """Writes the root attributes every HDF5 file of ours begins with; `seal` adds the rest when the data is in."""
    file.attrs["format"] = kind
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["hsal_version"] = __version__
    file.attrs["config"] = json.dumps(config, sort_keys=True)
    file.attrs["complete"] = False


def seal(file: h5py.File, digest: str) -> None:
    """Marks an HDF5 file as complete, with the digest of what it holds."""
    file.attrs["digest"] = digest
    file.attrs["complete"] = True


def open_hdf5(source: Path, kind: str, made_by: str) -> h5py.File:
    """Opens one of our HDF5 files for reading and checks its root attributes.

    Args:
        source: the file.
        kind: the value its `format` attribute must have, such as "hsal-scenes".
        made_by: the command that makes such a file, for the hint.

    Raises:
        FileError: missing, not HDF5, of another format or a newer format version, or not complete.
    """
    import h5py

    hint = f"make it with: {made_by}"
    if not source.is_file():
        raise FileError(f"{source} is {'a folder' if source.is_dir() else 'missing'}", hint)
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        raise FileError(f"{source} is not a readable HDF5 file: {str(error).splitlines()[0]}", hint) from error
    try:
        found = file.attrs.get("format")
        if found != kind:
            raise FileError(f"{source} is not a file of format {kind}: its format is {found or 'not given'}", hint)
        if int(file.attrs.get("format_version", 1)) > FORMAT_VERSION:
            raise FileError(
                f"{source} has format version {file.attrs['format_version']}; this hsal reads up to {FORMAT_VERSION}",
                "pip install --upgrade hsal",
            )
        if not file.attrs.get("complete", True):
            raise FileError(f"{source} is not complete: its writer was interrupted", hint)
    except BaseException:
        file.close()
        raise
    return file
