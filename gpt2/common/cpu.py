"""The CPU: its model, and the cores this process may use. Imports neither torch nor numpy."""

from __future__ import annotations

import os
import platform


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
    """The number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
