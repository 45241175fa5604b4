"""Bad cells become null and are counted; they never abort a load."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from cython_ext.column import Column, Kind
from procserver.errors import SourceError
from procserver.itemcache.cells import Sieve, sizes

BAD_TEXT = pa.Array.from_buffers(
    pa.string(),
    3,
    [
        None,
        pa.py_buffer(np.array([0, 1, 3, 4], dtype=np.int32).tobytes()),
        pa.py_buffer(b"a\xff\xfeb"),
    ],
)
OFFSETS = pa.array([0, 2, 3], pa.int32())


def test_cells_of_another_type_are_null() -> None:
    sieve = Sieve()
    texts = pa.array(["1", "x", None, "3.5", "7"])
    assert sieve.fit("n", Kind.INT64, texts).to_pylist() == [1, None, None, None, 7]
    assert sieve.fit("n", Kind.INT32, pa.array([1, 2**40])).to_pylist() == [1, None]
    lists = pa.array([["1"], ["2", "y"], None])
    assert sieve.fit("l", Kind.LIST_INT64, lists).to_pylist() == [[1], None, None]
    assert sieve.cells == {("n", "bad_value"): 3, ("l", "bad_value"): 1}
    assert sieve.skipped == {"bad_value": 4}


def test_good_cells_are_left_alone() -> None:
    sieve = Sieve()
    for kind, array in (
        (Kind.INT64, pa.array([1, None], pa.int8())),
        (Kind.STRING, pa.array(["ä", ""], pa.large_string())),
        (Kind.STRING, pa.array(["x", "y", "x"]).dictionary_encode()),
        (Kind.LIST_FLOAT32, pa.array([[1, 2]], pa.list_(pa.float32(), 2))),
        (Kind.FLOAT64, pa.array([np.nan, np.inf])),
    ):
        fitted = sieve.fit("c", kind, array)
        assert str(fitted.to_pylist()) == str(array.to_pylist())
    assert sieve.fit("c", Kind.INT64, pa.nulls(2)).null_count == 2
    assert not sieve.cells


def test_a_type_that_cannot_become_the_kind_is_an_error() -> None:
    for kind, array, message in (
        (Kind.INT64, pa.array([[1]]), "column 'c' cannot be read as INT64"),
        (Kind.INT64, pa.array([0], pa.timestamp("s")), "column 'c' has Arrow type"),
    ):
        with pytest.raises(SourceError, match=message):
            Sieve().fit("c", kind, array)


def test_bytes_that_are_no_utf8() -> None:
    sieve = Sieve()
    assert sieve.fit("t", Kind.STRING, BAD_TEXT).to_pylist() == ["a", None, "b"]
    lists = pa.ListArray.from_arrays(OFFSETS, BAD_TEXT)
    assert sieve.fit("l", Kind.LIST_STRING, lists).to_pylist() == [None, ["b"]]
    items = pa.array([1, 2, 3])
    maps = pa.MapArray.from_arrays(OFFSETS, BAD_TEXT, items)
    assert sieve.fit("m", Kind.MAP_STRING_INT64, maps).to_pylist() == [None, [("b", 3)]]
    assert sieve.cells == dict.fromkeys([(n, "bad_text") for n in "tlm"], 1)
    keys, bad = sieve.keys(BAD_TEXT)
    assert (keys.to_pylist(), bad) == (["a", None, "b"], 1)


def test_long_cells() -> None:
    sieve = Sieve(longest=1000)
    texts = pa.array(["a", "b" * 1001, None, "c" * 1000])
    assert sieve.fit("t", Kind.STRING, texts).is_null().to_pylist() == [
        *(False, True, True, False)
    ]
    lists = pa.array(
        [[[1.0] * 300], None, [[1], [2]]], pa.list_(pa.list_(pa.float32()))
    )
    fitted = sieve.fit("l", Kind.LISTS_FLOAT32, lists)
    assert fitted.to_pylist() == [None, None, [[1], [2]]]
    maps = pa.array(
        [[("a", "b" * 2000)], [("c", "d")]], pa.map_(pa.string(), pa.string())
    )
    fitted = sieve.fit("m", Kind.MAP_STRING_STRING, maps)
    assert fitted.to_pylist() == [None, [("c", "d")]]
    assert sieve.cells == dict.fromkeys([(n, "long_cell") for n in "tlm"], 1)


def test_sizes_count_what_a_slice_holds() -> None:
    lists = pa.array([["ab", "c"], None, [], ["def", None]]).slice(1)
    assert sizes(lists).tolist() == [0, 0, 3]
    assert sizes(pa.array([1, 2], pa.int32())).tolist() == [4, 4]


class Odd:
    """Refuses odd numbers."""

    reads: Mapping[str, list[str]] = {"n": ["feature"]}

    def unfit(self, schema: Mapping[str, Kind]) -> list[str]:
        return []

    def refused(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, NDArray[np.bool_]]:
        bad = [bool(n and n % 2) for n in columns["n"].to_pylist()]
        return {"n": np.array(bad), "elsewhere": np.ones(rows, dtype=np.bool_)}


def test_what_is_refused_is_null() -> None:
    sieve = Sieve(reader=Odd())
    batch = pa.RecordBatch.from_pydict({"n": ["1", "2", "x", None], "m": [1, 2, 3, 4]})
    schema = {"n": Kind.INT64, "elsewhere": Kind.STRING, "m": Kind.INT64}
    made = sieve.columns(schema, batch)
    assert list(made) == list(schema)
    assert made["n"].to_pylist() == [None, 2, None, None]
    assert made["elsewhere"].to_pylist() == [None] * 4
    assert sieve.cells == {("n", "bad_value"): 1, ("n", "refused_cell"): 1}
