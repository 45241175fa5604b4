"""Items that end by their age: a time for each item, and what is too old.

With a time to live every record has one column more, ``ROW_TIME``: when something
was last heard of the item, in microseconds since 1970. An item of which nothing has
been heard for that long is deleted.

Age counts up to when the source was last read whole, and not beyond: as long as a
source cannot be read nobody knows what it would have told, and nothing ends. See
:meth:`Expiry.horizon`.
"""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.cache_compose import NO_TIME
from cython_ext.cache_known import int64_cells, latest_times
from cython_ext.cache_overlay import NEWEST
from cython_ext.column import Column
from procserver.itemcache.events import read_ids
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import ROW_TIME, Delete, Upsert

# What is a time in microseconds since 1970 (1973 to 5138), and no version number.
FIRST, LAST = 10**14, 10**17
FOREVER = 2**63 - 1
# Longest time between two looks for what has become too old, in seconds; the other
# one is a share of the time to live.
LONGEST_PAUSE = 60.0
PAUSE_SHARE = 10
# Rows that are looked at together, and items of one deletion.
BATCH = 1 << 16
SLICE = 1 << 14


class SteadyClock:
    """Microseconds since 1970 by the wall clock, whatever that is set to.

    They never go back, and forward at most twice as fast as time does: a clock that
    is set wrong for a moment ends no items.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._now, self._at = wall(), steady()

    def now(self) -> int:
        with self._lock:
            at = self._steady()
            most = self._now + 2 * (at - self._at)
            self._now = min(max(self._now, self._wall()), most)
            self._at = at
            return int(self._now * 1e6)


class Expiry:
    """What is too old in one table. Any thread asks.

    :param ttl: seconds after which an item ends
    :param period: seconds between two loads, or two looks at what has changed in a
        source that is not followed; None: there is none
    """

    def __init__(
        self, ttl: float, period: float | None, clock: SteadyClock | None = None
    ) -> None:
        self.ttl = int(ttl * 1e6)
        self.pause = min(ttl / PAUSE_SHARE, LONGEST_PAUSE)
        self.oldest = NO_TIME
        self.loaded_at: int | None = None
        self._period = None if period is None else int(period * 1e6)
        self._clock = clock or SteadyClock()
        self._lock = threading.Lock()
        self._follows: bool | None = None
        self._asked_at: int | None = None
        self._failing: set[str] = set()
        self._horizon = NO_TIME

    def now(self) -> int:
        """Microseconds since 1970."""
        return self._clock.now()

    def attached(self, loaded_at: int | None) -> None:
        """A refresher before this one has loaded what there is."""
        with self._lock:
            self.loaded_at = loaded_at

    def loaded(self, at: int, kind: str, *, follows: bool) -> None:
        """Everything that the source had at ``at`` has been loaded and published."""
        with self._lock:
            self._failing.discard(kind)
            self._follows = follows
            self.loaded_at = max(at, self.loaded_at or at)
            self._asked_at = max(at, self._asked_at or at)

    def asked(self, at: int, kind: str, *, follows: bool) -> None:
        """All changes that the source had at ``at`` have been applied."""
        with self._lock:
            self._failing.discard(kind)
            self._follows = follows
            self._asked_at = max(at, self._asked_at or at)

    def failed(self, kind: str) -> None:
        """The source cannot be read, or not all of it, until such work is done."""
        with self._lock:
            self._failing.add(kind)

    def note_oldest(self, times: NDArray[np.int64]) -> None:
        """Items with these times are there from now on."""
        if len(times):
            with self._lock:
                self.oldest = min(self.oldest, int(times.min()))

    def note_rest(self, oldest: int) -> None:
        """Of all items that were looked at the oldest one that has stayed is this."""
        with self._lock:
            self.oldest = oldest

    @property
    def horizon(self) -> int:
        """What is older is too old; as it was when it was asked for last."""
        return self._horizon

    def horizon_at(self, at: int) -> int:
        """The same for what was read from the source at ``at``."""
        return max(self._horizon, at - self.ttl)

    def advance(self) -> int:
        """The horizon as it is now. It never goes back.

        A source that is followed tells by its answers up to when all is known, one
        that is asked once a period is good for a period, and so is a full load.
        """
        now = self.now()
        with self._lock:
            known = self._known_until()
            if known is not None:
                self._horizon = max(self._horizon, min(now, known) - self.ttl)
            return self._horizon

    def _known_until(self) -> int | None:
        if self._failing or self._follows is None:
            return None
        if not self._follows:
            times = [at for at in (self.loaded_at, self._asked_at) if at is not None]
            return max(times) + (self._period or 0) if times else None
        if self._asked_at is None or self._period is None:
            return self._asked_at
        if self.loaded_at is None:
            return None
        return min(self._asked_at, self.loaded_at + self._period)

    def stamped(self, step: Upsert, view: Generation) -> tuple[Upsert, int]:
        """A step with the column ``ROW_TIME``, and how many of its rows are left out.

        That is what is older than the horizon and would bring back an item.
        """
        now = self.now()
        batch, times = step.batch, step.times
        moments = np.full(batch.num_rows, now, dtype=np.int64)
        if times is not None and len(times) == batch.num_rows:
            is_time = (times >= FIRST) & (times < LAST)
            moments[is_time] = np.minimum(times[is_time], now)
        if view.key not in batch.schema.names:
            # Whoever reads the step complains.
            return step, 0
        rows = view.lookup(read_ids(view.key, batch.column(view.key)))
        kept = (rows >= 0) | (moments >= self._horizon)
        if not kept.all():
            batch = batch.filter(pa.array(kept))
            rows, moments = rows[kept], moments[kept]
            times = None if times is None else times[kept]
        moments = np.maximum(moments, np.minimum(heard(view, rows), now))
        self.note_oldest(moments)
        left_out = int(len(kept) - np.count_nonzero(kept))
        return Upsert(with_times(batch, moments), times), left_out


def with_times(batch: pa.RecordBatch, times: NDArray[np.int64]) -> pa.RecordBatch:
    """The batch with such a column ``ROW_TIME``."""
    column = pa.array(times, pa.int64())
    if ROW_TIME in batch.schema.names:
        place = batch.schema.names.index(ROW_TIME)
        return batch.set_column(place, ROW_TIME, column)
    return batch.append_column(ROW_TIME, column)


def heard(view: Generation, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """When the items of some rows were heard of last; ``NO_TIME``: nobody knows."""
    if ROW_TIME not in view.schema:
        return np.full(len(rows), NO_TIME, dtype=np.int64)
    column = list(view.schema).index(ROW_TIME)
    changed = rows >= view.row_count
    base = np.where(changed, -1, rows)
    times = int64_cells(view.records, column, base)
    if view.delta is not None and changed.any():
        numbers = rows[changed] - view.row_count
        times[changed] = int64_cells(view.delta.records, column, numbers)
    return times


class Sweeper:
    """Looks for items that are too old, in one table after the other.

    PERF: it remembers which rows of a generation are gone for good, and how old the
    oldest one is that is not: as long as that is not too old there is nothing to
    look for.
    """

    def __init__(self, expiry: Expiry) -> None:
        self._expiry = expiry
        self._number = 0
        self._settled = np.empty(0, dtype=np.bool_)
        self._at = 0.0

    def again(self) -> None:
        """What was found was not deleted."""
        self._number = 0

    def is_due(self) -> bool:
        """Whether it is time for a look."""
        if time.monotonic() < self._at:
            return False
        self._at = time.monotonic() + self._expiry.pause
        return True

    def find(self, view: Generation) -> Iterator[Delete]:
        """Deletions of the items that are too old now, in slices.

        ``view`` is what is published, with all that was appended.
        """
        if ROW_TIME not in view.schema:
            return
        horizon = self._expiry.advance()
        if view.number != self._number:
            self._number = view.number
            self._settled = np.zeros(view.row_count, dtype=np.bool_)
            self._expiry.note_rest(NO_TIME)
        if horizon == NO_TIME or horizon <= self._expiry.oldest:
            return
        # NOTE: what is appended while this looks may be older.
        self._expiry.note_rest(FOREVER)
        rows, oldest = too_old(view, horizon, self._settled)
        self._expiry.note_oldest(np.array([oldest], dtype=np.int64))
        yield from deletions(view, rows)


def too_old(
    view: Generation, horizon: int, settled: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], int]:
    """Rows of items that are older, and how old the oldest one is of all others.

    :param settled: one for each row of the generation: those that no id leads to any
        more are left out, and noted there
    """
    if settled is None:
        settled = np.zeros(view.row_count, dtype=np.bool_)
    found = [np.empty(0, dtype=np.int64)]
    oldest = FOREVER
    for rows in _rows(view, settled):
        times = heard(view, rows)
        # NOTE: what has no time never ends.
        times[times == NO_TIME] = FOREVER
        is_old = times < horizon
        oldest = min(oldest, int(times[~is_old].min(initial=FOREVER)))
        found.append(rows[is_old])
    rows = np.concatenate(found)
    gone = np.zeros(len(rows), dtype=np.bool_)
    base = int(np.searchsorted(rows, view.row_count))
    for start in range(0, base, SLICE):
        part = rows[start : min(start + SLICE, base)]
        ids = Column.from_texts([str(view.item_id(row)) for row in part])
        gone[start : start + len(part)] = view.lookup(ids) != part
    settled[rows[gone]] = True
    return rows[~gone], oldest


def _rows(view: Generation, settled: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, view.row_count, BATCH):
        yield start + np.flatnonzero(~settled[start : start + BATCH])
    if view.delta is not None and view.delta.overlay is not None and view.count:
        newest = np.frombuffer(view.delta.overlay.newest(view.count), np.uint8)
        yield view.row_count + np.flatnonzero(newest == NEWEST)


def deletions(view: Generation, rows: NDArray[np.int64]) -> Iterator[Delete]:
    """Deletions of these rows' items, in slices.

    Each has the time of the item's latest event, plus one: what is later than that
    event brings the item back, and that event itself does not.
    """
    for start in range(0, len(rows), SLICE):
        part = rows[start : start + SLICE]
        is_base = part < view.row_count
        times = np.empty(len(part), dtype=np.int64)
        times[is_base] = latest_times(view.records, part[is_base])
        if view.delta is not None:
            numbers = part[~is_base] - view.row_count
            times[~is_base] = latest_times(view.delta.records, numbers)
        keys = np.array([str(view.item_id(row)) for row in part], dtype=object)
        timed = times != NO_TIME
        if timed.any():
            yield Delete(pa.array(keys[timed], pa.string()), times[timed] + 1)
        if not timed.all():
            yield Delete(pa.array(keys[~timed], pa.string()))
