"""A folder of images and their labels become a scene file."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.gather import Example, parts_of
from hsal_cli.scenes.readers.labels import Labelled, Notes, Thing, class_name, faulty, text_of
from hsal_cli.scenes.readers.names import Common, Pictures, common_folders
from hsal_cli.scenes.readers.read import read_labels
from hsal_cli.scenes.scene_file import write_scenes
from hsal_cli.scenes.settings import FolderSettings, split_names
from hsal_cli.scenes.street.frames import Finder, framed
from hsal_cli.settings import as_dict
from hsal_cli.storage.files import did_you_mean

Reader = Callable[[Path], Image.Image]
MISSING = ("nan", "none", "null", "na", "n/a", "<na>")  # how tables write that there is no value
MOST_OBJECTS = 64  # in an image
LONG = 1.5  # times as long as wide that half of the pictures are, from which on their squashing is told of; at 4:3 padding named less
ORIENTATION = 0x0112  # EXIF's tag: how a picture is to be turned before it is shown
TURNED = (5, 6, 7, 8)  # orientations in which width and height change places


def make_from_folder(
    settings: FolderSettings,
    out: Path,
    read_image: Reader,
    formats: tuple[str, ...],
    reporter: Reporter = SILENT,
    notes: Notes | None = None,
    finder: Finder | None = None,
) -> Notes:
    """Makes a scene file of a user's images.

    Args:
        settings: where images and labels are, which are for testing, how large.
        out: the file to write; one that exists is replaced.
        read_image: reads a picture upright and as RGB, or raises FileError: `vision.images.read_image`.
        formats: Pillow's names of the formats that it reads: `vision.images.FORMATS`.
        reporter: progress.
        notes: hears of what is skipped as it comes, also where an error ends the work.
        finder: finds the frames where they are to be found.

    Returns:
        What was skipped, with reasons, and what was taken for granted.

    Raises:
        FileError: labels or images are missing, or nothing is left; UsageError: an unknown class, or no folder is named; Interrupted:
            stopped on request.
    """
    settings.check_named()
    notes = Notes() if notes is None else notes
    images = Pictures(Path(settings.images).expanduser(), formats)
    elsewhere = Pictures(Path(settings.test_images).expanduser(), formats) if settings.test_images else images
    labelled, names = read_labels(Path(settings.labels).expanduser(), settings.labels_format, notes)
    if settings.test_labels:
        more, others = read_labels(Path(settings.test_labels).expanduser(), settings.labels_format, notes)
        found = _matched(labelled, {"train": images}, notes)
        tests = _matched(more, {"test": elsewhere}, notes)
        for path in found.keys() & tests.keys():
            notes.skip(path.name, "labelled for training and for testing: taken for testing alone")
        found |= tests
        names += [name for name in others if name not in names]
    else:
        found = _matched(labelled, {"": images, "test": elsewhere} if settings.test_images else {"": images}, notes)
    _not_labelled(images, found, notes)
    if elsewhere is not images:
        _not_labelled(elsewhere, found, notes)
    odd = [name for name in names if name.casefold() in MISSING]
    if odd:
        notes.remark(f"taken as names of classes, though tables write missing values so: {', '.join(odd)}")
    if settings.classes:
        wanted = [class_name(name) for name in split_names(settings.classes, "classes")]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise UsageError(f"classes = {settings.classes}: no label is {unknown[0]}", f"take some of: {', '.join(names)}")
        names = wanted
    kept = _readable(found, names, read_image, formats, settings, notes, reporter)
    splits = _splits(kept, images, settings, notes)
    every = [example for examples in splits.values() for example in examples]
    if not any(example.labels for example in every):
        raise FileError(f"{settings.labels}: none of its {len(every):,} images has an object", "see that the labels list objects")
    without = sum(example.boxes is None for example in every)
    boxed = settings.boxes and not without
    if without and settings.frame == "number":
        raise FileError(
            f"frame = number, but {without:,} of {len(every):,} images have an object without a box",
            "give every object one, or take --frame image",
        )
    if without and settings.boxes and any(example.labels for example in every if example.boxes is not None):
        notes.remark(f"no boxes are kept: {without:,} of {len(every):,} images have an object without one")
    most = max(len(example.labels) for example in every)
    side = settings.image_size
    config = {"dataset": "folder", **as_dict(settings), "skipped": len(notes.skipped), "boxes": boxed}
    config |= {"found": dict(finder.config)} if finder else {}
    with write_scenes(out, config, names) as writer, reporter.track("Reading images", len(every), "images") as advance:
        for split, examples in splits.items():
            jitter = settings.frame_jitter if split == "train" else 0
            shown = framed(examples, settings, split, finder, config.get("found"), settings.seed)
            parts = parts_of(shown, side, settings.fit, most, boxed, reporter, advance)
            writer.write_split(split, parts, (len(examples) * max(1, jitter), side, side, 3))
    return notes


def _matched(labelled: list[Labelled], folders: dict[str, Pictures], notes: Notes) -> dict[Path, Labelled]:
    """Images by their path, with all that labels say of each; names without an image are skipped.

    Args:
        labelled: as the labels have them.
        folders: where the images are, by their split; "": as the labels say.
    """
    common = common_folders(row.image for row in labelled)
    claims: dict[Path, list[Labelled]] = {}
    split_of: dict[Path, str] = {}
    for row in labelled:
        there, wrong = {}, ""
        for split, images in folders.items():
            try:
                there[_find(row, images, common)] = split
            except LookupError as error:
                wrong = wrong or str(error)
        for path, split in there.items():
            claims.setdefault(path, []).append(row)
            split_of[path] = split
            if len(there) > 1:
                claims[path].append(Labelled(row.image, [faulty(row.image, "there is an image of that name in both folders")], whole=False))
        if not there:
            notes.skip(row.image, wrong)
    return {path: _joined(rows, split_of[path]) for path, rows in claims.items()}


def _find(row: Labelled, images: Pictures, common: Common) -> Path:
    """The image that a row is about.

    Raises:
        LookupError: there is none, or it cannot be told which.
    """

    def called_after() -> Path | None:
        try:
            return images.find(row.other, [place.with_name(row.other) for place in row.places], stem=True) if row.other else None
        except LookupError:
            return None

    try:
        path = images.find(row.image, row.places, row.stem, common)
    except LookupError:
        if other := called_after():
            return other
        raise
    if (rival := called_after()) not in (None, path):
        raise LookupError(f"its labels lie in a file that is called after {rival.name}")
    return path


def _joined(rows: list[Labelled], split: str) -> Labelled:
    """All that labels say of one image; where they contradict themselves, that is a fault of it."""
    one = Labelled(
        rows[0].image, [item for row in rows for item in row.objects], size=rows[0].size, shares=rows[0].shares, first=rows[0].first
    )
    splits = {row.split for row in rows if row.split}
    one.split = split or next(iter(splits), None)
    if len(rows) > 1 and any(row.whole for row in rows):
        one.objects.append(faulty(one.image, "listed twice"))
    elif not split and len(splits) > 1:
        one.objects.append(faulty(one.image, "in both splits"))
    elif len({row.size for row in rows if row.size}) > 1:
        one.objects.append(faulty(one.image, "of two sizes, as the labels say"))
    elif len({row.shares for row in rows if any(item.box for item in row.objects)}) > 1:
        one.objects.append(faulty(one.image, "boxes in px and as shares"))
    for row in rows:
        one.shares |= row.shares
        one.size = one.size or row.size
    return one


def _not_labelled(images: Pictures, found: dict[Path, Labelled], notes: Notes) -> None:
    for path in images.paths:
        if path not in found:
            notes.skip(path.relative_to(images.folder).as_posix(), "no label")


def _readable(
    found: dict[Path, Labelled],
    names: list[str],
    read_image: Reader,
    formats: tuple[str, ...],
    settings: FolderSettings,
    notes: Notes,
    reporter: Reporter,
) -> list[tuple[Path, Labelled, Example]]:
    """The images that can be read, and of which every object of a wanted class can be.

    Raises:
        FileError: there is none.
    """
    index = {name: place for place, name in enumerate(names)}
    kept = []
    judge = _Boxes(formats)
    with reporter.track("Checking images", len(found), "images") as advance:
        for path, row in found.items():
            reporter.check_stop("nothing was written; run the same command again")
            advance(1)
            objects = [item for item in row.objects if item.name is None or item.name in index]
            faults = [(item.where, item.fault or (item.box_fault if settings.boxes else None)) for item in objects]
            if any(reason for _, reason in faults):
                for where, reason in faults:
                    if reason:
                        notes.skip(path.name if where in ("", path.name) else f"{path.name} ({where})", reason)
                judge.refused += not any(item.fault for item in objects)
                continue
            if row.objects and not objects:
                notes.skip(path.name, "no object of a wanted class")
                continue
            if len(objects) > MOST_OBJECTS:
                notes.skip(path.name, f"more than {MOST_OBJECTS} objects")
                continue
            boxes = None
            try:
                size = read_image(path).size
                judge.shapes.append(max(size) / min(size))
            except FileError as error:
                reason = error.message.replace(f"picture {path}", "it").replace(str(path), "it")
                notes.skip(path.name, reason if path.exists() else "a link that leads nowhere")
                continue
            if settings.boxes and all(item.box is not None for item in objects):
                try:
                    boxes = judge.in_px(path, row, objects, size)
                except ValueError as error:
                    notes.skip(path.name, str(error))
                    judge.refused += 1
                    continue
            labels = [index[item.name] for item in objects]
            kept.append((path, row, Example(path.name, functools.partial(read_image, path), labels, boxes)))
    judge.tell(notes)
    if settings.fit == "squash" and settings.frame == "image" and kept and (longer := np.median(judge.shapes)) >= LONG:
        reporter.say(f"half of the images are {longer:.1f} times as long as wide or more, and become square: --fit pad keeps their shape")
    if not kept:
        way = "add --no-boxes to keep labels without boxes, or mend them" if judge.refused else "mend the labels, or name other folders"
        raise FileError(f"{settings.images}: none of its images can be used", way)
    return kept


class _Boxes:
    """Holds boxes against their pictures.

    Labels that state the picture's size are held to it: where that is the size before EXIF's turn, the boxes are turned along.

    Args:
        formats: of the pictures.

    Attributes:
        refused: pictures of which nothing but the boxes cannot be used.
        unsure: pictures that EXIF turns, with boxes of which it is not known whether they are turned.
        leaving: pictures with boxes that reach beyond them.
        double: pictures with two objects of one class in the same box.
        shapes: how many times as long as wide each picture is, or as wide as long.
    """

    def __init__(self, formats: tuple[str, ...]):
        self.formats = [name for name in formats if name in Image.OPEN]
        self.refused = self.unsure = self.leaving = self.double = 0
        self.shapes: list[float] = []

    def in_px(self, path: Path, row: Labelled, objects: list[Thing], size: tuple[int, int]) -> np.ndarray:
        """Boxes in px of the upright picture.

        Args:
            size: the upright picture's width and height.

        Returns:
            float (n, 4), cut off at its borders.

        Raises:
            ValueError: they do not fit it.
        """
        boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
        if not len(boxes):
            return boxes
        orientation, raw = self._turn(path)
        turn = False
        if row.size and not _near(row.size, size):
            turn = orientation in TURNED and _near(row.size, raw)
            if not turn:
                stated = f"{row.size[0]:g} x {row.size[1]:g}".replace("nan", "?")
                raise ValueError(f"the labels say {stated} px, the picture has {size[0]} x {size[1]}")
        elif orientation != 1 and (not row.size or orientation not in TURNED or _near(row.size, raw)):
            self.unsure += 1
        if row.shares:
            boxes *= np.array([*raw, *raw] if turn else [*size, *size])
        if turn:
            boxes = turned(boxes, raw, orientation)
        limits = np.array([*size, *size])
        inside = np.clip(boxes, 0, limits)
        if (inside[:, 2:] <= inside[:, :2]).any():
            raise ValueError("a box outside of the image")
        if (np.abs(inside - boxes) > 1 + 0.01 * limits).any():
            self.leaving += 1
        self.double += len({(item.name, item.box) for item in objects}) < len(objects)
        return inside

    def _turn(self, path: Path) -> tuple[int, tuple[int, int]]:
        """EXIF's orientation, 1 where there is none, and the size before it is heeded."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd tags; `read_image` has judged them
            with Image.open(path, formats=self.formats) as image:
                orientation = image.getexif().get(ORIENTATION, 1)
                return orientation if orientation in range(1, 9) else 1, image.size

    def tell(self, notes: Notes) -> None:
        """Says what could not be judged."""
        if self.unsure:
            notes.remark(
                f"pictures that EXIF turns, while the labels do not say whether their boxes are turned: {self.unsure:,}; "
                "taken as of the pictures as they are shown, see --preview"
            )
        if self.leaving:
            notes.remark(f"pictures with boxes that reach beyond them, cut off there: {self.leaving:,}; were they drawn at another size?")
        if self.double:
            notes.remark(f"pictures with two objects of one class in the very same box: {self.double:,}; counted as two")


