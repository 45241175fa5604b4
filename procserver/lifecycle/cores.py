"""Which CPU cores this service may use, and who gets which."""

from __future__ import annotations

import os
from dataclasses import dataclass

from procserver.cgroup import Groups

# A quota is a whole number of cores if it is so but for rounding.
_ALMOST = 0.05


@dataclass(frozen=True)
class Allowance:
    """Cores that the service may use.

    ``exclusive``: they are its by number. Where a quota allows less than the
    affinity mask, any cores of the mask may be used and only their number is limited;
    whoever pins itself to the first of them shares them with every neighbour that
    does so too.
    """

    cores: list[int]
    exclusive: bool


def allowance(groups: Groups | None = None) -> Allowance:
    """The cores of our affinity mask (which follows cpusets), no more than the quota.

    A part of a core beyond the whole ones is left for the master and the refresher:
    one worker more would be stopped for a part of every period.
    """
    mask = sorted(os.sched_getaffinity(0))
    quota = (groups or Groups()).cpus()
    if quota is None:
        return Allowance(mask, exclusive=True)
    count = max(1, int(quota + _ALMOST))
    return Allowance(mask[:count], exclusive=count >= len(mask))


def core_set(cores: list[int], slot: int, workers: int) -> list[int]:
    """The cores of worker ``slot`` of ``workers``: disjoint while they last."""
    share = len(cores) // workers
    if share == 0:
        return [cores[slot % len(cores)]]
    return cores[slot * share : (slot + 1) * share] or [cores[slot % len(cores)]]
