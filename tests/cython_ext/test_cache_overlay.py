"""The overlay: counts, links, graves, repair, and damage that must not hurt."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from cache_deltas import CAPACITY, SLOTS, make_table
from cache_segments import private_map

from cython_ext.cache_gather import gather
from cython_ext.cache_overlay import GRAVE, NEWEST, REPLACED, Overlay
from cython_ext.cache_records import RecordLayout, Records
from cython_ext.column import Column, Kind

IDS = pa.array(["a", "7", "c"])
NUMBERS = pa.array([1, 2, 3], pa.int64())


def test_each_count_sees_its_own_state() -> None:
    table = make_table(IDS, [NUMBERS])
    table.apply(pa.array(["a", "x"]), {0: pa.array([10, 20], pa.int64())})
    table.apply(pa.array([7], pa.int64()), None)
    table.apply(pa.array(["x", "7"]), {0: pa.array([21, 22], pa.int64())})
    ids = pa.array(["a", "7", "c", "x", "nobody", None])
    assert [table.lookup(ids, count).tolist() for count in range(6)] == [
        [0, 1, 2, -1, -1, -1],
        [3, 1, 2, -1, -1, -1],
        [3, 1, 2, 4, -1, -1],
        [3, -1, 2, 4, -1, -1],
        [3, -1, 2, 6, -1, -1],
        [3, 7, 2, 6, -1, -1],
    ]
    rows = table.lookup(ids)
    (cells,) = gather(table.base, rows, [0], table.delta, table.count)
    assert cells.to_pylist() == [10, 22, 3, 21, None, None]
    assert list(table.overlay.newest(5)) == [
        NEWEST,
        REPLACED,
        REPLACED,
        NEWEST,
        NEWEST,
    ]
    assert list(table.overlay.newest(3)) == [NEWEST, NEWEST, GRAVE]
    assert list(table.overlay.graves(5)) == [0, 0, 1, 0, 0]


def test_repair_forgets_what_was_not_published() -> None:
    table = make_table(IDS, [NUMBERS])
    table.apply(pa.array(["a", "x"]), {0: pa.array([10, 20], pa.int64())})
    table.apply(pa.array(["x", "y", "a"]), {0: pa.array([1, 2, 3], pa.int64())})
    assert table.overlay.repair(2) == 3
    table.count = 2
    table.apply(pa.array(["z", "y", "c"]), {0: pa.array([7, 8, 9], pa.int64())})
    ids = pa.array(["a", "x", "y", "z", "c"])
    assert table.lookup(ids, 2).tolist() == [3, 4, -1, -1, 2]
    assert table.lookup(ids).tolist() == [3, 4, 6, 5, 7]
    assert table.overlay.repair(0) >= 5
    assert table.lookup(ids, 0).tolist() == [0, -1, -1, -1, 2]


def test_many_ids_in_few_slots() -> None:
    rng = random.Random(3)
    table = make_table(pa.array([0], pa.int64()), [pa.array([0], pa.int64())])
    known: dict[int, int] = {}
    for number in range(CAPACITY):
        key = rng.randint(-20, 20)
        table.apply(pa.array([key]), {0: pa.array([number], pa.int64())})
        known[key] = 1 + number
    keys = list(known)
    assert table.lookup(pa.array(keys)).tolist() == list(known.values())
    with pytest.raises(IndexError):
        table.overlay.enter(CAPACITY, bytearray(1))


def test_what_lies_outside_is_refused() -> None:
    table = make_table(IDS, [NUMBERS])
    for slots, capacity, links in [
        (-8, 8, 64),
        (4, 8, 64),
        (0, 0, 64),
        (0, 1 << 40, 64),
        (0, 8, -4),
        (0, 8, 2),
        (0, 8, 1 << 40),
    ]:
        with pytest.raises(ValueError, match="no "):
            Overlay(table.delta, slots, capacity, links)
    with pytest.raises(IndexError):
        table.lookup(IDS, CAPACITY + 1)
    with pytest.raises(IndexError):
        table.overlay.repair(CAPACITY + 1)
    with pytest.raises(IndexError):
        table.overlay.newest(-1)
    with pytest.raises(IndexError):
        gather(table.base, np.array([3]), [0], table.delta, 0)
    with pytest.raises(IndexError):
        gather(table.base, np.array([0]), [0], table.delta, CAPACITY + 1)
    other = Records(private_map(4096), RecordLayout([Kind.INT32] * 9), 8, 24, 0)
    with pytest.raises(IndexError):
        gather(table.base, np.array([0]), [0], other, 1)


def test_a_full_overlay_says_so() -> None:
    table = make_table(IDS, [NUMBERS])
    small = Overlay(table.delta, table.starts["slots"], 2, table.starts["links"])
    table.overlay = small
    table.apply(pa.array(["x", "y"]), {})
    with pytest.raises(ValueError, match="damaged or full"):
        table.apply(pa.array(["z"]), {})
    assert table.lookup(pa.array(["x", "z", "a"]), 2).tolist() == [3, -1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_damaged_deltas_hurt_nobody(seed: int) -> None:
    """Any bytes in slots, links, records and heap: wrong answers or errors, no more."""
    rng = random.Random(seed)
    lists = pa.array([[1], [2, 3], None], pa.list_(pa.int64()))
    table = make_table(IDS, [NUMBERS, pa.array(["x", "y", None]), lists])
    keys = pa.array([*(f"k{i}" for i in range(20)), *map(str, range(12))])
    texts = pa.array([f"text {i}" for i in range(32)])
    table.apply(keys, {1: texts}, range(32))
    for _ in range(60):
        with memoryview(table.delta.mapping) as view:
            start = rng.choice(list(table.starts.values()))
            at = start + rng.randrange(8 * SLOTS)
            view[at : at + 4] = rng.choice(
                [rng.randbytes(4), b"\xff" * 4, bytes(4), b"\x01\0\0\0"]
            )
        count = rng.randint(0, CAPACITY)
        rows = table.lookup(keys, count)
        assert ((rows >= -1) & (rows < table.base.rows + count)).all()
        try:
            for column in gather(table.base, rows, [0, 1, 2], table.delta, count):
                assert len(column) == len(keys)
        except (ValueError, OverflowError):
            pass
        table.overlay.newest(count)
        table.index.covered(table.overlay, 0, count)
    table.overlay.repair(CAPACITY // 2)
    assert isinstance(table.overlay.records.mapping.load(0), int)
    assert Column.from_arrow(keys).kind == Kind.STRING
