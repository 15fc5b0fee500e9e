"""Settings of a generalisation sweep; importing this needs no torch."""

from __future__ import annotations

import dataclasses

from hsal_cli.settings import check, names_in, setting

SWEEP_PARTS = ("count", "size", "clutter", "spacing", "contrast", "glimpses", "saliency")


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """What a generalisation sweep measures."""

    parts: str = setting(
        "count,size,clutter,spacing,contrast,glimpses",
        "What is varied: number of digits (1 to 8), their size, clutter, spacing (down to touching) and contrast of the test images; "
        "glimpses: the number k a meta-step; saliency: the saliency model. The last two train short runs.",
    )
    images: int = setting(1000, "Test images composed for each condition.", low=1, high=1_000_000)
    budgets: tuple[int, int] = setting((0, 4), "Fewest and most glimpses a meta-step, k, of the part glimpses.", low=0, high=16)
    epochs: int = setting(4, "Epochs of each short run.", low=1, high=100_000)

    def __post_init__(self) -> None:
        check(self)
        _ = self.part_names

    @property
    def part_names(self) -> list[str]:
        """The parts, one by one."""
        return names_in(self.parts, SWEEP_PARTS, "part")
