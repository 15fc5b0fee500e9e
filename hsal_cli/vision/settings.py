"""Settings of precomputing; importing this needs no torch."""

from __future__ import annotations

import dataclasses

from hsal_cli.settings import check, setting


@dataclasses.dataclass(frozen=True)
class PrecomputeSettings:
    """How volumes and saliency maps are computed from a scene file."""

    batch_size: int = setting(32, "Images a forward pass.", low=1, high=65536)

    def __post_init__(self) -> None:
        check(self)
