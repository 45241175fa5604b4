"""What every child of the master does first."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

from procserver.errors import ServiceError
from procserver.lifecycle.reports import Reports

log = logging.getLogger("procserver.lifecycle")

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Has the kernel send ``signum`` to this process when ``parent`` dies.

    NOTE: without it idle workers outlive a killed master and hold its port. A
    parent that died before the call is noticed by its pid.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def keep_memory() -> None:
    """Has malloc keep what it got, and all threads share one heap.

    PERF: a forward pass allocates and frees tens of megabytes. By default the
    heaps of request threads give that back to the kernel each time and pay for it
    with page faults: 10.1 instead of 8.8 ms of CPU on the reference model. Call
    before threads start. Another allocator (LD_PRELOAD) takes no notice.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        # The largest value that glibc takes.
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


class Closable(Protocol):
    """A listening socket."""

    def close(self) -> None: ...


def run_in_child(work: Callable[[], None]) -> None:
    """Runs ``work`` in a forked child and waits for it.

    For the master, which must stay single-threaded: object-store drivers and the
    like start threads that a later fork would lose.

    :raises ServiceError: with the child's message, or if it died without one
    """
    reports = Reports.open()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        reporter = reports.in_child()
        try:
            die_with_parent(parent)
            work()
            reporter.send("done")
        except ServiceError as error:
            reporter.send("failed", reason=str(error))
        except Exception as error:
            log.exception("a child of the master failed")
            reporter.send("failed", reason=f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    reports.in_master()
    messages = []
    while not reports.closed:
        messages += reports.wait(60.0)
    os.waitpid(pid, 0)
    if not messages:
        raise ServiceError("a child of the master died without a word")
    if messages[-1]["event"] == "failed":
        raise ServiceError(messages[-1]["reason"])


def close_sockets(listeners: Sequence[Closable]) -> None:
    """Closes listening sockets that a child inherited and does not serve."""
    for listener in listeners:
        listener.close()
