"""Settings of the policy (section 3 and appendix A); importing this needs no torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from hsal_cli.errors import UsageError
from hsal_cli.settings import check, setting

PAPER_SIDE = 7  # cells along a side of the paper's maps


@dataclasses.dataclass(frozen=True)
class PolicySettings:
    """The architecture of the hierarchical policy. `--preset paper` holds the paper's values; the defaults are measured."""

    glimpses: int = setting(2, "Overt glimpses a meta-step, k (appendix A: 2).", low=0, high=64)
    glimpse_size: int = setting(
        1,
        "Side of the square of cells that a glimpse reads, cells, odd: 1, one column of the volume as in the paper; 3, its neighbours too, "
        "each narrowed to 64 numbers.",
        low=1,
        high=63,
    )
    gaussians: int = setting(5, "Components of the Gaussian attention mask, K (appendix A: 5).", low=1, high=64)
    meta_encode: int = setting(128, "Width of the meta-controller's input encoding (appendix A: 128).", low=1, high=8192)
    meta_hidden: int = setting(128, "Units of the meta-controller's GRU (appendix A: 128).", low=1, high=8192)
    controller_encode: int = setting(512, "Width of the controller's input encoding (appendix A: 512).", low=1, high=8192)
    controller_hidden: int = setting(512, "Units of the controller's GRU (appendix A: 512).", low=1, high=8192)
    location_hidden: int = setting(64, "Hidden units of the location MLP (appendix A: 64).", low=1, high=8192)
    mask: Literal["learned", "anchored", "winner-take-all"] = setting(
        "anchored",
        "Where the Gaussians sit: learned freely as in the paper; anchored at the maximum of S_t plus a learned offset; or one fixed "
        "Gaussian at that maximum, nothing learned.",
    )
    beta: tuple[float, float] | None = setting(
        None,
        "Range of the Gaussians' parameter beta, 1/cells^2; unset: 1.5-2.0 learned (appendix A), 2.0-3.0 anchored (0.3-1.0 where the "
        "inhibition width is 1), 0.3 winner-take-all, on a map of 7 x 7 cells, and on a finer one what covers as much of the image.",
        above=0,
    )
    anchor_reach: float | None = setting(
        None,
        "Largest offset of an anchored centre from the maximum of S_t, in cells; unset: 3, and on a finer map as much of the image.",
        above=0,
    )
    spread: float | None = setting(
        None,
        "How many times the usual the attention layer's weights start at; unset: 8 for a learned mask, so that its centres start apart, "
        "1 for an anchored one, so that they start at the maximum.",
        above=0,
    )
    inhibition: Literal["mask", "normalized"] = setting(
        "normalized", "What inhibition of return subtracts: the mask M_t as in the paper, or M_t / max M_t."
    )
    inhibition_width: float | None = setting(
        None,
        "How many times wider than the mask's the Gaussians are that inhibition of return takes M_t from; unset: 2.5 for an anchored mask, "
        "which can then be narrow and point, while the rim of what it points at loses its saliency too; else 1, the mask itself.",
        low=1,
        high=100,
    )
    location_input: Literal["hidden", "hidden+priority", "hidden+priority+residual"] = setting(
        "hidden+priority+residual",
        "What the location head reads: the controller's state as in the paper, or that and the priority map; residual: the priority map, "
        "times a learned number, is added to its scores too.",
    )
    memory: Literal["last", "counts"] | None = setting(
        None,
        "Label memory fed to both controllers: the last label as in the paper, or counts of all labels named so far; unset: counts, with "
        "--objective multiset the last, since nothing draws its mask to the objects where what is left can be told from the counts.",
    )
    controller_state: Literal["carry", "reset"] = setting(
        "reset", "The controller's hidden state at the start of a meta-step: carried over as in the paper, or reset to zero."
    )
    stop_input: Literal["state", "state+saliency"] | None = setting(
        None,
        "What stop is decided by: the controller's state as in the paper, or that and a small convolutional head that reads the saliency "
        "map as it was and as it is; unset: state+saliency, with --stop sampled the state.",
    )
    saliency_transform: Literal["none", "sqrt"] = setting(
        "sqrt", "What is done to the raw saliency map before it is scaled to [0, 1]: nothing as in the paper, or its square root."
    )

    def __post_init__(self) -> None:
        check(self)
        if self.glimpse_size % 2 == 0:
            raise UsageError(f"glimpse_size = {self.glimpse_size} is even, so that no cell is its middle", "take an odd one: 1, 3 or 5")

    @staticmethod
    def stored(values: dict[str, Any]) -> dict[str, Any]:
        """What a run or a checkpoint holds: what there was no choice of when it was made has the only value it had then."""
        return {"inhibition_width": 1.0, "glimpse_size": 1, "stop_input": "state", **values}

    @property
    def initial_spread(self) -> float:
        """The spread in force."""
        return self.spread if self.spread is not None else 8.0 if self.mask == "learned" else 1.0

    @property
    def inhibition_reach(self) -> float:
        """The inhibition width in force."""
        return self.inhibition_width if self.inhibition_width is not None else 2.5 if self.mask == "anchored" else 1.0

    @property
    def label_memory(self) -> Literal["last", "counts"]:
        """The memory in force, unless training asks for another (`for_training`)."""
        return self.memory or "counts"

    @property
    def stops_by_saliency(self) -> bool:
        """Whether stop is decided by the saliency map too, unless training asks for the state alone (`for_training`)."""
        return self.stop_input != "state"

    def for_training(self, objective: str, stop: str) -> PolicySettings:
        """These settings with the memory and the input of stop that suit an objective and its handling of stop, where none was chosen.

        Raises:
            UsageError: stop is sampled, and the saliency map was chosen to decide it.
        """
        if stop == "sampled" and self.stop_input == "state+saliency":
            raise UsageError(
                "stop is sampled, and a head that reads the saliency map can only be trained by supervision",
                "give --stop-input state, or --stop supervised",
            )
        return dataclasses.replace(
            self,
            memory=self.memory or ("last" if objective == "multiset" else "counts"),
            stop_input=self.stop_input or ("state" if stop == "sampled" else "state+saliency"),
        )

    def beta_range(self, height: int, width: int) -> tuple[float, float]:
        """The range of beta in force on a map of so many cells, 1/cells^2.

        The defaults belong to 7 x 7 cells. Those of a finer map are smaller, and a coarser one's larger, so that a Gaussian covers the
        same share of the image.
        """
        if self.beta is not None:
            return self.beta
        # An anchored mask that inhibits no further than it reaches must be wide enough to clear what it points at.
        anchored = (0.3, 1.0) if self.inhibition_reach == 1 else (2.0, 3.0)
        low, high = {"learned": (1.5, 2.0), "anchored": anchored, "winner-take-all": (0.3, 0.3)}[self.mask]
        finer = height * width / (PAPER_SIDE * PAPER_SIDE)
        return low / finer, high / finer

    def reach(self, height: int, width: int) -> float:
        """The largest offset of an anchored centre in force on a map of so many cells, in cells."""
        return self.anchor_reach if self.anchor_reach is not None else 3.0 * math.sqrt(height * width) / PAPER_SIDE
