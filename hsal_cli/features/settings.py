"""Settings of precomputing; importing this needs no torch."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Literal

from hsal_cli.errors import UsageError
from hsal_cli.registry import Registry
from hsal_cli.settings import check, setting

SALIENCY = ("activation", "itti", "spectral-residual", "center")  # and file:PATH, and those of a user's own
SALIENCY_HELP = (
    "Where saliency maps come from: activation (sum of squared activations, as in the paper), itti (colour, intensity and orientation "
    "against their surround), spectral-residual, center (a Gaussian in the middle), file:PATH (any model's maps), or a model of your own "
    "(docs/python.md)."
)
STAGED = ("fine", "double-fine", "window")  # resolutions that put something behind the volume, which glimpses read
CALLED = (*STAGED, "double")  # resolutions that have a name, the others are numbers of cells
FORMAT = "hsal-features"
ENDING = ".features.h5"  # of feature files' names; any other is read as well
OWN = "own"  # the backbone's own resolution, where it is asked for by name
VIEWS_OF_FEW = 20
SALIENCY_MODELS = Registry("saliency model", "hsal.saliency", (*SALIENCY, "file"))


@dataclasses.dataclass(frozen=True)
class PrecomputeSettings:
    """How volumes and saliency maps are computed from a scene file."""

    batch_size: int = setting(32, "Images a forward pass.", low=1, high=65536)
    saliency: str = setting("activation", SALIENCY_HELP)
    resolution: Literal["own", "7", "14", "28", "double", "fine", "double-fine", "window"] | None = setting(
        None,
        "Cells along a side of the volumes; unset: fine, which the default policy reads, or what --variant and --set ask for. own: the "
        "backbone's own; more cells come from the same weights, dilated. double: twice as many, of the image at twice the size, for "
        "objects that are small in large images. fine: its own, and behind each the 2 x 2 cells of an earlier stage; double-fine: both. "
        "window: a first look at half the size, and behind each cell the window around it at full size, which --set glimpse=window reads.",
    )
    views: int | None = setting(
        None,
        "Views of each training image: itself, and others shifted, turned, zoomed and of another contrast, one of which an epoch shows; "
        f"unset: 1; `hsal train` takes {VIEWS_OF_FEW} where there are fewer than 2,000 images of your own.",
        low=1,
        high=1000,
    )
    mirror: bool = setting(True, "Let views be mirrored and turned by right angles, too; not where that makes other objects, as of digits.")

    def __post_init__(self) -> None:
        check(self)
        if saliency_kind(self.saliency) == "file" and (self.views or 1) > 1:
            raise UsageError(f"views = {self.views}: there are no maps of them in files", "leave --views out, or take another --saliency")

    def for_few(self, mirror: bool) -> PrecomputeSettings:
        """These settings for few training images, which several views of each make more of, unless `views` was given."""
        if self.views is not None or saliency_kind(self.saliency) == "file":
            return self
        return dataclasses.replace(self, views=VIEWS_OF_FEW, mirror=mirror)


@dataclasses.dataclass(frozen=True)
class LookSettings:
    """How a first look finds the region that is cut out of an image (frame "found"). The defaults are a trial's: docs/method.md."""

    look: str | None = setting(None, "The network that looks first: a run of hsal finetune on whole images, or one of its checkpoints.")
    zooms: int = setting(
        2, "Looks before the frame is cut: the first at the whole image, each other at the region so far + 50%.", low=1, high=4
    )
    first_threshold: float = setting(
        0.4, "Where the first look's root saliency is at least this share of its highest belongs to the region.", low=0, high=1
    )
    zoom_threshold: float = setting(0.45, "The same of the other looks.", low=0, high=1)
    groups: Literal["all", "strongest"] = setting(
        "all", "all: the region holds every such place; strongest: only the group of touching ones with the greatest sum."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class LookedFirst(LookSettings):
    """How the frames of a scene file were found, as its config notes it under "found"; `look_digest`: of the network's weights."""

    look_digest: str | None = None


def saliency_kind(name: str) -> str:
    """The kind of saliency model that a `--saliency` value names: one of SALIENCY, "file", or a name that was registered.

    Raises:
        UsageError: no such model, or file: without a path.
    """
    if name in ("file", "file:"):
        raise UsageError(f"saliency = {name} names no path", "write --saliency file:PATH, a folder of maps, a .png, .npy or .h5 file")
    return SALIENCY_MODELS.check(kind_in(name), also=":PATH")


def kind_in(stored: str) -> str:
    """The kind of a name that a file holds, whether there is such a model here or not."""
    return "file" if stored.startswith("file:") else stored


def features_path(scenes: Path, saliency: str = "activation", resolution: str | None = None) -> Path:
    """Where the features of a scene file go: data/x.h5 -> data/x.features.h5.

    With another saliency model it is data/x.itti.features.h5, with a resolution that was asked for data/x.14x14.features.h5,
    data/x.double.features.h5, data/x.fine.features.h5 or data/x.window.features.h5.
    """
    kind = kind_in(saliency)
    names = [scenes.name.removesuffix(".h5")]
    names += [] if resolution in (None, OWN) else [resolution if resolution in CALLED else f"{resolution}x{resolution}"]
    names += [] if kind == "activation" else [kind]
    return scenes.with_name(".".join(names) + ENDING)


def holds_features(path: Path) -> bool:
    """Whether a file holds features, not scenes: as its name says, or under another name the file itself; a missing one as named."""
    from hsal_cli.storage.hdf5 import format_of

    return path.name.endswith(ENDING) or (path.is_file() and format_of(path) == FORMAT)


def made_with(features: Path, backbone: str | None = None) -> str:
    """The command that makes a feature file, by this backbone, as far as its name tells: of x.fine.features.h5 with `--resolution fine`."""
    name, saliency, resolution = _told(features)
    named = features.name.endswith(ENDING)
    words = ["--data", str(features.with_name(f"{name}.h5")) if named else "SCENES"]
    words += [] if backbone is None else ["--backbone", backbone]
    words += ["--resolution", OWN if resolution is None else resolution]
    words += [] if saliency is None else ["--saliency", "file:PATH" if saliency == "file" else saliency]
    return shlex.join(["hsal", "precompute", *words, "--out", str(features)])


def alike(source: Path, others: Path) -> Path:
    """Where features of the data set of a file are that are of the kind of others, as far as names tell."""
    _, saliency, resolution = _told(others)
    return features_path(source.with_name(f"{dataset_of(source)}.h5"), saliency or "activation", resolution)


def dataset_of(features: Path, saliency: str = "activation") -> str:
    """The name of the data set in a feature file's name: data/x.features.h5 and data/x.14x14.itti.features.h5 are of x."""
    return _told(features, saliency)[0]


def _told(features: Path, saliency: str = "activation") -> tuple[str, str | None, str | None]:
    """What a feature file's name tells (see `features_path`): the data set, the saliency model and the resolution, None where not told."""
    name, told = features.name.removesuffix(".h5").removesuffix(".features"), []
    for endings in ((*SALIENCY, "file", kind_in(saliency)), ("7x7", "14x14", "28x28", *CALLED)):
        stem, _, ending = name.rpartition(".")
        known = bool(stem) and ending in endings
        name = stem if known else name
        told.append(ending if known else None)
    saliency_told, resolution = told
    return name, saliency_told, resolution if resolution in (None, *CALLED) else resolution.partition("x")[0]
