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

import selectors
import socket
import time
from math import inf
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from procserver.lifecycle.admission import Admission, SharedCounts
from procserver.lifecycle.arrival import ArrivingWorker
from procserver.lifecycle.connection import Connection, Seat
from procserver.lifecycle.line import Line, Ticket, waiting
from procserver.observe import metrics

_SECOND = 1_000_000_000
# For so long a worker that has room left leaves a request to one that is idle.
HEAD_START = 0.002
TIDY_SECONDS = 1.0


class Sharing:
    """What a worker needs for that.

    :param line: where it puts requests; ``lines``: from which it takes them, that
        one and those of earlier releases
    :param capacity: requests that keep it busy: it takes up no more while others
        are free
    """

    def __init__(
        self,
        counts: SharedCounts,
        slot: int,
        lines: list[Line],
        admission: Admission,
        *,
        capacity: int,
    ) -> None:
        self.counts = counts
        self.slot = slot
        lines.sort(key=lambda line: line.release)
        self.lines = lines
        self.line = lines[-1]
        self.admission = admission
        self.capacity = capacity

    def busy(self) -> int:
        return self.counts.busy(self.slot)

    def others(self) -> tuple[bool, bool]:
        """Whether another worker would take from our line, and one is idle."""
        return self.counts.others(self.slot, self.line.release)

    def waiting(self) -> int:
        return waiting(self.lines)

    def has_room(self, put: int) -> bool:
        """Whether this worker should take a request that was put into a line then."""
        busy = self.busy()
        if not busy:
            return True
        if busy >= self.capacity:
            return False
        return time.monotonic_ns() - put > HEAD_START * _SECOND or not self.others()[1]

    def forget_lines(self) -> list[Line]:
        """Drops, and returns, lines of releases that have no worker any more."""
        old = [
            line
            for line in self.lines[:-1]
            if not self.counts.has_worker(line.release) and not line.waiting()
        ]
        for line in old:
            self.lines.remove(line)
        return old


