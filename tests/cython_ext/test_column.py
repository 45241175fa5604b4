"""``column``: Arrow arrays of every feature type, seen as cells."""

import gc
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.column import (
    Column,
    Kind,
    Shape,
    arrow_type,
    key_kind,
    kind_of_arrow,
    shape_of,
    value_kind,
)

DICTIONARY = pa.dictionary(pa.int32(), pa.string())
KINDS = [kind for kind in Kind if kind is not Kind.ABSENT]
SAMPLES = {
    Kind.INT32: [0, -1, 2**31 - 1, -(2**31)],
    Kind.INT64: [0, 2**63 - 1, -(2**63)],
    Kind.STRING: ["", "a", "日本語", "x" * 50],
    Kind.FLOAT32: [0.0, -1.5, float("inf")],
    Kind.FLOAT64: [0.1, -1e300],
}


def ids(kind):
    return kind.name


def random_cell(kind, rng, nulls=True):
    """A cell in the form of ``to_pylist``."""
    if nulls and rng.random() < 0.2:
        return None
    samples = SAMPLES[value_kind(kind)]
    shape = shape_of(kind)
    if shape == Shape.SCALAR:
        return rng.choice(samples)
    n = rng.randrange(4)
    if shape == Shape.MAP:
        keys = rng.sample(SAMPLES[key_kind(kind)], k=min(n, 2))
        return [(k, random_cell(value_kind(kind), rng, nulls)) for k in keys]
    inner = Kind(kind - 5) if shape == Shape.LISTS else value_kind(kind)
    return [random_cell(inner, rng, nulls) for _ in range(n)]


def random_array(kind, rng, rows):
    cells = [random_cell(kind, rng) for _ in range(rows)]
    return cells, pa.array(cells, arrow_type(kind))


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_the_arrow_type_of_every_kind_leads_back(kind):
    assert kind_of_arrow(arrow_type(kind)) is kind
    assert shape_of(kind) in tuple(Shape)
    assert (key_kind(kind) is Kind.ABSENT) == (shape_of(kind) is not Shape.MAP)


def test_names_say_what_the_kinds_hold():
    for kind in KINDS:
        *head, last = kind.name.split("_")
        assert value_kind(kind).name == last
        assert shape_of(kind).name == (head[0] if head else "SCALAR")
        assert key_kind(kind).name == (head[1] if len(head) == 2 else "ABSENT")


@pytest.mark.parametrize("kind", KINDS, ids=ids)
@pytest.mark.parametrize("seed", range(8))
def test_every_kind_with_nulls_slices_and_chunks(kind, seed):
    rng = random.Random(seed)
    cells, array = random_array(kind, rng, 21)
    column = Column.from_arrow(array)
    assert column.kind is kind
    assert len(column) == 21
    assert column.to_pylist() == cells
    start = rng.randrange(15)
    # A slice of the array, a slice of the column, and a slice of a slice.
    assert Column.from_arrow(array.slice(start, 6)).to_pylist() == cells[start:][:6]
    assert column.slice(start, 6).to_pylist() == cells[start:][:6]
    assert column.slice(2, 18).slice(3, 9).to_pylist() == cells[5:14]
    assert Column.from_arrow(array.slice(3)).slice(2, 4).to_pylist() == cells[5:9]
    chunks = pa.chunked_array([array.slice(0, 5), array.slice(5, 0), array.slice(5)])
    assert Column.from_arrow(chunks).to_pylist() == cells
    one = pa.chunked_array([array.slice(4)])
    assert Column.from_arrow(one).to_pylist() == cells[4:]


@pytest.mark.parametrize("kind", KINDS, ids=ids)
def test_empty_and_all_null_columns(kind):
    type_ = arrow_type(kind)
    assert Column.from_arrow(pa.array([], type_)).to_pylist() == []
    assert Column.from_arrow(pa.chunked_array([], type_)).to_pylist() == []
    nulls = Column.from_arrow(pa.nulls(11, type_))
    assert nulls.kind is kind
    assert nulls.to_pylist() == [None] * 11
    assert nulls.slice(11, 0).to_pylist() == []


