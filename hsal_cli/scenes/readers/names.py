"""The files below a folder, and the one image that a name in labels or in a list means.

A folder that is named counts: an image of the same name in another folder is never taken instead. Names are compared as NFC, with \\ as /,
and with %20 undone; where there is no such image, without regard to capitals, and with another ending of the same format.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from hsal_cli.errors import FileError
from hsal_cli.scenes.readers.labels import SPLITS
from hsal_cli.storage.files import bears_mark, did_you_mean

IGNORED = ("__macosx", "thumbs.db", "desktop.ini")
NO_PICTURES = (".txt", ".xml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".yaml", ".yml", ".names", ".md", ".cache")
UNSIGNED = ("TGA",)  # formats that do not tell by their first bytes
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "image_path", "filepath", "file_path", "image_name", "imagename", "img")
IDS = ("image_id", "imageid", "name", "id")  # may be another name than the file's
IMAGE_COLUMNS += IDS
Common = tuple[str, str]
UPLOAD = re.compile(r"^(?:.*/)?upload/(?:\d+/)?[0-9a-f]{8}-(?=[^/]+$)")  # what Label Studio puts before a name


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, through links too; broken links as well, but no devices and pipes.

    Names that begin with a dot, and what macOS and Windows leave behind, are passed over.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _ignored(name))
        for path in (os.path.join(place, name) for name in sorted(files) if not _ignored(name)):
            if os.path.isfile(path) or not os.path.exists(path):
                yield Path(path)


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in IGNORED


@functools.cache
def endings(formats: tuple[str, ...]) -> dict[str, str]:
    """The endings of names that Pillow knows for these formats, such as ".jpg": "JPEG"."""
    Image.init()
    return {ending: kind for ending, kind in sorted(Image.registered_extensions().items()) if kind in formats}


def _is_picture(path: Path, formats: tuple[str, ...]) -> bool:
    """By its ending; where that is no picture's, by its content, unless it is that of labels. What hsal drew beside them is none."""
    ending = path.suffix.lower()
    if bears_mark(path):
        return False
    if ending in endings(formats) or ending in NO_PICTURES:
        return ending in endings(formats)
    Image.init()
    try:
        with Image.open(path, formats=[name for name in formats if name in Image.OPEN and name not in UNSIGNED]):
            return True
    except Exception:  # Pillow raises almost anything on what is no picture
        return False


def plain(name: str) -> str:
    """A name as it is compared: NFC, / between folders, without ./ in front, an address's scheme or what Label Studio adds."""
    text = unicodedata.normalize("NFC", name.strip().lstrip("\ufeff")).replace("\\", "/")
    text = re.sub(r"^.*/data/local-files/\?d=", "", text)
    text = re.sub(r"^https?://[^/]*([^?#]*).*", r"\1", text).removeprefix("file://")
    while text.startswith("./"):
        text = text[2:]
    return re.sub(r"/+(?:\./)*", "/", text)


def _foreign(name: str) -> bool:
    """A path of the machine that labels were made on."""
    return name.startswith(("/", "../")) or re.match(r"[A-Za-z]:/", name) is not None


def images_of(row: Mapping[str, Any]) -> list[str]:
    """The images that a row of a table (column in lower case -> value) names: none, one, or, where its columns differ, several."""
    named = {key: str(row[key]).strip() for key in IMAGE_COLUMNS if isinstance(row.get(key), str | int) and str(row[key]).strip()}
    first = next(iter(named.values()), None)
    others = [name for key, name in named.items() if key not in IDS and not name.isdecimal() and not _same_file(name, first)]
    return [] if first is None else [first, *others]


def _same_file(one: str, other: str) -> bool:
    """Whether two names may be of one file: the folders, and an ending, may be left out of one."""
    last, its = (UPLOAD.sub("", plain(urllib.parse.unquote(plain(name)))).rpartition("/")[2].casefold() for name in (one, other))
    return last == its or PurePosixPath(last).stem == its or PurePosixPath(its).stem == last


