"""The CPU and what this process may use of the machine. Imports neither torch nor numpy."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of Linux


def cpu_model() -> str:
    """The name of the CPU's model on Linux, elsewhere its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """The number of cores this process may run on, by its affinity and its control groups."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        for quota, period in _group_limits("cpu", *names):
            if quota > 0:  # microseconds of processor time in each period; -1 is no limit
                cores = min(cores, -(-quota // period))
    return cores


def memory_limit() -> int | None:
    """The bytes of memory that the control groups of this process allow; None without a limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    return min((size for name in names for (size,) in _group_limits("memory", name)), default=None)


def _group_limits(controller: str, *names: str) -> Iterator[list[int]]:
    """The numbers in files of each control group of this process that has them, and a limit.

    Groups are of version 2 (`man 7 cgroups`) or 1; the limits of those around its own hold too.
    """
    groups = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for controllers, path in (line.split(":", 2)[1:] for line in groups):
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controllers
        folder = root / path.strip("/")
        while folder != root.parent:
            with suppress(OSError, ValueError):  # a file that is not there, or says "max"
                yield [int(word) for n in names for word in (folder / n).read_text().split()]
            folder = folder.parent
