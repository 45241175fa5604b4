"""bool_mask_feature: what a mask lets through."""

import pyarrow as pa
import pytest
from one_operator import HASH, h, run


def mask(values, bits, **options):
    options = {"form": "ids", "bucketizer": HASH, "separator": b","} | options
    return run("bool_mask", [values, bits], **options)


@pytest.mark.parametrize(
    "bits",
    [
        pa.array(["true,false,TRUE"]),
        pa.array(["1,0,-3"]),
        pa.array([["1", None, "True"]]),
        pa.array([[1, 0, 7]], pa.list_(pa.int32())),
        pa.array([[0.5, None, 2]], pa.list_(pa.float64())),
    ],
)
def test_every_kind_of_mask(bits):
    found = mask(pa.array(["a,b,c,d"]), bits)
    assert found == {"values": [h("a"), h("c")], "lengths": [2]}


def test_what_is_neither_true_nor_a_number_is_false():
    found = mask(pa.array(["a,b,c,d,e"]), pa.array(["yes,nan,,truefalse,1e-9"]))
    assert found["values"] == [h("e")]


def test_values_keep_their_places():
    found = mask(pa.array(["a,,c"]), pa.array(["0,1,1"]))
    assert found["values"] == [h("c")]
    found = mask(pa.array([["a", None, "c"]]), pa.array([[0, 1, 1]]))
    assert found["values"] == [h("c")]


def test_the_shorter_side_ends_the_row():
    found = mask(pa.array(["a,b,c", "a", "", "a"]), pa.array(["1", "1,1,1", "1", ""]))
    assert found == {"values": [h("a"), h("a")], "lengths": [1, 1, 0, 0]}


def test_value_dim_and_default():
    found = mask(
        pa.array(["a,b,c", "a", ""]), pa.array(["0,1,1", "0", "1"]),
        value_dim=1, default_text=b"-", default_id=7,
    )  # fmt: skip
    assert found == {"values": [h("b"), 7, 7], "lengths": [1, 1, 1]}


def test_numbers_are_bucketized_as_numbers():
    values = pa.array([[1.5, 2.5, 300.0]], pa.list_(pa.float64()))
    found = mask(values, pa.array(["1,0,1"]), bucketizer=("number", 10, 0, None))
    assert found["values"] == [1, 0]
