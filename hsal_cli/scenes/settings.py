"""Settings of scene files (section 5, "Datasets"); importing this needs no numpy."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hsal_cli.errors import UsageError
from hsal_cli.settings import SEED_LIMIT, check, setting

DATASETS = ("mnist-multiset", "mnist-set", "mnist-single")
SEARCH = "mnist-search"
RECIPES = {name: name for name in DATASETS} | {"multiset": "mnist-multiset", "set": "mnist-set", "single": "mnist-single"}
RECIPES[SEARCH] = "mnist-multiset"  # with other settings


def made_by(path: Path) -> str:
    """The hint for a scene file that is missing, or that is none: the command that makes it."""
    if path.stem in (*DATASETS, SEARCH, "street-numbers", "svhn-multiset"):
        return f"make it with: hsal make-data {path.stem} --out {shlex.quote(str(path))}"
    return f"of your own images make it with: hsal make-data folder --images DIR --labels FILE --out {shlex.quote(str(path))}"


def frame_of(config: Mapping[str, Any]) -> str:
    """What was cut out of the images of a scene file with this config: image (nothing), number or found."""
    return str(config.get("frame", "image"))


FRAME_HELP = (
    "What is cut out before resizing: image: nothing, the whole image; number: the union of the image's boxes, enlarged by 30% in width "
    "and in height, as the field does: of test images, too, an oracle there; found: the region that a first look finds, without boxes."
)
JITTER_HELP = "Frame number: frames of each training image, shifted and scaled at random (boxes stay within); 0: the exact one."


def check_frame(settings: StreetSettings | SvhnSettings | FolderSettings) -> None:
    """Refuses frames that are to be shifted where none is cut by boxes.

    Raises:
        UsageError: there are.
    """
    if settings.frame_jitter and settings.frame != "number":
        raise UsageError(
            f"frame_jitter = {settings.frame_jitter}, but frame = {settings.frame} cuts nothing out by boxes",
            "add --frame number, or leave it out",
        )


def board_side(cells: int) -> int:
    """Cells along a side of the smallest square board that has so many cells, and one at least."""
    return math.isqrt(max(cells, 1) - 1) + 1


def split_names(text: str, what: str) -> list[str]:
    """Takes a list of names with commas between them apart.

    Raises:
        UsageError: an empty name, or one that stands twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{what} = {text}: a name is empty or stands twice", f"give --{what.replace('_', '-')} names such as a,b,c")
    return names


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """How the images of a data set are composed. The defaults are the paper's recipe for MNIST Multiset."""

    train: int = setting(60_000, "Training images.", low=0, high=100_000_000)
    test: int = setting(10_000, "Test images.", low=0, high=100_000_000)
    image_size: int = setting(100, "Side of the square images, px.", low=8, high=4096)
    count: tuple[int, int] = setting((1, 4), "Fewest and most digits in an image; 0-4 makes some images without any.", low=0, high=64)
    digit_size: tuple[int, int] = setting((20, 50), "Smallest and largest side of a digit, px.", low=4, high=4096)
    clutter: int = setting(8, "Pieces of other digits strewn under the digits.", low=0, high=1000)
    clutter_size: int = setting(5, "Side of a piece of clutter, px; it is cut from glyphs of 28 px.", low=1, high=28)
    placement: Literal["free", "tight", "grid", "authors"] = setting(
        "free",
        "free: uniform, glyphs (28 x 28 px before they are resized) do not overlap; tight: uniform, only their ink's boxes do not, so that "
        "digits may touch; grid: one glyph a cell of the largest digit's size; authors: the layout of the authors' generator, a board of "
        "such cells at the top left, nothing is shrunk.",
    )
    digits: Literal["auto", "mnist", "strokes"] = setting(
        "auto", "Where digits come from: MNIST's IDX files, digits drawn by embedded pen strokes, or MNIST where it can be had."
    )
    mnist_dir: str | None = setting(
        None,
        "Folder of IDX files, gzipped or not (also the environment variable HSAL_MNIST_DIR); where it holds several sets, the folder and "
        "the beginning of the files' names, such as emnist/emnist-letters.",
    )
    classes: str | None = setting(None, "The classes to take, names or indices, with commas between them; unset: all.")
    class_names: str | None = setting(None, "Names of all classes of the digit source, with commas between them; unset: found out.")
    transpose: Literal["auto", "yes", "no"] = setting("auto", "Swap rows and columns of the glyphs; auto: for files named emnist-*.")
    seed: int = setting(0, "Seed of all that is random.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)
        if self.train + self.test == 0:
            raise UsageError("train = 0 and test = 0: no image to make", "ask for at least one image")
        if self.digit_size[1] > self.image_size:
            raise UsageError(
                f"digit_size = {self.digit_size[0]}-{self.digit_size[1]} does not fit into image_size = {self.image_size}",
                "take smaller digits or larger images",
            )
        if self.clutter and self.clutter_size > self.image_size:
            raise UsageError(
                f"clutter_size = {self.clutter_size} does not fit into image_size = {self.image_size}",
                "take smaller clutter or larger images",
            )
        # A board of the smallest digits must hold them all, so that every image that was asked for can be composed.
        across = board_side(self.count[1])
        if self.digit_size[0] * across > self.image_size:
            raise UsageError(
                f"{self.count[1]} digits of {self.digit_size[0]} px do not fit into image_size = {self.image_size} without overlap",
                f"take at most {(self.image_size // self.digit_size[0]) ** 2} digits, or digits from {self.image_size // across} px",
            )
        if self.placement == "authors":
            self._check_boards(across)

    def _check_boards(self, across: int) -> None:
        """The authors' boards shrink nothing, so they must hold every digit at its largest, and every piece of clutter."""
        if self.digit_size[1] * across > self.image_size:
            raise UsageError(
                f"{self.count[1]} digits of up to {self.digit_size[1]} px do not fit on the authors' board of {self.image_size} px",
                f"take digits of at most {self.image_size // across} px, or --placement grid, which makes them smaller",
            )
        if self.clutter and self.clutter_size * board_side(self.clutter) > self.image_size:
            raise UsageError(
                f"{self.clutter} pieces of clutter of {self.clutter_size} px do not fit on the authors' board of {self.image_size} px",
                f"take at most {(self.image_size // self.clutter_size) ** 2} pieces",
            )


@dataclasses.dataclass(frozen=True)
class SearchSettings(SceneSettings):
    """How images to search are composed: 6 to 10 digits, as in the visual search of AdaptiveNN (2025), whose sizes are not stated."""

    train: int = setting(8_000, "Training images.", low=0, high=100_000_000)
    test: int = setting(2_000, "Test images.", low=0, high=100_000_000)
    image_size: int = setting(224, "Side of the square images, px.", low=8, high=4096)
    count: tuple[int, int] = setting((6, 10), "Fewest and most digits in an image.", low=0, high=64)
    digit_size: tuple[int, int] = setting((28, 48), "Smallest and largest side of a digit, px.", low=4, high=4096)


def settings_of(name: str) -> type[SceneSettings]:
    """The settings, with the defaults, of a data set that is composed of digits, one of RECIPES."""
    return SearchSettings if name == SEARCH else SceneSettings


@dataclasses.dataclass(frozen=True)
class StreetSettings:
    """How synthetic street numbers are drawn; they stand in for SVHN (section 5) where its images are not at hand."""

    train: int = setting(33_402, "Training images, by default as many as SVHN has.", low=0, high=100_000_000)
    test: int = setting(13_068, "Test images, likewise.", low=0, high=100_000_000)
    image_size: int = setting(112, "Side that the images are squashed to, px.", low=16, high=1024)
    frame: Literal["image", "number", "found"] = setting("number", FRAME_HELP)
    frame_jitter: int = setting(0, JITTER_HELP, low=0, high=100)
    svhn_labels: str | None = setting(
        None,
        "A JSON file, gzipped or not, of SVHN's labels, boxes and image sizes: image i shows the number of SVHN's image i at its place; "
        "unset: numbers and places are drawn from a model of theirs.",
    )
    typefaces: Literal["auto", "bundled"] = setting(
        "auto",
        "bundled: Pillow's own and the pen strokes, the same everywhere; auto: the system's TrueType fonts too, recorded in the file.",
    )
    seed: int = setting(0, "Seed of all that is random.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)
        check_frame(self)
        if self.train + self.test == 0:
            raise UsageError("train = 0 and test = 0: no image to make", "ask for at least one image")


@dataclasses.dataclass(frozen=True)
class SvhnSettings:
    """How SVHN is read (section 5, "Datasets")."""

    svhn_dir: str = setting("data/svhn", "Folder with train, test (and extra): folders as unpacked, or the .tar.gz archives as published.")
    train: int | None = setting(None, "Training images, the first ones; unset: all.", low=0, high=100_000_000)
    test: int | None = setting(None, "Test images, the first ones; unset: all.", low=0, high=100_000_000)
    extra: bool = setting(False, "Add the images of extra to the training split.")
    image_size: int = setting(112, "Side that the images are brought to, px; the paper's network sees 224.", low=16, high=1024)
    frame: Literal["image", "number", "found"] = setting("number", FRAME_HELP)
    frame_jitter: int = setting(0, JITTER_HELP, low=0, high=100)
    fit: Literal["squash", "pad"] = setting("squash", "squash: the aspect ratio gives way to the square, as in the paper; pad: it is kept.")
    download: bool = setting(False, "Fetch the archives that are missing into svhn_dir; an interrupted download goes on where it was.")
    url: str = setting("http://ufldl.stanford.edu/housenumbers/", "Where the archives are fetched from.")

    def __post_init__(self) -> None:
        check(self)
        check_frame(self)
        if self.train == 0 and self.test == 0:
            raise UsageError("train = 0 and test = 0: no image to read", "ask for at least one image")


@dataclasses.dataclass(frozen=True)
class FolderSettings:
    """How images and labels of one's own become a scene file."""

    images: str | None = setting(None, "Folder of the images.")
    labels: str | None = setting(
        None, "The labels: a CSV, JSONL or COCO JSON file, a data.yaml, or a folder of YOLO text files or Pascal VOC XML."
    )
    labels_format: Literal["auto", "csv", "counts", "jsonl", "coco", "yolo", "voc"] = setting(
        "auto", "What the labels are; auto: by their names. counts: a CSV with a column of counts a class."
    )
    test_images: str | None = setting(None, "Folder of the test images, if they lie elsewhere.")
    test_labels: str | None = setting(None, "The labels of the test images, if they stand elsewhere.")
    test_list: str | None = setting(None, "A text file that names the test images, one a line.")
    test_share: float = setting(0.2, "Share of the images that are set apart for testing where nothing else says which.", low=0, high=0.9)
    classes: str | None = setting(None, "The classes to take, with commas between them; unset: all, in the order of the labels' own list.")
    image_size: int = setting(112, "Side that the images are brought to, px.", low=16, high=1024)
    frame: Literal["image", "number", "found"] = setting("image", FRAME_HELP)
    frame_jitter: int = setting(0, JITTER_HELP, low=0, high=100)
    fit: Literal["squash", "pad"] = setting("squash", "squash: the aspect ratio gives way to the square; pad: it is kept.")
    boxes: bool = setting(True, "Keep the boxes where every object has one.")
    seed: int = setting(0, "Seed of the choice of test images.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)
        check_frame(self)
        if self.frame == "number" and not self.boxes:
            raise UsageError(
                "frame = number, but the boxes by which it is cut out are not wanted", "leave --no-boxes out, or --frame number"
            )

    def check_named(self) -> None:
        """Refuses to go on without a folder of images and labels.

        Raises:
            UsageError: one of the two is not named.
        """
        if not self.images or not self.labels:
            raise UsageError("the images or the labels are not named", "hsal make-data folder --images DIR --labels FILE")
