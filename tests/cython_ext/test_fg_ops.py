"""The operators: id, raw and combo over every kind of column."""

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column
from cython_ext.fg_hash import hash_text
from cython_ext.fg_plan import CompiledPlan
from procserver.errors import BadFeature

HASH = ("farm_hash", 1000, 0, None)


def h(text):
    return hash_text(text.encode(), farm=True) % 1000


def run(operator, arrays, rows=None, takes_maps=False, **options):
    names = [f"c{i}" for i in range(len(arrays))]
    plan = CompiledPlan(names, [], 1)
    sources = [("slot", i, False, takes_maps, f"user:{n}") for i, n in enumerate(names)]
    plan.add(operator, "f", sources, **{"value_dim": 0} | options)
    columns = [Column.from_arrow(array) for array in arrays]
    rows = rows if rows is not None else max(len(array) for array in arrays)
    tensors = plan.run(columns, rows, tile=False)
    return {name[2:]: array.tolist() for name, array in tensors.items()}


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


def test_prefix():
    found = run("id", [pa.array(["a"])], form="ids", bucketizer=HASH, prefix=b"f_")
    assert found["values"] == [h("f_a")]
    array = pa.array([17], pa.int64())
    found = run("id", [array], form="ids", bucketizer=HASH, prefix=b"f_")
    assert found["values"] == [h("f_17")]


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


def test_maps_and_nested_lists_are_refused_by_name():
    options = {"form": "ids", "bucketizer": HASH}
    with pytest.raises(BadFeature, match=r"'f'.*'user:c0'.*a map"):
        run("id", [pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))], **options)
    with pytest.raises(BadFeature, match=r"'f'.*'user:c0'.*a list of lists"):
        run("id", [pa.array([[["a"]]])], **options)


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_the_numeric_null_quirk(kind):
    options = {
        "form": "ids", "bucketizer": ("boundaries", 0, 0, [0.0, 1.0]), "value_dim": 1,
        "default_numbers": [0.0], "normalizer": ("zscore", 10.0, 1.0),
    }  # fmt: skip
    found = run("raw", [pa.array([None, 20], kind)], **options)
    assert found == {"values": [1, 2], "lengths": [1, 1]}
    found = run("raw", [pa.array([[None], None, []], pa.list_(kind))], **options)
    assert found == {"values": [], "lengths": [0, 0, 0]}
    found = run("raw", [pa.array([None, ""], pa.string())], **options)
    assert found == {"values": [], "lengths": [0, 0]}
    found = run("raw", [pa.nulls(1)], **options)
    assert found == {"values": [], "lengths": [0]}


def test_the_wrong_number_of_values_names_row_and_input():
    with pytest.raises(BadFeature, match=r"'f'.*'user:c0' has 3 .* row 1, not 2"):
        run(
            "raw", [pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]])], form="numbers",
            value_dim=2, default_numbers=[0.0, 0.0],
        )  # fmt: skip


def test_a_vector_that_is_no_number_takes_the_default():
    found = run(
        "raw", [pa.array([["1", "x"], ["1", None], ["3", "4"]])], form="numbers",
        value_dim=2, default_text=b"", default_numbers=[7.0, 8.0],
    )  # fmt: skip
    assert found["values"] == [[7, 8], [7, 8], [3, 4]]


def test_the_column_type_chooses_the_arithmetic():
    """Text 0.1 and float 0.1 normalise differently (section 6)."""
    options = {
        "form": "numbers", "value_dim": 1, "default_numbers": [0.0],
        "normalizer": ("zscore", 0.1, 0.3),
    }  # fmt: skip
    text = run("raw", [pa.array(["0.1"])], **options)["values"][0][0]
    single = run("raw", [pa.array([0.1], pa.float32())], **options)["values"][0][0]
    listed = run("raw", [pa.array([["0.1"]])], **options)["values"][0][0]
    assert text == -4.967053435223079e-09
    assert (single, listed) == (0.0, 0.0)


def test_no_flush_to_zero():
    tiny = float(np.float32(1e-45))
    values = [-0.0, tiny, -tiny, 3.4028234663852886e38]
    found = run(
        "raw", [pa.array(values, pa.float32())], form="numbers", value_dim=1,
        default_numbers=[0.0],
    )  # fmt: skip
    assert np.signbit(found["values"][0][0])
    assert [row[0] for row in found["values"]] == values


def test_crosses_first_operand_outermost():
    found = run(
        "combo", [pa.array(["ua|ub"]), pa.array(["ia|ib", "ic", "", None])],
        form="ids", bucketizer=HASH, separator=b"|", default_text=b"d",
        default_id=h("d"),
    )  # fmt: skip
    crossed = ["ua_ia", "ua_ib", "ub_ia", "ub_ib", "ua_ic", "ub_ic", "d", "d"]
    assert found["values"] == [h(text) for text in crossed]
    assert found["lengths"] == [4, 2, 1, 1]


def test_crosses_of_long_texts_and_numbers():
    long = "x" * 500
    found = run(
        "combo",
        [pa.array([long]), pa.array([17, -4], pa.int64()), pa.array([0.5])],
        form="ids", bucketizer=HASH, prefix=b"f_",
    )  # fmt: skip
    assert found["values"] == [h(f"f_{long}_17_0.5"), h(f"f_{long}_-4_0.5")]


def test_crosses_are_bounded():
    wide = pa.array([["a"] * 1000])
    with pytest.raises(BadFeature, match="too many crossed values"):
        run("combo", [wide] * 7, form="ids", bucketizer=HASH)
    found = run("combo", [wide] * 7, form="ids", bucketizer=HASH, value_dim=1)
    assert found["lengths"] == [1]
