"""One client's connection, with a deadline for each request on it.

gunicorn reads from a socket without end: a client that sends half a request
holds a thread for ever. Here every read counts against the time that
``rpc.keepalive`` gives to one request, from its first byte on, and against one for
the head and one for the body.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections.abc import Callable
from ssl import SSLSocket
from typing import Any, TypeVar

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from procserver.errors import BadRequest, ClientGone, OutOfTime, TooLarge

# How long a client may take over sending a request's head, and then its body.
HEAD_SECONDS = 5.0
BODY_SECONDS = 30.0
# A refused request's body is read along if no more than this is left of it.
SKIM_BYTES = 64 << 10
# Clients send head and body one right after the other.
SKIM_SECONDS = 0.1
# Pieces from this size on are waited for as a whole.
WAIT_FOR_ALL = 64 << 10
_TIMEVAL = struct.Struct("ll")
_COUNT = struct.Struct("i")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Received = TypeVar("Received")


class Seat:
    """A place among the requests that occupy a worker: it can take up no others.

    A request gives it up where it does not need the worker: while its client is
    slow to send it or to read its answer. ``change`` is called with 1 and -1.
    """

    __slots__ = ("_change", "_taken")

    def __init__(self, change: Callable[[int], None]) -> None:
        self._change = change
        self._taken = False

    def take(self) -> None:
        if not self._taken:
            self._taken = True
            self._change(1)

    def leave(self) -> None:
        if self._taken:
            self._taken = False
            self._change(-1)


def _nobody_counts(change: int) -> None:
    """For connections of a worker that shares no requests."""


class Connection(TConn):  # type: ignore[misc]
    """gthread's connection; what is said of time is set anew for each request.

    ``arrived``: when its first byte was seen; ``deadline``: when its answer is due;
    both on the monotonic clock. ``waited``: seconds from when it was there until a
    thread took it up.
    ``listener``: number of the listening socket.
    """

    def __init__(self, *args: Any, listener: int = 0) -> None:
        super().__init__(*args)
        self.arrived = 0.0
        self.waited = 0.0
        self._there = 0.0
        self.deadline = 0.0
        self.listener = listener
        self.seat = Seat(_nobody_counts)
        self.body: RequestBody | None = None
        self._read_by = 0.0

    def begin(
        self, arrived: float, there: float, *, seconds: float, head_seconds: float
    ) -> None:
        """A request that came at ``arrived`` is taken up.

        :param there: when it had come as far as it was waited for
        :param seconds: from ``arrived`` until its answer is due
        :param head_seconds: that its client still has for the head
        """
        self._there = there
        self.arrived = arrived
        self.deadline = arrived + seconds
        self.waited = -1.0
        self._read_by = time.monotonic() + head_seconds

    def begin_body(self) -> None:
        """The head is there."""
        self._read_by = time.monotonic() + BODY_SECONDS

    @property
    def is_between_requests(self) -> bool:
        """Whether nothing of the next request has been read."""
        return not self.initialized or (
            not self.is_http2 and not self.parser.unreader.buf.getvalue()
        )

    def init(self) -> None:
        if self.waited < 0:
            self.waited = time.monotonic() - self._there
        if self.initialized:
            return
        super().init()
        if not self.is_http2:
            unreader = TimedUnreader(self)
            unreader.buf = self.parser.unreader.buf
            self.parser.unreader = unreader

    def remaining(self) -> float:
        """Seconds that the client may still take over sending the request.

        :raises OutOfTime: if there are none
        """
        left = min(self.deadline, self._read_by) - time.monotonic()
        if left <= 0:
            raise OutOfTime("the request did not arrive in time")
        return left


class TimedUnreader(SocketUnreader):  # type: ignore[misc]
    """Reads from the socket while the request has time left."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.sock)
        self._connection = connection
        self._encrypted = isinstance(self.sock, SSLSocket)

    def chunk(self, size_hint: int | None = None) -> bytes:
        size = min(max(size_hint or 0, self.mxchunk), self.max_body_chunk)
        return self._patiently(lambda flags: bytes(self.sock.recv(size, flags)))

    def read_into(self, view: memoryview) -> int:
        """Receives straight into ``view``; what was read ahead comes first."""
        ahead = self.take_buffered()
        if ahead:
            count = min(len(ahead), len(view))
            view[:count] = ahead[:count]
            if count < len(ahead):
                self.unread(ahead[count:])
            return count
        if len(view) < WAIT_FOR_ALL or self._encrypted:
            return self._patiently(
                lambda flags: int(self.sock.recv_into(view, 0, flags))
            )
        return self._whole(view)

    def _patiently(self, receive: Callable[[int], Received]) -> Received:
        """What is here at once, else what comes in time; without a seat meanwhile."""
        sock, connection = self.sock, self._connection
        left = connection.remaining()
        if not self._encrypted:
            if sock.gettimeout() is not None:
                sock.settimeout(None)
            try:
                return receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                connection.seat.leave()
            except ConnectionError:
                raise ClientGone("the client went away") from None
        sock.settimeout(left)
        try:
            received = receive(0)
        except TimeoutError:
            raise OutOfTime("the request did not arrive in time") from None
        except ConnectionError:
            raise ClientGone("the client went away") from None
        connection.seat.take()
        return received

    def _whole(self, view: memoryview) -> int:
        """As many bytes as ``view`` has, or fewer at the connection's end."""
        sock, connection = self.sock, self._connection
        left = connection.remaining()
        # PERF: one call to the kernel for all of a large body, with a time limit of
        # its own; Python would ask before each piece whether there is one.
        sock.settimeout(None)
        here = fcntl.ioctl(sock, termios.FIONREAD, bytes(_COUNT.size))
        if _COUNT.unpack(here)[0] < len(view):
            connection.seat.leave()
        limit = _TIMEVAL.pack(int(left), max(1, int(left % 1 * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        try:
            count = int(sock.recv_into(view, 0, socket.MSG_WAITALL))
        except BlockingIOError:
            raise OutOfTime("the request did not arrive in time") from None
        except ConnectionError:
            raise ClientGone("the client went away") from None
        connection.seat.take()
        return count

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

    @property
    def arrived(self) -> float:
        """When the request's first byte was seen, on the monotonic clock."""
        return self._connection.arrived

    @property
    def waited(self) -> float:
        """Seconds that the request waited until a thread took it up."""
        return self._connection.waited

    def client_has_left(self) -> bool:
        """Whether the client's side has ended, so that it hardly waits for an answer.

        Some only close their sending half; they are answered all the same.
        """
        sock = self._connection.sock
        if isinstance(sock, SSLSocket):
            return False
        try:
            if sock.gettimeout() is not None:
                sock.settimeout(None)
            return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def answered(self) -> None:
        """Only the sending of the answer is left, which needs no seat."""
        self._connection.seat.leave()

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
