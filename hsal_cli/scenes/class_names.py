"""Names of the classes of the published digit sources, and choosing some of them."""

from __future__ import annotations

import string
from pathlib import Path

from hsal_cli.errors import FileError, UsageError
from hsal_cli.storage.files import regular

FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"  # letters whose two cases look alike share the upper one
EMNIST = {
    "letters": string.ascii_uppercase,
    "balanced": MERGED,
    "bymerge": MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
}


def known_names(folder: Path | None, numbers: list[int]) -> list[str]:
    """The names of a digit source's classes.

    EMNIST's mapping file is read where it lies beside the set; else sets are known by their files' names (EMNIST) or by a folder's
    (Fashion-MNIST and KMNIST share MNIST's file names); else classes are named by their numbers.

    Args:
        folder: the source's folder, or the folder and the beginning of the files' names; None for strokes.
        numbers: the class numbers in the files, sorted.

    Raises:
        FileError: a mapping file that cannot be read.
    """
    plain = [str(number) for number in numbers]
    if folder is None:
        return plain
    root, start = (folder, "") if folder.is_dir() else (folder.parent, folder.name)
    files = sorted(path.name for path in root.iterdir() if path.name.startswith(start) and not path.name.startswith("."))
    mapping = [name for name in files if name.endswith("mapping.txt")]
    names: dict[int, str] = {}
    if len(mapping) == 1:
        names = _mapping(root / mapping[0])
    else:
        sets = {name.split("-")[1] for name in files if name.startswith("emnist-")}
        if len(sets) == 1 and (letters := EMNIST.get(sets.pop())):
            first = 1 if letters == EMNIST["letters"] else 0
            names = {first + place: letter for place, letter in enumerate(letters)}
        elif numbers == list(range(10)):
            parts = " ".join(folder.resolve().parts[-3:]).lower()
            known = FASHION if "fashion" in parts else KUZUSHIJI if "kmnist" in parts or "kuzushiji" in parts else ()
            names = dict(enumerate(known))
    found = [names.get(number, str(number)) for number in numbers]
    return found if len(set(found)) == len(found) else plain


def _mapping(path: Path) -> dict[int, str]:
    """Reads EMNIST's mapping: a line a class, its number and the character codes that it stands for."""
    try:
        lines = [[int(word) for word in line.split()] for line in regular(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        return {number: chr(codes[0]) for number, *codes in lines}
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise FileError(f"cannot read the class names in {path}: {error}", "mend or remove that file") from error


def split_names(text: str, what: str) -> list[str]:
    """Takes a list of names with commas between them apart.

    Raises:
        UsageError: an empty name, or one that stands twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{what} = {text}: a name is empty or stands twice", f"give --{what.replace('_', '-')} names such as a,b,c")
    return names


def pick(names: list[str], wanted: str) -> list[int]:
    """The classes of these names or indices, in the order in which they were asked for; names come first where a number is both.

    Raises:
        UsageError: a class that there is not, or one that is asked for twice.
    """
    chosen = []
    for word in split_names(wanted, "classes"):
        if word in names:
            chosen.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            chosen.append(int(word))
        else:
            raise UsageError(f"classes = {wanted}: there is no class {word}", f"take some of: {', '.join(names)}")
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"classes = {wanted} names a class twice", "name each class once")
    return chosen
