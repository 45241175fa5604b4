"""What every worker is computing right now, for the master to see.

All workers share one anonymous map that the master made before it forked::

    offset           field (64-bit words)
    0                number of refused requests in the list below
    64 + 16 * i      a refused request's digest, and until when (CLOCK_MONOTONIC, ns)
    4096 + 8192 * s  worker slot s: 256 desks of 32 bytes
                     0   since when a request is computed here (ns); 0: none
                     8   XXH64 of its body as it was received
                     16  where the body is in the worker's memory; 0: unknown
                     24  bytes of the body

A worker writes its own slot, the master everything else. So the master knows which
requests a worker took with it when it died, and which one does not end. Whoever reads
a desk that changes meanwhile looks at the first word again.

The cost for a request is the digest of its body (9 us for 100 KB) and 3 us more.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from cython_ext.shm import Mapping
from cython_ext.xxh64 import xxh64
from procserver.errors import PoisonRequest
from procserver.observe import metrics

MOST_SLOTS = 4096
MOST_REFUSED = 64
# NOTE: a worker has at most ``settings.MOST_THREADS`` threads.
DESKS = 256
_COUNT = 0
_REFUSED = 64
_FIRST = 4096
_DESK = struct.Struct("<QQQQ")
_SLOT_BYTES = DESKS * _DESK.size
_NANO = 1_000_000_000


@dataclass(frozen=True)
class Computed:
    """A request that was at a desk when somebody looked."""

    place: int
    since_ns: int
    digest: int
    address: int
    length: int

    def seconds(self) -> float:
        """For how long it has been computed."""
        return (time.monotonic_ns() - self.since_ns) / _NANO


class Desks:
    """Made in the master; every worker takes its slot's."""

    def __init__(self) -> None:
        size = _FIRST + MOST_SLOTS * _SLOT_BYTES
        fd = os.memfd_create("procserver.watch")
        try:
            # Pages that nobody writes to take no memory.
            os.ftruncate(fd, size)
            self.words = Mapping(fd, size, writable=True)
        finally:
            os.close(fd)

    def open_slot(self, slot: int) -> None:
        """Call in the master before the fork: a new worker computes nothing."""
        start = slot_place(slot)
        memoryview(self.words)[start : start + _SLOT_BYTES] = bytes(_SLOT_BYTES)

    def computed(self, slot: int) -> list[Computed]:
        """What the worker of a slot is computing."""
        start = slot_place(slot)
        taken = bytes(memoryview(self.words)[start : start + _SLOT_BYTES])
        return [
            Computed(start + index * _DESK.size, *fields)
            for index, fields in enumerate(_DESK.iter_unpack(taken))
            if fields[0]
        ]

    def is_still(self, request: Computed) -> bool:
        """Whether that very request is computed still, so that its body is there."""
        return self.words.load(request.place) == request.since_ns

    def refuse(self, until: dict[int, int]) -> None:
        """Publishes which requests are refused (digest -> CLOCK_MONOTONIC, ns)."""
        latest = sorted(until.items(), key=lambda entry: entry[1])[-MOST_REFUSED:]
        self.words.store(_COUNT, 0)
        for index, (digest, end) in enumerate(latest):
            self.words.store(_REFUSED + 16 * index, digest)
            self.words.store(_REFUSED + 16 * index + 8, end)
        self.words.store(_COUNT, len(latest))

    def refuses(self, digest: int) -> bool:
        """Whether the request has cost too many workers."""
        words, now = self.words, time.monotonic_ns()
        return any(
            words.load(_REFUSED + 16 * index) == digest
            and words.load(_REFUSED + 16 * index + 8) > now
            for index in range(min(words.load(_COUNT), MOST_REFUSED))
        )


def slot_place(slot: int) -> int:
    """Offset of a slot's desks."""
    if not 0 <= slot < MOST_SLOTS:
        raise ValueError(f"no worker slot {slot}")
    return _FIRST + slot * _SLOT_BYTES


class Watch:
    """One worker's desks.

    :param on_refused: gets the digest and the body of a request that is refused
    """

    def __init__(
        self,
        desks: Desks,
        slot: int,
        on_refused: Callable[[int, bytes], None] = lambda digest, body: None,
    ) -> None:
        self.desks = desks
        self.on_refused = on_refused
        start = slot_place(slot)
        self.free = deque(start + index * _DESK.size for index in range(DESKS))

    def computing(self, body: memoryview) -> Computing:
        """A context for the time in which the request of that body is computed.

        :raises PoisonRequest: on entering, if it has cost too many workers
        """
        return Computing(self, body)


class Computing:
    """A request at a desk."""

    __slots__ = ("_body", "_place", "_watch")

    def __init__(self, watch: Watch, body: memoryview) -> None:
        self._watch = watch
        self._body = body

    def __enter__(self) -> None:
        watch, body = self._watch, self._body
        words, digest = watch.desks.words, xxh64(body)
        if words.load(_COUNT) and watch.desks.refuses(digest):
            metrics.POISON_REQUESTS.add()
            watch.on_refused(digest, bytes(body))
            raise PoisonRequest(
                "workers died over this very request; it is not tried again for now"
            )
        self._place = place = watch.free.popleft()
        words.store(place + 8, digest)
        words.store(place + 16, _address(body))
        words.store(place + 24, len(body))
        words.store(place, time.monotonic_ns())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.desks.words.store(self._place, 0)
        self._watch.free.append(self._place)


def _address(body: memoryview) -> int:
    if body.readonly or not len(body):
        return 0
    return ctypes.addressof(ctypes.c_char.from_buffer(body))
