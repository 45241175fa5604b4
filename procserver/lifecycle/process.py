"""What every child of the master does first."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from procserver.errors import ServiceError
from procserver.lifecycle.reports import Message, Reports
from procserver.observe.accesslog import reopen

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


def be_idle() -> bool:
    """Leaves the CPU to everybody else; :func:`be_normal` ends that.

    Without the right to come back (``CAP_SYS_NICE``, or a nice limit of 20 as
    ``ulimit -e 20`` gives) nothing is changed. Returns whether something was.
    """
    allowed: list[bool] = []

    def try_it() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            allowed.append(True)
        except OSError:
            allowed.append(False)

    # The scheduler knows threads: what this one cannot undo ends with it.
    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    if allowed[0]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return allowed[0]


def be_normal(pid: int | None = None) -> None:
    """Gives a process (None: this one) with all its threads its share of the CPU."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task")
    with suppress(OSError):
        for task in os.listdir(tasks):
            with suppress(OSError):
                os.sched_setscheduler(int(task), os.SCHED_OTHER, os.sched_param(0))


def reopen_logs() -> None:
    """Has log files that were moved away made anew, and goes on there.

    May be called by a signal handler, whatever it interrupts: the stream stays, only
    what it writes to is another file.
    """
    for name in ("gunicorn.error", "gunicorn.access", "procserver"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream is not None:
                reopen(handler.baseFilename, handler.stream.fileno(), 0o666)


class Closable(Protocol):
    """A listening socket."""

    def close(self) -> None: ...


class Job:
    """Work in a forked child, for the master, which must stay single-threaded.

    Object-store drivers and the like start threads that a later fork would lose.
    The child is reaped by gunicorn or, before that runs, by :meth:`wait`.
    """

    def __init__(
        self, work: Callable[[], None], listeners: Sequence[Closable] = ()
    ) -> None:
        self.reports = Reports.open()
        self._messages: list[Message] = []
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work, parent, listeners)
        self.reports.in_master()

    def _run(
        self, work: Callable[[], None], parent: int, listeners: Sequence[Closable]
    ) -> None:
        reporter = self.reports.in_child()
        try:
            die_with_parent(parent)
            close_sockets(listeners)
            work()
            reporter.send("done")
        except ServiceError as error:
            reporter.send("failed", reason=str(error))
        except Exception as error:
            log.exception("a child of the master failed")
            reporter.send("failed", reason=f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)

    def is_done(self) -> bool:
        """Whether the child has ended.

        :raises ServiceError: with the child's message, or if it died without one
        """
        self._messages += self.reports.poll()
        if not self.reports.closed:
            return False
        if not self._messages:
            raise ServiceError("a child of the master died without a word")
        if self._messages[-1]["event"] == "failed":
            raise ServiceError(self._messages[-1]["reason"])
        return True

    def wait(self) -> None:
        """Blocks until the child has ended.

        :raises ServiceError: as :meth:`is_done`
        """
        while not self.reports.closed:
            self._messages += self.reports.wait(60.0)
        os.waitpid(self.pid, 0)
        self.is_done()


def close_sockets(listeners: Sequence[Closable]) -> None:
    """Closes listening sockets that a child inherited and does not serve."""
    for listener in listeners:
        listener.close()
