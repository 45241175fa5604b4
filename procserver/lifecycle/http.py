"""gunicorn's threaded worker where its HTTP is not ours.

What differs: a connection takes no thread before it has sent something; reading
a request has a deadline; ``Expect: 100-continue`` is answered when the app wants
the body; refusals of the parser look like ours; closing lingers in the poller
and not in a blocked loop.
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

from procserver.errors import RequestError
from procserver.lifecycle.connection import Connection, RequestBody
from procserver.wire.refusal import refusal

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

# How long a client may take over receiving an answer.
SEND_SECONDS = 30.0
# How long a closed connection's client may go on sending.
LINGER_SECONDS = 2.0
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

    def accept(self, listener: Any) -> None:
        """A new connection waits in the poller: it need not send anything soon."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            ignored = (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK)
            if error.errno not in ignored:
                raise
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, sock, client, listener.getsockname())
        conn.set_timeout()
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(sock, selectors.EVENT_READ, readable)

    def enqueue_req(self, conn: Connection) -> None:
        conn.deadline = time.monotonic() + self.request_seconds
        super().enqueue_req(conn)

    def handle_request(self, req: Any, conn: Connection) -> Any:
        # A later minor version is spoken to in ours (RFC 9110 section 2.5).
        req.version = min(req.version, (1, 1))
        names = [name for name, _ in req.headers]
        for name in _ONCE:
            if names.count(name) > 1:
                raise InvalidHeader(f"{name} was sent more than once")
        req.body = conn.body = RequestBody(conn, req)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            raise NoMoreData("the client does not read its answer") from None

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
                environ["gunicorn.socket"].settimeout(SEND_SECONDS)
            if close:
                start_response.__self__.force_close()
            return start_response(status, headers, *rest)

        return app(environ, start)

    return closing
