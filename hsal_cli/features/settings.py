"""Settings of precomputing; importing this needs no torch."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

from hsal_cli.errors import UsageError
from hsal_cli.settings import check, setting

SALIENCY = ("activation", "itti", "spectral-residual", "center")  # and file:PATH
SALIENCY_HELP = (
    "Where saliency maps come from: activation (sum of squared activations, as in the paper), itti (colour, intensity and orientation "
    "against their surround), spectral-residual, center (a Gaussian in the middle), or file:PATH (any model's maps)."
)


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
    """The kind of saliency model that a `--saliency` value names: one of SALIENCY, or "file".

    Raises:
        UsageError: no such model, or file: without a path.
    """
    kind, colon, path = name.partition(":")
    if kind == "file" and colon and path:
        return "file"
    if name in SALIENCY:
        return name
    if kind == "file":
        raise UsageError(f"saliency = {name} names no path", "write --saliency file:PATH, a folder of maps, a .png, .npy or .h5 file")
    close = difflib.get_close_matches(name, SALIENCY, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise UsageError(f"there is no saliency model {name!r}{meant}", f"take one of: {', '.join(SALIENCY)}, file:PATH")
