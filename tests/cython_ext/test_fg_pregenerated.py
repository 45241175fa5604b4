"""Tensors to stored columns and back."""

import gc

import numpy as np
import pyarrow as pa
import pytest
import torch

from cython_ext.column import Column, Kind
from cython_ext.fg_pregenerated import column_of, restore

INTS = np.array([1, 2, 3], dtype=np.int64)
FLOATS = np.array([0.5, -0.0, 2.0], dtype=np.float32)
NO_INTS = np.array([], dtype=np.int64)
IDS = ("f.values", "f.lengths")


def counts(*numbers):
    return np.array(numbers, dtype=np.int32)


def numbers(*rows):
    return np.array(rows, dtype=np.int64)


def column(cells, type_):
    return Column.from_arrow(pa.array(cells, type_))


@pytest.mark.parametrize(
    ("values", "lengths", "kind", "cells"),
    [
        (INTS, (1, 1, 1), Kind.INT64, [1, 2, 3]),
        (INTS[:2], (1, 0, 1), Kind.INT64, [1, None, 2]),
        (NO_INTS, (0,) * 9, Kind.INT64, [None] * 9),
        (NO_INTS, (), Kind.INT64, []),
        (INTS, (2, 0, 1), Kind.LIST_INT64, [[1, 2], [], [3]]),
        (NO_INTS, (), Kind.LIST_INT64, []),
        (INTS, (1, 1, 1), Kind.INT32, [1, 2, 3]),
        (-INTS[:2], (1, 0, 1), Kind.INT32, [-1, None, -2]),
        (INTS, (2, 0, 1), Kind.LIST_INT32, [[1, 2], [], [3]]),
        (FLOATS[:2], (0, 1, 1), Kind.FLOAT32, [None, 0.5, -0.0]),
        (FLOATS, (3, 0), Kind.LIST_FLOAT32, [[0.5, -0.0, 2.0], []]),
        (FLOATS.reshape(3, 1), None, Kind.FLOAT32, [0.5, -0.0, 2.0]),
        (FLOATS.reshape(1, 3), None, Kind.LIST_FLOAT32, [[0.5, -0.0, 2.0]]),
        (FLOATS[:0].reshape(0, 7), None, Kind.LIST_FLOAT32, []),
    ],
)
def test_columns_hold_what_tensors_hold(values, lengths, kind, cells):
    made = column_of(values, None if lengths is None else counts(*lengths), kind)
    assert made.kind == kind
    assert made.to_pylist() == cells


def test_a_column_keeps_its_values_alive():
    values = np.arange(100_000)
    made = column_of(values, np.ones(100_000, np.int32), Kind.INT64)
    del values
    gc.collect()
    assert made.to_pylist()[99_999] == 99_999


def test_what_does_not_fit_one_value_is_said():
    assert column_of(INTS, counts(1, 2), Kind.INT64) is None
    assert column_of(FLOATS.reshape(1, 3), None, Kind.FLOAT32) is None


@pytest.mark.parametrize("kind", [Kind.INT32, Kind.LIST_INT32])
def test_ids_that_need_more_bits_are_said(kind):
    edges = np.array([-(2**31), 2**31 - 1], dtype=np.int64)
    made = column_of(edges, counts(1, 1), kind)
    assert made.elements(0).to_pylist() if kind == Kind.LIST_INT32 else made
    for outside in (2**31, -(2**31) - 1, 2**63 - 1, 2**32):
        assert column_of(np.array([1, outside]), counts(1, 1), kind) is None


@pytest.mark.parametrize(
    ("values", "lengths", "kind", "error"),
    [
        (INTS, (1, 1, 2), Kind.LIST_INT64, ValueError),
        (INTS, (1, 1, 1, 1), Kind.INT64, ValueError),
        (INTS, (2, -1, 2), Kind.LIST_INT64, ValueError),
        (INTS, (1, 1, 1), Kind.FLOAT32, TypeError),
        (FLOATS, (1, 1, 1), Kind.LIST_INT64, TypeError),
        (INTS, (1, 1, 1), Kind.STRING, TypeError),
        (FLOATS, None, Kind.FLOAT32, ValueError),
        (INTS[::2], (1, 1), Kind.INT64, TypeError),
    ],
)
def test_arrays_that_contradict_each_other(values, lengths, kind, error):
    with pytest.raises(error):
        column_of(values, None if lengths is None else counts(*lengths), kind)


def test_lengths_of_another_type_are_refused():
    with pytest.raises(TypeError, match="int64, not int32"):
        column_of(INTS, np.ones(3, np.int64), Kind.INT64)


def ids(rows, cells, type_, missing):
    made = restore(
        numbers(*rows),
        [(IDS, np.array(missing, np.int64), None)],
        {"f.values": column(cells, type_)},
    )
    assert made.keys() == set(IDS)
    assert made["f.values"].dtype == np.int64
    assert made["f.lengths"].dtype == np.int32
    return made["f.values"].tolist(), made["f.lengths"].tolist()


LIST = pa.list_(pa.int64())
NARROW = pa.list_(pa.int32())


