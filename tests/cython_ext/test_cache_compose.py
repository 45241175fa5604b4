"""The composer: room, graves; damage hurts nobody.

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


def test_records_need_room() -> None:
    table = make_table(IDS, [NUMBERS, WORDS])
    composer = Composer(table.base.layout, [(ids("a"), [], None)])
    composer.resolve(table.index, table.overlay, 0)
    for at, heap in [(-8, 0), (4, 0), (1 << 40, 0), (0, -1), (0, 1 << 40)]:
        with pytest.raises(IndexError, match="no room"):
            composer.pack(table.delta.mapping, at, heap)


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
