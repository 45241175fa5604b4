"""lookup_feature: maps as text and as map columns, keys, values, combiners."""

import pyarrow as pa
import pytest
from one_operator import HASH, h, run

from procserver.errors import BadFeature

MAP = pa.map_(pa.string(), pa.float32())
BOUNDS = ("boundaries", 0, 0, [0.0, 1.0, 2.0, 3.0])


def lookup(arrays, combiner="", *, numeric=False, named=False, **options):
    if numeric or combiner:
        options = {
            "form": "numbers",
            "value_dim": 1,
            "default_numbers": [0.0],
        } | options
    else:
        options = {"form": "ids", "bucketizer": HASH} | options
    details = (combiner, numeric or bool(combiner), named)
    return run("lookup", arrays, takes_maps=True, details=details, **options)


def test_values_in_the_order_of_the_keys():
    found = lookup([pa.array(["a:x\x1db:y"]), pa.array(["b\x1da\x1dc\x1db", "c"])])
    assert found["values"] == [h("y"), h("x"), h("y")]
    assert found["lengths"] == [3, 0]


def test_marks_and_repeated_keys():
    text = "a:1:2\x1db\x1d:3\x1dc:\x1dd:4\x1dd:5\x1d\x1d"
    found = lookup([pa.array([text]), pa.array(["a", "b", "", "c", "d"])])
    assert found["values"] == [h("1:2"), h("5")]
    assert found["lengths"] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "map_column",
    [
        pa.array(["1:0.5\x1d2:x\x1d3:4"]),
        pa.array([["1:0.5", "2:x", None, "3:4"]]),
        pa.array([[("1", 0.5), ("3", 4.0), ("2", None)]], MAP),
        pa.array([[(1, 0.5), (3, 4.0)]], pa.map_(pa.int64(), pa.float64())),
        pa.array([[(1, "0.5"), (3, "4")]], pa.map_(pa.int32(), pa.string())),
    ],
)
def test_every_kind_of_map(map_column):
    keys = pa.array([[1, 3], [2], None], pa.list_(pa.int64()))
    found = lookup([map_column, keys], "sum")
    assert found == {"values": [[4.5], [0], [0]]}
    assert lookup([map_column, keys], "count")["values"] == [[2], [0], [0]]


def test_numbers_of_maps_as_text():
    column = pa.array([[("a", 0.1), ("b", 5.0)]], MAP)
    found = lookup([column, pa.array(["a\x1db"])])
    assert found["values"] == [h("0.1"), h("5")]
    found = lookup([column, pa.array(["a\x1db"])], named=True)
    assert found["values"] == [h("a_0.1"), h("b_5")]
    found = lookup([column, pa.array(["b"])], bucketizer=("number", 10, 0, None))
    assert found["values"] == [5]


def test_a_matrix_is_as_wide_as_its_feature():
    arrays = [pa.array(["a:1\x1db:2\x1dc:x"]), pa.array(["a", "a\x1db", "c", "b\x1da"])]
    found = lookup(arrays, numeric=True, default_text=b"7", default_numbers=[7.0])
    assert found["values"] == [[1], [1], [7], [2]]
    found = lookup(arrays, numeric=True, value_dim=2, default_numbers=[0.0, 0.0])
    assert found["values"] == [[0, 0], [1, 2], [0, 0], [2, 1]]
    found = lookup(arrays, numeric=True, form="ids", bucketizer=BOUNDS)
    assert (found["values"], found["lengths"]) == ([2, 2, 3, 3, 2], [1, 2, 0, 2])


def test_the_normalizer_sees_what_was_combined():
    arrays = [pa.array(["a:2\x1db:3"]), pa.array(["a\x1db", "c"])]
    options = {"normalizer": ("zscore", 1.0, 2.0)}
    assert lookup(arrays, "sum", **options)["values"] == [[2], [0]]


def test_maps_of_every_row_are_their_own():
    big = "\x1d".join(f"k{i}:{i}" for i in range(5000))
    maps = pa.array(["a:1", big, "", "a:2", None, big])
    keys = pa.array(["a", "k4999", "a", "a\x1dk1", "a", "k7\x1dk8"])
    found = lookup([maps, keys], "sum")
    assert found["values"] == [[1], [4999], [0], [2], [0], [15]]


def test_keys_may_be_no_map():
    with pytest.raises(BadFeature, match="a list of lists"):
        lookup([pa.array(["a:1"]), pa.array([[["a"]]])])


def test_details_are_checked():
    with pytest.raises(ValueError, match="two sources"):
        run(
            "lookup", [pa.array(["a"])], form="ids", bucketizer=HASH, details=("", 0, 0)
        )
    with pytest.raises(KeyError):
        lookup([pa.array(["a"])] * 2, "median")
    with pytest.raises(ValueError, match="numeric default"):
        lookup([pa.array(["a"])] * 2, "sum", default_numbers=[])
