"""Which CPU cores this service may use, and who gets which."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota_file: Path = CGROUP_QUOTA) -> list[int]:
    """The cores of our affinity mask, no more than the cgroup quota pays for."""
    cores = sorted(os.sched_getaffinity(0))
    quota = _quota(quota_file)
    return cores if quota is None else cores[: max(1, int(quota))]


def core_set(cores: list[int], slot: int, workers: int) -> list[int]:
    """The cores of worker ``slot`` of ``workers``: disjoint while they last."""
    share = len(cores) // workers
    if share == 0:
        return [cores[slot % len(cores)]]
    return cores[slot * share : (slot + 1) * share] or [cores[slot % len(cores)]]


def _quota(path: Path) -> float | None:
    """CPUs per period of cgroup v2, or None for no limit."""
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
