"""Several tables of items joined by key, in Arrow."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cython_ext.column import Kind
from procserver.errors import SourceError
from procserver.itemcache.cells import column_kind
from procserver.itemcache.sources import ROW_TIME

# PERF: rows of a merged batch.
BATCH_ROWS = 16384


class Head(Protocol):
    """One table: its id column and the columns asked for."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def key(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]:
        """Names of columns; the key may be one of them."""

    @property
    def schema(self) -> pa.Schema:
        """The key and all ``columns``."""


class Part(Head, Protocol):
    """One table and its rows."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Rows of ``schema``; of those with the same id the last one counts."""


def merged_schema(parts: Sequence[Head]) -> dict[str, Kind]:
    """Kinds by name; the key first, under the name that the first part gives it."""
    key = parts[0].key
    schema: dict[str, Kind] = {key: Kind.ABSENT}
    for part in parts:
        for name in dict.fromkeys((part.key, *part.columns)):
            kind = column_kind(name, part.schema.field(name).type)
            name = key if name == part.key else name
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


def merge(parts: Sequence[Part], skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The parts joined by key, a batch of ids at a time.

    An item is there if any part has it; of a column in several parts the later one
    counts unless its cell is null. All parts are held in memory. Rows without an id
    (``null_key``) and those before the last of an id (``duplicate_key``) are counted
    in ``skipped``. Parts may have ``ROW_TIME`` besides, of which the latest counts.
    """
    read = [_read(part) for part in parts]
    ids, places = _places(parts, read, skipped)
    names = list(merged_schema(parts))
    for start in range(0, len(ids), BATCH_ROWS):
        stop = min(start + BATCH_ROWS, len(ids))
        cells = {
            name: _merged_column(name, parts, read, places, start, stop)
            for name in names
        }
        cells[parts[0].key] = ids[start:stop]
        times = _latest(read, places, start, stop)
        if times is not None:
            cells[ROW_TIME] = times
        yield pa.RecordBatch.from_pydict(cells)


def _places(
    parts: Sequence[Part], read: list[dict[str, pa.Array]], skipped: Counter[str]
) -> tuple[pa.Array, list[np.ndarray]]:
    """Distinct ids, and for each part the row of each id (-1: none)."""
    keys = [cells[part.key] for part, cells in zip(parts, read, strict=True)]
    if len({key.type for key in keys}) > 1:
        # Decimal text and integers are one id in the cache, so here too.
        keys = [_cast_key(key) for key in keys]
    encoded = pc.dictionary_encode(pa.chunked_array(keys)).unify_dictionaries()
    encoded = pa.concat_arrays(encoded.chunks)
    codes = encoded.indices
    skipped["null_key"] += codes.null_count
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
        skipped["duplicate_key"] += held - int((place >= 0).sum())
    return encoded.dictionary, places


def _read(part: Part) -> dict[str, pa.Array]:
    """The whole part, each column in one piece.

    ``take`` from many pieces joins them anew for each call, so they are joined once,
    column by column: the peak is the part and one column.
    """
    batches, schema = list(part.batches()), part.schema
    if batches and ROW_TIME in batches[0].schema.names:
        schema = schema.append(pa.field(ROW_TIME, pa.int64()))
    held = pa.Table.from_batches(batches, schema)
    whole: dict[str, pa.Array] = {}
    for name in held.column_names:
        pieces = held[name]
        held = held.drop_columns([name])
        if pa.types.is_string(pieces.type) and pieces.nbytes > 1 << 30:
            pieces = pieces.cast(pa.large_string())
        try:
            whole[name] = pa.concat_arrays(pieces.chunks or [pa.array([], pieces.type)])
        except pa.ArrowException as error:
            raise SourceError(f"{part.label}, column {name!r}: {error}") from error
    return whole


def _cast_key(key: pa.Array) -> pa.Array:
    try:
        return key.cast(pa.string())
    except pa.ArrowException as error:
        raise SourceError(f"item ids of type {key.type}: {error}") from error


def _merged_column(
    name: str,
    parts: Sequence[Part],
    read: list[dict[str, pa.Array]],
    places: list[np.ndarray],
    start: int,
    stop: int,
) -> pa.Array:
    """The cells of some ids: the last part's that is not null."""
    merged: pa.Array | None = None
    for part, held, place in zip(parts, read, places, strict=True):
        if name == part.key or name not in part.columns:
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


def _latest(
    read: list[dict[str, pa.Array]], places: list[np.ndarray], start: int, stop: int
) -> pa.Array | None:
    """The latest time of the rows of some ids; null where one has none."""
    found: list[pa.Array] = []
    is_known = np.ones(stop - start, dtype=np.bool_)
    for held, place in zip(read, places, strict=True):
        own = place[start:stop]
        if ROW_TIME in held:
            found.append(held[ROW_TIME].take(pa.array(own, mask=own < 0)))
        else:
            is_known &= own < 0
    if not found:
        return None
    latest = pc.max_element_wise(*found) if len(found) > 1 else found[0]
    return pc.if_else(pa.array(is_known), latest, None)


def _recast(name: str, cells: pa.Array, type_: pa.DataType) -> pa.Array:
    try:
        return cells.cast(type_)
    except pa.ArrowException as error:
        raise SourceError(
            f"column {name!r} is {cells.type} in one table and {type_} in a later one:"
            f" {error}"
        ) from error
