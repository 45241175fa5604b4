"""Fault points: places where a test has the service fail, and nothing else.

``hit("cache.write")`` stands where something can go wrong. Without
``PROCSERVER_FAULTS`` in the environment of the process that imports this module it
is a function that does nothing, and no environment or file is looked at again. With
it, faults are armed as ``point:call:action``, several joined by commas::

    cache.write:3:kill            the third call ends its process with SIGKILL, once
    source.read:2+:raise          the second call and all later ones fail
    model.run:1+:delay=0.5        every call takes half a second longer

Actions: ``kill``, ``raise`` (:class:`InjectedFault`), ``enospc`` and ``oserror``
(an ``OSError``), ``hang`` (an hour), ``delay=SECONDS``. Calls are counted over all
processes of a service, so that a fault which happens once stays the only one when
the process that it ended is started again.

``PROCSERVER_FAULTS=@PATH`` reads the faults from a file instead, whenever it has
changed: tests arm a service that runs, and counts begin anew. A missing file is an
empty one.

SAFETY: only who may set the environment of the service can arm anything, and the
master says so in its log (:func:`announce`).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from procserver.errors import ConfigError

__all__ = ["POINTS", "VARIABLE", "InjectedFault", "announce", "hit"]

VARIABLE = "PROCSERVER_FAULTS"
# Point -> where it is. Their order is that of the counters.
POINTS = {
    "cache.alloc": "before shared memory of the item cache is allocated",
    "cache.write": "before a part of a generation or companion is written",
    "cache.publish": "before a generation is published, and after",
    "reload.check": "before the master reads the service JSON for a reload",
    "reload.spawn": "before the master forks a worker for a reload",
    "model.load": "before a worker loads the model or attaches to its weights",
    "model.run": "before each forward pass, those of the warm-up included",
    "log.write": "before a file of the request log or a capture is written",
    "source.read": "before the item source is asked, and for each batch of it",
}
ACTIONS = ("kill", "raise", "enospc", "oserror", "hang", "delay")
HANG_S = 3600.0

_COUNTER = struct.Struct("<Q")
log = logging.getLogger("procserver.faults")


class InjectedFault(Exception):
    """What the action ``raise`` raises: an error that nobody expects."""


@dataclass(frozen=True)
class Fault:
    """One armed fault: on call ``call`` of ``point``, or (``onwards``) from it on."""

    point: str
    call: int
    onwards: bool
    action: str
    seconds: float = 0.0

    @classmethod
    def read(cls, text: str) -> Fault:
        """Reads ``point:call:action``.

        :raises ConfigError: if it is not one
        """
        point, _, rest = text.partition(":")
        count, _, what = rest.partition(":")
        action, _, seconds = what.partition("=")
        digits = count.removesuffix("+")
        wrong = (
            point not in POINTS
            or not digits.isdecimal()
            or int(digits) < 1
            or action not in ACTIONS
            or (action == "delay") != bool(seconds)
        )
        try:
            wait = float(seconds or 0)
        except ValueError:
            wrong, wait = True, 0.0
        if wrong:
            raise ConfigError(
                [
                    f"{VARIABLE}: {text!r} is not point:call:action; points are "
                    f"{', '.join(POINTS)}; actions {', '.join(ACTIONS)}"
                ]
            )
        return cls(point, int(digits), count.endswith("+"), action, wait)

    def is_due(self, call: int) -> bool:
        """Whether it happens on the ``call``-th call."""
        return call == self.call or (self.onwards and call > self.call)


class Armed:
    """The faults of one service; its counts live in a file that forks share."""

    def __init__(self, told: str) -> None:
        self._path = Path(told[1:]) if told.startswith("@") else None
        self._stamp: tuple[int, int] | None = None
        self._told = "" if self._path is not None else told
        self._faults = _read_all(self._told)
        self._lock = threading.Lock()
        self._counts = os.memfd_create(VARIABLE)
        self._forget()

    def __str__(self) -> str:
        return self._told if self._path is None else f"what {self._path} tells"

    def hit(self, point: str) -> None:
        """Counts the call and does what is due."""
        with self._lock:
            call = self._count(list(POINTS).index(point))
        for fault in self._faults:
            if fault.point == point and fault.is_due(call):
                _do(fault, call)

    def _count(self, index: int) -> int:
        # The lock is one between processes; threads have theirs.
        fcntl.lockf(self._counts, fcntl.LOCK_EX)
        try:
            self._look()
            offset = (1 + index) * _COUNTER.size
            (before,) = _COUNTER.unpack(os.pread(self._counts, _COUNTER.size, offset))
            os.pwrite(self._counts, _COUNTER.pack(before + 1), offset)
            return int(before) + 1
        finally:
            fcntl.lockf(self._counts, fcntl.LOCK_UN)

    def _look(self) -> None:
        """Reads the file again if it is another one; who sees it first counts anew."""
        if self._path is None:
            return
        try:
            about = self._path.stat()
            stamp = (about.st_ino, about.st_mtime_ns)
            told = self._path.read_text()
        except OSError:
            stamp, told = (0, 0), ""
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._faults = _read_all(told)
        mark = _COUNTER.pack(hash(stamp) & (2**64 - 1))
        if os.pread(self._counts, _COUNTER.size, 0) != mark:
            self._forget(mark)

    def _forget(self, mark: bytes = b"\0" * _COUNTER.size) -> None:
        zeros = b"\0" * (_COUNTER.size * len(POINTS))
        os.pwrite(self._counts, mark + zeros, 0)


def _read_all(told: str) -> tuple[Fault, ...]:
    return tuple(Fault.read(part.strip()) for part in told.split(",") if part.strip())


def _do(fault: Fault, call: int) -> None:
    about = f"fault {fault.point}, call {call}"
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "raise":
        raise InjectedFault(about)
    elif fault.action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif fault.action == "oserror":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    else:
        time.sleep(HANG_S if fault.action == "hang" else fault.seconds)


def _nothing(point: str) -> None:
    """PERF: what every fault point calls in a service that nobody tests."""


def _bind(environ: Mapping[str, str]) -> tuple[Armed | None, list[str]]:
    told = environ.get(VARIABLE, "").strip()
    if not told:
        return None, []
    try:
        return Armed(told), []
    except ConfigError as error:
        # The import of a module is no place to fail; the start is.
        return None, error.problems


_armed, _problems = _bind(os.environ)
hit: Callable[[str], None] = _nothing if _armed is None else _armed.hit


def announce() -> None:
    """Says in the log which faults are armed. The master's first act.

    :raises ConfigError: if the variable cannot be read
    """
    if _problems:
        raise ConfigError(_problems)
    if _armed is not None:
        log.warning("%s is set: this service fails on purpose: %s", VARIABLE, _armed)
