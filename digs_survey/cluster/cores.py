"""How many cores this process may use: those of its affinity, within the limit of its control group."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

__all__ = ["usable_cores"]

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    ``os.cpu_count()`` counts those of the machine. A batch system, ``taskset`` or a cpuset gives a process some of
    them (its affinity), and a container a share of their time (the quota of its control group), of which a part of a
    core counts as one.
    """
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(_GROUPS, _OWN))))


@cache
def _quota(groups: Path, own: Path) -> float:
    """Return the cores that control groups allow: the least of this process's group and those above it."""
    allowed = math.inf
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return allowed
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots, read = (groups, groups / "unified"), _quota_2
        elif "cpu" in controllers.split(","):
            roots, read = (groups / controllers, groups / "cpu"), _quota_1
        else:
            continue
        inside = Path(path.lstrip("/"))
        # A container may see its own group as the root.
        for root in roots:
            for folder in (inside, *inside.parents):
                allowed = min(allowed, read(root / folder))
    return allowed


def _quota_2(folder: Path) -> float:
    """Read ``cpu.max`` of version 2: quota (or max) and period."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_1(folder: Path) -> float:
    """Read quota (or -1) and period of version 1."""
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return math.inf if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
