"""How many threads this process may run at once: its affinity and its control group's quota, not the machine.

With more threads than that, those of one computation wait for each other's turn.
"""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups, membership)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def _quota(cgroups: Path, membership: Path) -> float | None:
    """The tightest quota of this process's group and those around it, in cores; None without one."""
    try:
        [name] = [line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        name = "/"
    here = cgroups / name.strip("/")
    quotas = [
        _read_quota(folder / "cpu.max") for folder in (here, *here.parents) if folder.is_relative_to(cgroups)
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max", or no such file
