"""Steps of a source to what the composer of records takes; bad rows are counted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.cache_known import KnownTimes
from cython_ext.column import Column, Kind
from procserver.errors import SourceError
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import Delete, Upsert
from procserver.itemcache.writer import source_column

if TYPE_CHECKING:
    from cython_ext.cache_compose import Step

# Events composed together: what they take beside the records stays in the caches.
CHUNK = 1 << 14


@dataclass(frozen=True)
class Ready:
    """A step, or a part of one, that the composer takes; what was left out of it."""

    step: "Step"
    rows: int
    skipped: Counter[str]


def read_step(step: Upsert | Delete, generation: Generation) -> Ready:
    """Columns of the generation's kinds; rows that do not fit them are left out.

    :raises SourceError: if the key is missing or times do not fit
    """
    if isinstance(step, Delete):
        keys = step.keys
        if isinstance(keys, pa.ChunkedArray):
            keys = keys.combine_chunks()
        times = _times(step.times, len(keys))
        return Ready(
            (read_ids(generation.key, keys), None, times), len(keys), Counter()
        )
    batch, skipped = step.batch, Counter[str]()
    if generation.key not in batch.schema.names:
        raise SourceError(f"key column {generation.key!r} is missing")
    times = _times(step.times, batch.num_rows)
    columns, bad = _columns(batch, generation.schema)
    if bad is not None:
        skipped["bad_value"] = int(bad.sum())
        batch = batch.filter(pa.array(~bad))
        times = None if times is None else times[~bad]
        columns, _ = _columns(batch, generation.schema)
    known = set(generation.schema) | {generation.key}
    skipped["unknown_column"] = len(set(batch.schema.names) - known)
    ids = read_ids(generation.key, batch.column(generation.key))
    return Ready((ids, columns, times), batch.num_rows, +skipped)


def chunks(steps: Iterable[Ready]) -> Iterator[list[Ready]]:
    """Steps by as many as are composed at once; large ones are cut."""
    pending: list[Ready] = []
    rows = 0
    for ready in steps:
        for part in _parts(ready):
            if pending and rows + part.rows > CHUNK:
                yield pending
                pending, rows = [], 0
            pending.append(part)
            rows += part.rows
    if pending:
        yield pending


def _parts(ready: Ready) -> Iterator[Ready]:
    if ready.rows <= CHUNK:
        yield ready
        return
    ids, columns, times = ready.step
    assert not isinstance(columns, KnownTimes)
    skipped = ready.skipped
    for start in range(0, ready.rows, CHUNK):
        rows = min(CHUNK, ready.rows - start)
        cut = (
            ids.slice(start, rows),
            None
            if columns is None
            else [(n, c.slice(start, rows)) for n, c in columns],
            None if times is None else times[start : start + rows],
        )
        yield Ready(cut, rows, skipped)
        skipped = Counter()


def _times(times: NDArray[np.int64] | None, rows: int) -> NDArray[np.int64] | None:
    if times is None:
        return None
    if times.shape != (rows,):
        raise SourceError(f"{len(times)} event times of {rows} rows")
    return np.ascontiguousarray(times, dtype=np.int64)


def read_ids(key: str, array: pa.Array) -> Column:
    """Item ids of events.

    :raises SourceError: if they are neither texts nor integers
    """
    ids = source_column(key, None, array)
    if ids.kind == Kind.ABSENT:
        return Column.from_arrow(array.cast(pa.string()))
    if ids.kind not in (Kind.STRING, Kind.INT32, Kind.INT64):
        raise SourceError(
            f"key column {key!r} has Arrow type {array.type}; item ids are"
            " strings or integers"
        )
    return ids


def _columns(
    batch: pa.RecordBatch, schema: dict[str, Kind]
) -> tuple[list[tuple[int, Column]], NDArray[np.bool_] | None]:
    """The columns that there are; where some value is bad, which rows are."""
    bad: NDArray[np.bool_] | None = None
    columns = []
    names = {name: number for number, name in enumerate(batch.schema.names)}
    for number, (name, kind) in enumerate(schema.items()):
        if name not in names:
            continue
        array = batch.column(names[name])
        if array.null_count == len(array):
            columns.append((number, Column.null(len(array))))
            continue
        try:
            columns.append((number, source_column(name, kind, array)))
        except SourceError:
            rows = _bad_rows(name, kind, array)
            bad = rows if bad is None else bad | rows
    return columns, bad


def _bad_rows(name: str, kind: Kind, array: pa.Array) -> NDArray[np.bool_]:
    """Which cells are not of ``kind``, found by halves."""
    try:
        source_column(name, kind, array.slice(0, 0))
    except SourceError:
        # No value of this type is.
        return np.asarray(array.is_valid())
    bad = np.zeros(len(array), dtype=np.bool_)
    waiting = [(0, len(array))]
    while waiting:
        start, stop = waiting.pop()
        try:
            source_column(name, kind, array.slice(start, stop - start))
        except SourceError:
            if stop - start == 1:
                bad[start] = True
                continue
            middle = (start + stop) // 2
            waiting += [(start, middle), (middle, stop)]
    return bad
