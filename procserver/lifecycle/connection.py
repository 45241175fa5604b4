"""One client's connection, with a deadline for each request on it.

gunicorn reads from a socket without end: a client that sends half a request
holds a thread for ever. Here every read counts against the time that
``rpc.keepalive`` gives to one request, from its first byte on.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from ssl import SSLSocket
from typing import Any

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from procserver.errors import BadRequest, OutOfTime, TooLarge

# A refused request's body is read along if no more than this is left of it.
SKIM_BYTES = 64 << 10
# Clients send head and body one right after the other.
SKIM_SECONDS = 0.1
# Pieces from this size on are waited for as a whole.
WAIT_FOR_ALL = 64 << 10
_TIMEVAL = struct.Struct("ll")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(TConn):  # type: ignore[misc]
    """gthread's connection; ``deadline`` is set anew for each request."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.deadline = 0.0
        self.body: RequestBody | None = None

    def init(self) -> None:
        if self.initialized:
            return
        super().init()
        if not self.is_http2:
            unreader = TimedUnreader(self.sock, self.remaining)
            unreader.buf = self.parser.unreader.buf
            self.parser.unreader = unreader

    def remaining(self) -> float:
        """Seconds that the request may still take.

        :raises OutOfTime: if there are none
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime("the request did not arrive in time")
        return left


class TimedUnreader(SocketUnreader):  # type: ignore[misc]
    """Reads from the socket while the request has time left."""

    def __init__(self, sock: socket.socket, remaining: Callable[[], float]) -> None:
        super().__init__(sock)
        self._remaining = remaining

    def chunk(self, size_hint: int | None = None) -> bytes:
        self.sock.settimeout(self._remaining())
        try:
            data: bytes = super().chunk(size_hint)
        except TimeoutError:
            raise OutOfTime("the request did not arrive in time") from None
        return data

    def read_into(self, view: memoryview) -> int:
        """Receives straight into ``view``; what was read ahead comes first."""
        ahead = self.take_buffered()
        if ahead:
            count = min(len(ahead), len(view))
            view[:count] = ahead[:count]
            if count < len(ahead):
                self.unread(ahead[count:])
            return count
        left = self._remaining()
        if len(view) < WAIT_FOR_ALL or isinstance(self.sock, SSLSocket):
            self.sock.settimeout(left)
            try:
                return int(self.sock.recv_into(view))
            except TimeoutError:
                raise OutOfTime("the request did not arrive in time") from None
        # PERF: one call to the kernel for all of a large body, with a time limit of
        # its own; Python would ask before each piece whether there is one.
        self.sock.settimeout(None)
        limit = _TIMEVAL.pack(int(left), max(1, int(left % 1 * 1e6)))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        try:
            return int(self.sock.recv_into(view, 0, socket.MSG_WAITALL))
        except BlockingIOError:
            raise OutOfTime("the request did not arrive in time") from None

    def skim(self, most: int, seconds: float) -> int:
        """Drops up to ``most`` bytes that are here or come soon; how many it were."""
        ahead = self.take_buffered()
        dropped = min(len(ahead), most)
        if dropped < len(ahead):
            self.unread(ahead[dropped:])
            return dropped
        until = time.monotonic() + seconds
        try:
            while dropped < most and (left := until - time.monotonic()) > 0:
                self.sock.settimeout(left)
                data = self.sock.recv(most - dropped)
                if not data:
                    break
                dropped += len(data)
        except OSError:
            pass
        return dropped


class RequestBody:
    """``wsgi.input``: a body that is read when the app asks for it, not before.

    Answers ``Expect: 100-continue`` at the first read, so that a request which is
    refused unread never gets its client to send the body. Implements
    :class:`procserver.wire.receiving.BodySource` and what gunicorn's parser wants
    of a body between two requests.
    """

    def __init__(self, connection: Connection, request: Any) -> None:
        reader = request.body.reader
        self.length: int | None = None
        if isinstance(reader, LengthReader):
            self.length = reader.length
        self.failed = False
        self._left = self.length or 0
        self._ended = self.length == 0
        self._connection = connection
        self._request = request
        self._unreader = request.unreader
        self._chunks: BoundedChunks | None = None
        self._expects = bool(request._expected_100_continue)
        # NOTE: gunicorn would send 100 before the app runs.
        request._expected_100_continue = False

    @property
    def deadline(self) -> float:
        """When the answer is due, on the monotonic clock."""
        return self._connection.deadline

    def read_into(self, view: memoryview) -> int:
        self._begin()
        try:
            count = int(self._unreader.read_into(view[: self._left]))
        except BaseException:
            self.failed = True
            raise
        self.failed = count == 0 < self._left
        self._left -= count
        self._ended = self._left == 0
        return count

    def read_chunk(self, limit: int) -> bytes:
        if self._ended:
            return b""
        self._begin()
        if self._chunks is None:
            self._chunks = BoundedChunks(self._request, self._unreader, limit)
        try:
            while piece := next(self._chunks.parser, None):
                return bytes(piece)
        except (ParseException, NoMoreData) as error:
            self.failed = True
            what = str(error) or type(error).__name__
            raise BadRequest(f"the body's chunks are broken: {what}") from error
        except BaseException:
            self.failed = True
            raise
        self._ended = True
        return b""

    def read(self, size: int | None = None) -> bytes:
        """What gunicorn drains with; requests of ours are read by now or closed."""
        if self._ended:
            return b""
        if self.length is None:
            return self.read_chunk(SKIM_BYTES)
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        view = memoryview(bytearray(wanted))
        return bytes(view[: self.read_into(view)]) if wanted else b""

    def finish(self) -> bool:
        """Whether the next request on this connection can follow.

        Reads along what little is left, if it comes at once; for more, closing is
        cheaper than reading.
        """
        if self._ended or self.failed or self.length is None or self._expects:
            return self._ended and not self.failed
        if self._left <= SKIM_BYTES:
            self._left -= self._unreader.skim(self._left, SKIM_SECONDS)
            self._ended = self._left == 0
        return self._ended

    def _begin(self) -> None:
        if self._expects:
            self._expects = False
            self._connection.sock.settimeout(self._connection.remaining())
            self._connection.sock.sendall(CONTINUE)


class BoundedChunks(ChunkedReader):  # type: ignore[misc]
    """Refuses a chunk over the limit by its size line, before its bytes come."""

    def __init__(self, request: Any, unreader: Any, limit: int) -> None:
        self._limit = limit
        super().__init__(request, unreader)

    def parse_chunk_size(
        self, unreader: Any, data: bytes | None = None
    ) -> tuple[int, bytes | None]:
        size, rest = super().parse_chunk_size(unreader, data=data)
        if size > self._limit:
            raise TooLarge(f"a chunk of {size} bytes, at most {self._limit} are read")
        return size, rest
