"""HDF5 files whose disk never fails under them.

Where the disk takes no more (full, a quota, a device that is gone), HDF5 cannot close the file and crashes the process, often only
at its end. Here HDF5 writes through Python: after a failed write all goes to memory, so that it closes in peace, and the error is raised.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py

from hsal_cli.storage.atomic import take_lock


class SteadyFile(h5py.File):
    """An HDF5 file open for writing, "w" anew or "r+"; `check` and the end of its block raise what the disk said.

    Others may not open it meanwhile: the lock is the one that HDF5 itself would take (see `atomic.take_lock`).

    Raises:
        BlockingIOError: another process is writing it. OSError: the disk fails, or the file is not HDF5.
    """

    def __init__(self, path: Path, mode: str, **options: Any):
        self._disk = _Disk(path, mode)
        try:
            super().__init__(self._disk, mode, **options)
        except BaseException:
            self._disk.close()
            raise

    def check(self) -> None:
        """Raises the first error of the disk, if there was one; what has been written since is lost."""
        if self._disk.error is not None:
            raise self._disk.error

    def close(self) -> None:
        """Closes the file; does not raise what the disk said."""
        super().close()
        self._disk.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._disk.close()
        if kind is None:
            self.check()


class _Disk:
    """The file object that HDF5 writes to: a plain file, and from its first error on a memory laid over it."""

    def __init__(self, path: Path, mode: str):
        self.error: OSError | None = None
        self._place = 0
        self._kept: list[tuple[int, bytes]] = []  # (offset, bytes), later ones over earlier ones
        self._held = contextlib.ExitStack()
        self._number = os.open(path, os.O_RDWR | (os.O_CREAT if mode == "w" else 0) | getattr(os, "O_BINARY", 0), 0o666)
        self._held.callback(os.close, self._number)
        try:
            self._held.callback(take_lock(self._number, path))
            if mode == "w":
                os.ftruncate(self._number, 0)
        except BaseException:
            self.close()
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size()}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        """h5py asks for this method to tell file objects from names, and calls `readinto`."""
        found = bytearray(max(0, self._size() - self._place) if size < 0 else size)
        return bytes(found[: self.readinto(found)])

    def readinto(self, buffer: Any) -> int:
        view, start = memoryview(buffer).cast("B"), self._place
        os.lseek(self._number, start, os.SEEK_SET)
        count = 0
        while count < len(view) and (data := os.read(self._number, len(view) - count)):
            view[count : count + len(data)] = data
            count += len(data)
        if self._kept:
            view[count:] = bytes(len(view) - count)
        for offset, data in self._kept:
            low, high = max(offset, start), min(offset + len(data), start + len(view))
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]
                count = max(count, high - start)
        self._place = start + count
        return count

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        if self.error is None:
            try:
                os.lseek(self._number, self._place, os.SEEK_SET)
                while done < len(view):
                    done += os.write(self._number, view[done:])
            except OSError as error:
                self.error = error
        if done < len(view):
            self._kept.append((self._place + done, bytes(view[done:])))
        self._place += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._place if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._number, size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        self._held.close()

    def _size(self) -> int:
        return max([os.fstat(self._number).st_size, *(offset + len(data) for offset, data in self._kept)])
