"""Items in PostgreSQL tables, or in Hologres, which speaks its protocol."""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from procserver.itemcache.sources import (
    ROW_TIME,
    Changes,
    Description,
    SourceConfig,
    TableConfig,
    Upsert,
    reveal,
)
from procserver.itemcache.sources.ahead import read_ahead
from procserver.itemcache.sources.merging import merge, merged_schema
from procserver.itemcache.sources.postgres_link import (
    Link,
    Transaction,
    estimate,
    inspect,
)
from procserver.itemcache.sources.postgres_notices import Notices
from procserver.itemcache.sources.postgres_tables import (
    OVERLAP_SECONDS,
    TIME,
    Table,
    shadowed,
)
from procserver.itemcache.sources.times import microseconds_in, now, scaled
from procserver.itemcache.sources.unchanged import changed_rows

log = logging.getLogger("procserver.itemcache")

# Rows of the overlap that are kept to see which of them are new.
WINDOW_ROWS = 1_000_000
# In a cursor: which answer it came with.
TOLD = "told"
# With NOTIFY: the longest time without a look, since messages can be lost.
LOOK_SECONDS = 60.0

# Static tables as they were loaded, by server and table. The refresher opens a
# source for each full load, so they outlive it, in its process.
_STATIC: dict[tuple[str, TableConfig], list[pa.RecordBatch]] = {}


@dataclass(frozen=True)
class _Part:
    """A table within a transaction."""

    table: Table
    transaction: Transaction
    url: str
    timed: bool

    @property
    def label(self) -> str:
        return self.table.label

    @property
    def key(self) -> str:
        return self.table.key

    @property
    def columns(self) -> Sequence[str]:
        return self.table.columns

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        rows = self.fetched()
        if not self.table.config.static:
            return rows
        name = (self.url, self.table.config)
        if name not in _STATIC:
            _STATIC[name] = list(rows)
        return iter(_STATIC[name])

    def fetched(self) -> Iterator[pa.RecordBatch]:
        """The rows as the server sends them."""
        query = self.table.select(timed=self.timed)
        schema = self.schema
        if self.timed:
            schema = schema.append(pa.field(ROW_TIME, pa.int64()))
        for batch in self.transaction.batches(self.label, query):
            columns = batch.columns
            if self.timed:
                columns[-1] = _row_times(self.table, columns[-1])
            # Without the driver's notes on types, which differ from the schema's.
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


class PostgresSource:
    """``remote_type: hologres``: tables of one database, loaded by ADBC.

    Several tables are merged by key: an item is there if any table has it, and where
    tables share a column the later one wins unless its cell is null; merging holds
    them all in memory, one table streams. They are read in one read-only
    transaction. Tables that are ``static`` are loaded once and stay in memory; with
    one table only, ``static`` merely keeps it out of ``changes``.

    ``changes`` reads the rows of tables with a ``timekey`` that are newer than the
    cursor less an overlap, for rows that were committed late. A column that a later
    table has too changes with that one only; rows that are deleted, or that
    ``condition`` no longer takes, go with the next full load. The cursor is a
    mapping of table numbers to times, with a mark of what was told last.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.skipped: Counter[str] = Counter()
        self._configs = list(config.tables)
        self._link = Link(reveal(config.url), config.statement_timeout)
        # Whether items end by their age.
        self._ends = getattr(config, "item_ttl_minutes", None) is not None
        self._tables: list[Table] | None = None
        self._windows: dict[int, pa.Table | None] = {}
        self._told: list[dict[str, Any]] = []
        self._reading: Transaction | None = None
        self._notices: Notices | None = None
        if config.listen and any(one.timekey for one in self._configs):
            self._notices = Notices(self._link, config.listen, LOOK_SECONDS)
        for one in self._configs:
            if one.condition:
                log.info("item table %r: only rows where %s", one.name, one.condition)

    def describe(self) -> Description:
        """Key and columns as they are now; the rows are an estimate."""
        tables = self._tables = inspect(self._link, self._configs)
        rows = estimate(self._link, tables[0]) if len(tables) == 1 else None
        follows = self._notices is not None
        schema = merged_schema(tables)
        return Description(tables[0].key, schema, rows, follows, exact=False)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """All rows of one moment, and the newest times then."""
        self.skipped = Counter()
        tables = self._tables = inspect(self._link, self._configs)
        self._leave()
        transaction = self._reading = self._link.transaction()
        try:
            cursor: dict[str, Any] = {
                str(place): _newest(transaction, table)
                for place, table in enumerate(tables)
                if _followed(table)
            }
        except BaseException:
            self._leave()
            raise
        cursor[TOLD] = _mark()
        return cursor, self._read(tables, transaction)

    def _leave(self) -> None:
        """Closes a snapshot that nobody has read to its end."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _read(
        self, tables: list[Table], transaction: Transaction
    ) -> Iterator[pa.RecordBatch]:
        parts = [
            _Part(
                table, transaction, self._link.url, self._ends and bool(table.timekey)
            )
            for table in tables
        ]
        rows = parts[0].fetched() if len(parts) == 1 else merge(parts, self.skipped)
        with transaction, closing(read_ahead(rows, transaction.cancel)) as ahead:
            yield from ahead

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """Rows whose ``timekey`` is newer than at the cursor, with their times."""
        if not any(_followed(config) for config in self._configs):
            return None
        before = dict(cursor) if isinstance(cursor, Mapping) else {}
        # NOTE: what was told counts as known only if we are asked to go on from there.
        # Who comes with an earlier cursor could not apply it and gets it again.
        told = before in self._told
        if not told:
            self._windows = {}
        if not self._is_due(told, wait):
            return Changes([], before)
        began = time.monotonic()
        tables = self._tables = self._tables or inspect(self._link, self._configs)
        found: dict[int, _Found] = {}
        try:
            with self._link.transaction() as transaction:
                for place, table in enumerate(tables):
                    if _followed(table):
                        since = before.get(str(place))
                        found[place] = self._changed(transaction, place, since)
        except BaseException:
            self._tables = None
            raise
        if self._notices is not None:
            self._notices.looked(began)
        return self._tell(before, found)

    def _is_due(self, told: bool, wait: float) -> bool:
        """Whether to look; messages are heard from before the first look on."""
        if self._notices is None:
            return True
        return self._notices.wait(wait if told else 0.0) or not told

    def _tell(self, before: dict[str, Any], found: "dict[int, _Found]") -> Changes:
        steps = [step for one in found.values() for step in one.steps]
        newest = [one.newest for one in found.values() if one.newest is not None]
        after = before | {str(place): one.time for place, one in found.items()}
        self._windows = {place: one.window for place, one in found.items()}
        if steps or after != before or before not in self._told:
            after[TOLD] = _mark()
        # Where there was nothing to apply, both cursors mean the same.
        self._told = [after] if steps else [before, after]
        return Changes(steps, after, max(newest, default=None), more=False)

    def close(self) -> None:
        """Gives back connections."""
        self._leave()
        if self._notices is not None:
            self._notices.close()

    def _changed(
        self, transaction: Transaction, place: int, since: int | None
    ) -> "_Found":
        """One table's rows from ``since`` on, less those that are known already."""
        assert self._tables is not None
        table = self._tables[place]
        clock = _clock(table, since)
        overlap = _overlap(table.config, clock)
        assert table.timekey is not None
        if since is None:
            bound = "IS NOT NULL"
        else:
            bound = f">= {table.timekey.literal(since - overlap)}"
        hidden = shadowed(self._tables, place)
        rows = transaction.table(table.label, table.select(tuple(hidden), bound))
        if rows.num_rows == 0:
            return _Found([], since, None, None)
        raw = rows[TIME].cast(pa.int64()).combine_chunks()
        latest = pc.max(raw).as_py()
        clock = _clock(table, latest if since is None else since)
        top = max(min(latest, _cap(clock, overlap)), since or -(2**63))
        fresh = changed_rows(rows, table.key, self._windows.get(place))
        kept = rows.filter(pc.greater_equal(raw, max(top - overlap, -(2**63))))
        window = kept if kept.num_rows <= WINDOW_ROWS else None
        times = rows[TIME].cast(pa.int64()).to_numpy()
        if clock is not None:
            times = scaled(np.minimum(times, _cap(clock, overlap)), clock)
        rows = rows.drop_columns([TIME])
        if table.key != self._tables[0].key:
            rows = rows.rename_columns({table.key: self._tables[0].key})
        steps = _steps(rows, times, fresh)
        newest = None if clock is None else top * clock / 1e6
        return _Found(steps, top, newest, window)


