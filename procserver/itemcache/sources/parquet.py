"""Items in Parquet or Arrow files, local or behind any fsspec URL."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from procserver.errors import SourceError
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Description,
    SourceConfig,
    TableConfig,
    reveal,
)
from procserver.itemcache.sources.files import fingerprint, open_dataset
from procserver.itemcache.sources.merging import BATCH_ROWS, merge, merged_schema

DEFAULT_KEY = "item_id"
# PERF: batches read ahead bound the memory of a build.
READ_AHEAD = 1


@dataclass(frozen=True)
class Table:
    """One opened table: its id column and the columns asked for."""

    label: str
    dataset: ds.Dataset
    key: str
    columns: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """Arrow types of the id and the columns."""
        names = dict.fromkeys((self.key, *self.columns))
        return pa.schema([self.dataset.schema.field(name) for name in names])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in file order (so that the last row of an id is the last)."""
        scanner = self.dataset.scanner(
            columns=list(dict.fromkeys((self.key, *self.columns))),
            batch_size=BATCH_ROWS,
            batch_readahead=READ_AHEAD,
            # PERF: one thread decodes while another packs; with more of them decoded
            # row groups pile up in front of the packing.
            use_threads=False,
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
        return Description(tables[0].key, merged_schema(tables), rows)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """All rows; the cursor is a fingerprint of the files."""
        self.skipped = Counter()
        cursor = self._fingerprint()
        tables = self._open()
        if len(tables) == 1:
            return cursor, tables[0].batches()
        return cursor, merge(tables, self.skipped)

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


def _join(base: str, name: str) -> str:
    if not name:
        return base
    if "://" in name or name.startswith("/"):
        return name
    return posixpath.join(base, name)


def _count_rows(table: Table) -> int:
    try:
        return int(table.dataset.count_rows())
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{table.label} cannot be read: {error}") from error
