"""The signal that has a master load the item cache again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

# NOTE: gunicorn uses the signals with names, and has no handler for this one: it
# arrives here and not in the arbiter's queue.
REFRESH = signal.SIGRTMIN


def mind(server: Any, ask: Callable[[], None]) -> None:
    """Calls ``ask`` for each signal that this process gets; its children ignore it.

    The default is to end the process, so this comes before anybody can know its pid.
    """
    parent = os.getpid()

    def take(signum: int, frame: object) -> None:
        if os.getpid() == parent:
            ask()
            server.wakeup()

    signal.signal(REFRESH, take)
