"""How many threads this process may run at once: its affinity and its control group's quota, not the machine.

With more threads than that, those of one computation wait for each other's turn.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups, membership)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def wait_asleep() -> None:
    """Threads of one computation sleep while they wait for each other, unless the environment says otherwise.

    To be called before torch or faiss is imported. By default libgomp's threads wait up to some milliseconds
    without letting go of their core, several times in each product: beside one other busy process on two
    cores, a step took 1,014 ms instead of 80.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_cores() -> int:
    """Gives torch, faiss and Arrow one thread for each usable core: the machine is this process's alone."""
    import faiss
    import pyarrow
    import torch

    cores = usable_cores()
    torch.set_num_threads(cores)
    faiss.omp_set_num_threads(cores)
    pyarrow.set_cpu_count(cores)
    return cores


def _quota(cgroups: Path, membership: Path) -> float | None:
    """The tightest quota of this process's group and those around it, in cores; None without one."""
    quotas = [
        quota
        for root, name in _groups(cgroups, membership)
        for folder in (root / name, *(root / name).parents)
        if folder.is_relative_to(root) and (quota := _read_quota(folder)) is not None
    ]
    return min(quotas, default=None)


def _groups(cgroups: Path, membership: Path) -> Iterator[tuple[Path, str]]:
    """Where this process's groups that may bound its CPU time begin, and their names, of both versions."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        hierarchy, controllers, name = line.split(":", 2)
        if hierarchy == "0":
            yield cgroups, name.strip("/")
        elif "cpu" in controllers.split(","):
            yield from ((cgroups / folder, name.strip("/")) for folder in {"cpu", controllers})


def _read_quota(folder: Path) -> float | None:
    """The quota of one group: `cpu.max` of version 2, or the two files of version 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        else:
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None  # "max", or no such file
    return quota / period if quota > 0 and period > 0 else None  # -1: none