@dataclass(frozen=True)
class _Found:
    """Changes of one table: the time to go on from, and that in seconds if known.

    ``window``: the rows that will be read again.
    """

    steps: list[Upsert]
    time: int | None
    newest: float | None
    window: pa.Table | None


def _mark() -> str:
    """Another one each time, in all processes."""
    return secrets.token_hex(8)


def _followed(table: Table | TableConfig) -> bool:
    config = table.config if isinstance(table, Table) else table
    return config.timekey is not None and not config.static


def _newest(transaction: Transaction, table: Table) -> int | None:
    """The newest time in a table, not beyond the present where it is a time."""
    rows = transaction.table(table.label, table.newest())
    cells: list[int | None] = rows[TIME].cast(pa.int64()).to_pylist()
    value = cells[0] if cells else None
    if value is None:
        return None
    clock = _clock(table, value)
    return min(value, _cap(clock, _overlap(table.config, clock)))


def _clock(table: Table, value: int | None) -> float | None:
    """Microseconds of one unit of the ``timekey``; None if it is no time."""
    if table.timekey is None or not table.timekey.integer:
        return 1.0
    return None if value is None else microseconds_in(value)


def _row_times(table: Table, cells: pa.Array) -> pa.Array:
    """Microseconds since 1970; null where they are version numbers."""
    raw = cells.cast(pa.int64())
    latest = pc.max(raw).as_py()
    clock = None if latest is None else _clock(table, latest)
    if clock is None:
        return pa.nulls(len(raw), pa.int64())
    times = scaled(raw.fill_null(0).to_numpy(zero_copy_only=False), clock)
    return pc.if_else(raw.is_valid(), pa.array(times), None)


def _overlap(config: TableConfig, clock: float | None) -> int:
    """How far to go back, in units of the ``timekey``."""
    if clock is None:
        return int(config.overlap or 0)
    seconds = OVERLAP_SECONDS if config.overlap is None else config.overlap
    return int(seconds * 1e6 / clock)


def _cap(clock: float | None, overlap: int) -> int:
    """The latest time to go on from: one row of the far future must not end it all."""
    return 2**63 - 1 if clock is None else int(now() / clock) + overlap


def _steps(rows: pa.Table, times: np.ndarray, fresh: np.ndarray) -> list[Upsert]:
    steps = []
    start = 0
    for batch in rows.combine_chunks().to_batches():
        own = fresh[start : start + batch.num_rows]
        kept = batch if own.all() else batch.filter(pa.array(own))
        if kept.num_rows:
            steps.append(Upsert(kept, times[start : start + batch.num_rows][own]))
        start += batch.num_rows
    return steps
