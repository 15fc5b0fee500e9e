"""How many threads compute here, and how they wait; importing this imports no torch, which reads its environment once."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

LOADAVG = Path("/proc/loadavg")  # "0.20 0.18 0.12 1/80 11206": the fourth says how many threads run now, or wait for a core alone
LOOKS = 5  # what runs for a moment is not there at every look, 2 to 16 ms apart
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
    running, and burns its core. So they spin for a moment where each has a core for itself, and else not at all.
    """
    if "OMP_NUM_THREADS" not in os.environ and cores() < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores())
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        if "GOMP_SPINCOUNT" not in os.environ and _at_rest():
            os.environ["GOMP_SPINCOUNT"] = SPIN


def _at_rest() -> bool:
    """Whether each thread has a core for itself, on a machine that this process may use all of; False where that is not known."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads, others = int(wanted) if wanted.isdecimal() else cores(), _others()
    return others is not None and others + threads <= cores() == (os.cpu_count() or 1)


def _others() -> float | None:
    """How many threads of other processes run on the cores that this one may use, on average; None where that is not known.

    It is those that run at each of several looks: the load average would count what this process, or one before it, did a minute ago.
    """
    least = math.inf
    for look in range(LOOKS):
        if look:
            time.sleep(0.001 * 2**look)
        try:
            least = min(least, int(LOADAVG.read_text().split()[3].split("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return None
        if least <= 0:
            return 0.0
    return least * cores() / (os.cpu_count() or 1)


def advice(threads: int) -> str | None:
    """A line to say where several threads would have to share their cores with other processes; None where they would not.

    Args:
        threads: that are to compute.
    """
    if threads == 1:
        return None
    others = _others()
    if others is None:
        others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if others + threads <= cores() + 0.5:
        return None
    where = f"{threads} threads on {cores()} cores at a load of {others:.1f} from elsewhere"
    return f"{where}: they wait for each other; one may be faster: export OMP_NUM_THREADS=1"
