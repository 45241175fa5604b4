"""What the control groups of this process allow it: CPU time and memory.

Version 2 (``cpu.max``, ``memory.max``) and version 1 (``cpu.cfs_quota_us``,
``memory.limit_in_bytes``), nested groups included: each level on the way to the
mount's root may have a limit, and the tightest one holds. cpusets need no look here,
the kernel keeps them in the process's affinity mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Groups:
    """The groups of one process.

    :param membership: the process's ``/proc/PID/cgroup``
    :param mount: where group file systems are mounted
    """

    membership: Path = Path("/proc/self/cgroup")
    mount: Path = Path("/sys/fs/cgroup")

    def cpus(self) -> float | None:
        """CPUs per period that the quotas pay for; None: no limit."""
        limits = [_cpu_max(level / "cpu.max") for level in self._levels("")]
        limits += [_cfs_quota(level) for level in self._levels("cpu")]
        return min((limit for limit in limits if limit is not None), default=None)

    def memory(self) -> int | None:
        """Bytes that may still be allocated, clean file cache counted as free.

        None: there is no limit. May be negative for a moment.
        """
        left = [
            _left(level, "memory.max", "memory.current", "inactive_file")
            for level in self._levels("")
        ]
        left += [
            _left(
                level,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
            for level in self._levels("memory")
        ]
        return min((count for count in left if count is not None), default=None)

    def oom_kills(self) -> int:
        """How often the kernel killed in this group because memory ran out."""
        for controller, name in (
            ("", "memory.events"),
            ("memory", "memory.oom_control"),
        ):
            for level in self._levels(controller):
                found = _number_of("oom_kill", level / name)
                if found is not None:
                    return found
        return 0

    def _levels(self, controller: str) -> Iterator[Path]:
        """Folders from the process's group up to the mount's root.

        :param controller: one of version 1; empty: version 2
        """
        try:
            lines = self.membership.read_text().splitlines()
        except OSError:
            lines = []
        fields = [line.split(":", 2) for line in lines if line.count(":") >= 2]
        path = "/"
        names = [controller] if controller else ["", "unified"]
        for _, controllers, group in fields:
            if controller in controllers.split(","):
                path, names = group, [*names, controllers]
        for root in (self.mount / name for name in dict.fromkeys(names)):
            if root.is_dir():
                yield from _upwards(root, path)
                return


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's folder below ``root`` and all above it, ``root`` last.

    NOTE: a container often sees the whole path of its group while only a part of the
    hierarchy, or nothing but its own group, is mounted: the longest end of the path
    that is there is taken.
    """
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        if root.joinpath(*parts[start:]).is_dir():
            for stop in range(len(parts), start, -1):
                yield root.joinpath(*parts[start:stop])
            break
    yield root


def _cpu_max(file: Path) -> float | None:
    try:
        limit, period = file.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _cfs_quota(level: Path) -> float | None:
    try:
        quota = int((level / "cpu.cfs_quota_us").read_text())
        period = int((level / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _left(level: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        most = int((level / limit).read_text())
        now = int((level / used).read_text())
    except (OSError, ValueError):
        # "max", or a level that has no such file.
        return None
    # NOTE: version 1 says "no limit" with a number near 2**63.
    if most >= 1 << 62:
        return None
    return most - now + (_number_of(cache, level / "memory.stat") or 0)


def _number_of(key: str, file: Path) -> int | None:
    try:
        found = re.search(rf"^{key} (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None
