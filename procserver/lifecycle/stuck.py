"""Ends workers that do not come to an end with a request, or do nothing at all.

gunicorn watches a worker's main loop, which goes on whatever its threads are stuck
in; a request that never ends would hold its thread for ever. So the master looks at
what every worker computes. ``SIGABRT`` has the worker write the stacks of all its
threads to the log, from the signal handler itself: it needs neither the interpreter's
lock nor the main thread.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from procserver.lifecycle.breaker import FOLDER
from procserver.lifecycle.master import Member, master
from procserver.lifecycle.watch import Computed

log = logging.getLogger("procserver.lifecycle")

# How long writing the stacks may take.
STACKS_SECONDS = 1.0
# Requests that began so close to each other may wait for each other.
TOGETHER_NS = 1_000_000_000
# Bodies that are saved of them.
MOST_SAVED = 4
# A time of modification that no clock reaches (year 2242).
NEVER = float(1 << 33)


def end_stuck(server: Any) -> None:
    """Each turn of the master: looks at every worker that serves."""
    state = master()
    state.breaker.tidy()
    for member in list(state.members.values()):
        if member.stuck is not None:
            if time.monotonic() > member.stuck + STACKS_SECONDS:
                server.kill_worker(member.pid, signal.SIGKILL)
            continue
        limit = member.release.settings.kill_seconds
        suspects = _suspects(state.desks.computed(member.slot), limit)
        if member.ready and suspects:
            _end(server, member, suspects)


def _suspects(computed: Sequence[Computed], limit: float) -> list[Computed]:
    """The request that is over the limit first; none if nobody is over it.

    Requests of a worker take turns at the model, so others may be late only because
    they wait for the one that does not end, and may have begun a moment before it.
    """
    oldest = min(computed, key=lambda request: request.since_ns, default=None)
    if oldest is None or oldest.seconds() <= limit:
        return []
    others = [
        request
        for request in computed
        if 0 <= request.since_ns - oldest.since_ns < TOGETHER_NS
        and request is not oldest
    ]
    return [oldest, *others]


def _end(server: Any, member: Member, suspects: Sequence[Computed]) -> None:
    state, request = master(), suspects[0]
    member.stuck = time.monotonic()
    log.error(
        "worker %d has been computing request %016x for %.1f s and is ended",
        member.pid,
        request.digest,
        request.seconds(),
    )
    folder: Path = state.service.state_dir / FOLDER
    try:
        for suspect in suspects[:MOST_SAVED]:
            state.breaker.keep_body(folder, member.pid, suspect, server.LISTENERS)
    finally:
        state.breaker.note_stuck(suspects)
        server.kill_worker(member.pid, signal.SIGABRT)


def mistrust_clock(worker: Any) -> None:
    """Before the fork of a worker: its heartbeat has not begun.

    NOTE: gunicorn compares the heartbeat file's time of modification with the monotonic
    clock. A new file has the wall clock's, which is mostly far ahead, and on a machine
    whose clock was never set far behind: such a worker would be killed while it starts.
    The start has a deadline of its own (``boot_seconds``).
    """
    os.utime(worker.tmp.fileno(), (NEVER, NEVER))
