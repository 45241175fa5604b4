"""Gather gives back what was packed, and survives damaged records."""

import random

import numpy as np
import pyarrow as pa
import pytest
from cache_segments import pack_rows, private_map
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cython_ext.cache_gather import gather
from cython_ext.cache_records import Records
from cython_ext.column import Column, Kind, arrow_type, key_kind, shape_of, value_kind

SCALARS = {
    Kind.INT32: st.integers(-(2**31), 2**31 - 1),
    Kind.INT64: st.integers(-(2**63), 2**63 - 1),
    Kind.FLOAT32: st.floats(width=32, allow_nan=False),
    Kind.FLOAT64: st.floats(allow_nan=False),
    Kind.STRING: st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
}
KINDS = [Kind(number) for number in range(1, 31)]


def cells(kind: Kind):
    """Cells of a kind as Python objects, nulls at every level included."""
    value = st.none() | SCALARS[value_kind(kind)]
    shape = shape_of(kind).name
    if shape == "SCALAR":
        return value
    if shape == "LIST":
        return st.none() | st.lists(value, max_size=9)
    if shape == "LISTS":
        return st.none() | st.lists(st.none() | st.lists(value, max_size=4), max_size=4)
    pairs = st.tuples(SCALARS[key_kind(kind)], value)
    return st.none() | st.lists(pairs, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, list[pa.Array]]:
    """A few columns of random kinds, some of them slices of longer arrays."""
    rows = draw(st.integers(0, 12))
    columns = []
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=6)):
        extra = draw(st.integers(0, 3))
        values = draw(
            st.lists(cells(kind), min_size=rows + extra, max_size=rows + extra)
        )
        columns.append(pa.array(values, arrow_type(kind)).slice(extra))
    return rows, columns


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.randoms(use_true_random=False))
def test_any_table_comes_back(
    table: tuple[int, list[pa.Array]], rng: random.Random
) -> None:
    rows, columns = table
    records, _ = pack_rows(pa.array(range(rows), pa.int64()), columns)
    picked = [rng.randrange(-1, rows) for _ in range(rng.randrange(40))]
    found = gather(records, np.array(picked, np.int64), range(len(columns)))
    for column, array in zip(found, columns, strict=True):
        cells = array.to_pylist()
        assert column.kind == Column.from_arrow(array).kind
        assert column.to_pylist() == [None if r < 0 else cells[r] for r in picked]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_every_kind_comes_back(kind: Kind, data: st.DataObject) -> None:
    values = data.draw(st.lists(cells(kind), min_size=1, max_size=300))
    array = pa.array(values, arrow_type(kind))
    records, _ = pack_rows(pa.array([f"i{n}" for n in range(len(values))]), [array])
    (column,) = gather(records, np.arange(len(values)), [0])
    assert column.kind == kind
    assert column.to_pylist() == array.to_pylist()


def test_float_bits_are_kept() -> None:
    bits = np.array([0x7FF8000000000001, 0xFFF0000000000000, 1 << 63], np.uint64)
    array = pa.array(bits.view(np.float64))
    records, _ = pack_rows(pa.array([1, 2, 3]), [array])
    (column,) = gather(records, np.array([2, 0, 1]), [0])
    out = np.array(column.to_pylist(), np.float64).view(np.uint64)
    assert out.tolist() == bits[[2, 0, 1]].tolist()


def test_null_lists_with_values_behind_them() -> None:
    # Arrow allows a null list to span values; they must not come back.
    array = pa.ListArray.from_arrays(
        pa.array([0, 2, 4], pa.int32()),
        pa.array([1, 2, 3, 4]),
        mask=pa.array([True, False]),
    )
    records, _ = pack_rows(pa.array([1, 2]), [array])
    (column,) = gather(records, np.array([0, 1]), [0])
    assert column.to_pylist() == [None, [3, 4]]


def test_absent_columns_are_null() -> None:
    records, _ = pack_rows(pa.array([1, 2]), [pa.nulls(2), pa.array(["a", "b"])])
    absent, texts = gather(records, np.array([1, 0]), [0, 1])
    assert absent.kind == Kind.ABSENT
    assert absent.to_pylist() == [None, None]
    assert texts.to_pylist() == ["b", "a"]


def test_columns_outlive_the_segment() -> None:
    records, _ = pack_rows(pa.array([1]), [pa.array([["a", None]]), pa.array([7])])
    columns = gather(records, np.array([0]), [0, 1])
    del records
    assert [column.to_pylist() for column in columns] == [[["a", None]], [7]]


def test_rows_and_columns_are_checked() -> None:
    records, _ = pack_rows(pa.array([1, 2]), [pa.array([1, 2])])
    for row in (2, -2, 2**62):
        with pytest.raises(IndexError, match="row"):
            gather(records, np.array([row]), [0])
    for column in (1, -1):
        with pytest.raises(IndexError, match="column"):
            gather(records, np.array([0]), [column])
    assert gather(records, np.array([], np.int64), [0])[0].to_pylist() == []


def test_damaged_records_never_crash() -> None:
    rng = random.Random(3)
    rows = 20
    columns = [
        pa.array(["abc", None] * 10),
        pa.array([["a", None, "bc"], []] * 10),
        pa.array([[1.5, None], [2.5]] * 10),
        pa.array([[["x"], None, []], None] * 10),
        pa.array([[("k", 1)], []] * 10, pa.map_(pa.string(), pa.int32())),
        pa.array([[(1, "v")], None] * 10, pa.map_(pa.int64(), pa.string())),
    ]
    records, _ = pack_rows(pa.array([f"id{i}" for i in range(rows)]), columns)
    good = memoryview(records.mapping).tobytes()
    refused = 0
    for _ in range(4000):
        damaged = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(64, len(good))
            damaged[at] = rng.choice(
                (0, 0xFF, 0x80, damaged[at] ^ 1, rng.randrange(256))
            )
        other = Records(
            private_map(0, content=bytes(damaged)), records.layout, rows, 30, 0
        )
        try:
            for column in gather(other, np.arange(rows), range(len(columns))):
                column.to_pylist()
        except (ValueError, OverflowError):
            refused += 1
    assert refused > 500