class SharingWorker(ArrivingWorker):
    """One of several workers with one queue. ``sharing`` is None: on its own."""

    sharing: Sharing | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Whether the poller tells of requests in the lines.
        self._listening = False
        # When to look at them although the poller tells nothing.
        self._look_at = inf
        self._tidy_at = 0.0

    def share(self, sharing: Sharing) -> None:
        """Call before :meth:`run`."""
        if not self.cfg.is_ssl and self.cfg.proxy_protocol in (None, False, "off"):
            self.sharing = sharing

    def run(self) -> None:
        sharing = self.sharing
        if sharing is None:
            super().run()
            return
        sharing.counts.start_taking(sharing.slot, sharing.line.release)
        self._pull()
        try:
            super().run()
        finally:
            sharing.counts.stop_taking(sharing.slot)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        super().handle_exit(sig, frame)
        if self.sharing is not None:
            # From now on others keep what they have.
            self.sharing.counts.stop_taking(self.sharing.slot)

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
        if change < 0 and (not self._listening or sharing.waiting()):
            self.method_queue.defer(self._pull)

    def complete(self, conn: Connection, arrived: float, head: bytes) -> None:
        sharing = self.sharing
        # PERF: a worker that is free looks at nothing but one word.
        if sharing is not None and (sharing.busy() or not self.alive):
            readers, idle = sharing.others()
            leaves = idle or sharing.busy() >= sharing.capacity or not self.alive
            if readers and leaves and self._put(conn, arrived, head):
                return
        self.take_up(conn, arrived)

    def take_up(
        self,
        conn: Connection,
        arrived: float,
        there: float | None = None,
        *,
        late: bool = False,
    ) -> None:
        conn.seat.take()
        super().take_up(conn, arrived, there, late=late)

    def finish_request(self, conn: Connection, fs: Any) -> None:
        if self.sharing is not None:
            conn.seat.leave()
            # Those in line come before what this connection may have next.
            self._pull()
        super().finish_request(conn, fs)

    # Putting in.

    def _put(self, conn: Connection, arrived: float, head: bytes) -> bool:
        """Puts a connection with a request into the line, unless it should stay."""
        if self.wanted is None or not self.wanted(head):
            return False
        if not self._send_off(conn, int(arrived * _SECOND)):
            return False
        conn.close()
        self._look_at = min(self._look_at, arrived + self.request_seconds)
        if not self.alive:
            # Whoever was there to take it may have left in this moment.
            self._pull()
        return True

    def _send_off(self, conn: Connection, arrived: int) -> bool:
        """Whether the line has the connection; this worker should close it then."""
        sharing = self.sharing
        assert sharing is not None
        ticket = Ticket(arrived, time.monotonic_ns(), conn.listener, sharing.slot)
        if not sharing.line.put(conn.sock.fileno(), ticket):
            return False
        self.nr_conns -= 1
        return True

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        sharing = self.sharing
        if sharing is None:
            return
        sharing.counts.stop_taking(sharing.slot)
        if sharing.others()[0]:
            self._pass_on_idle()
        self._pull()

    def _pass_on_idle(self) -> None:
        """A worker on its way out leaves its silent connections to the others."""
        for idle in (self.keepalived_conns, self.pending_conns):
            while idle and self._send_off(idle[0], 0):
                conn = idle.popleft()
                self.poller.unregister(conn.sock)
                conn.close()

    # Taking out.

    def _pull(self) -> None:
        """Takes up requests from the lines while this worker has room.

        On its way out it leaves them to others, or takes all where there are none.
        """
        sharing = self.sharing
        if sharing is None or (not self.alive and sharing.others()[0]):
            return
        for line in sharing.lines:
            while self._pull_from(line):
                pass
        if not self._listening and sharing.busy() < sharing.capacity:
            # PERF: what is left there is for others; the poller would tell of it
            # all the time.
            self._listen(not sharing.waiting())

    def _pull_from(self, line: Line) -> bool:
        """Whether there may be more to take from this line."""
        sharing = self.sharing
        assert sharing is not None
        if sharing.busy() and self.alive:
            first = line.first()
            if first is None:
                return False
            if first.arrived and not sharing.has_room(first.put):
                late = first.arrived / _SECOND + self.request_seconds
                if late > time.monotonic():
                    self._look_again(late)
                    return False
                # Nobody took it in time: it is answered so at once.
        taken = line.take()
        if taken is None:
            return False
        self._adopt(*taken)
        return True

    def _look_again(self, late: float) -> None:
        sharing = self.sharing
        assert sharing is not None
        if sharing.busy() < sharing.capacity:
            # Left to an idle worker, which must prove to be one.
            late = min(late, time.monotonic() + HEAD_START)
        self._look_at = min(self._look_at, late)

    def _adopt(self, ticket: Ticket, fd: int) -> None:
        """Takes a connection out of the line, and up what it waits with."""
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
            if not self.alive:
                conn.timeout = time.monotonic() + STOP_KEEPALIVE_LINGER
            self._await_first(conn)
            return
        if ticket.slot != sharing.slot:
            metrics.HANDED_OVER.add()
        self.take_up(conn, ticket.arrived / _SECOND, ticket.put / _SECOND)

    # Being told.

    def _listen(self, wanted: bool) -> None:
        sharing = self.sharing
        assert sharing is not None
        if wanted == self._listening:
            return
        self._listening = wanted
        for line in sharing.lines:
            if wanted:
                self.poller.register(line, selectors.EVENT_READ, self._on_line)
            else:
                self.poller.unregister(line)

    def _on_line(self, _line: Line) -> None:
        self._pull()
        sharing = self.sharing
        assert sharing is not None
        if sharing.waiting():
            self._listen(False)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self.sharing is None:
            super().wait_for_and_dispatch_events(timeout)
            return
        now = time.monotonic()
        super().wait_for_and_dispatch_events(
            max(0.0, min(timeout, self._look_at - now))
        )
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = inf
            self._pull()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_SECONDS
            self._tidy(self.sharing)

    def _tidy(self, sharing: Sharing) -> None:
        """What nothing else would notice."""
        if len(sharing.lines) > 1:
            for line in sharing.forget_lines():
                if self._listening:
                    self.poller.unregister(line)
                line.close()
        # Whoever put it there may have died.
        self._pull()