@pytest.mark.parametrize(
    ("rows", "cells", "type_", "missing", "values", "lengths"),
    [
        ((5, 0), [7, 8], pa.int64(), [], [7, 8], [1, 1]),
        ((5, 0), [7, None], pa.int64(), [4], [7], [1, 0]),
        ((5, -1), [7, None], pa.int64(), [4], [7, 4], [1, 1]),
        ((-1, 2, -1), [None, None, None], pa.int64(), [4, 5], [4, 5, 4, 5], [2, 0, 2]),
        ((-1,), [None], pa.int64(), [], [], [0]),
        ((), [], pa.int64(), [4], [], []),
        ((5, 0), [[7, 8], []], LIST, [4], [7, 8], [2, 0]),
        ((5, -1, 1), [[7, 8], None, [9]], LIST, [4], [7, 8, 4, 9], [2, 1, 1]),
        ((), [], LIST, [4], [], []),
        ((5, 0), [-7, 8], pa.int32(), [], [-7, 8], [1, 1]),
        ((5, -1, 0), [-7, None, None], pa.int32(), [2**40], [-7, 2**40], [1, 1, 0]),
        ((5, 0), [[-7, 8], []], NARROW, [4], [-7, 8], [2, 0]),
        ((5, -1, 1), [[7, -8], None, [9]], NARROW, [4], [7, -8, 4, 9], [2, 1, 1]),
    ],
)
def test_ids(rows, cells, type_, missing, values, lengths):
    assert ids(rows, cells, type_, missing) == (values, lengths)


def test_weights_go_with_their_ids():
    names = ("f.values", "f.lengths", "f.weights")
    missing = (np.array([4], np.int64), np.array([0.5], np.float32))
    made = restore(
        numbers(3, -1),
        [(names, *missing)],
        {
            "f.values": column([[1, 2], None], LIST),
            "f.weights": column([[0.1, 0.2], None], pa.list_(pa.float32())),
        },
    )
    assert made["f.values"].tolist() == [1, 2, 4]
    assert made["f.weights"].tolist() == np.float32([0.1, 0.2, 0.5]).tolist()
    with pytest.raises(ValueError, match="damaged"):
        restore(
            numbers(3, 4),
            [(names, *missing)],
            {
                "f.values": column([[1, 2], [3]], LIST),
                "f.weights": column([[0.1], [0.2, 3]], pa.list_(pa.float32())),
            },
        )


@pytest.mark.parametrize(
    ("rows", "cells", "type_", "missing", "values"),
    [
        ((1, 2), [0.5, 1.5], pa.float32(), [9], [[0.5], [1.5]]),
        ((1, -1), [0.5, None], pa.float32(), [9], [[0.5], [9]]),
        ((1, -1), [[1, 2], None], pa.list_(pa.float32()), [8, 9], [[1, 2], [8, 9]]),
        ((), [], pa.list_(pa.float32()), [8, 9], []),
    ],
)
def test_dense(rows, cells, type_, missing, values):
    features = [(("d.values",), np.array(missing, np.float32), None)]
    made = restore(numbers(*rows), features, {"d.values": column(cells, type_)})
    assert made["d.values"].tolist() == values
    assert made["d.values"].shape == (len(rows), len(missing))
    assert made["d.values"].dtype == np.float32


@pytest.mark.parametrize("cells", [[[1, 2], [3]], [[1, 2], None], [[], [1, 2]]])
def test_dense_rows_of_another_width_are_damage(cells):
    features = [(("d.values",), np.zeros(2, np.float32), None)]
    columns = {"d.values": column(cells, pa.list_(pa.float32()))}
    with pytest.raises(ValueError, match="damaged"):
        restore(numbers(0, 1), features, columns)


def test_lists_that_a_known_row_lacks_are_damage():
    with pytest.raises(ValueError, match="damaged"):
        ids((0, 1), [[1], None], LIST, [4])


def test_columns_of_another_type_or_number_are_refused():
    with pytest.raises(TypeError):
        ids((0,), ["x"], pa.string(), [4])
    with pytest.raises(TypeError):
        ids((0,), [1.5], pa.float32(), [4])
    with pytest.raises(TypeError):
        ids((0,), [[[1]]], pa.list_(LIST), [4])
    with pytest.raises(ValueError, match="cells for"):
        ids((0, 1), [1], pa.int64(), [4])
    with pytest.raises(TypeError, match="missing rows"):
        restore(
            numbers(0),
            [(IDS, np.zeros(1, np.float32), None)],
            {"f.values": column([1], pa.int64())},
        )
    with pytest.raises(KeyError):
        restore(numbers(0), [(IDS, NO_INTS, None)], {})


def test_torch_takes_tensors_as_they_are_and_they_live_on():
    gathered = {"f.values": column(list(range(1000)), pa.int64())}
    made = restore(np.arange(1000), [(IDS, NO_INTS, None)], gathered)
    del gathered
    gc.collect()
    for array in made.values():
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert torch.from_numpy(array).data_ptr() == array.ctypes.data
    assert made["f.values"].tolist() == list(range(1000))
