"""Requests of one worker's connections that another worker answers.

Connections are kept alive, so each belongs to the worker that accepted it, and a
request would wait for that worker while others have nothing to do. Here a request
that finds its worker occupied is put, unread, into the line that all workers share
(:mod:`procserver.lifecycle.line`), and with it goes its connection; a worker that is
free takes the first one. So the service is one queue in order of arrival, and what
waits in it survives the death of any worker.

Only requests of which nothing has been read move, only to workers of the same or a
later release (versions never go back on a connection), and only those that the app
will want to compute, as far as their head tells: health checks, metrics, refusals and
requests whose head is not there yet are answered where they are. A lone worker, and
one that speaks TLS or the PROXY protocol, keeps what it has.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from procserver.errors import Unauthorized
from procserver.lifecycle.admission import Admission, SharedCounts
from procserver.lifecycle.connection import Connection, Seat
from procserver.lifecycle.http import HttpWorker
from procserver.lifecycle.line import Line, Ticket
from procserver.observe import metrics
from procserver.wire.auth import Authenticator

_SECOND = 1_000_000_000
# How much of a request's head is looked at.
_PEEK = 16 << 10
# For so long a worker that has room left leaves a request to one that is idle.
HEAD_START = 0.002


class Sharing:
    """What a worker needs for that.

    :param line: where it puts requests; ``lines``: from which it takes them, that
        one and those of earlier releases
    :param capacity: requests that keep it busy: it takes up no more while others
        are free
    :param may_wait: whether a request's head is one for the line
    """

    def __init__(
        self,
        counts: SharedCounts,
        slot: int,
        lines: Sequence[Line],
        admission: Admission,
        *,
        capacity: int,
        may_wait: Callable[[bytes], bool],
    ) -> None:
        self.counts = counts
        self.slot = slot
        self.lines = sorted(lines, key=lambda line: line.release)
        self.line = self.lines[-1]
        self.admission = admission
        self.capacity = capacity
        self.may_wait = may_wait

    def busy(self) -> int:
        return self.counts.busy(self.slot)

    def others(self) -> tuple[bool, bool]:
        """Whether another worker would take from our line, and one is idle."""
        return self.counts.others(self.slot, self.line.release)

    def waiting(self) -> int:
        return sum(line.waiting() for line in self.lines)

    def has_room(self, put: int) -> bool:
        """Whether this worker should take a request that was put into a line then."""
        busy = self.busy()
        if not busy:
            return True
        if busy >= self.capacity:
            return False
        return (
            time.monotonic_ns() - put > HEAD_START * _SECOND or not self.others()[1]
        )

    def forget_lines(self) -> list[Line]:
        """Drops lines of releases that have no worker any more."""
        old = [
            line
            for line in self.lines[:-1]
            if not self.counts.takes(line.release) and not line.waiting()
        ]
        self.lines = [line for line in self.lines if line not in old]
        return old


class SharingWorker(HttpWorker):
    """One of several workers with one queue. ``sharing`` is None: on its own."""

    sharing: Sharing | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._look_at = inf
        self._listening: set[Line] = set()

    def share(self, sharing: Sharing) -> None:
        """Call before :meth:`run`."""
        if not self.cfg.is_ssl and self.cfg.proxy_protocol in (False, "off", None):
            self.sharing = sharing

    def run(self) -> None:
        sharing = self.sharing
        if sharing is not None:
            sharing.counts.start_taking(sharing.slot, sharing.line.release)
            self._pull()
        try:
            super().run()
        finally:
            if sharing is not None:
                sharing.counts.stop_taking(sharing.slot)

    def connect(self, sock: socket.socket, client: Any, number: int) -> Connection:
        conn = super().connect(sock, client, number)
        if self.sharing is not None:
            conn.seat = Seat(self._change_busy)
        return conn

    def _change_busy(self, change: int) -> None:
        """A request takes its seat here, or leaves it; in any thread."""
        sharing = self.sharing
        assert sharing is not None
        sharing.counts.add_busy(sharing.slot, change)
        if change < 0 and sharing.waiting():
            self.method_queue.defer(self._pull)

    def enqueue_req(self, conn: Connection) -> None:
        now = time.monotonic()
        sharing = self.sharing
        # PERF: a worker that is free looks at nothing but one word.
        if sharing is not None and (sharing.busy() or not self.alive):
            readers, idle = sharing.others()
            wanted = idle or sharing.busy() >= sharing.capacity or not self.alive
            if readers and wanted and self._put(conn, now):
                return
        self.take_up(conn, now)

    def take_up(self, conn: Connection, arrived: float) -> None:
        conn.seat.take()
        super().take_up(conn, arrived)

    def finish_request(self, conn: Connection, fs: Any) -> None:
        if self.sharing is not None:
            conn.seat.leave()
            # Those in line come before what this connection may have next.
            self._pull()
        super().finish_request(conn, fs)

    # Putting in.

    def _put(self, conn: Connection, now: float) -> bool:
        """Puts a connection with a request into the line, unless it should stay."""
        sharing = self.sharing
        assert sharing is not None
        if not conn.is_between_requests:
            return False
        try:
            head = conn.sock.recv(_PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return False
        if not sharing.may_wait(head) or sharing.admission.is_full:
            return False
        if not self._send_off(conn, int(now * _SECOND)):
            return False
        self._look_at = min(self._look_at, now + self.request_seconds)
        return True

    def _send_off(self, conn: Connection, arrived: int) -> bool:
        """Whether the connection now belongs to the line."""
        sharing = self.sharing
        assert sharing is not None
        ticket = Ticket(arrived, time.monotonic_ns(), conn.listener, sharing.slot)
        if not sharing.line.put(conn.sock.fileno(), ticket):
            return False
        self.nr_conns -= 1
        conn.close()
        return True

    def _pass_on_idle(self) -> None:
        """A worker on its way out leaves its silent connections to the others."""
        for idle in (self.keepalived_conns, self.pending_conns):
            while idle and idle[0].is_between_requests:
                conn = idle[0]
                self.poller.unregister(conn.sock)
                if not self._send_off(conn, 0):
                    self._register_again(conn, idle is self.pending_conns)
                    return
                idle.popleft()

    # Taking out.

    def _pull(self) -> None:
        """Takes up requests from the lines while this worker has room."""
        sharing = self.sharing
        if sharing is None or not (self.alive or not sharing.others()[0]):
            return
        for line in sharing.lines:
            while self._pull_from(line):
                pass
        self._listen()

    def _pull_from(self, line: Line) -> bool:
        sharing = self.sharing
        assert sharing is not None
        if sharing.busy():
            first = line.first()
            if first is None:
                return False
            if first.arrived and self.alive and not sharing.has_room(first.put):
                late = first.arrived / _SECOND + self.request_seconds
                if late > time.monotonic():
                    self._look_at = min(
                        late,
                        self._look_at,
                        time.monotonic() + HEAD_START
                        if sharing.busy() < sharing.capacity
                        else inf,
                    )
                    return False
                # Nobody took it in time: it is answered so at once.
        taken = line.take()
        if taken is None:
            return False
        self._adopt(*taken)
        return True

    def _adopt(self, ticket: Ticket, fd: int) -> None:
        sharing = self.sharing
        assert sharing is not None
        if fd < 0:
            metrics.ACCEPT_ERRORS.add()
            self.log.error("a connection was lost: no descriptor is free")
            return
        sock = socket.socket(fileno=fd)
        try:
            client = sock.getpeername()
        except OSError:
            # Its client has given up.
            sock.close()
            return
        conn = self.connect(sock, client, ticket.listener)
        conn.data_ready = True
        if not ticket.arrived:
            conn.set_timeout()
            self._register_again(conn, pending=True)
            return
        if ticket.slot != sharing.slot:
            metrics.HANDED_OVER.add()
        self.take_up(conn, ticket.arrived / _SECOND)

    # Being told.

    def _listen(self) -> None:
        sharing = self.sharing
        assert sharing is not None
        ...