@pytest.mark.parametrize(
    ("array", "kind", "cells"),
    [
        (pa.array([1, None, -1], pa.int8()), Kind.INT32, [1, None, -1]),
        (pa.array([300], pa.int16()), Kind.INT32, [300]),
        (pa.array([255], pa.uint8()), Kind.INT32, [255]),
        (pa.array([65535], pa.uint16()), Kind.INT32, [65535]),
        (pa.array([True, None, False]), Kind.INT32, [1, None, 0]),
        (pa.array([2**32 - 1], pa.uint32()), Kind.INT64, [2**32 - 1]),
        (pa.array([np.float16(0.5)]), Kind.FLOAT32, [0.5]),
        (pa.array(["a"], pa.large_string()), Kind.STRING, ["a"]),
        (pa.array(["a", "b" * 40], pa.string_view()), Kind.STRING, ["a", "b" * 40]),
        (pa.array([b"a"], pa.binary()), Kind.STRING, ["a"]),
        (pa.array([b"a"], pa.large_binary()), Kind.STRING, ["a"]),
        (pa.array(["a", "b", "a", None]).dictionary_encode(), Kind.STRING,
         ["a", "b", "a", None]),
        (pa.array([7, 8, 7]).dictionary_encode(), Kind.INT64, [7, 8, 7]),
        (pa.array([[1], None, []], pa.large_list(pa.int32())), Kind.LIST_INT32,
         [[1], None, []]),
        (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
         Kind.LIST_FLOAT32, [[1.0, 2.0], None, [3.0, 4.0]]),
        (pa.array([[1, None]], pa.list_(pa.uint8())), Kind.LIST_INT32, [[1, None]]),
        (pa.array([[[1]], [[], None]], pa.list_(pa.large_list(pa.int16()))),
         Kind.LISTS_INT32, [[[1]], [[], None]]),
        (pa.array([[(1, True)]], pa.map_(pa.int8(), pa.bool_())),
         Kind.MAP_INT32_INT32, [[(1, 1)]]),
        (pa.array([[(b"k", "v")]], pa.map_(pa.binary(), pa.large_string())),
         Kind.MAP_STRING_STRING, [[("k", "v")]]),
        (pa.array([[None], []]), Kind.LIST_STRING, [[None], []]),
        (pa.array([["a", "b"], ["a"]], pa.list_(DICTIONARY)), Kind.LIST_STRING,
         [["a", "b"], ["a"]]),
    ],
    ids=lambda v: str(v.type) if isinstance(v, pa.Array) else "",
)  # fmt: skip
def test_types_that_are_widened(array, kind, cells):
    assert kind_of_arrow(array.type) is kind
    column = Column.from_arrow(array)
    assert column.kind is kind
    assert column.to_pylist() == cells
    # Also off a byte boundary of the bitmaps.
    assert Column.from_arrow(array.slice(1)).to_pylist() == cells[1:]


@pytest.mark.parametrize(
    "type_",
    [
        pa.uint64(),
        pa.date32(),
        pa.timestamp("ms"),
        pa.decimal128(10, 2),
        pa.struct([("a", pa.int32())]),
        pa.list_(pa.date32()),
        pa.list_(pa.list_(pa.list_(pa.int32()))),
        pa.list_(pa.map_(pa.int32(), pa.int32())),
        pa.map_(pa.float32(), pa.int32()),
        pa.map_(pa.string(), pa.list_(pa.int32())),
        pa.dictionary(pa.int32(), pa.date32()),
    ],
    ids=str,
)
def test_types_that_no_kind_holds(type_):
    with pytest.raises(TypeError, match="is not one of the feature types"):
        kind_of_arrow(type_)
    with pytest.raises(TypeError, match="is not one of the feature types"):
        Column.from_arrow(pa.nulls(1, type_))


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(pa.ArrowInvalid):
        Column.from_arrow(pa.array([b"\xff"]))


