"""The signals that have a master load the item cache again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

# NOTE: gunicorn uses the signals with names, and has no handler for these: they
# arrive here and not in the arbiter's queue.
REFRESH = signal.SIGRTMIN
# The same, whatever share of its items the table has lost.
FORCE = signal.SIGRTMIN + 1


def mind(server: Any, ask: Callable[[bool], None]) -> None:
    """Calls ``ask`` for each signal that this process gets, with whether it is
    ``FORCE``; its children ignore it.

    The default is to end the process, so this comes before anybody can know its pid.
    """
    parent = os.getpid()

    def take(signum: int, frame: object) -> None:
        if os.getpid() == parent:
            ask(signum == FORCE)
            server.wakeup()

    for signum in (REFRESH, FORCE):
        signal.signal(signum, take)
