"""What every child of the master does first."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from typing import Protocol

_PR_SET_PDEATHSIG = 1
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


class Closable(Protocol):
    """A listening socket."""

    def close(self) -> None: ...


def close_sockets(listeners: Sequence[Closable]) -> None:
    """Closes listening sockets that a child inherited and does not serve."""
    for listener in listeners:
        listener.close()
