"""Fetching a large file: progress, going on where it was interrupted, and a check of what came."""

from __future__ import annotations

import gzip
import http.client
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import BinaryIO

from hsal_cli.errors import FileError
from hsal_cli.progress import Reporter
from hsal_cli.storage.files import refuse_link, regular

BLOCK = 1 << 20
TIMEOUT_S = 30.0
GZIP = b"\x1f\x8b"  # how gzipped bytes begin
MOST_BYTES = 1 << 35  # of an archive of which no size is known, and of what one holds


def opened(path: Path) -> BinaryIO:
    """Opens a file to read its bytes as they are, or unpacked where they are gzipped; OSError; FileError: a pipe or a device."""
    with regular(path).open("rb") as plain:
        packed = plain.read(2) == GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")


def gunzipped(path: Path, most: int) -> bytes:
    """A file's bytes as they are, or unpacked where they are gzipped: a name tells neither, for browsers unpack and keep the name.

    Raises:
        OSError, EOFError, zlib.error: missing, longer than `most` bytes, or gzipped and damaged. FileError: a pipe or a device.
    """
    with opened(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(f"it holds more than {most:,} bytes")
    return data


def fetch(url: str, target: Path, size: int | None, reporter: Reporter) -> None:
    """Fetches a gzipped file from an http, https or file address, unless it is there.

    The bytes gather in `target`.part, where a later call goes on; whole, its length (`size` bytes, or what the server says) and the
    checksum inside of it (CRC-32 of gzip) are checked before it takes its name. SVHN's publishers give no other sum.

    Raises:
        FileError: it cannot be had, or it is damaged; Interrupted: stopped on request, the part stays.
    """
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    hint = f"run the same command again to go on, or put {target.name} into {target.parent} yourself"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(part)
        _gather(url, part, size, reporter)
        if not _sound(part, reporter):
            part.unlink()
            raise FileError(f"{url} came damaged: its checksum does not fit", hint)
        part.replace(target)
    except urllib.error.HTTPError as error:
        raise FileError(f"{url} cannot be fetched: {error.code} {error.reason}", hint) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FileError(f"{url} cannot be fetched: {getattr(error, 'reason', None) or error}", hint) from error


def _gather(url: str, part: Path, size: int | None, reporter: Reporter) -> None:
    have = regular(part).stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        if have == size:
            return
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have and size is None:  # nothing is left to send
            return
        raise
    with answer:
        if have and getattr(answer, "status", None) != 206:
            have = 0  # the server begins anew, so do we
        left = int(answer.headers.get("Content-Length") or 0)
        total = size if size is not None else have + left
        with part.open("ab" if have else "wb") as file, reporter.track(f"Fetching {url}", total, "bytes", have) as advance:
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                if have > (total or MOST_BYTES):
                    raise OSError(f"the server sends more than {total or MOST_BYTES:,} bytes")
                advance(len(block))
                reporter.check_stop("run the same command again to go on with the download")
    if total and have != total:
        raise OSError(f"the connection ended after {have:,} of {total:,} bytes")


def _sound(path: Path, reporter: Reporter) -> bool:
    """Whether a gzipped file fits its own checksum."""
    try:
        with gzip.open(path, "rb") as stream:
            unpacked = 0
            while block := stream.read(BLOCK):
                unpacked += len(block)
                if unpacked > MOST_BYTES:
                    raise OSError(f"it unpacks to more than {MOST_BYTES:,} bytes")
                reporter.check_stop("run the same command again")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return True
