"""What events leave of items: what is refused, what is counted, room for stamps.

That the right values come out is told by tests/itemcache/test_itemcache_delta.py.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from cache_deltas import CAPACITY, make_table

from cython_ext.cache_settle import Settlement
from cython_ext.column import Column

IDS = pa.array(["a", "7", "c"])
NUMBERS = pa.array([1, 2, 3], pa.int64())
WORDS = pa.array(["x", None, "z"])


def ids(*keys: str | None) -> Column:
    return Column.from_arrow(pa.array(keys, pa.string()))


def test_what_does_not_fit_is_refused() -> None:
    table = make_table(IDS, [NUMBERS, WORDS])
    layout = table.base.layout
    found = Settlement(layout, [(ids("a"), [], None)])
    with pytest.raises(IndexError):
        found.resolve(table.index, table.overlay, CAPACITY + 1)
    other = make_table(IDS, [NUMBERS] * 9)
    with pytest.raises(TypeError, match="another layout"):
        found.resolve(other.index, other.overlay, 0)


def test_rows_without_an_id_are_counted() -> None:
    table = make_table(IDS, [NUMBERS])
    numbers = pa.array([1, 2, 3, 4, 5], pa.int64())
    keys = pa.array(["a", None, "x" * 70_000, "a", "7"])
    composer = table.apply(keys, {0: numbers})
    assert (composer.null_keys, composer.long_keys) == (1, 1)
    assert (composer.items, composer.kept, composer.fresh) == (2, 2, 2)
    assert composer.upserted == 3
    composer = table.apply(pa.array(["a"]), {})
    assert (composer.upserted, composer.stale, composer.kept) == (0, 1, 0)


def test_an_item_as_large_as_two_gigabytes_stays_as_it_was() -> None:
    size = 1 << 27
    lists = [pa.array([None], pa.list_(pa.int64()))] * 3
    table = make_table(pa.array(["a"]), lists)
    long = Column.from_arrow(
        pa.ListArray.from_arrays(
            pa.array([0, size - 8], pa.int32()),
            pa.Array.from_buffers(
                pa.int64(), size, [None, pa.py_buffer(np.zeros(size, np.int64))]
            ),
        )
    )
    columns = [(number, long) for number in range(3)]
    found = Settlement(table.base.layout, [(ids("a"), columns, None)])
    found.resolve(table.index, table.overlay, 0)
    assert (found.huge_rows, found.kept, found.heap) == (1, 0, 0)


def test_stamps_take_room_only_where_there_are_times() -> None:
    table = make_table(IDS, [NUMBERS, WORDS])
    plain = table.apply(pa.array(["a"]), {0: pa.array([5], pa.int64())})
    timed = table.apply(pa.array(["a"]), {0: pa.array([6], pa.int64())}, [9])
    again = table.apply(pa.array(["a"]), {1: pa.array(["y"])}, [10])
    # Two bytes, and for each different time eight with a byte of bits.
    assert timed.heap == plain.heap + 2 + 9
    assert again.heap == plain.heap + 2 + 2 * 9