def _near(one: tuple[float, float], other: tuple[int, int]) -> bool:
    return not any(abs(mine - its) > 1 for mine, its in zip(one, other, strict=True))  # NaN, where nothing is stated, is near to all


def turned(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Boxes of a picture as stored, on the picture as shown.

    Args:
        boxes: float (n, 4) x0, y0, x1, y1 in px.
        size: width and height of the picture as stored, px.
        orientation: EXIF's, 1 to 8.
    """
    width, height = size
    x, y = boxes[:, [0, 2]], boxes[:, [1, 3]]
    x = width - x[:, ::-1] if orientation in (2, 3, 7, 8) else x
    y = height - y[:, ::-1] if orientation in (3, 4, 6, 7) else y
    x, y = (y, x) if orientation in TURNED else (x, y)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def _splits(
    kept: list[tuple[Path, Labelled, Example]], images: Pictures, settings: FolderSettings, notes: Notes
) -> dict[str, list[Example]]:
    """Shares the images out: as the labels or the list say, else by a fraction, drawn from the names alone.

    Raises:
        FileError: nothing is left to train on, or the list names an unknown image.
    """
    chosen = _listed(Path(settings.test_list).expanduser(), images, notes) if settings.test_list else set()
    if settings.test_list or any(row.split for _, row, _ in kept):
        tested = {path for path, row, _ in kept if row.split == "test" or path in chosen}
    else:
        count = round(len(kept) * settings.test_share)
        order = sorted(kept, key=lambda item: hashlib.sha256(f"{settings.seed} {item[2].name}".encode(errors="surrogateescape")).digest())
        tested = {path for path, _, _ in order[:count]}
        if count:
            notes.remark(f"train and test are drawn: {settings.test_share:.0%} of the images to test (--test-share)")
    splits = {
        "train": [example for path, _, example in kept if path not in tested],
        "test": [example for path, _, example in kept if path in tested],
    }
    if not splits["train"]:
        raise FileError(f"all {len(kept):,} images are for testing, and none is left to train on", "say of some that they are for training")
    return {name: examples for name, examples in splits.items() if examples}


def _listed(source: Path, images: Pictures, notes: Notes) -> set[Path]:
    """The images that a list names, one a line, found as the labels' are; those that are not there are skipped.

    Raises:
        FileError: it cannot be read, or none of its names is found.
    """
    if not source.is_file():
        hint = f"name a text file with --test-list, an image a line{did_you_mean(source)}"
        raise FileError(f"the list of test images {source} is not a file", hint)
    lines = [line.strip() for line in text_of(source).split("\n") if line.strip()]
    common, found = common_folders(lines), set()
    for line in lines:
        try:
            found.add(images.find(line, (source.parent / line,), common=common))
        except LookupError as error:
            notes.skip(f"{line} (in {source.name})", str(error))
    if not found:
        raise FileError(f"{source} names no image that is there", "name images as the labels do, one a line")
    return found
