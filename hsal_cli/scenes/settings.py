"""Settings of a scene file (section 5, "Datasets"); importing this needs no numpy."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from hsal_cli.errors import UsageError
from hsal_cli.settings import SEED_LIMIT, check, setting

DATASETS = ("mnist-multiset", "mnist-set", "mnist-single")


def board_side(cells: int) -> int:
    """Cells along a side of the smallest square board that has so many cells."""
    return math.isqrt(cells - 1) + 1


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """How the images of a data set are composed. The defaults are the paper's recipe for MNIST Multiset."""

    train: int = setting(60_000, "Training images.", low=0, high=100_000_000)
    test: int = setting(10_000, "Test images.", low=0, high=100_000_000)
    image_size: int = setting(100, "Side of the square images, px.", low=8, high=4096)
    count: tuple[int, int] = setting((1, 4), "Fewest and most digits in an image.", low=1, high=64)
    digit_size: tuple[int, int] = setting((20, 50), "Smallest and largest side of a digit, px.", low=4, high=4096)
    clutter: int = setting(8, "Pieces of other digits strewn under the digits.", low=0, high=1000)
    clutter_size: int = setting(5, "Side of a piece of clutter, px; it is cut from glyphs of 28 px.", low=1, high=28)
    placement: Literal["free", "tight", "grid"] = setting(
        "free",
        "free: uniform, glyphs (28 x 28 px before they are resized) do not overlap; tight: uniform, only their ink's boxes do not, so that "
        "digits may touch; grid: one glyph a cell of the largest digit's size, as the authors' generator does.",
    )
    digits: Literal["auto", "mnist", "strokes"] = setting(
        "auto", "Where digits come from: MNIST's IDX files, digits drawn by embedded pen strokes, or MNIST where it can be had."
    )
    mnist_dir: str | None = setting(None, "Folder of IDX files, gzipped or not (also the environment variable HSAL_MNIST_DIR).")
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
