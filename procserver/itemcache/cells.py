"""Cells on their way into the cache: cast, bounded, and nulled where they are bad.

A bad cell never aborts a load: it becomes null, as if the source had none, and is
counted by column and reason::

    bad_value     not of the column's type (text where numbers are, out of range)
    bad_text      not UTF-8; an item id that is not leaves its row out
    long_cell     more bytes than ``longest``
    refused_cell  what a feature of the served model refuses, such as a vector of
                  another width; every request for the item would be refused
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cython_ext.column import Column, Kind, arrow_type, kind_of_arrow, value_kind
from procserver.errors import SourceError

# A vector of the widest feature takes as much: 65,536 floats.
LONGEST_CELL = 1 << 18
BAD_VALUE, BAD_TEXT = "bad_value", "bad_text"
LONG_CELL, REFUSED_CELL = "long_cell", "refused_cell"
SUPPORTED = (
    "integers up to 64 bits, floats, strings, lists and lists of lists of these,"
    " and maps with integer or string keys"
)


class TableReader(Protocol):
    """Who reads an item table: the cache knows neither what nor why."""

    @property
    def reads(self) -> Mapping[str, Collection[str]]:
        """Columns that are read, and the names of what reads them."""

    def unfit(self, schema: Mapping[str, Kind]) -> list[str]:
        """One sentence for each column of a kind that cannot be read."""

    def refused(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, NDArray[np.bool_]]:
        """Which cells of which columns cannot be read, in a batch of ``rows``."""


def column_kind(name: str, type_: pa.DataType) -> Kind:
    """The kind that a source column becomes.

    :raises SourceError: for a type that no feature can have; timestamps, dates
        and decimals are not converted, since their meaning as a number is not ours
        to guess
    """
    try:
        return kind_of_arrow(type_)
    except TypeError as error:
        raise SourceError(
            f"column {name!r} has Arrow type {type_}; supported are {SUPPORTED}."
            " Cast it at the source or leave it out of `value`"
        ) from error


@dataclass
class Sieve:
    """What the cells of one build pass; ``cells`` counts by (column, reason)."""

    longest: int = LONGEST_CELL
    reader: TableReader | None = None
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def skipped(self) -> Counter[str]:
        """Cells that were nulled, by reason."""
        found: Counter[str] = Counter()
        for (_, reason), count in self.cells.items():
            found[reason] += count
        return found

    def columns(
        self,
        schema: Mapping[str, Kind],
        batch: pa.RecordBatch,
        ids: tuple[str, pa.Array] | None = None,
    ) -> dict[str, Column]:
        """The columns of ``schema``, each of its kind; those that lack are null.

        :param ids: name and array of the id column, whose bad cells :meth:`keys` has
            counted
        :raises SourceError: for a column whose type cannot become its kind at all
        """
        given = set(batch.schema.names)
        arrays = {
            name: self._cast(name, kind, ids[1])
            if ids is not None and name == ids[0]
            else self.fit(name, kind, batch.column(name))
            for name, kind in schema.items()
            if name in given
        }
        made = {
            name: _column(name, arrays[name])
            if name in arrays
            else Column.null(batch.num_rows)
            for name in schema
        }
        if self.reader is not None:
            for name, bad in self.reader.refused(made, batch.num_rows).items():
                if name in arrays:
                    array = self._null(name, REFUSED_CELL, arrays[name], bad)
                    made[name] = _column(name, array)
        return made

    def fit(self, name: str, kind: Kind, array: pa.Array) -> pa.Array:
        """An array of the kind's Arrow type; bad cells are null.

        :raises SourceError: if the type cannot become the kind at all
        """
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        array = self._cast(name, kind, array)
        if pa.types.is_null(array.type):
            return array
        if Kind.STRING in (value_kind(kind), _key_kind(kind)):
            array = self._text(name, array)
        if array.nbytes > self.longest and pa.types.is_nested(array.type) | (
            kind == Kind.STRING
        ):
            # NOTE: null cells may hide bytes; they stay null.
            array = self._null(name, LONG_CELL, array, sizes(array) > self.longest)
        return array

    def keys(self, keys: pa.Array) -> tuple[pa.Array, int]:
        """Item ids, null where they are no UTF-8, and how many were."""
        before, type_ = keys.null_count, keys.type
        if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
            keys = _cast_what_fits(keys, pa.string())
        elif pa.types.is_string(type_) or pa.types.is_large_string(type_):
            keys = _without_invalid(keys)
        return keys, keys.null_count - before

    def _cast(self, name: str, kind: Kind, array: pa.Array) -> pa.Array:
        column_kind(name, array.type)
        if pa.types.is_null(array.type) or kind == Kind.ABSENT:
            return pa.nulls(len(array))
        wanted = arrow_type(kind)
        if array.type == wanted:
            return array
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        nulls = array.null_count
        try:
            array = _cast_what_fits(array, wanted)
        except (pa.ArrowException, TypeError) as error:
            raise SourceError(
                f"column {name!r} cannot be read as {kind.name}: {error}"
            ) from error
        self._count(name, BAD_VALUE, array.null_count - nulls)
        return array

    def _text(self, name: str, array: pa.Array) -> pa.Array:
        """The array without cells that hold bytes that are no UTF-8."""
        nulls = array.null_count
        array = _without_invalid(array)
        self._count(name, BAD_TEXT, array.null_count - nulls)
        return array

    def _null(
        self, name: str, reason: str, array: pa.Array, bad: NDArray[np.bool_]
    ) -> pa.Array:
        nulls = array.null_count
        array = _nulled(array, bad)
        self._count(name, reason, array.null_count - nulls)
        return array

    def _count(self, name: str, reason: str, cells: int) -> None:
        if cells:
            self.cells[name, reason] += cells

    def bad_rows(
        self, schema: Mapping[str, Kind], batch: pa.RecordBatch, key: str
    ) -> NDArray[np.bool_]:
        """Rows of a batch of changes that have a bad cell.

        They are left out: what the cache holds is better than null.
        """
        bad = np.zeros(batch.num_rows, dtype=np.bool_)
        columns = {}
        for name, kind in schema.items():
            if name == key or name not in batch.schema.names:
                continue
            array = batch.column(name)
            try:
                fitted = self.fit(name, kind, array)
            except SourceError:
                # No value of this type fits.
                continue
            if fitted.null_count > array.null_count:
                bad |= np.asarray(array.is_valid()) & np.asarray(fitted.is_null())
            columns[name] = _column(name, fitted)
        if self.reader is not None:
            refused = self.reader.refused(columns, batch.num_rows)
            for name, cells in refused.items():
                if name not in columns:
                    continue
                self._count(name, REFUSED_CELL, int(cells.sum()))
                bad |= cells
        return bad


def sizes(array: pa.Array) -> NDArray[np.int64]:
    """Bytes of the values in each cell, validity and lengths aside."""
    type_ = array.type
    if pa.types.is_string(type_):
        lengths = pc.fill_null(pc.binary_length(array), 0)
        return np.asarray(lengths, dtype=np.int64)
    if not pa.types.is_nested(type_):
        return np.full(len(array), type_.bit_width // 8, dtype=np.int64)
    ends = array.offsets.to_numpy()
    parts = [array.keys, array.items] if pa.types.is_map(type_) else [array.values]
    total = np.zeros(len(array), dtype=np.int64)
    for part in parts:
        if pa.types.is_string(part.type) or pa.types.is_nested(part.type):
            before = np.concatenate(([0], np.cumsum(sizes(part))))
            total += before[ends[1:]] - before[ends[:-1]]
        else:
            total += np.diff(ends) * (part.type.bit_width // 8)
    return total


def _key_kind(kind: Kind) -> Kind:
    return Kind.STRING if kind.name.startswith("MAP_STRING") else Kind.ABSENT


def _cast_what_fits(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The array cast; cells that cannot be are null.

    PERF: halves, so that a few bad cells cost a few casts of their neighbours.
    """
    try:
        return array.cast(wanted)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return pa.nulls(1, wanted)
        middle = len(array) // 2
        halves = _copied(array, 0, middle), _copied(array, middle, len(array))
        return pa.concat_arrays([_cast_what_fits(half, wanted) for half in halves])


def _copied(array: pa.Array, start: int, stop: int) -> pa.Array:
    # NOTE: of a slice of lists, all values of the whole are cast and checked.
    return array.take(pa.array(np.arange(start, stop)))


def _nulled(array: pa.Array, bad: NDArray[np.bool_]) -> pa.Array:
    if not bad.any():
        return array
    return array.take(pa.array(np.arange(len(array)), mask=bad))


def _without_invalid(array: pa.Array) -> pa.Array:
    if _is_valid(array):
        return array
    bad = np.zeros(len(array), dtype=np.bool_)
    _mark_invalid(array, 0, bad)
    return _nulled(array, bad)


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _mark_invalid(array: pa.Array, start: int, bad: NDArray[np.bool_]) -> None:
    if _is_valid(array):
        return
    if len(array) == 1:
        bad[start] = True
        return
    middle = len(array) // 2
    _mark_invalid(_copied(array, 0, middle), start, bad)
    _mark_invalid(_copied(array, middle, len(array)), start + middle, bad)


def _column(name: str, array: pa.Array) -> Column:
    try:
        return Column.from_arrow(array)
    except (pa.ArrowException, TypeError) as error:
        raise SourceError(f"column {name!r} cannot be read: {error}") from error
