"""id_feature over every kind of column."""

import pyarrow as pa
import pytest
from one_operator import HASH, h, run


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (pa.array(["a", "é中🙂", "a\0b"]), ["a", "é中🙂", "a\0b"]),
        (pa.array([1, -(2**31)], pa.int32()), ["1", "-2147483648"]),
        (pa.array([-(2**63)], pa.int64()), ["-9223372036854775808"]),
        (pa.array([5.2, 5.0], pa.float64()), ["5.2", "5"]),
        (pa.array([0.1, 3.0], pa.float32()), ["0.1", "3"]),
        (pa.array([["a", None, "b"]]), ["a", "b"]),
        (pa.array([[1, 2]], pa.list_(pa.int64())), ["1", "2"]),
        (pa.array([[0.1]], pa.list_(pa.float64())), ["0.1"]),
    ],
)
def test_ids_of_every_kind(array, texts):
    found = run("id", [array], form="ids", bucketizer=HASH)
    assert found["values"] == [h(text) for text in texts]


@pytest.mark.parametrize(
    ("array", "pairs"),
    [
        (pa.array(["a:0.5|b:2|c|:1|d:x"]), [("a", 0.5), ("b", 2), ("c", 1), ("d", 1)]),
        (pa.array([["a:0.5", "b"]]), [("a", 0.5), ("b", 1)]),
        (pa.array([7], pa.int64()), [("7", 1)]),
        (
            pa.array([[("a", 0.5), ("", 9), ("b", None)]],
                     pa.map_(pa.string(), pa.float32())),
            [("a", 0.5), ("b", 1)],
        ),
        (
            pa.array([[(3, "0.25"), (4, "?")]], pa.map_(pa.int64(), pa.string())),
            [("3", 0.25), ("4", 1)],
        ),
    ],
)  # fmt: skip
def test_weighted(array, pairs):
    found = run(
        "id", [array], form="ids", bucketizer=HASH, weighted=True, separator=b"|",
        takes_maps=True,
    )  # fmt: skip
    assert found["values"] == [h(text) for text, _ in pairs]
    assert found["weights"] == [weight for _, weight in pairs]
