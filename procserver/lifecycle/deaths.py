"""Why a worker ended.

NOTE: gunicorn reaps the children and keeps their status to itself. So the status is
looked at before it reaps (``WNOWAIT``); of a child that dies between the look and the
reaping it stays unknown, and the cause is inferred: a worker that ends in order says
so over its pipe.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from procserver.cgroup import Groups

# What a process brings upon itself; other signals come from outside.
CRASHES = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)


@dataclass(frozen=True)
class Ending:
    """The status of an ended process: its exit code, or the signal that killed it."""

    code: int | None = None
    signum: int | None = None

    @property
    def by_itself(self) -> bool:
        """Whether the process did it, and nobody from outside."""
        return self.signum is None or self.signum in CRASHES


def ending_of(pid: int) -> Ending | None:
    """How a child ended, which stays to be reaped; None: it runs, or is no child."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, ProcessLookupError):
        return None
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return Ending(code=found.si_status)
    return Ending(signum=found.si_status)


class OomKills:
    """Follows the control group's count of processes killed for memory."""

    def __init__(self, groups: Groups | None = None) -> None:
        self._groups = groups or Groups()
        self._seen = self._groups.oom_kills()

    def cause(self, ending: Ending | None, *, was_ready: bool, said_so: bool) -> str:
        """A value of ``procserver_worker_deaths_total``'s label.

        ``exit``: in order; ``boot``: before it was ready; ``oom``: killed, and the
        kernel has killed for memory since the last death; ``signal``: anything else.
        """
        count = self._groups.oom_kills()
        killed, self._seen = count > self._seen, count
        if killed and (ending is None or ending.signum == signal.SIGKILL):
            return "oom"
        if not was_ready:
            return "boot"
        return "exit" if said_so else "signal"
