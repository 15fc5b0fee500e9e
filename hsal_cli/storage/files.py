"""Reading regular files only, writing files whole or not at all, removing only what hsal made, and digests."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli.errors import FileError
from hsal_cli.typed import KINDS, regular
from hsal_cli.words import slip

if TYPE_CHECKING:
    import numpy as np

# What each picture, page and animation that hsal writes says in its first bytes: a PNG's text, a page's generator, a GIF's comment.
MARKS = {
    ".png": re.compile(rb"Software\x00hsal "),
    ".html": re.compile(rb'<meta name="generator" content="hsal '),
    ".svg": re.compile(rb"<!-- hsal "),
    ".pdf": re.compile(rb"%PDF-[0-9.]+\n% hsal "),
    ".gif": re.compile(rb"\x21\xfe.hsal ", re.DOTALL),
}
MARKED_BYTES = 4096
MOST_BESIDE = 5000  # names that are looked at for one that is meant
MOST_UNPACKED = 4  # times a file's length; torch.save packs nothing


def load_tensors(source: Path) -> Any:
    """What torch.save wrote into a file, on the CPU, without running code that it may hold.

    Raises:
        ValueError: it unpacks to far more than it is long, which torch.save packs none to; what torch and its unpickler raise besides.
    """
    import torch

    with regular(source).open("rb") as stream:  # opened by Python: torch opens no path whose bytes are not UTF-8
        length = stream.seek(0, os.SEEK_END)
        if zipfile.is_zipfile(stream):
            unpacked = sum(entry.file_size for entry in zipfile.ZipFile(stream).infolist())
            if unpacked > MOST_UNPACKED * length:
                raise ValueError(f"it unpacks to {unpacked:,} bytes from {length:,}")
        stream.seek(0)
        return torch.load(stream, map_location="cpu", weights_only=True)


def named(folder: Path, name: Any, a_folder: bool = False) -> Path:
    """The file (or folder) in a folder that a document names: a plain name, of a regular file that lies there itself.

    One that is missing passes: what opens it says so itself.

    Raises:
        FileError: no plain name (absolute, with `/` or `..`), or not a regular file (or folder) but a link, a pipe or a device.
    """
    hint = f"such names come with a folder from elsewhere: look at {folder} before you use it"
    if not is_plain_name(name):
        raise FileError(f"a document in {folder} names the file {str(name)[:80]!r}, which is not a plain name", hint)
    path = folder / name
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return path
    if not (stat.S_ISDIR(kind) if a_folder else stat.S_ISREG(kind)):
        what = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", **KINDS}.get(stat.S_IFMT(kind), "something else")
        hint = f"if you trust it, use a copy that holds the files themselves: cp -rL {folder} COPY" if stat.S_ISLNK(kind) else hint
        raise FileError(f"{path} is {what}, not a {'folder' if a_folder else 'regular file'}", hint)
    return path


def is_plain_name(name: Any) -> bool:
    """Whether a value names an entry of a folder, and nothing outside of it, on any system."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]|^[A-Za-z]:", name)


def bears_mark(file: Path) -> bool:
    """Whether a path is itself (not through a link) a picture, an animation or a page that hsal wrote, known by the mark in it."""
    mark = MARKS.get(file.suffix.lower())
    try:
        if mark is None or not stat.S_ISREG(os.lstat(file).st_mode):
            return False
        with file.open("rb") as stream:
            return mark.search(stream.read(MARKED_BYTES)) is not None
    except (OSError, ValueError):
        return False


def did_you_mean(missing: Path) -> str:
    """ "; did you mean X?" for the end of a hint, X being what lies where a path leads, and is called nearly so; "" where nothing is."""
    try:
        names = sorted(entry.name for entry in itertools.islice(os.scandir(missing.parent), MOST_BESIDE) if entry.name[0] != ".")
    except OSError:
        return ""
    near = [name for name in names if slip(name, missing.name) or Path(name).stem == missing.stem]
    best = difflib.get_close_matches(missing.name, near, n=1, cutoff=0)
    return f"; did you mean {missing.with_name(best[0])}?" if best else ""


def refuse_foreign(target: Path) -> None:
    """Keeps hsal from replacing a picture, an animation or a page that it did not make, or a link; by FileError."""
    if os.path.lexists(target) and not bears_mark(target):
        raise FileError(f"{target} exists and was not made by hsal, so it is not replaced", "name another place with --out")


def remove_marked(folder: Path, names: Sequence[str]) -> None:
    """Removes those of the named files of a folder that bear hsal's mark; others, and those behind a link, stay; may raise OSError."""
    for name in names:
        if is_plain_name(name) and not folder.is_symlink() and bears_mark(folder / name):
            (folder / name).unlink(missing_ok=True)


def refuse_link(path: Path) -> None:
    """Refuses a link, by FileError: nothing is removed or replaced in another place than the one that was named."""
    if path.is_symlink():
        where = path.resolve()
        raise FileError(
            f"{path} is a link to {where}, and nothing is removed or replaced through a link",
            f"remove the link, or name {where} itself",
        )


def own_pictures(folder: Path) -> list[Path]:
    """The PNG files of a folder that hsal wrote, known by their mark; of a folder that is not there, or is a link, none."""
    return [] if folder.is_symlink() else [picture for picture in folder.glob("*.png") if bears_mark(picture)]


def remove_pictures(folder: Path, keep: Sequence[str] = ()) -> None:
    """Removes the PNG files of a folder that hsal wrote, known by their mark, but those named; of a folder that is not there, none."""
    remove_marked(folder, [picture.name for picture in own_pictures(folder) if picture.name not in keep])


def digest_of(document: Any) -> str:
    """sha256 of a document's canonical JSON, as hexadecimal."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(source: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal."""
    with regular(source).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_array(values: np.ndarray) -> str:
    """sha256 of an integer array's shape and values, whatever its integer type."""
    return hashlib.sha256(f"{values.shape}".encode() + values.astype("<i8").tobytes()).hexdigest()
