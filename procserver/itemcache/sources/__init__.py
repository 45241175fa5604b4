"""Where item features come from: one contract, one module per kind of source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.column import Kind
from procserver.config.rules import AVAILABLE, DATABASES
from procserver.config.secret import url_scheme
from procserver.errors import SourceError

if TYPE_CHECKING:
    from procserver.itemcache.sources.entries import ChangeStream

ENTRY_POINTS = "procserver.item_sources"
# A column that batches of a snapshot may have: when a row was changed last (int64
# microseconds since 1970, null where nobody knows). It is no feature.
ROW_TIME = "procserver_time"


class TableConfig(Protocol):
    """One entry of ``tables`` in the service JSON."""

    @property
    def name(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def value(self) -> tuple[str, ...] | None: ...
    @property
    def condition(self) -> str | None: ...
    @property
    def timekey(self) -> str | None: ...
    @property
    def static(self) -> bool: ...
    @property
    def overlap(self) -> float | None: ...
    @property
    def types(self) -> Sequence[tuple[str, str]] | None: ...


class StreamConfig(Protocol):
    """``model_config.stream``: changes in a Redis Stream, or appended to a file."""

    @property
    def key(self) -> str | None: ...
    @property
    def url(self) -> object: ...
    @property
    def id(self) -> str | None: ...
    @property
    def timekey(self) -> str | None: ...


class SourceConfig(Protocol):
    """The item source of the service JSON; ``url`` may be a secret."""

    @property
    def remote_type(self) -> str: ...
    @property
    def url(self) -> object: ...
    @property
    def tables(self) -> Sequence[TableConfig]: ...
    @property
    def statement_timeout(self) -> float: ...
    @property
    def listen(self) -> str | None: ...
    @property
    def stream(self) -> StreamConfig | None: ...


@dataclass(frozen=True)
class Description:
    """What a source holds: the id column, kinds by column name, rows if known.

    The id column is one of ``schema`` too: features may be made of it.

    ``follows``: ``changes`` is to be called all the time (a stream, a log) and may
    wait; otherwise it is called once a ``period``, if it answers at all. ``exact``:
    ``rows`` is a count and no estimate.
    """

    key: str
    schema: dict[str, Kind]
    rows: int | None = None
    follows: bool = False
    exact: bool = True


@dataclass(frozen=True)
class Upsert:
    """Rows that are new or have changed.

    ``batch`` has the key column and any of the others: a null cell sets null, an
    absent column leaves its cells as they are (null for a new item). Of rows with
    the same id the later one counts, or the one of the later time.

    ``times``: int64 event time of each row, of the same clock and unit as in all
    that this source hands out; an older event never overwrites a newer value. None:
    the order of arrival counts.
    """

    batch: pa.RecordBatch
    times: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Delete:
    """Items that are gone; ``times`` as for :class:`Upsert`."""

    keys: pa.Array
    times: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Changes:
    """What changed since a cursor, in order; applying it twice does no harm.

    ``newest``: time of the latest change in seconds since 1970, where the source
    knows one; it tells the lag. ``more``: whether the answer was cut, so that there is
    more at once; None: the source cannot tell. ``whole``: False where a part of the
    source could not be asked.
    """

    steps: Sequence[Upsert | Delete]
    next_cursor: object
    newest: float | None = None
    more: bool | None = None
    whole: bool = True


class CursorLost(SourceError):
    """Changes since that cursor are not all there any more: a full load is due."""


@runtime_checkable
class ItemSource(Protocol):
    """The contract of every source.

    One thread uses it; the refresher opens a second one where it loads everything
    while it follows changes. A class named by an entry point of the group
    ``procserver.item_sources`` (the entry's name is the ``remote_type``) is called
    with the :class:`SourceConfig`. Every method raises
    :class:`~procserver.errors.SourceError`.
    """

    @property
    def skipped(self) -> Mapping[str, int]:
        """Rows that the source itself left out since the last snapshot, by reason."""

    def describe(self) -> Description:
        """Key, columns and kinds, read from the source now."""

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """Everything, with the cursor from which ``changes`` goes on.

        Of rows with the same id the last one counts. Batches may have a column
        ``ROW_TIME``.
        """

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """What changed after ``cursor``; None: this source knows snapshots only.

        A cursor that JSON gives back as it was (text, numbers, lists, objects with
        text keys) is saved, and a refresher that is started again goes on from it;
        with any other one it loads everything.

        :param wait: seconds for which it may wait for a first change
        :raises CursorLost: if some of them cannot be had any more
        """

    def close(self) -> None:
        """Gives back connections and files."""


def reveal(url: object) -> str:
    """The text of a URL that may be wrapped as a secret."""
    secret = getattr(url, "reveal", None)
    return str(secret() if callable(secret) else url)


def open_source(config: SourceConfig) -> ItemSource:
    """Opens the source that ``remote_type`` names: ours, or an entry point's.

    With a ``stream`` its changes are followed too.

    :raises SourceError: if there is none of that name, or its driver is missing
    """
    source = _open(config)
    # NOTE: configurations of third parties need not have it.
    stream: StreamConfig | None = getattr(config, "stream", None)
    if stream is None:
        return source
    from procserver.itemcache.sources.combined import CombinedSource

    period: int | None = getattr(config, "period_minutes", None)
    every = None if period is None else period * 60.0
    return CombinedSource(source, _open_stream(stream), every)


def _open_stream(config: StreamConfig) -> "ChangeStream":
    if url_scheme(reveal(config.url)) == "file":
        from procserver.itemcache.sources.file_stream import FileStream

        return FileStream(config)
    from procserver.itemcache.sources.redis_stream import Stream

    return Stream(config)


def _open(config: SourceConfig) -> ItemSource:
    kind = config.remote_type
    if kind == "parquet":
        from procserver.itemcache.sources.parquet import ParquetSource

        return ParquetSource(config)
    if kind == "feast":
        from procserver.itemcache.sources.feast import FeastSource

        return FeastSource(config)
    if kind == "featuredb":
        from procserver.itemcache.sources.featuredb import FeatureDBSource

        return FeatureDBSource(config)
    if kind in DATABASES:
        from procserver.itemcache.sources.postgres import PostgresSource

        return PostgresSource(config)
    if kind == "redis":
        from procserver.itemcache.sources.redis import RedisSource

        return RedisSource(config)
    return _plugged(config, kind)


def _plugged(config: SourceConfig, kind: str) -> ItemSource:
    found = entry_points(group=ENTRY_POINTS)
    for entry in found:
        if entry.name == kind:
            try:
                source = entry.load()(config)
            except (ImportError, AttributeError) as error:
                raise SourceError(f"item source {kind!r}: {error}") from error
            if not isinstance(source, ItemSource):
                raise SourceError(f"item source {kind!r} lacks a method of ItemSource")
            return source
    known = ", ".join(sorted({*AVAILABLE, *(entry.name for entry in found)}))
    raise SourceError(f"no item source {kind!r}; there are: {known}")
