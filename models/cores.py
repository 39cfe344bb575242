"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def available_cores() -> int:
    """Cores left by CPU affinity and by the container's quota, at least 1.

    ``os.cpu_count()`` counts the machine's cores: in a container held to two of 64 it would start
    64 threads that fight for two.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def inference_threads(asked: int = 0) -> int:
    """Threads for a runtime; 0 leaves their number to the runtime.

    Runtimes know best how many threads a whole machine takes (ONNX Runtime leaves hyper-threads out), and
    know nothing of quotas: held to a part of the machine, they are told how large it is.
    """
    cores = available_cores()
    return asked or (cores if cores < (os.cpu_count() or 1) else 0)


def _cgroup_quota() -> float | None:
    """The CPU quota in cores, or None where there is none; cgroup v2 first, then v1."""
    try:
        limit, period = _CGROUP_V2.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP_V1 / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit_us / period_us if limit_us > 0 else None
