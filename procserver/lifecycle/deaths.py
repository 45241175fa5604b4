"""Why a worker ended.

NOTE: gunicorn reaps the children and keeps their status to itself, so the cause
is inferred: a worker that ends in order says so over its pipe, and the kernel counts
in the control group how often it killed for memory.
"""

from __future__ import annotations

from pathlib import Path

CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")


class OomKills:
    """Follows the control group's count of processes killed for memory."""

    def __init__(self, events: Path = CGROUP_EVENTS) -> None:
        self._events = events
        self._seen = self._count()

    def cause(self, *, was_ready: bool, said_so: bool) -> str:
        """A value of ``procserver_worker_deaths_total``'s label.

        ``exit``: in order; ``boot``: before it was ready; ``oom``: the kernel has
        killed for memory since the last death; ``signal``: anything else.
        """
        count = self._count()
        killed, self._seen = count > self._seen, count
        if killed:
            return "oom"
        if not was_ready:
            return "boot"
        return "exit" if said_so else "signal"

    def _count(self) -> int:
        try:
            lines = self._events.read_text().splitlines()
        except OSError:
            return 0
        counts = dict(line.split() for line in lines if len(line.split()) == 2)
        return int(counts.get("oom_kill", 0))
