"""What is known of items before everything is loaded again, and goes on with them.

Values are those of the load. What is kept are times: those of events, below which
an event comes too late for a value, and with a time to live when an item was last
heard of.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.cache_known import KnownTimes, any_times
from cython_ext.column import Column, Kind
from procserver.itemcache import layout
from procserver.itemcache.events import CHUNK
from procserver.itemcache.expiry import Expiry, heard, with_times
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import ROW_TIME


class Past:
    """Times that ``view`` knows, for records of another schema."""

    def __init__(self, view: Generation, schema: Mapping[str, Kind]) -> None:
        self._view = view
        self._layout = layout.record_layout(dict(schema))
        numbers = {name: number for number, name in enumerate(schema)}
        self._columns = np.array(
            [numbers.get(name, -1) for name in view.schema], dtype=np.int64
        )
        self.has_times = any_times(view.records, view.row_count) or (
            view.delta is not None and any_times(view.delta.records, view.count)
        )

    def known(self, ids: Column) -> KnownTimes | None:
        """Times of events; None: there are none."""
        if not self.has_times:
            return None
        view = self._view
        overlay = None if view.delta is None else view.delta.overlay
        return KnownTimes(
            ids, view.index, overlay, view.count, self._layout, self._columns
        )

    def since(self, count: int) -> Iterator[tuple[Column, KnownTimes]]:
        """Ids of records that were appended after ``count``, and what is known of
        their times.
        """
        view = self._view
        if view.delta is None or not self.has_times:
            return
        records = view.delta.records
        for start in range(count, view.count, CHUNK):
            stop = min(start + CHUNK, view.count)
            texts = dict.fromkeys(str(records.id_of(n)) for n in range(start, stop))
            ids = Column.from_texts(list(texts))
            known = self.known(ids)
            if known is not None and known.nbytes:
                yield ids, known

    def heard(self, ids: Column) -> NDArray[np.int64]:
        """When they were heard of last, by :data:`~expiry.NO_TIME` never."""
        return heard(self._view, self._view.lookup(ids))


class Intake:
    """Rows of a load as they go into records.

    :param past: None: nothing is known
    :param expiry: None: items do not end by their age
    :param at: when the load began, in microseconds since 1970
    """

    def __init__(self, past: Past | None, expiry: Expiry | None, at: int) -> None:
        self._past = past
        self._expiry = expiry
        self._now = at
        self._horizon = 0 if expiry is None else expiry.horizon_at(at)

    @classmethod
    def of(
        cls, past: Past | None, expiry: Expiry | None, at: int | None
    ) -> "Intake | None":
        """None: rows go in as they are."""
        if expiry is None and (past is None or not past.has_times):
            return None
        return cls(past, expiry, at or 0)

    def take(
        self, batch: pa.RecordBatch, key: pa.Array
    ) -> tuple[pa.RecordBatch, pa.Array, KnownTimes | None, int]:
        """What is kept of a batch, its ids, what is known of them, and how many rows
        are left out, being too old.

        :param key: ids, without bad ones
        """
        ids = Column.from_arrow(key)
        left_out = 0
        if self._expiry is not None:
            times = self._times(batch, ids)
            kept = times >= self._horizon
            left_out = int(len(kept) - np.count_nonzero(kept))
            if left_out:
                # NOTE: rows without an id are counted for what they are.
                kept |= ~np.asarray(key.is_valid())
                left_out = int(len(kept) - np.count_nonzero(kept))
                mask = pa.array(kept)
                batch, key, times = batch.filter(mask), key.filter(mask), times[kept]
                ids = Column.from_arrow(key)
            self._expiry.note_oldest(times)
            batch = with_times(batch, times)
        known = None if self._past is None else self._past.known(ids)
        return batch, key, known, left_out

    def _times(self, batch: pa.RecordBatch, ids: Column) -> NDArray[np.int64]:
        """When each row was heard of: its own time, or that of the load."""
        times: NDArray[np.int64]
        if ROW_TIME in batch.schema.names:
            given = batch.column(ROW_TIME).cast(pa.int64()).fill_null(self._now)
            times = np.minimum(given.to_numpy(zero_copy_only=False), self._now)
        else:
            times = np.full(batch.num_rows, self._now, dtype=np.int64)
        if self._past is not None:
            before = np.minimum(self._past.heard(ids), self._now)
            times = np.maximum(times, before)
        return times
