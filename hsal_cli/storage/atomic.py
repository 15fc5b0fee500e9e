"""Writing files and folders whole or not at all, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import os
import platform
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hsal_cli.errors import FileError
from hsal_cli.storage.files import digest_of, refuse_link, regular
from hsal_cli.words import json_text

SPARE_BYTES = 1 << 23  # what HDF5 may hold back, and some more
LOCKING = "HDF5_USE_FILE_LOCKING"  # HDF5's own variable: FALSE where the file system has no locks


def take_place(new: Path, target: Path) -> None:
    """Puts a file or folder where an older one may be, whose mode it takes, and whose owner where that is allowed; may raise OSError."""
    take_mode(new, target)
    os.replace(new, target)


def take_mode(new: Path, old: Path) -> None:
    """Gives a new file or folder the mode of the older one that it replaces, and its owner where that is allowed; no older one: its own."""
    with contextlib.suppress(OSError):
        before, now = os.lstat(old), os.lstat(new)
        if stat.S_IFMT(before.st_mode) != stat.S_IFMT(now.st_mode):  # of a link the mode means nothing
            return
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid) and hasattr(os, "chown"):
            with contextlib.suppress(OSError):
                os.chown(new, before.st_uid, before.st_gid)
        os.chmod(new, stat.S_IMODE(before.st_mode))


@contextlib.contextmanager
def atomic_write(target: Path, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target` that takes its place when the block ends well, else is removed.

    With `folder` it is a folder, which does not exist yet. New files have the mode that the umask gives; one that replaces another has the
    mode of that one.

    Raises:
        FileError: the place cannot be written, is a device or a pipe, or the disk is full.
    """
    temporary = None
    regular(target, "name a file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_after_the_dead(target)
        temporary = _fresh(target, folder)
        yield temporary
        # Some disks (quotas, networks) say only now that there was no room, and a power cut must not leave an empty file under the name.
        for file in filter(Path.is_file, temporary.iterdir()) if folder else (temporary,):
            sync(file)
        take_place(temporary, target)
    except FileError as error:
        raise FileError(error.message.replace(str(temporary), str(target)), error.hint) from error
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary) if folder else temporary.unlink()


def is_temporary(path: Path) -> bool:
    """Whether a path has the name of what `whole` writes to, of any process on any machine."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}-\d+\.\w+\.tmp", path.name) is not None


def _fresh(target: Path, folder: bool) -> Path:
    """Makes a temporary file or folder beside a target, with the mode that the umask gives to new ones."""
    path = target.with_name(f"{_beginning_of_temporary(target)}{os.getpid()}.{os.urandom(4).hex()}.tmp")
    path.mkdir() if folder else path.touch(exist_ok=False)
    return path


@functools.cache
def _place_of_processes() -> str:
    """Names the set of processes whose numbers mean something here: this machine, and in it this container."""
    space = Path("/proc/self/ns/pid")
    return digest_of([platform.node(), space.stat().st_ino if space.exists() else 0])[:8]


def _beginning_of_temporary(target: Path) -> str:
    return f".{target.name}.{_place_of_processes()}-"


def clear_after_the_dead(target: Path) -> None:
    """Removes temporary files beside a target whose writers were killed."""
    if os.name != "posix":
        return
    beginning = _beginning_of_temporary(target)
    for left in target.parent.glob(f"{glob.escape(beginning)}*.tmp*"):  # with the lock beside it
        number = left.name.removeprefix(beginning).partition(".")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        except (OSError, ValueError, OverflowError):  # somebody else's process, or somebody else's name
            continue


def sync(file: Path) -> None:
    """Waits until what was written to a file is on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def take_lock(number: int, place: Path) -> Callable[[], None]:
    """Makes this process the only one that holds an open file; the lock ends with the process, however it ends.

    It is the lock that HDF5 takes too. Where the file system has no locks, as on some clusters, or where HDF5_USE_FILE_LOCKING=FALSE
    asks for none, a file NAME.lock that names this process stands in; one that a dead process of this machine left is taken over.

    Args:
        number: the descriptor of the file, which is at `place`.

    Returns:
        What gives the lock back; the file is to be closed besides.

    Raises:
        BlockingIOError: another process holds it. OSError: NAME.lock cannot be written.
        FileError: a process of another machine holds NAME.lock, of which it cannot be told here whether it lives.
    """
    from filelock import SoftFileLock, Timeout, lock_descriptor

    if os.environ.get(LOCKING, "").upper() not in ("FALSE", "0"):
        try:
            taken = lock_descriptor(number, blocking=False)
        except OSError:  # "no locks available", "function not implemented": what a file system says that has none
            pass
        else:
            if not taken:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return lambda: None
    mark = place.with_name(f"{place.name}.lock")
    soft = SoftFileLock(mark, timeout=0, thread_local=False)
    try:
        soft.acquire()
    except Timeout:
        machine = ""
        with contextlib.suppress(OSError):  # filelock writes the process and its machine, a line each
            machine = next(iter(regular(mark).read_text(errors="replace").splitlines()[1:2]), "")
        if machine and not machine.startswith(platform.node()):
            raise FileError(
                f"{place} is being written by another process, of the machine {machine[:80]}, as {mark} says",
                f"wait for it; where that machine is gone: rm {shlex.quote(str(mark))}",
            ) from None
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    return soft.release


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps every other process from entering a block of this kind for the same folder, which is made if it is not there.

    Raises:
        FileError: another process is in such a block, or the folder cannot be written.
    """
    place = folder / ".lock"
    refuse_link(place)
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = held.enter_context(regular(place).open("a"))
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            held.callback(take_lock(stream.fileno(), place))
            if os.fstat(stream.fileno()).st_ino != place.stat().st_ino:  # the one before has just removed it, and another one made its own
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            raise FileError(f"{folder} is being written by another process", "wait for it, or name another place with --out") from error
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # Windows removes no open file
                place.unlink(missing_ok=True)


Ours = Callable[[Path], list[Path]]
"""ours(folder): the files in it that hsal wrote, the one by which the folder is known as hsal's last; none where it is somebody else's."""


@contextlib.contextmanager
def replacing(target: Path, ours: Ours) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `target` when the block ends well, whatever of hsal's is there.

    The older folder stays until the new one is whole; then it is moved aside, the new one takes its name, and what hsal wrote of the older
    one is removed. What somebody else keeps there moves into the new one. Killed at any moment, `finish_replacing` sets it right.
    FileError: the place cannot be written, or what is there is not hsal's.
    """
    finish_replacing(target, ours)
    if not target.is_dir() or not any(target.iterdir()):
        with atomic_write(target, folder=True) as temporary:
            yield temporary
        return
    refuse_link(target)
    if not ours(target):
        raise FileError(f"{target} was not made by hsal, so it is not replaced", "name another place with --out")
    new, old = _aside(target)
    for place in (new, old):
        if os.path.lexists(place):
            raise FileError(f"{place} was not made by hsal, and is in the way of replacing {target}", f"move {place} away")
    with atomic_write(new, folder=True) as temporary:
        yield temporary
    try:
        take_mode(new, target)
        os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            if not target.exists():  # another process may have finished it
                os.replace(old, target)
                raise
    except OSError as error:
        with contextlib.suppress(FileError):
            finish_replacing(target, ours)
        raise cannot_write(target, error) from error
    finish_replacing(target, ours)


