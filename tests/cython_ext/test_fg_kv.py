"""kv_dot_product: weights as text, lists and maps."""

import pyarrow as pa
import pytest
from one_operator import run

MAP = pa.map_(pa.string(), pa.float32())


def kv(query, document, mark=b":", **options):
    options = {
        "form": "numbers", "value_dim": 1, "default_numbers": [0.0],
        "separator": b"|", "details": mark,
    } | options  # fmt: skip
    found = run("kv", [query, document], takes_maps=True, **options)
    return [row[0] for row in found["values"]]


@pytest.mark.parametrize(
    "document",
    [
        pa.array(["a:3|c:1|b"]),
        pa.array([["a:3", "b", None, ""]]),
        pa.array([[("a", 3.0), ("b", 1.0), ("d", None)]], MAP),
        pa.array([[("a", "3"), ("b", "one")]], pa.map_(pa.string(), pa.string())),
        pa.array(["a:9|a:3|b:x"]),
    ],
)
def test_every_kind_of_vector(document):
    query = pa.array(["a:0.5|b:2|z:9"])
    assert kv(query, document) == [3.5]
    assert kv(document, query) == [3.5]


def test_numbers_are_keys():
    ids = pa.array([[1, 2, None]], pa.list_(pa.int64()))
    assert kv(ids, pa.array(["2:0.25|3:7"])) == [0.25]
    assert kv(pa.array([2], pa.int64()), ids) == [1]


def test_nothing_in_common_is_zero_and_nothing_at_all_the_default():
    options = {"default_text": b"5", "default_numbers": [5.0]}
    texts = pa.array(["b:1", "", None, ":1", "a:-2"])
    assert kv(pa.array(["a:1"]), texts, **options) == [0, 5, 5, 5, -2]


def test_another_mark():
    assert kv(pa.array(["a:b=2"]), pa.array(["a:b=3"]), b"=") == [6]


def test_details_are_checked():
    with pytest.raises(ValueError, match="a mark"):
        kv(pa.array(["a"]), pa.array(["a"]), b"::")
