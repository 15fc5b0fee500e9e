"""Settings of precomputing; importing this needs no torch."""

from __future__ import annotations

import dataclasses
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
SALIENCY_MODELS = Registry("saliency model", "hsal.saliency", (*SALIENCY, "file"))


@dataclasses.dataclass(frozen=True)
class PrecomputeSettings:
    """How volumes and saliency maps are computed from a scene file."""

    batch_size: int = setting(32, "Images a forward pass.", low=1, high=65536)
    saliency: str = setting("activation", SALIENCY_HELP)
    resolution: Literal["7", "14", "28"] | None = setting(
        None, "Cells along a side of the volumes, the backbone's own if not given; more come from the same weights, dilated."
    )

    def __post_init__(self) -> None:
        check(self)
        saliency_kind(self.saliency)


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
