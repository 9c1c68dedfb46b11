"""The processor cores that this process may use: fewer than the machine's in a container, a batch job or a unit."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["default_threads", "usable_cores"]

_OWN, _ALL = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores(own: Path = _OWN, all_groups: Path = _ALL) -> int:
    """At least 1: the fewest of the machine's cores, the affinity (taskset, SLURM, cpusets) and the CPU limit.

    The limit (docker --cpus, Kubernetes, systemd's CPUQuota) is that of control groups of version 2, rounded up.

    Args:
        own, all_groups: where Linux tells the process's control group, and the limits of all groups.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.ceil(_limit(own, all_groups))))


def default_threads() -> int | None:
    """Threads of one graph: one per usable core, or None, onnxruntime's one per physical core, where all are usable."""
    cores = usable_cores()
    return None if cores == os.cpu_count() else cores


def _limit(own: Path, all_groups: Path) -> float:
    """Cores: the smallest limit of the process's group and those around it."""
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):  # another system, or version 1
        return 10**6
    group = all_groups / line.removeprefix("0::/")
    groups = [group, *(parent for parent in group.parents if parent.is_relative_to(all_groups))]
    return min(map(_limit_of, groups))


def _limit_of(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no limit: "max", no file, or one that cannot be read
        return 10**6
