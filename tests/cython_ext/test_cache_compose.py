"""The composer: what is refused, what is counted, stamps; damage hurts nobody.

That the right values come out is told by tests/itemcache/test_itemcache_delta.py.
"""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from cache_deltas import CAPACITY, make_table

from cython_ext.cache_compose import NO_TIME, Composer, buried
from cython_ext.cache_gather import gather
from cython_ext.column import Column

IDS = pa.array(["a", "7", "c"])
NUMBERS = pa.array([1, 2, 3], pa.int64())
WORDS = pa.array(["x", None, "z"])


def ids(*keys: str | None) -> Column:
    return Column.from_arrow(pa.array(keys, pa.string()))


def test_what_does_not_fit_is_refused() -> None:
    table = make_table(IDS, [NUMBERS, WORDS])
    layout, number = table.base.layout, Column.from_arrow(NUMBERS)
    with pytest.raises(TypeError, match="column 1 is INT64"):
        Composer(layout, [(ids("a", "b", "c"), [(1, number)], None)])
    with pytest.raises(ValueError, match="column 0 has 3 rows"):
        Composer(layout, [(ids("a"), [(0, number)], None)])
    with pytest.raises(ValueError, match="column 2 of 2"):
        Composer(layout, [(ids("a", "b", "c"), [(2, number)], None)])
    with pytest.raises(ValueError, match="2 times of 1 events"):
        Composer(layout, [(ids("a"), None, np.zeros(2, np.int64))])
    with pytest.raises(TypeError, match="ids of events"):
        Composer(layout, [(Column.from_arrow(pa.array([1.0])), None, None)])
    composer = Composer(layout, [(ids("a"), [], None)])
    with pytest.raises(IndexError):
        composer.resolve(table.index, table.overlay, CAPACITY + 1)
    other = make_table(IDS, [NUMBERS] * 9)
    with pytest.raises(TypeError, match="another layout"):
        composer.resolve(other.index, other.overlay, 0)
    composer.resolve(table.index, table.overlay, 0)
    for at, heap in [(-8, 0), (4, 0), (1 << 40, 0), (0, -1), (0, 1 << 40)]:
        with pytest.raises(IndexError, match="no room"):
            composer.pack(table.delta.mapping, at, heap)


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
    composer = Composer(table.base.layout, [(ids("a"), columns, None)])
    composer.resolve(table.index, table.overlay, 0)
    assert (composer.huge_rows, composer.kept, composer.heap) == (1, 0, 0)


def test_stamps_take_room_only_where_there_are_times() -> None:
    table = make_table(IDS, [NUMBERS, WORDS])
    plain = table.apply(pa.array(["a"]), {0: pa.array([5], pa.int64())})
    timed = table.apply(pa.array(["a"]), {0: pa.array([6], pa.int64())}, [9])
    again = table.apply(pa.array(["a"]), {1: pa.array(["y"])}, [10])
    # Two bytes, and for each different time eight with a byte of bits.
    assert timed.heap == plain.heap + 2 + 9
    assert again.heap == plain.heap + 2 + 2 * 9


def test_when_items_were_buried() -> None:
    table = make_table(IDS, [NUMBERS])
    table.apply(pa.array(["a", "x"]), None, [5, -6])
    table.apply(pa.array(["c"]), None)
    table.apply(pa.array(["a"]), {}, [8])
    rows = np.arange(4)
    assert buried(table.delta, rows).tolist() == [5, -6, NO_TIME, 5]
    with pytest.raises(IndexError):
        buried(table.delta, np.array([CAPACITY]))


@pytest.mark.parametrize("seed", range(20))
def test_events_for_damaged_records(seed: int) -> None:
    """What is read of the item is checked: an error, or some record."""
    rng = random.Random(seed)
    lists = pa.array([[1], [2, 3], None], pa.list_(pa.int64()))
    table = make_table(IDS, [NUMBERS, WORDS, lists])
    keys = pa.array(["a", "7", "c", "d"])
    table.apply(keys, {1: pa.array(["1", "2", "3", "4"])}, [1, 2, 3, 4])
    for segment in (table.base.mapping, table.delta.mapping):
        start = 64 if segment is table.base.mapping else table.starts["records"]
        for _ in range(8):
            at = start + rng.randrange(4 * table.base.layout.stride)
            with memoryview(segment) as view:
                view[at] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
            step = (
                Column.from_arrow(keys),
                [(0, Column.from_arrow(pa.array([1, 2, 3, 4], pa.int64())))],
                np.array([5, 6, 7, 8], np.int64),
            )
            composer = Composer(table.base.layout, [step])
            try:
                composer.resolve(table.index, table.overlay, table.count)
                composer.pack(
                    table.delta.mapping,
                    table.starts["records"] + 32 * table.base.layout.stride,
                    table.heap,
                )
                gather(table.base, np.arange(3 + 36), [0, 1, 2], table.delta, 36)
            except (ValueError, OverflowError, IndexError):
                pass
    assert composer.items == 4
