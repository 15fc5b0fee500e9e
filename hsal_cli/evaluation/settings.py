"""Settings of an evaluation; importing this needs no torch."""

from __future__ import annotations

import dataclasses

from hsal_cli.errors import UsageError
from hsal_cli.settings import SEED_LIMIT, check, setting

STOP_HELP = "Name stop once its probability exceeds this, and else the likeliest label; unset: where it is likelier than each label."


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How a policy is rolled out and scored."""

    split: str = setting("test", "The split to evaluate: test or train.")
    batch_size: int = setting(256, "Images rolled out together.", low=1, high=65536)
    sample: int = setting(0, "Sample labels and glimpses, this many roll-outs an image, instead of one greedy roll-out.", low=0, high=1000)
    max_steps: int | None = setting(None, "Cap on meta-steps; unset: most labels seen in training plus 2.", low=1, high=1000)
    stop_threshold: float | None = setting(None, STOP_HELP, low=0, high=1)
    looking: int = setting(
        2000,
        "Images, the first of the split, on which it is tested whether it matters where the policy looks, by ten roll-outs more; 0: none.",
        low=0,
        high=1_000_000_000,
    )
    resamples: int = setting(1000, "Bootstrap resamples for the 95% intervals.", low=1, high=1_000_000)
    seed: int = setting(0, "Seed of the bootstrap and of sampling.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)
        if self.sample and self.stop_threshold is not None:
            raise UsageError(
                f"stop_threshold = {self.stop_threshold:g}, but with sample = {self.sample} stop is drawn", "leave one of the two out"
            )
