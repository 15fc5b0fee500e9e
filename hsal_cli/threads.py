"""How many threads compute here, and how they wait; importing this imports no torch, which reads its environment once."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or microseconds of a core in each so many


def cores() -> int:
    """How many cores this process may use, by its affinity and by the quota of its control group."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = QUOTA.read_text().split()
        return min(found, max(1, math.ceil(int(share) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or no quota
        return found


def prepare() -> None:
    """To be called before torch is imported; what the user has set stays.

    OpenMP's threads spin while they wait for each other: on a busy machine each waits for one that is not running, and burns its core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "OMP_NUM_THREADS" not in os.environ and cores() < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores())


def advice(threads: int) -> str | None:
    """A line to say where several threads would have to share their cores with other processes; None where they would not.

    Args:
        threads: that are to compute.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads == 1 or load + threads <= cores() + 0.5:
        return None
    where = f"{threads} threads on {cores()} cores at a load of {load:.1f}"
    return f"{where}: they wait for each other; one may be faster: export OMP_NUM_THREADS=1"
