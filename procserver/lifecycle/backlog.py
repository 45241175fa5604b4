"""The end of listening: nobody who got through to a socket is turned away by a reset.

Closing a listening socket resets the connections that wait in its backlog, whose
clients may have sent a request already. So, in this order: the kernel is told to
take no new handshakes, workers accept until the backlog is empty, then it is closed.
A client that comes meanwhile sends its SYN again after a second and is refused then
(or finds the next process on that port); it never had a connection to lose.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
import time
from collections.abc import Sequence

from procserver.lifecycle.http import HttpWorker

log = logging.getLogger("procserver.lifecycle")

# How long nobody has come before the backlog counts as empty: a handshake that is
# under way takes one round trip more. And how long all that may take.
QUIET_SECONDS = 0.1
LONGEST_SECONDS = 2.0

# From asm-generic/socket.h, which Python's socket module does not have.
SO_ATTACH_FILTER = 26
# Classic BPF over the TCP header: drop what has SYN without ACK, pass the rest.
_NO_SYN = (
    (0x30, 0, 0, 13),  # A = byte 13, the flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # if A == SYN:
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


def refuse_handshakes(listeners: Sequence[socket.socket]) -> bool:
    """No new TCP connections; those under way go on. Returns whether all obey.

    NOTE: the filter belongs to the socket, not to this process: use it only on
    sockets that nobody else goes on listening on.
    """
    code = b"".join(struct.pack("HBBI", *line) for line in _NO_SYN)
    memory = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_NO_SYN), ctypes.addressof(memory))
    obey = True
    for listener in listeners:
        if listener.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        try:
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError as error:
            log.info("new connections cannot be held off: %s", error)
            obey = False
    return obey


class LastAccepts(HttpWorker):
    """A worker that accepts what waits before it stops to listen for good."""

    def is_leaving(self) -> bool:
        """Whether the whole service is being stopped, not this worker alone."""
        return False

    def set_accept_enabled(self, enabled: bool) -> None:
        if not enabled and not self.alive and self.is_leaving():
            self._accept_what_waits()
        super().set_accept_enabled(enabled)

    def _accept_what_waits(self) -> None:
        # One that had all the connections that it may have takes these too.
        super().set_accept_enabled(True)
        now = time.monotonic()
        end, quiet = now + LONGEST_SECONDS, now + QUIET_SECONDS
        self._accepted = False
        while (now := time.monotonic()) < min(end, quiet):
            self.notify()
            self.wait_for_and_dispatch_events(timeout=min(end, quiet) - now)
            if self._accepted:
                self._accepted = False
                quiet = time.monotonic() + QUIET_SECONDS

    def accept(self, listener: socket.socket) -> None:
        before = self.nr_conns
        super().accept(listener)
        self._accepted = self.nr_conns > before