def finish_replacing(target: Path, ours: Ours) -> None:
    """Ends what a killed `replacing` has begun: the folder is the old or the new one, whole, and nothing lies beside it; or FileError."""
    left = [place for place in _aside(target) if place.is_dir() and not place.is_symlink() and (ours(place) or not any(place.iterdir()))]
    try:
        whole_ones = [place for place in left if ours(place)]
        if whole_ones and not os.path.lexists(target):
            os.replace(whole_ones[0], target)
            left.remove(whole_ones[0])
        for place in left if target.is_dir() else ():
            _dissolve(place, target, ours)
    except FileNotFoundError:  # another process has done it
        pass
    except OSError as error:
        raise cannot_write(target, error) from error


def _aside(target: Path) -> tuple[Path, Path]:
    """Where a new folder waits for the place of an older one, and where that one goes meanwhile."""
    place = target if target.name not in ("", "..") else target.resolve()
    return place.parent / f".{place.name}.new", place.parent / f".{place.name}.old"


def _dissolve(folder: Path, target: Path, ours: Ours) -> None:
    """Removes what hsal wrote into a folder, and moves what is left of it into another one; what it is known by goes last."""
    *files, mark = ours(folder) or [None]
    for file in files:
        file.unlink(missing_ok=True)
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for file in (Path(place, name) for name in (*names, *links)):
            if file != mark:
                goal = target / file.relative_to(folder)
                while os.path.lexists(goal):
                    goal = goal.with_name(f"{goal.name}.old")
                goal.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, goal)
    for place, _, _ in os.walk(folder, topdown=False):
        if place != str(folder):
            os.rmdir(place)
    if mark is not None:
        mark.unlink(missing_ok=True)
    os.rmdir(folder)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: all are written aside, and only then do they take their places, one after the other.

    Args:
        contents: file -> its bytes; one that refers to others stands behind them, so that what it names is always there.

    Raises:
        FileError: one cannot be written; then those of before are all still there.
    """
    with contextlib.ExitStack() as stack:
        for target, content in reversed(contents.items()):  # a stack puts what comes last in its place first
            stack.enter_context(atomic_write(target)).write_bytes(content)


def cannot_write(target: Path, error: OSError) -> FileError:
    """The error to raise when `target` could not be written."""
    # HDF5 puts half a page into its message; the system's own words for the number say the same.
    reason = os.strerror(error.errno) if error.errno else error
    return FileError(f"cannot write {target}: {reason}", "name another place with --out, or free some space")


def write_text(target: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; what UTF-8 cannot hold (bytes of a path, say) stands as an escape."""
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(target: Path, document: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_together({target: json_bytes(document)})


def json_bytes(document: Any) -> bytes:
    """A document as hsal writes JSON files."""
    return json_text(document).encode(errors="backslashreplace")


def write_sealed(target: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Writes a JSON object with its own digest in it, whole or not at all; returns what was written."""
    plain = json.loads(json.dumps(document))
    sealed = {**plain, "digest": digest_of(plain)}
    write_json(target, sealed)
    return sealed


def check_space(place: Path, needed: int) -> None:
    """Refuses, by OSError, to go on writing a file where not twice the bytes that are about to be written are free.

    HDF5 crashes the process when it cannot write what it holds back until a file is closed, so room is asked for before each write.
    """
    if shutil.disk_usage(place.parent).free < 2 * needed + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
