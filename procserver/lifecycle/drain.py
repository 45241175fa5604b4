"""The end of a service: SIGTERM drains it, a second signal ends it at once.

::

    TERM -> readiness says 503 in every worker, answers say "Connection: close",
            a reload under way is given up         load balancers turn away
         -> procserver.drain_seconds pass          requests are still taken
         -> no new handshakes, workers accept      see lifecycle/backlog.py
            what waits, sockets are closed
         -> requests under way are answered        until the grace period is over
         -> shared memory, pid file, lock go; exit status 0

INT and QUIT, or any second one of the three, skip all that: workers are told to
drop what they do and are killed if they do not.

NOTE: instead of gunicorn's ``Arbiter.stop``, which counts the grace period on the
wall clock, hears no second TERM, and resets the connections in the backlog.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import time
from typing import Any, NoReturn

from gunicorn import sock, systemd

from procserver.lifecycle import crew
from procserver.lifecycle.backlog import refuse_handshakes
from procserver.lifecycle.master import master
from procserver.lifecycle.reload import Reloads

log = logging.getLogger("procserver.lifecycle")

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# A fast stop: how long workers may take over it, and the kernel over killed ones.
FAST_SECONDS = 1.0
REAP_SECONDS = 5.0
POLL_SECONDS = 0.1


class Drain:
    """What ends one master. Takes over the arbiter's ``stop`` and ``handle_term``.

    The grace period counts from the first signal on, the window included.
    """

    def __init__(self, server: Any, reloads: Reloads) -> None:
        self._server = server
        self._reloads = reloads
        self._began: float | None = None
        self._stopped = False
        self._halt = server.halt
        server.handle_term = self.begin
        server.stop = self.stop
        server.halt = self.halt

    @property
    def is_running(self) -> bool:
        return self._began is not None

    def begin(self) -> None:
        """The first SIGTERM, or a further one.

        :raises StopIteration: has the arbiter halt, if there is no window
        """
        server, state = self._server, master()
        if self.is_running:
            self.stop(graceful=False)
            raise StopIteration
        self._note_begin()
        systemd.sd_notify("STOPPING=1", server.log)
        self._reloads.give_up(server, "the service is being stopped")
        window = state.settings.drain_seconds
        if not state.has_been_ready or not window:
            # Nobody counts on it yet, or nobody is to be waited for.
            raise StopIteration
        log.info("draining: readiness says 503, requests are taken for %g s", window)

    def _note_begin(self) -> None:
        if self._began is None:
            self._began = time.monotonic()
            master().counts.start_drain()

    def left(self) -> float:
        """Seconds of the window that are left.

        :raises StopIteration: if there are none
        """
        assert self._began is not None
        end = self._began + master().settings.drain_seconds
        left = end - time.monotonic()
        if left <= 0:
            raise StopIteration
        return left

    def stop(self, graceful: bool = True) -> None:
        """Ends all workers; returns when they are gone."""
        if self._stopped:
            return
        self._stopped = True
        server, state = self._server, master()
        state.halting = True
        self._note_begin()
        self._close_listeners()
        for member in state.serving():
            if not member.ready:
                # It has nothing to answer; its start is not waited for.
                crew.dismiss(server, member)
        if graceful:
            log.info("stopping: %d workers finish their requests", len(server.WORKERS))
            server.kill_workers(signal.SIGTERM)
            assert self._began is not None
            graceful = self._wait(self._began + server.cfg.graceful_timeout)
        if not graceful:
            server.kill_workers(signal.SIGQUIT)
            self._wait(time.monotonic() + FAST_SECONDS, heeding=False)
        if server.WORKERS:
            log.error("%d workers are late and are killed", len(server.WORKERS))
            server.kill_workers(signal.SIGKILL)
            self._wait(time.monotonic() + REAP_SECONDS, heeding=False)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        """Gunicorn's end of the master, and the process's at once.

        PERF: Python would take torch down first, half a second of CPU for nothing.
        """
        try:
            self._halt(reason, exit_status)
        except SystemExit as ended:
            exit_status = ended.code if isinstance(ended.code, int) else 0
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_status)

    def _close_listeners(self) -> None:
        server = self._server
        # What a service manager or another master goes on with is left alone.
        is_ours = server.reexec_pid == server.master_pid == 0 and not server.systemd
        if is_ours:
            refuse_handshakes(server.LISTENERS)
        sock.close_sockets(server.LISTENERS, is_ours and not server.cfg.reuse_port)
        server.LISTENERS = []

    def _wait(self, end: float, *, heeding: bool = True) -> bool:
        """Reaps until no worker is left or the time is over.

        Returns False at once if a signal to end comes, provided it is heeded.
        """
        server = self._server
        while True:
            server.reap_workers()
            left = end - time.monotonic()
            if not server.WORKERS or left <= 0:
                return True
            try:
                signum = server.SIG_QUEUE.get(timeout=min(left, POLL_SECONDS))
            except queue.Empty:
                continue
            if signum in ENDING and heeding:
                log.info("a second signal: the service ends at once")
                return False
            if signum == signal.SIGUSR1:
                server.handle_usr1()