def test_null_columns():
    for column in (Column.null(3), Column.from_arrow(pa.nulls(3))):
        assert column.kind is Kind.ABSENT
        assert column.to_pylist() == [None] * 3
        assert column.slice(1, 2).to_pylist() == [None] * 2
        assert repr(column) == "<Column ABSENT rows=3>"


@pytest.mark.parametrize(("start", "rows"), [(-1, 1), (0, 4), (4, 0), (2, -1), (3, 1)])
def test_slices_beyond_the_end(start, rows):
    for column in (Column.from_arrow(pa.array([1, 2, 3])), Column.null(3)):
        with pytest.raises(IndexError):
            column.slice(start, rows)


@pytest.mark.parametrize("kind", KINDS, ids=ids)
@pytest.mark.parametrize("seed", range(4))
def test_nest(kind, seed):
    cells, array = random_array(kind, random.Random(seed), 13)
    column = Column.from_arrow(array)
    if shape_of(kind) in (Shape.MAP, Shape.LISTS):
        with pytest.raises(TypeError, match=kind.name):
            column.nest()
        return
    assert column.nest().to_pylist() == [cells]
    assert column.slice(3, 7).nest().to_pylist() == [cells[3:10]]
    assert column.slice(13, 0).nest().to_pylist() == [[]]
    assert value_kind(column.nest().kind) is value_kind(kind)
    if shape_of(kind) is Shape.SCALAR:
        assert column.nest().nest().to_pylist() == [[cells]]


def test_nest_of_nothing_but_nulls():
    assert Column.null(3).nest().to_pylist() == [None]


@pytest.mark.parametrize("kind", KINDS, ids=ids)
@pytest.mark.parametrize("seed", range(4))
def test_elements(kind, seed):
    cells, array = random_array(kind, random.Random(seed), 13)
    column = Column.from_arrow(array)
    if shape_of(kind) is not Shape.LIST:
        with pytest.raises(TypeError, match=kind.name):
            column.elements(0)
        return
    for row, cell in enumerate(cells):
        assert column.elements(row).to_pylist() == (cell or [])
        assert column.elements(row).kind is value_kind(kind)
    part = column.slice(5, 6)
    assert part.elements(2).to_pylist() == (cells[7] or [])
    assert part.elements(2).nest().to_pylist() == [cells[7] or []]
    for row in (-1, 13):
        with pytest.raises(IndexError):
            column.elements(row)


def test_children_that_are_slices_themselves():
    values = pa.array([9, 9, 1, None, 3]).slice(2)
    array = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), values)
    assert Column.from_arrow(array).to_pylist() == [[1, None], [3]]
    outer = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array.slice(1))
    assert Column.from_arrow(outer).to_pylist() == [[[3]]]
    keys = pa.array(["x", "a", "b"]).slice(1)
    items = pa.array([0.5, None, 2.0]).slice(1)
    array = pa.MapArray.from_arrays(pa.array([0, 0, 2], pa.int32()), keys, items)
    assert Column.from_arrow(array).to_pylist() == [[], [("a", None), ("b", 2.0)]]
    assert Column.from_arrow(array.slice(1)).to_pylist() == [[("a", None), ("b", 2.0)]]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64))
def test_random_walks_of_slices(seed):
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    cells, array = random_array(kind, rng, 40)
    column = Column.from_arrow(array)
    while cells and rng.random() < 0.8:
        start = rng.randrange(len(cells))
        rows = rng.randint(0, len(cells) - start)
        cells, column = cells[start:][:rows], column.slice(start, rows)
        assert column.to_pylist() == cells


def test_columns_keep_their_memory_alive():
    array = pa.array([f"text {i}" for i in range(10_000)])
    column = Column.from_arrow(array).slice(5000, 2000).nest()
    elements = column.elements(0)
    del array, column
    gc.collect()
    junk = [bytearray(50_000) for _ in range(20)]
    assert elements.to_pylist()[:2] == ["text 5000", "text 5001"]
    assert len(junk) == 20
