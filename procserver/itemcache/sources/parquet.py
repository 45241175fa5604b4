"""Items in Parquet or Arrow files, local or behind any fsspec URL."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from cython_ext.column import Kind
from procserver.errors import SourceError
from procserver.itemcache.cells import column_kind
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Description,
    SourceConfig,
    TableConfig,
    reveal,
)
from procserver.itemcache.sources.files import fingerprint, open_dataset

DEFAULT_KEY = "item_id"
# PERF: rows per batch and batches read ahead bound the memory of a build.
BATCH_ROWS = 16384
READ_AHEAD = 1


@dataclass(frozen=True)
class Table:
    """One opened table: its id column and the columns asked for."""

    label: str
    dataset: ds.Dataset
    key: str
    columns: tuple[str, ...]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in file order (so that the last row of an id is the last)."""
        scanner = self.dataset.scanner(
            columns=list(dict.fromkeys((self.key, *self.columns))),
            batch_size=BATCH_ROWS,
            batch_readahead=READ_AHEAD,
            fragment_readahead=2,
        )
        try:
            yield from scanner.to_batches()
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{self.label} cannot be read: {error}") from error


def open_table(url: str, config: TableConfig | None, label: str) -> Table:
    """Opens one table.

    The id column is ``key``, or ``item_id`` if there is such a column, or the
    first one. ``value`` chooses columns, None all of them.

    :raises SourceError: for a missing file or column, or an SQL condition
    """
    if config is not None and config.condition:
        raise SourceError(f"{label}: Parquet files take no `condition`")
    dataset = open_dataset(url)
    names = dataset.schema.names
    for name, count in Counter(names).items():
        if count > 1:
            raise SourceError(f"{label} has {count} columns {name!r}")
    if not names:
        raise SourceError(f"{label} has no columns")
    key = config.key if config is not None else None
    if key is None:
        key = DEFAULT_KEY if DEFAULT_KEY in names else names[0]
    value = config.value if config is not None else None
    columns = tuple(names if value is None else value)
    for name in (key, *columns):
        if name not in names:
            raise SourceError(f"{label} has no column {name!r}")
    return Table(label, dataset, key, columns)


class ParquetSource:
    """``remote_type: parquet``: ``url`` is a file, directory, glob or fsspec URL.

    With ``tables``, a table's ``name`` is a path below ``url`` or a URL of its own
    (absent: ``url`` itself). Several tables are merged by key: an item is there if
    any table has it, and where tables share a column the later one wins unless its
    cell is null. Merging holds all tables in memory, one table streams. Directories
    of versions are told in ``versions``.
    """

    def __init__(self, config: SourceConfig) -> None:
        base = reveal(config.url)
        self.skipped: Counter[str] = Counter()
        self._tables: list[tuple[str, TableConfig | None, str]] = []
        for number, table in enumerate(config.tables):
            name = table.name or ""
            label = f"item table {name!r}" if name else f"item table {number}"
            self._tables.append((_join(base, name), table, label))
        if not self._tables:
            self._tables.append((base, None, "item table"))

    def _open(self) -> list[Table]:
        # NOTE: opened anew for each build, since files come and go between them.
        return [open_table(*table) for table in self._tables]

    def describe(self) -> Description:
        """Key and columns; the rows are exact for one table."""
        tables = self._open()
        rows = _count_rows(tables[0]) if len(tables) == 1 else None
        return Description(tables[0].key, _merged_schema(tables), rows)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """All rows; the cursor is a fingerprint of the files."""
        self.skipped = Counter()
        cursor = self._fingerprint()
        tables = self._open()
        if len(tables) == 1:
            return cursor, tables[0].batches()
        return cursor, self._merge(tables)

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """Nothing, as long as the files are those of the snapshot.

        :raises CursorLost: if there are others; files are read as a whole
        """
        if self._fingerprint() != cursor:
            raise CursorLost("the files of the item tables have changed")
        return Changes((), cursor)

    def _fingerprint(self) -> str:
        return " ".join(fingerprint(url) for url, _, _ in self._tables)

    def close(self) -> None:
        """Nothing is held between builds."""

    def _merge(self, tables: list[Table]) -> Iterator[pa.RecordBatch]:
        """The tables joined by key, a batch of ids at a time."""
        read = [_read(table) for table in tables]
        ids, places = self._places(tables, read)
        names = list(_merged_schema(tables))
        for start in range(0, len(ids), BATCH_ROWS):
            stop = min(start + BATCH_ROWS, len(ids))
            cells = {
                name: _merged_column(name, tables, read, places, start, stop)
                for name in names
            }
            cells[tables[0].key] = ids[start:stop]
            yield pa.RecordBatch.from_pydict(cells)

    def _places(
        self, tables: list[Table], read: list[dict[str, pa.Array]]
    ) -> tuple[pa.Array, list[np.ndarray]]:
        """Distinct ids, and for each table the row of each id (-1: none)."""
        keys = [cells[t.key] for t, cells in zip(tables, read, strict=True)]
        if len({key.type for key in keys}) > 1:
            # Decimal text and integers are one id in the cache, so here too.
            keys = [_cast_key(key) for key in keys]
        encoded = pc.dictionary_encode(pa.chunked_array(keys)).unify_dictionaries()
        encoded = pa.concat_arrays(encoded.chunks)
        codes = encoded.indices
        self.skipped["null_key"] += codes.null_count
        codes = codes.fill_null(-1).to_numpy(zero_copy_only=False)
        places, start = [], 0
        for key in keys:
            own = codes[start : start + len(key)]
            start += len(key)
            place = np.full(len(encoded.dictionary) + 1, -1, dtype=np.int64)
            place[own] = np.arange(len(own))
            place[-1] = -1
            places.append(place[:-1])
            held = int((own >= 0).sum())
            self.skipped["duplicate_key"] += held - int((place >= 0).sum())
        return encoded.dictionary, places


