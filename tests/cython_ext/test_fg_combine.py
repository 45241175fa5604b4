"""combine_feature: combiners, value maps, kinds of columns."""

import math

import pyarrow as pa
import pytest
from one_operator import run


def combine(array, combiner="sum", value_map=None, **options):
    options = {
        "form": "numbers", "value_dim": 1, "default_numbers": [0.0],
        "separator": b",", "details": (combiner, value_map),
    } | options  # fmt: skip
    found = run("combine", [array], **options)
    return (
        [row[0] for row in found["values"]] if options["form"] == "numbers" else found
    )


@pytest.mark.parametrize(
    ("combiner", "expected"),
    [
        ("sum", 14), ("mean", 3.5), ("min", 1), ("max", 8), ("count", 4),
        ("gap_min", 1), ("gap_max", 5),
    ],
)  # fmt: skip
def test_combiners(combiner, expected):
    assert combine(pa.array(["3,8,1,2"]), combiner) == [expected]
    assert combine(pa.array([[3, 8, None, 1, 2]]), combiner) == [expected]


def test_gaps_of_one_number_of_equal_ones_and_of_nan():
    texts = pa.array(["5", "2,2", "nan,nan", "1,nan,4"])
    assert combine(texts, "gap_min") == [0, 0, 0, 3]
    assert combine(texts, "gap_max") == [0, 0, 0, 3]
    assert math.isnan(combine(texts, "sum")[3])


def test_what_is_no_number_does_not_count():
    texts = pa.array(["1,x,,2", "x", "", None])
    options = {"default_text": b"9", "default_numbers": [9.0]}
    assert combine(texts, "count", **options) == [2, 9, 9, 9]


def test_value_maps():
    value_map = {"a": 1.0, "b": 2.5, "": 100.0, "1": 7.0, "0.5": 8.0}
    value_map = {key.encode(): number for key, number in value_map.items()}
    assert combine(pa.array(["a,b,c,"]), "sum", value_map) == [3.5]
    assert combine(pa.array([[1, 2]]), "sum", value_map) == [7]
    assert combine(pa.array([0.5], pa.float32()), "sum", value_map) == [8]


def test_large_integers_keep_their_digits_until_they_are_bucketized():
    """Sums are doubles: 2^24 + 1 is not rounded to a float32."""
    found = combine(
        pa.array(["16777216,1"]), form="ids", bucketizer=("number", 2**40, 0, None)
    )
    assert found["values"] == [2**24 + 1]


def test_the_normalizer_sees_the_sum():
    options = {"normalizer": ("minmax", 0.0, 8.0)}
    assert combine(pa.array(["1,3", ""]), **options) == [0.5, 0]
