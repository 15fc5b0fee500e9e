"""How many threads compute here, and how they wait; importing this imports no torch, which reads its environment once."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

LOADAVG = Path("/proc/loadavg")  # "0.20 0.18 0.12 1/80 11206": the fourth says how many threads run now, or wait for a core alone
LOOKS = 5  # what runs for a moment is not there at every look, 1 ms apart
SPIN = "30000"  # turns of libgomp, some ms: longer than the gaps of a training step, and bounded where others come later (docs/speed.md)
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

    OpenMP's threads can spin while they wait for each other. At rest that is the fastest; on a busy machine each waits for one that is not
    running, and burns its core. So they spin for a moment where nothing else runs, and else not at all.
    """
    if "OMP_NUM_THREADS" not in os.environ and cores() < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores())
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        if "GOMP_SPINCOUNT" not in os.environ and _at_rest():
            os.environ["GOMP_SPINCOUNT"] = SPIN


def _at_rest() -> bool:
    """Whether nothing but this process runs, on a machine that it may use all of; False where that is not known."""
    if cores() < (os.cpu_count() or 1):
        return False
    for look in range(LOOKS):
        try:
            running = int(LOADAVG.read_text().split()[3].split("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        if running <= 1:
            return True
        if look < LOOKS - 1:
            time.sleep(0.001)
    return False


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
