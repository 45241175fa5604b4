"""How many requests the whole service takes: rate, queue, turns.

All workers share one anonymous map that the master made before it forked::

    offset       field (64-bit words)
    0            when the next request would be due at the limited rate (ns)
    8            number of worker slots that were ever used
    16           1 once the service is being stopped, and takes no new clients
    64 * (1+s)   requests inside the worker of slot s, waiting ones included

The counts are per slot so that a killed worker's go with it: its successor
starts from zero.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cython_ext.shm import Mapping
from procserver.errors import OutOfTime, QueueFull, TooManyRequests

_RATE = 0
_SLOTS = 8
_DRAINING = 16
_LINE = 64
MOST_SLOTS = 4096
_SECOND = 1_000_000_000


class SharedCounts:
    """Made in the master; every worker takes its slot's."""

    def __init__(self) -> None:
        size = _LINE * (1 + MOST_SLOTS)
        fd = os.memfd_create("procserver.admission")
        try:
            os.ftruncate(fd, size)
            self.words = Mapping(fd, size, writable=True)
        finally:
            os.close(fd)

    def open_slot(self, slot: int) -> None:
        """Call in the master before the fork: a new worker has no requests."""
        self.words.store(_place(slot), 0)
        if slot >= self.words.load(_SLOTS):
            self.words.store(_SLOTS, slot + 1)

    def start_drain(self) -> None:
        """Call in the master: from now on :attr:`draining` is true for all."""
        self.words.store(_DRAINING, 1)

    @property
    def draining(self) -> bool:
        """Whether the service is being stopped: clients should go elsewhere."""
        return self.words.load(_DRAINING) != 0

    def inside(self) -> int:
        """Requests inside the service, waiting ones included."""
        words = self.words
        return sum(words.load(_place(s)) for s in range(words.load(_SLOTS)))

    def take_turn(self, rate: int, now: int | None = None) -> bool:
        """Whether a request keeps to ``rate`` a second; up to a second's worth
        may come at once (the generic cell rate algorithm).
        """
        words = self.words
        step = _SECOND // rate
        while True:
            instant = time.monotonic_ns() if now is None else now
            due = words.load(_RATE)
            following = max(due, instant) + step
            if following - instant > max(_SECOND, step):
                return False
            if words.swap(_RATE, due, following):
                return True


def _place(slot: int) -> int:
    if not 0 <= slot < MOST_SLOTS:
        raise ValueError(f"no worker slot {slot}")
    return _LINE * (1 + slot)


class Admission:
    """One worker's door.

    :param rate: requests a second of the whole service; 0: no limit
    :param most: requests inside the whole service, waiting ones included
    :param most_here: the same for this worker, whose threads are numbered
    :param turns: requests that this worker processes at once
    """

    def __init__(
        self,
        counts: SharedCounts,
        slot: int,
        *,
        rate: int,
        most: int,
        most_here: int,
        turns: int,
    ) -> None:
        self._counts = counts
        self._place = _place(slot)
        self._rate = rate
        self._most = most
        self._most_here = most_here
        self._turns = threading.Semaphore(turns)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """A request's stay, from its head to its answer.

        :raises TooManyRequests: over the rate
        :raises QueueFull: when as many as may wait are waiting
        """
        if self._rate and not self._counts.take_turn(self._rate):
            raise TooManyRequests(f"more than {self._rate} requests a second")
        words = self._counts.words
        here = words.add(self._place, 1) + 1
        try:
            if here > self._most_here or self._counts.inside() > self._most:
                raise QueueFull("the queue is full; try again later")
            yield
        finally:
            words.add(self._place, -1 % 2**64)

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Waits until the worker has room for one more, and holds it.

        :param deadline: on the monotonic clock
        :raises OutOfTime: if there was none in time, or the work took longer
        """
        left = deadline - time.monotonic()
        if left <= 0 or not self._turns.acquire(timeout=left):
            raise OutOfTime("the request's time ran out before it was processed")
        try:
            yield
        finally:
            self._turns.release()
        # NOTE: a forward pass cannot be interrupted. Its late result is not sent:
        # the protocol promises 408 beyond the limit, and no client waits for it.
        if time.monotonic() > deadline:
            raise OutOfTime("the request took longer than its time")