class Pictures:
    """The images of some formats (Pillow's names) below a folder, at any depth, found by what labels call them.

    Attributes:
        paths: all of them, sorted.

    Raises:
        FileError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: Path, formats: tuple[str, ...]):
        if not folder.is_dir():
            wrong = "is not a folder" if folder.exists() else "does not exist"
            raise FileError(f"the image folder {folder} {wrong}", f"name it with --images{did_you_mean(folder)}")
        self.folder = folder
        self.kinds = endings(formats)
        self.paths, self.rest = [], set()
        for path in files_below(folder):
            if _is_picture(path, formats):
                self.paths.append(path)
            else:
                self.rest.add(plain(path.relative_to(folder).as_posix()))
        if not self.paths:
            raise FileError(
                f"{folder} holds no image",
                "put images there that end in .png, .jpg, .webp, .gif or .tif; docs/own-images.md names more",
            )
        self.root = plain(Path(os.path.abspath(folder)).as_posix())
        self.relative = {path: plain(path.relative_to(folder).as_posix()) for path in self.paths}
        self.folders = {parent.as_posix() for name in self.relative.values() for parent in PurePosixPath(name).parents}
        # How names are compared, and the name of the file alone in that form -> images.
        self.by: dict[tuple[str, str], list[Path]] = {}
        for path, name in self.relative.items():
            last = name.rpartition("/")[2]
            stem = self._stem(last)
            for key in (("name", last), ("stem", stem), ("folded", self._folded(last)), ("folded stem", stem.casefold())):
                self.by.setdefault(key, []).append(path)

    def _stem(self, name: str) -> str:
        """A name without the ending of an image, if it has one."""
        ending = PurePosixPath(name).suffix
        return name.removesuffix(ending) if ending.lower() in self.kinds else name

    def _folded(self, name: str) -> str:
        """A name without regard to capitals, its ending that of its format."""
        stem = self._stem(name)
        return f"{stem}.{self.kinds.get(name[len(stem) :].lower(), '')}".casefold()

    def find(self, name: str, places: Sequence[Path] = (), stem: bool = False, common: Common = ("", "")) -> Path:
        """The image of that name: a path, a name anywhere below the folder, or a name without its ending.

        Args:
            places: where it is, if it lies there: paths, with their endings or without.
            stem: the name has no ending, whatever it looks like.
            common: see `common_folders`.

        Raises:
            LookupError: there is none, or there are several.
        """
        for place in places:
            inside = plain(os.path.abspath(place)).removeprefix(self.root + "/")
            if not inside.startswith("/") and (found := self._at(inside, stem)):
                return self._only(found)
        asked = plain(name)
        meant = plain(urllib.parse.unquote(asked))
        for text in dict.fromkeys((asked, meant, UPLOAD.sub("", asked), UPLOAD.sub("", meant))):
            text = text.removeprefix(self.root + "/")
            if text and (found := self._at(text, stem) or self._within(text, stem, common[_foreign(text)])):
                return self._only(found)
        raise LookupError(self._why_not(asked, stem))

    @staticmethod
    def _only(found: list[Path]) -> Path:
        if len(found) > 1:
            raise LookupError("several images of that name; a path would tell")
        return found[0]

    def _called(self, last: str, stem: bool) -> Iterator[list[Path]]:
        """The images of that file name: as it stands, without its ending, and as `_folded` compares them."""
        keys = [("stem", last), ("name", last)] if stem else [("name", last), ("stem", last)]
        keys += [("folded", self._folded(last)), *([("folded stem", last.casefold())] if stem or self._stem(last) == last else [])]
        yield from (self.by.get(key, []) for key in keys)

    def _at(self, name: str, stem: bool) -> list[Path]:
        """The images at exactly that path below the folder."""
        above, _, last = name.rpartition("/")
        for paths in self._called(last, stem):
            if found := [path for path in paths if self.relative[path].rpartition("/")[0] == above]:
                return found
        return []

    def _ending(self, name: str, stem: bool, reaching: bool) -> list[Path]:
        """The images whose path, that of the folder before it, ends so; if `reaching`, the name must reach into the folder's own path."""
        above, _, last = name.rpartition("/")
        for paths in self._called(last, stem):
            ours = {path: f"{self.root}/{self.relative[path]}".rpartition("/")[0] for path in paths}
            found = [path for path in paths if ours[path].endswith("/" + above)]
            if reaching:
                found = [path for path in found if self.relative[path].count("/") < name.count("/")]
            if found:
                return found
        return []

    def _within(self, name: str, stem: bool, common: str) -> list[Path]:
        """The images whose path ends so, or that lie so below the folder once the folders of another machine are taken away."""
        above, _, last = name.rpartition("/")
        if not above:
            return next((paths for paths in self._called(last, stem) if paths), [])
        parts = name.split("/")
        for gone in range(len(parts) - 1):
            if gone == 1 and parts[0] in self.folders:
                return []  # such a folder is here, and the image is not in it
            rest = "/".join(parts[gone:])
            if (found := self._at(rest, stem) or self._ending(rest, stem, gone > 0)) and not self._other_split("/".join(parts[:gone])):
                return found
        if parts[0] in self.folders:
            return []
        if not common or PurePosixPath(common).name in self.folders or self._other_split(common):
            return []
        rest = name.removeprefix(common + "/")
        return self._at(rest, stem) or (self._within(rest, stem, "") if _foreign(name) and "/" not in rest else [])

    def _other_split(self, common: str) -> bool:
        """Whether these folders and the images' folder, or the one above it, name different splits, such as val and train."""
        theirs, ours = ({part.lower() for part in path.split("/")[-2:]} & set(SPLITS) for path in (common, self.root))
        return bool(theirs and ours and theirs != ours)

    def _why_not(self, name: str, stem: bool) -> str:
        if name in self.rest:
            return "not a picture of a format that is read"
        if os.path.isdir(self.folder / name):
            return "a folder, not a picture"
        last = name.rpartition("/")[2]
        if any(self._called(last, stem)):
            return "no such image in that folder; one of that name is in another"
        return "no such image; one with another ending is there" if ("stem", self._stem(last)) in self.by else "no such image"


def common_folders(names: Iterable[str]) -> Common:
    """The folders that all names of a source begin with: of the names that are relative, and of those that another machine wrote."""
    texts = [plain(name) for name in names]
    return tuple(_common([text for text in texts if _foreign(text) == foreign]) for foreign in (False, True))


def _common(names: list[str]) -> str:
    same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*[name.split("/")[:-1] for name in names], strict=False))
    return "/".join(level[0] for level in same)
