"""The line in which requests wait for any worker of a service, kept by the kernel.

A pair of connected sockets that the master makes before it forks, one for each
release. A message is a connection with its next request still unread in it; while
it waits it belongs to no process, so a worker that dies takes none of them along,
and whoever becomes free takes the first one::

    offset  size  field
         0     8  CLOCK_MONOTONIC ns at which the request came; 0: there is none
                  yet, a worker that ends passes its idle connection on
         8     8  CLOCK_MONOTONIC ns at which it was put into the line
        16     4  number of the listening socket that accepted the connection
        20     4  slot of the worker that put it there

NOTE: SOCK_SEQPACKET keeps messages apart like datagrams do, but its queue is bounded
by bytes and not by ``net.unix.max_dgram_qlen``, which is 10.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import threading
from contextlib import suppress
from dataclasses import dataclass

_TICKET = struct.Struct("<qqII")
_COUNT = struct.Struct("i")
# Each message costs the kernel some 800 bytes of it; the system may allow less.
_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True)
class Ticket:
    """What goes with a connection. Times on the monotonic clock in nanoseconds."""

    arrived: int
    put: int
    listener: int
    slot: int


class Line:
    """First come, first served; any process that has it may put and take."""

    def __init__(self, release: int) -> None:
        self.release = release
        self._out, self._in = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        for end in (self._out, self._in):
            end.setblocking(False)
        # A descriptor to give up where there are no more.
        self._spare = -1
        # Threads that count must not meet a descriptor that has become another's.
        self._closing = threading.Lock()

    def fileno(self) -> int:
        """Readable when somebody waits."""
        return self._out.fileno()

    @property
    def closed(self) -> bool:
        return self._out.fileno() < 0

    def put(self, fd: int, ticket: Ticket) -> bool:
        """Appends a connection, of which the caller then closes its own ``fd``.

        Returns False if the line takes no more; nothing has happened then.
        """
        data = _TICKET.pack(ticket.arrived, ticket.put, ticket.listener, ticket.slot)
        try:
            socket.send_fds(self._in, [data], [fd])
        except OSError:
            return False
        return True

    def take(self) -> tuple[Ticket, int] | None:
        """The first in line and the descriptor of its connection; None: nobody.

        The descriptor is -1 if this process can have no more of them; that
        connection is lost.
        """
        # NOTE: a process without a free descriptor would get the message alone.
        self._free_spare()
        try:
            data, fds, _, _ = socket.recv_fds(
                self._out, _TICKET.size, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        finally:
            self._keep_spare()
        if len(data) != _TICKET.size:
            return None
        return Ticket(*_TICKET.unpack(data)), fds[0] if fds else -1

    def first(self) -> Ticket | None:
        """Who would be taken next; stays in line."""
        try:
            data = self._out.recv(_TICKET.size, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        return Ticket(*_TICKET.unpack(data)) if len(data) == _TICKET.size else None

    def waiting(self) -> int:
        """How many are in line; 0 if this process has closed it. In any thread."""
        with self._closing:
            if self.closed:
                return 0
            size = fcntl.ioctl(self._out, termios.FIONREAD, bytes(_COUNT.size))
        return int(_COUNT.unpack(size)[0]) // _TICKET.size

    def close(self) -> None:
        """This process's ends; with those of the last process the line is gone."""
        with self._closing:
            self._free_spare()
            self._out.close()
            self._in.close()

    def empty(self) -> None:
        """Closes the connections of those who wait."""
        while (taken := self.take()) is not None:
            if taken[1] >= 0:
                os.close(taken[1])

    def _keep_spare(self) -> None:
        if self._spare < 0:
            with suppress(OSError):
                self._spare = os.dup(self._out.fileno())

    def _free_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1


def waiting(lines: list[Line]) -> int:
    """How many are in these lines; any thread may ask while others drop some."""
    return sum(line.waiting() for line in tuple(lines))
