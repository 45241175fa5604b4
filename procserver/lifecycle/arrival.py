"""Requests that are on their way: they take no thread before they are there.

A client may send a request slowly, or half of it and then nothing. The poller waits
for that, not a thread: what has come is looked at without being read, and the kernel
is told (``SO_RCVLOWAT``) how much more must come before it says that there is
something. A request goes on when it is complete, when its head tells that it is
refused anyway, or when its time is over, which it is told at once. Only large bodies,
those in chunks and TLS are received in threads, whose number admission bounds.
"""

from __future__ import annotations

import fcntl
import re
import selectors
import socket
import struct
import termios
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from procserver.errors import Unauthorized
from procserver.lifecycle.connection import BODY_SECONDS, HEAD_SECONDS, Connection
from procserver.lifecycle.http import HttpWorker
from procserver.observe import metrics
from procserver.wire.auth import Authenticator

# How much of a request is looked at, and from what on a head is refused as too long.
_PEEK = 16 << 10
_LONG_HEAD = 8000
# The kernel keeps so much of each request that is on its way.
MOST_KEPT = 256 << 10
_COUNT = struct.Struct("i")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n")
_LINE = re.compile(rb"[A-Z]{1,20} [^ \r\n]+ HTTP/1\.[0-9]\r\n")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\n-\x1f\x7f]*")
_EXPECT = re.compile(rb"(?i)\r\nexpect:")


class ArrivingWorker(HttpWorker):
    """``wanted``: whether the app will want the body that belongs to a head."""

    wanted: Callable[[bytes], bool] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What is on its way, the oldest first: when it is given up, when it began.
        self._heads: dict[Connection, tuple[float, float]] = {}
        self._bodies: dict[Connection, tuple[float, float]] = {}

    def enqueue_req(self, conn: Connection) -> None:
        now = time.monotonic()
        if self.wanted is None or self.cfg.is_ssl or not conn.is_between_requests:
            self.take_up(conn, now)
        else:
            self._examine(conn, now, 0)

    def complete(self, conn: Connection, arrived: float, head: bytes) -> None:
        """A request is there, as far as it is waited for; ``head``: its beginning."""
        self.take_up(conn, arrived)

    def _examine(self, conn: Connection, arrived: float, seen: int) -> None:
        """:param seen: how much was there the last time"""
        sock = conn.sock
        try:
            head = sock.recv(_PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            head = b""
            if seen:
                metrics.REQUESTS.add(1, "499")
        if not head:
            # The usual end of a connection.
            self.nr_conns -= 1
            conn.close()
            return
        end = head.find(b"\r\n\r\n")
        here, wanted = len(head), 0
        if end < 0:
            if _may_go_on(head):
                wanted = here + 1
        else:
            length = _LENGTH.search(head, 0, end + 2)
            whole = end + 4 + int(length[1]) if length is not None else 0
            if whole > here:
                here = _bytes_here(sock)
                if whole > here and self._is_awaited(whole, head[: end + 4]):
                    wanted = whole
        # What does not grow any more was ended by its client.
        if wanted and here > seen:
            self._await_more(conn, arrived, here, wanted, end < 0)
        else:
            self.complete(conn, arrived, head)

    def _is_awaited(self, whole: int, head: bytes) -> bool:
        assert self.wanted is not None
        return whole <= MOST_KEPT and not _EXPECT.search(head) and self.wanted(head)

    def _await_more(
        self, conn: Connection, arrived: float, here: int, wanted: int, is_head: bool
    ) -> None:
        end = arrived + self.request_seconds
        if is_head:
            self._heads[conn] = min(end, arrived + HEAD_SECONDS), arrived
        else:
            self._bodies[conn] = min(end, arrived + BODY_SECONDS), arrived
        _wake_at(conn.sock, wanted)
        self.poller.register(
            conn.sock,
            selectors.EVENT_READ,
            partial(self._on_more, conn, arrived, here),
        )

    def _on_more(
        self, conn: Connection, arrived: float, seen: int, sock: socket.socket
    ) -> None:
        self._heads.pop(conn, None)
        self._bodies.pop(conn, None)
        self.poller.unregister(sock)
        _wake_at(sock, 1)
        self._examine(conn, arrived, seen)

    def _give_up_late(self, now: float) -> None:
        for coming in (self._heads, self._bodies):
            while coming:
                conn, (end, arrived) = next(iter(coming.items()))
                if end > now:
                    break
                del coming[conn]
                self.poller.unregister(conn.sock)
                _wake_at(conn.sock, 1)
                self.take_up(conn, arrived, late=True)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self._heads or self._bodies:
            first = [next(iter(d.values())) for d in (self._heads, self._bodies) if d]
            timeout = max(0.0, min(timeout, min(first)[0] - time.monotonic()))
        super().wait_for_and_dispatch_events(timeout)
        if self._heads or self._bodies:
            self._give_up_late(time.monotonic())


def _may_go_on(head: bytes) -> bool:
    """Whether the rest of this head may make it one; else it is refused now."""
    if len(head) >= _LONG_HEAD or head.count(b"\n") != head.count(b"\r\n"):
        return False
    if b"\r\n" in head:
        return _LINE.match(head) is not None
    return head.replace(b" ", b"").isascii() and head[:1].isalpha()


def _wake_at(sock: socket.socket, count: int) -> None:
    """The poller tells of the socket from so many bytes on, or at its end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


def _bytes_here(sock: socket.socket) -> int:
    found = fcntl.ioctl(sock, termios.FIONREAD, bytes(_COUNT.size))
    return int(_COUNT.unpack(found)[0])


def may_wait(head: bytes, auth: Authenticator, most_bytes: int) -> bool:
    """Whether a request may wait unread, as far as its head tells.

    What is refused for its head alone need not wait for that; who takes it up
    examines it anyway.

    :param head: what has come of the request so far
    """
    lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[0] != "POST" or b"\r\n\r\n" not in head:
        return False
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        # Two of one kind are none of ours, or decide about the body.
        if not _HEADER.fullmatch(line) or name.lower() in headers:
            return False
        headers[name.lower()] = value.strip(" \t")
    length = headers.get("content-length", "0")
    if "content-length" in headers and "transfer-encoding" in headers:
        return False
    if (
        not length.isascii()
        or not length.isdecimal()
        or len(length) > 18
        or int(length) > most_bytes
    ):
        return False
    try:
        auth.check(words[0], words[1], headers)
    except Unauthorized:
        return False
    return True
