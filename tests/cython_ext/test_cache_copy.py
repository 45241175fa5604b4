"""Records copied as they are: cells, ids, stamps; numbers of companions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from cache_deltas import make_table
from cache_segments import private_map

from cython_ext.cache_copy import RecordCopier
from cython_ext.cache_gather import gather
from cython_ext.cache_records import Records

IDS = pa.array(["a", "7", "c"])
COLUMNS = [
    pa.array([1, 2, 3], pa.int64()),
    pa.array(["x", None, "z"]),
    pa.array([[1], [2, 3], None], pa.list_(pa.int64())),
]


def copied(copier: RecordCopier, rows: int, like: Records) -> Records:
    stop, kept, heap = copier.measure(0, rows)
    assert (stop, kept) == (rows, rows)
    end = 64 + rows * like.layout.stride
    mapping = private_map(end + heap)
    mapping.store(0, 64)
    assert copier.pack(mapping, 0, rows, 64, end) == (end, end + heap)
    return Records(mapping, like.layout, rows, 24, 0)


def test_records_of_base_and_delta() -> None:
    table = make_table(IDS, COLUMNS)
    table.apply(pa.array(["7", "d"]), {1: pa.array(["y", "w"])}, [4, 5])
    rows = np.array([0, 3, 4, 2])
    copier = RecordCopier(table.base, rows, table.delta, table.count)
    records = copied(copier, 4, table.base)
    assert [records.id_of(row) for row in range(4)] == ["a", 7, "d", "c"]
    cells = [column.to_pylist() for column in gather(records, np.arange(4), [0, 1, 2])]
    assert cells == [[1, 2, None, 3], ["x", "y", "w", "z"], [[1], [2, 3], None, None]]
    again = RecordCopier(records, np.arange(4))
    assert again.measure(0, 9)[2] == copier.measure(0, 9)[2]
    assert copier.measure(1, 2)[:2] == (3, 2)


def test_numbers_in_place_of_ids() -> None:
    table = make_table(pa.array([5, 6, 7]), COLUMNS)
    copier = RecordCopier(table.base, np.array([2, 0]), number=100)
    records = copied(copier, 2, table.base)
    assert [records.id_of(row) for row in range(2)] == [100, 101]


def test_what_does_not_exist_is_refused() -> None:
    table = make_table(IDS, COLUMNS)
    for row in (-1, 3):
        with pytest.raises(IndexError):
            RecordCopier(table.base, np.array([row]), table.delta, 0)
    with pytest.raises(IndexError):
        RecordCopier(table.base, np.array([0]), table.delta, -1)
    copier = RecordCopier(table.base, np.array([0, 1]))
    for start, stop, at, heap in [
        (0, 3, 64, 500),
        (1, 0, 64, 500),
        (0, 2, 4, 500),
        (0, 2, -8, 500),
        (0, 2, 4040, 500),
        (0, 2, 64, 4095),
    ]:
        with pytest.raises(IndexError):
            copier.pack(private_map(4096), start, stop, at, heap)


def test_a_damaged_record_is_refused() -> None:
    table = make_table(IDS, COLUMNS)
    with memoryview(table.base.mapping) as view:
        view[64:72] = (1 << 50).to_bytes(8, "little")
    with pytest.raises(ValueError, match="damaged"):
        RecordCopier(table.base, np.array([0]))
