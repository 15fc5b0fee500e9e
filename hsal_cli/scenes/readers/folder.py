"""A folder of images and their labels become a scene file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.class_names import split_names
from hsal_cli.scenes.readers.annotations import Labelled, read_labels
from hsal_cli.scenes.readers.gather import Example, no_image_left, parts_of
from hsal_cli.scenes.scene_file import write_scenes
from hsal_cli.scenes.settings import FolderSettings
from hsal_cli.settings import as_dict
from hsal_cli.storage.files import regular

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
Reader = Callable[[Path], Image.Image]
MOST_OBJECTS = 64  # in an image


class Skipped:
    """What was left out, and why."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def __call__(self, what: str, reason: str) -> None:
        self.rows.append({"what": what, "reason": reason})


class ImageFolder:
    """Finds images by what labels call them: a path, a name anywhere below the folder, or a name without its ending.

    Raises:
        FileError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            wrong = "is not a folder" if folder.exists() else "does not exist"
            raise FileError(f"the image folder {folder} {wrong}", "name it with --images")
        self.folder = folder
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        if not self.paths:
            raise FileError(f"{folder} holds no image", f"put images there that end in {', '.join(ENDINGS)}")
        self.by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            for key in {path.name, path.stem, path.relative_to(folder).as_posix(), path.relative_to(folder).with_suffix("").as_posix()}:
                self.by_name.setdefault(key, []).append(path)

    def find(self, name: str) -> Path:
        """The image of that name.

        Raises:
            FileError: there is none, or there are several.
        """
        name = name.replace("\\", "/")
        for key in dict.fromkeys((name.removeprefix("./"), name.rpartition("/")[2])):
            found = self.by_name.get(key, [])
            if len(found) == 1:
                return found[0]
            if found:
                raise FileError("several images of that name", "give paths")
        raise FileError("no such image", "check the name")


def make_from_folder(settings: FolderSettings, out: Path, read_image: Reader, reporter: Reporter = SILENT) -> list[dict[str, str]]:
    """Makes a scene file of a user's images.

    Args:
        settings: where images and labels are, which are for testing, how large.
        out: the file to write; one that exists is replaced.
        read_image: reads a picture as RGB, or raises FileError: `vision.images.read_image`.
        reporter: progress.

    Returns:
        What was skipped: a dict of `what` and `reason` each.

    Raises:
        FileError: labels or images are missing, or nothing is left; UsageError: an unknown class, or no folder is named; Interrupted:
            stopped on request.
    """
    settings.check_named()
    skipped = Skipped()
    images = ImageFolder(Path(settings.images).expanduser())
    labelled, names = read_labels(Path(settings.labels).expanduser(), settings.labels_format, skipped)
    found = _matched(labelled, images, skipped, "train" if settings.test_labels else None)
    if settings.test_labels:
        more, others = read_labels(Path(settings.test_labels).expanduser(), settings.labels_format, skipped)
        elsewhere = ImageFolder(Path(settings.test_images).expanduser()) if settings.test_images else images
        found |= _matched(more, elsewhere, skipped, "test")
        names += [name for name in others if name not in names]
    elif settings.test_images:
        elsewhere = ImageFolder(Path(settings.test_images).expanduser())
        found |= _matched(labelled, elsewhere, Skipped(), "test")
    _not_labelled(images, found, skipped)
    if settings.classes:
        wanted = split_names(settings.classes, "classes")
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise UsageError(f"classes = {settings.classes}: no label is {unknown[0]}", f"take some of: {', '.join(names)}")
        names = wanted
    splits = _splits(_readable(found, names, read_image, skipped, reporter), settings)
    every = [example for examples in splits.values() for example in examples]
    boxed = settings.boxes and all(example.boxes is not None for example in every)
    without = sum(example.boxes is None for example in every)
    if settings.boxes and 0 < without < len(every):
        skipped("all boxes", f"{without:,} of {len(every):,} images have an object without one")
    most = max(len(example.labels) for example in every)
    side = settings.image_size
    config = {"dataset": "folder", **as_dict(settings), "skipped": len(skipped.rows), "boxes": boxed}
    with write_scenes(out, config, names) as writer, reporter.track("Reading images", len(every), "images") as advance:
        for split, examples in splits.items():
            parts = parts_of(examples, side, settings.fit, most, boxed, reporter, advance)
            writer.write_split(split, parts, (len(examples), side, side, 3))
    return skipped.rows


def _matched(labelled: list[Labelled], images: ImageFolder, skipped: Skipped, split: str | None) -> dict[Path, Labelled]:
    """Images by their path; those that the labels do not find are skipped."""
    found: dict[Path, Labelled] = {}
    for row in labelled:
        try:
            path = images.find(row.image)
        except FileError as error:
            skipped(row.image, error.message)
            continue
        if path in found:
            skipped(row.image, "labelled twice under different names")
            continue
        found[path] = Labelled(row.image, row.objects, split or row.split, row.shares)
    return found


def _not_labelled(images: ImageFolder, found: dict[Path, Labelled], skipped: Skipped) -> None:
    for path in images.paths:
        if path not in found:
            skipped(path.relative_to(images.folder).as_posix(), "no label")


def _readable(
    found: dict[Path, Labelled], names: list[str], read_image: Reader, skipped: Skipped, reporter: Reporter
) -> list[tuple[Path, Labelled, Example]]:
    """The images that can be read and hold an object of a wanted class."""
    index = {name: place for place, name in enumerate(names)}
    kept = []
    with reporter.track("Checking images", len(found), "images") as advance:
        for path, row in found.items():
            reporter.check_stop("nothing was written; run the same command again")
            advance(1)
            objects = [(index[name], box) for name, box in row.objects if name in index]
            if not objects:
                skipped(path.name, "no object of a wanted class" if row.objects else "no object")
                continue
            if len(objects) > MOST_OBJECTS:
                skipped(path.name, f"more than {MOST_OBJECTS} objects")
                continue
            try:
                size = read_image(path).size
            except FileError as error:
                skipped(path.name, error.message.replace(str(path), "it"))
                continue
            boxes = None
            if all(box is not None for _, box in objects):
                boxes = np.array([box for _, box in objects], np.float64) * (np.array([*size, *size]) if row.shares else 1.0)
                limits = np.array([*size, *size])
                outside = (np.clip(boxes, 0, limits)[:, 2:] <= np.clip(boxes, 0, limits)[:, :2]).any(axis=1)
                if outside.any():
                    skipped(path.name, "a box outside of the image")
                    continue
            kept.append((path, row, Example(path.name, functools.partial(read_image, path), [label for label, _ in objects], boxes)))
    return kept


def _splits(kept: list[tuple[Path, Labelled, Example]], settings: FolderSettings) -> dict[str, list[Example]]:
    """Shares the images out: as the labels or the list say, else by a fraction, drawn from the names alone.

    Raises:
        FileError: nothing is left to train on, or the list names an unknown image.
    """
    where = str(settings.images)
    chosen: set[str] = set()
    if settings.test_list:
        chosen = _listed(Path(settings.test_list).expanduser(), [path for path, _, _ in kept])
    says = bool(settings.test_list) or any(row.split for _, row, _ in kept)
    if says:
        tested = {path for path, row, _ in kept if row.split == "test" or path.as_posix() in chosen}
    else:
        count = round(len(kept) * settings.test_share)
        order = sorted(kept, key=lambda item: hashlib.sha256(f"{settings.seed} {item[2].name}".encode()).digest())
        tested = {path for path, _, _ in order[:count]}
    splits = {
        "train": [example for path, _, example in kept if path not in tested],
        "test": [example for path, _, example in kept if path in tested],
    }
    if not splits["train"]:
        raise no_image_left(where, "train")
    return {name: examples for name, examples in splits.items() if examples}


def _listed(source: Path, paths: list[Path]) -> set[str]:
    """The paths of the images that a list names."""
    try:
        lines = [line.strip() for line in regular(source).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the list of test images {source}: {error}", "name a text file, an image a line") from error
    wanted = {key for line in lines for key in (line, Path(line).name, Path(line).stem)}
    found = {path.as_posix() for path in paths if path.name in wanted or path.stem in wanted}
    if not found:
        raise FileError(f"{source} names no image that is there", "name images as the labels do, one a line")
    return found
