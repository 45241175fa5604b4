"""gunicorn's threaded worker where its HTTP is not ours.

What differs: a connection takes no thread before it has sent something; reading
a request has a deadline; ``Expect: 100-continue`` is answered when the app wants
the body; refusals of the parser look like ours; closing lingers in the poller
and not in a blocked loop; a process without free descriptors goes on.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http.errors import (
    ConfigurationProblem,
    ExpectationFailed,
    ForbiddenProxyRequest,
    InvalidHeader,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.gthread import ThreadWorker

from procserver.errors import OutOfTime, RequestError
from procserver.lifecycle.connection import HEAD_SECONDS, Connection, RequestBody
from procserver.observe import metrics
from procserver.wire.refusal import refusal

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

# How long a client may take over receiving an answer.
SEND_SECONDS = 30.0
# How long a closed connection's client may go on sending.
LINGER_SECONDS = 2.0
# How long nothing is accepted after the system had no descriptor or memory for it.
STARVED_SECONDS = 0.25
# How often the log says so.
SAID_SECONDS = 5.0
_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_THERE = (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK)
_DISCARD = bytearray(1 << 20)
# Headers that decide about a request: two of one are none of ours.
_ONCE = ("AUTHORIZATION", "HOST", "CONTENT-TYPE", "CONTENT-MD5", "DATE")
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (LimitRequestLine, 414),
    (LimitRequestHeaders, 431),
    (ExpectationFailed, 417),
    (ForbiddenProxyRequest, 403),
    (UnsupportedTransferCoding, 501),
    (ConfigurationProblem, 500),
)


class HttpWorker(ThreadWorker):  # type: ignore[misc]
    """The threads of one worker and the connections that wait for them.

    ``request_seconds``: how long one request may take.
    """

    request_seconds = 5.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lingering: deque[Connection] = deque()
        self._accept_again = 0.0
        self._starved_said = -SAID_SECONDS

    def accept(self, listener: Any) -> None:
        """A new connection waits in the poller: it need not send anything soon."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in _STARVED:
                self._starve(error)
            elif error.errno not in _NOT_THERE:
                raise
            return
        number = self.sockets.index(listener) if len(self.sockets) > 1 else 0
        conn = self.connect(sock, client, number)
        conn.set_timeout()
        self._await_first(conn)

    def connect(self, sock: socket.socket, client: Any, number: int) -> Connection:
        """A connection that is this worker's from now on.

        :param number: of the listening socket that accepted it
        """
        self.nr_conns += 1
        server = self.sockets[number].getsockname()
        return Connection(self.cfg, sock, client, server, listener=number)

    def _await_first(self, conn: Connection) -> None:
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def _starve(self, error: OSError) -> None:
        """No descriptor for another connection: somebody else must go first.

        NOTE: the listening socket stays readable; without the pause the loop would
        do nothing but try again.
        """
        metrics.ACCEPT_ERRORS.add()
        now = time.monotonic()
        if now > self._starved_said + SAID_SECONDS:
            self._starved_said = now
            self.log.error("cannot accept a connection: %s", error.strerror)
        self._accept_again = now + STARVED_SECONDS
        self.set_accept_enabled(False)
        # Of those that nothing is under way on: who never sent anything, or else
        # has been silent for longest.
        for idle in (self.pending_conns, self.keepalived_conns):
            if idle:
                conn = idle.popleft()
                self.poller.unregister(conn.sock)
                self.nr_conns -= 1
                conn.close()
                break

    def set_accept_enabled(self, enabled: bool) -> None:
        if enabled and time.monotonic() < self._accept_again:
            return
        super().set_accept_enabled(enabled)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self._accept_again:
            left = self._accept_again - time.monotonic()
            if left > 0:
                timeout = min(timeout, left)
            else:
                self._accept_again = 0.0
        super().wait_for_and_dispatch_events(timeout)

    def enqueue_req(self, conn: Connection) -> None:
        self.take_up(conn, time.monotonic())

    def take_up(
        self,
        conn: Connection,
        arrived: float,
        there: float | None = None,
        *,
        late: bool = False,
    ) -> None:
        """Has a thread read and answer the request that came at ``arrived``.

        :param there: since when it waits for that; None: it does not
        :param late: its client has had its time; the thread says so
        """
        conn.begin(
            arrived,
            time.monotonic() if there is None else there,
            seconds=self.request_seconds,
            head_seconds=0.0 if late else HEAD_SECONDS,
        )
        super().enqueue_req(conn)

    def handle_request(self, req: Any, conn: Connection) -> Any:
        # A later minor version is spoken to in ours (RFC 9110 section 2.5).
        req.version = min(req.version, (1, 1))
        names = [name for name, _ in req.headers]
        for name in _ONCE:
            if names.count(name) > 1:
                raise InvalidHeader(f"{name} was sent more than once")
        conn.begin_body()
        req.body = conn.body = RequestBody(conn, req)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            metrics.UNREAD_ANSWERS.add()
            raise NoMoreData("the client does not read its answer") from None
        except ConnectionError:
            metrics.UNREAD_ANSWERS.add()
            raise NoMoreData("the client left before its answer") from None

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        return keepalive and conn.body is not None and conn.body.finish()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answers what never reached the app."""
        answer = _refusal_of(exc)
        if answer is None:
            self.log.error("error while handling a request", exc_info=exc)
            answer = refusal(500, "predict_failed", "see the service log")
        else:
            self.log.debug("refused a request: %s", exc)
            if isinstance(exc, OutOfTime):
                # In line for longer than it had, or its head did not come.
                metrics.REQUESTS.add(1, str(exc.status))
        try:
            util.write_nonblock(client, answer)
        except OSError:
            self.log.debug("the refusal was not sent")

    def finish_request(self, conn: Connection, fs: Any) -> None:
        closing = not fs.cancelled() and fs.exception() is None and fs.result() is False
        if closing and not self.cfg.is_ssl:
            self._linger(conn)
        else:
            super().finish_request(conn, fs)

    def _linger(self, conn: Connection) -> None:
        """Ends our side; the client's may finish what it is sending.

        NOTE: closing a socket with unread bytes makes the kernel reset the
        connection, and the client would lose the answer it is about to read.
        """
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            conn.timeout = time.monotonic() + LINGER_SECONDS
            self.poller.register(
                conn.sock, selectors.EVENT_READ, partial(self._discard, conn)
            )
        except (OSError, ValueError, KeyError):
            self.nr_conns -= 1
            conn.close()
        else:
            self.lingering.append(conn)

    def _discard(self, conn: Connection, sock: socket.socket) -> None:
        try:
            # PERF: TCP drops the bytes without copying them.
            if sock.recv_into(_DISCARD, 0, socket.MSG_TRUNC):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.lingering.remove(conn)
        self._close_lingering(conn)

    def _close_lingering(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        # A worker on its way out waits no longer for those that never sent anything.
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def murder_pending(self) -> None:
        super().murder_pending()
        now = time.monotonic()
        while self.lingering and self.lingering[0].timeout <= now:
            self._close_lingering(self.lingering.popleft())


def _refusal_of(error: Exception) -> bytes | None:
    """The answer to a request that could not be parsed; None: not its fault."""
    if isinstance(error, RequestError):
        return refusal(error.status, error.code, str(error))
    if not isinstance(error, ParseException):
        return None
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return refusal(status, "bad_http", str(error))
    return refusal(400, "bad_http", str(error))


def honour_close(app: Wsgi, is_leaving: Callable[[], bool] = lambda: False) -> Wsgi:
    """Lets the app end a connection, and ends those that cannot go on.

    While ``is_leaving`` every answer is the last one of its connection.

    NOTE: gunicorn drops ``Connection: close`` as a hop-by-hop header and decides
    by a flag of its response object, whose method ``start_response`` is.
    """

    def closing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"]

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            close = is_leaving() or any(
                n.lower() == "connection" and v == "close" for n, v in headers
            )
            if isinstance(body, RequestBody):
                close |= not body.finish()
                body.answered()
                environ["gunicorn.socket"].settimeout(SEND_SECONDS)
            if close:
                start_response.__self__.force_close()
            return start_response(status, headers, *rest)

        return app(environ, start)

    return closing