def _join(base: str, name: str) -> str:
    if not name:
        return base
    if "://" in name or name.startswith("/"):
        return name
    return posixpath.join(base, name)


def _schema(table: Table) -> pa.Schema:
    names = dict.fromkeys((table.key, *table.columns))
    return pa.schema([table.dataset.schema.field(name) for name in names])


def _count_rows(table: Table) -> int:
    try:
        return int(table.dataset.count_rows())
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{table.label} cannot be read: {error}") from error


def _merged_schema(tables: list[Table]) -> dict[str, Kind]:
    """Kinds by name; the key first, under the name that the first table gives it."""
    key = tables[0].key
    schema: dict[str, Kind] = {key: Kind.ABSENT}
    for table in tables:
        for name in (table.key, *table.columns):
            kind = column_kind(name, table.dataset.schema.field(name).type)
            name = key if name == table.key else name
            if schema.get(name) in (None, Kind.ABSENT):
                schema[name] = kind
            elif kind not in (schema[name], Kind.ABSENT):
                if name != key:
                    schema[name] = kind
                elif Kind.STRING in (kind, schema[name]):
                    schema[name] = Kind.STRING
                else:
                    schema[name] = Kind.INT64
    return schema


def _read(table: Table) -> dict[str, pa.Array]:
    """The whole table, each column in one piece.

    ``take`` from many pieces joins them anew for each call, so they are joined once,
    column by column: the peak is the table and one column.
    """
    held = pa.Table.from_batches(list(table.batches()), _schema(table))
    whole: dict[str, pa.Array] = {}
    for name in held.column_names:
        pieces = held[name]
        held = held.drop_columns([name])
        if pa.types.is_string(pieces.type) and pieces.nbytes > 1 << 30:
            pieces = pieces.cast(pa.large_string())
        try:
            whole[name] = pa.concat_arrays(pieces.chunks or [pa.array([], pieces.type)])
        except pa.ArrowException as error:
            raise SourceError(f"{table.label}, column {name!r}: {error}") from error
    return whole


def _cast_key(key: pa.Array) -> pa.Array:
    try:
        return key.cast(pa.string())
    except pa.ArrowException as error:
        raise SourceError(f"item ids of type {key.type}: {error}") from error


def _merged_column(
    name: str,
    tables: list[Table],
    read: list[dict[str, pa.Array]],
    places: list[np.ndarray],
    start: int,
    stop: int,
) -> pa.Array:
    """The cells of some ids: the last table's that is not null."""
    merged: pa.Array | None = None
    for table, held, place in zip(tables, read, places, strict=True):
        if name == table.key or name not in table.columns:
            continue
        own = place[start:stop]
        cells = held[name].take(pa.array(own, mask=own < 0))
        if merged is None:
            merged = cells
            continue
        if merged.type != cells.type:
            merged = _recast(name, merged, cells.type)
        merged = pc.coalesce(cells, merged)
    return pa.nulls(stop - start) if merged is None else merged


def _recast(name: str, cells: pa.Array, type_: pa.DataType) -> pa.Array:
    try:
        return cells.cast(type_)
    except pa.ArrowException as error:
        raise SourceError(
            f"column {name!r} is {cells.type} in one table and {type_} in a later one:"
            f" {error}"
        ) from error
