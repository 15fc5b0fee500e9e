"""Settings of the benchmark; importing this needs no torch."""

from __future__ import annotations

import dataclasses

from hsal_cli.settings import check, names_in, setting

STAGES = ("make-data", "finetune", "precompute", "train", "eval", "help", "visualize")


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """Which stages are timed, and for how long."""

    stages: str = setting(",".join(STAGES), "What is timed: commands, help (the start of hsal --help), with commas between them.")
    seconds: float = setting(2.0, "How long a lap of a stage, and of its floor, lasts at least, seconds.", above=0, high=3600)
    laps: int = setting(5, "Laps of each; stage and floor take turns, and medians are shown.", low=1, high=1000)

    def __post_init__(self) -> None:
        check(self)
        _ = self.stage_names

    @property
    def stage_names(self) -> list[str]:
        """The stages, one by one."""
        return names_in(self.stages, STAGES, "stage")
