"""The access log: one line of JSON for every predict request, when it is answered.

::

    {"time": "2026-11-22T03:04:05.678Z", "pid": 71, "remote": "10.0.0.8",
     "method": "POST", "path": "/api/predict/ranking", "status": 200,
     "request_id": "r-1", "x_request_id": null, "traceparent": null,
     "bytes_in": 8123, "items": 100, "missing": 2,
     "debug_level": 0, "model_version": "20261122", "cache_generation": 7,
     "ms": {"total": 9.1, "receive": 0.2, "queue": 0.1, "decode": 0.2, ...},
     "user_agent": "Go-http-client/1.1", "bytes_out": 5170}

All keys are always there. The query string is left out, and so is every header that
is not named here: tokens are never written. Each line is one ``write`` of at most
4096 bytes to a file opened for appending, so that all workers may share it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from procserver.observe.metrics import ACCESS_LINES
from procserver.observe.trace import Trace

log = logging.getLogger("procserver.observe")

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

# Where the app puts the request's trace for us.
TRACE = "procserver.trace"
STDOUT = "-"
# PIPE_BUF: what a pipe that has room at all takes whole.
LONGEST_LINE = 4096
# Characters of a text of the client's; fewer where escapes take up to twelve bytes.
LONGEST_TEXT = 128
LONGEST_ESCAPED = 32
MODE = 0o640
# Seconds between two lines in the service's log about a file that refuses.
QUIET = 60.0


class AccessLog:
    """Appends lines to a file, or to standard output (``-``).

    A request never fails for it. A pipe or terminal whose reader is behind is not
    waited for: lines are dropped and counted.

    :raises OSError: if the file cannot be opened
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._fd = os.dup(1) if target == STDOUT else _open(target, MODE)
        self._waits = not stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._turn = threading.Lock()
        self._complain_at = 0.0

    def write(self, line: bytes) -> None:
        """One line, with its end."""
        try:
            written = self._has_room() and os.write(self._fd, line) == len(line)
        except OSError as error:
            written = False
            self._complain(error)
        ACCESS_LINES.add(1, "written" if written else "dropped")

    def reopen(self) -> None:
        """Goes on in a new file of the same name; SIGUSR1 calls it.

        Threads that are writing go on, to one file or the other.
        """
        if self._target != STDOUT:
            reopen(self._target, self._fd, MODE)

    def close(self) -> None:
        os.close(self._fd)

    def _has_room(self) -> bool:
        if not self._waits:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(0))

    def _complain(self, error: OSError) -> None:
        with self._turn:
            if time.monotonic() < self._complain_at:
                return
            self._complain_at = time.monotonic() + QUIET
        log.warning("%s: a line was not written: %s", self._target, error.strerror)


def reopen(path: str, fd: int, mode: int) -> None:
    """Has ``fd`` append to the file that ``path`` names now.

    Whoever writes to ``fd`` meanwhile does so to one file or the other. If there can
    be no such file, the log says so and the old one goes on.
    """
    try:
        new = _open(path, mode)
    except OSError as error:
        log.warning("%s: still the old file: %s", path, error.strerror)
        return
    os.dup2(new, fd, inheritable=False)
    os.close(new)


def _open(path: str, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)


def log_access(app: Wsgi, access_log: AccessLog) -> Wsgi:
    """The app with a line for each request that it has a trace of.

    The line is written when the answer has been sent, or the client is gone.
    """

    def logging_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = _Answer(environ, access_log)
        answer.body = app(environ, answer.starting(start_response))
        return answer

    return logging_app


class _Answer:
    """An answer on its way out; ``close`` comes when it is out."""

    body: Iterable[bytes]

    def __init__(self, environ: dict[str, Any], access_log: AccessLog) -> None:
        self._environ = environ
        self._log = access_log
        self._status = ""
        self._headers: dict[str, str] = {}
        self._sent = 0

    def starting(self, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            self._status = status
            self._headers = {name.lower(): value for name, value in headers}
            return start_response(status, headers, *rest)

        return start

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.body:
            yield piece
            self._sent += len(piece)

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()
        trace = self._environ.get(TRACE)
        if trace is not None:
            told = fields(self._environ, trace, self._status, self._headers)
            self._log.write(line({**told, "bytes_out": self._sent}))


def fields(
    environ: dict[str, Any], trace: Trace, status: str, headers: dict[str, str]
) -> dict[str, object]:
    """What a line tells; header names are in lower case."""
    # NOTE: wall time, for people; nothing depends on it.
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    length = environ.get("CONTENT_LENGTH") or ""
    generation = headers.get("x-cache-generation")
    return {
        "time": now.replace("+00:00", "Z"),
        "pid": os.getpid(),
        "remote": _text(environ.get("REMOTE_ADDR")),
        "method": _text(environ.get("REQUEST_METHOD")),
        "path": _text((environ.get("RAW_URI") or "").partition("?")[0]),
        "status": int(status[:3]),
        "request_id": _text(trace.request_id),
        "x_request_id": _text(environ.get("HTTP_X_REQUEST_ID")),
        "traceparent": _text(environ.get("HTTP_TRACEPARENT")),
        "bytes_in": int(length) if length.isdecimal() else None,
        "bytes_out": 0,
        "items": trace.items,
        "missing": trace.missing,
        "debug_level": trace.debug_level,
        "model_version": headers.get("x-model-version"),
        "cache_generation": None if generation is None else int(generation),
        "ms": trace.milliseconds(),
        "user_agent": _text(environ.get("HTTP_USER_AGENT")),
    }


def line(told: dict[str, object]) -> bytes:
    """One line of ASCII: control characters and the like are escaped by JSON."""
    return json.dumps(told, separators=(",", ":")).encode("ascii") + b"\n"


def _text(text: str | None) -> str | None:
    if not text:
        return None
    short = text[:LONGEST_TEXT]
    is_plain = short.isascii() and short.isprintable()
    return short if is_plain else short[:LONGEST_ESCAPED]
