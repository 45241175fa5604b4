"""The operator that calls back: what its function gets, what becomes of results."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_operator import HASH, h

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.errors import BadFeature, NotReady, PredictFailed


class Recorder:
    """A function for the kernel that notes what it is called with."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, inputs):
        self.calls.append(inputs)
        return [self.function(one) for one in inputs]


def run(function, takes, arrays, *, gives_ids=False, defaults=None, sequence=False,
        rows=None, maps=False, **options):  # fmt: skip
    names = [f"c{i}" for i in range(len(arrays))]
    plan = CompiledPlan(names, [], 1)
    sources = [("slot", i, sequence, maps, f"user:{n}") for i, n in enumerate(names)]
    details = (function, takes, gives_ids, defaults)
    options = {"value_dim": 0, "form": "ids", "keys": sequence} | options
    plan.add("called", "f", sources, sequence=sequence, details=details, **options)
    del details
    columns = [Column.from_arrow(array) for array in arrays]
    rows = rows if rows is not None else max(len(array) for array in arrays)
    tensors = plan.run(columns, rows, tile=False)
    return {name[2:]: array.tolist() for name, array in tensors.items()}


def lengths(text):
    return [len(text), 0]


@pytest.mark.parametrize(
    ("takes", "array", "texts"),
    [
        ("text", pa.array(["a\x1db", "", None, "中"]), ["a\x1db", "中"]),
        ("texts", pa.array(["a\x1db", ""]), ["a\x1db"]),
        ("split", pa.array(["a\x1db", "\x1d\x1dc"]), ["a", "b", "c"]),
        ("split", pa.array([["a\x1db", None, ""], []]), ["a\x1db"]),
        ("text", pa.array([1, None], pa.int64()), ["1"]),
        ("texts", pa.array([[0.5, 2]], pa.list_(pa.float32())), ["0.5", "2"]),
    ],
)
def test_all_texts_come_in_one_call(takes, array, texts):
    function = Recorder(lengths)
    run(function, takes, [array], gives_ids=True)
    assert function.calls == [texts]


def test_nothing_is_not_called():
    function = Recorder(lengths)
    array = pa.array([None, ""], pa.string())
    found = run(function, "text", [array], gives_ids=True, defaults=[7, 8])
    assert found == {"values": [7, 8, 7, 8], "lengths": [2, 2]}
    assert run(function, "text", [array], gives_ids=True)["lengths"] == [0, 0]
    assert run(function, "text", [array[:0]], gives_ids=True)["values"] == []
    assert function.calls == []


def test_elements_of_sequences():
    array = pa.array(["ab;;c;d", None, "x"])
    function = Recorder(lengths)
    found = run(function, "text", [array], gives_ids=True, defaults=[9],
                sequence=True, limit=3)  # fmt: skip
    assert function.calls == [["ab", "c", "x"]]
    assert found == {
        "values": [2, 0, 9, 1, 0, 9, 1, 0],
        "lengths": [3, 1, 1],
        "key_lengths": [2, 1, 2, 1, 2],
    }


@given(
    st.lists(st.none() | st.text(alphabet="ab;中", max_size=6), max_size=200),
    st.integers(0, 3),
)
def test_many_elements(cells, limit):
    array = pa.array(cells, pa.string())
    found = run(Recorder(lengths), "text", [array], gives_ids=True, defaults=[9],
                sequence=True, limit=limit)  # fmt: skip
    values, keys, elements = [], [], []
    for cell in cells:
        parts = (cell.split(";") if cell else [""])[: limit or None]
        elements.append(len(parts))
        for part in parts:
            values += [len(part), 0] if part else [9]
            keys.append(2 if part else 1)
    assert found == {"values": values, "lengths": elements, "key_lengths": keys}


def test_texts_are_bucketized_and_prefixed():
    function = Recorder(lambda text: [text.upper(), "", None, text])
    array = pa.array(["a", None])
    options = {"bucketizer": HASH, "default_text": b"d", "default_id": 5}
    found = run(function, "text", [array], **options)
    assert found == {"values": [h("A"), h("a"), 5], "lengths": [2, 1]}
    found = run(function, "text", [array], prefix=b"p_", **options)
    assert found["values"] == [h("p_A"), h("p_a"), 5]
    found = run(function, "text", [array], value_dim=1, **options)
    assert found == {"values": [h("A"), 5], "lengths": [1, 1]}
    # Of nothing but empty texts, the default is left.
    found = run(lambda texts: ["" for _ in texts], "text", [array], **options)
    assert found == {"values": [5, 5], "lengths": [1, 1]}


def test_truncated_text_is_forgotten():
    plan = CompiledPlan(["c"], [], 1)
    details = (lambda texts: [["abc", "defg"] for _ in texts], "text", False, None)
    plan.add("called", "f", [("slot", 0, False, False, "user:c")], form="text",
             value_dim=1, details=details)  # fmt: skip
    [found] = plan.values([Column.from_arrow(pa.array(["x", "y"]))], 2, [0])
    assert found.to_pylist() == [["abc"], ["abc"]]


def test_numbers_are_normalised_and_dense():
    array = pa.array(["a", None])
    options = {"form": "numbers", "value_dim": 1, "width": 1, "default_numbers": (9,),
               "default_text": b"9"}  # fmt: skip
    normal = ("minmax", 0, 4)
    found = run(lambda c: [2, None], "cells", [array], normalizer=normal, **options)
    assert found == {"values": [[0.5], [9]]}
    with pytest.raises(PredictFailed, match=r"'f'.* 2 values for a cell, not 1"):
        run(lambda c: [[1, 2], 1], "cells", [array], **options)


def test_cells_of_several_inputs():
    arrays = [
        pa.array(["a", None]),
        pa.array([[1, None], []], pa.list_(pa.int32())),
        pa.array([{"k": 0.5}, None], pa.map_(pa.string(), pa.float64())),
        pa.array([2.5]),
    ]
    seen = []

    def function(inputs):
        seen.append(inputs)
        return [[1], None]

    found = run(function, "cells", arrays, gives_ids=True, maps=True)
    assert found == {"values": [1], "lengths": [1, 0]}
    assert seen == [
        [["a", None], [[1, None], None], [{"k": 0.5}, None], [2.5, 2.5]],
    ]


@pytest.mark.parametrize(
    ("results", "what"),
    [
        ([], "0 results, not 1"),
        ([1, 2], "2 results, not 1"),
        ([7], "a value of int, not a text"),
        (["\ud800"], "a text that is not valid Unicode"),
    ],
)
def test_bad_results(results, what):
    with pytest.raises(PredictFailed, match=f"feature 'f': its operator gave {what}"):
        run(lambda texts: results, "text", [pa.array(["a"])], bucketizer=HASH)


def test_errors_of_the_function():
    def wrong(texts):
        raise ValueError("secret")

    def refusing(texts):
        raise NotReady("not now")

    with pytest.raises(PredictFailed, match="operator failed") as caught:
        run(wrong, "text", [pa.array(["a"])], bucketizer=HASH)
    assert "secret" not in str(caught.value)
    with pytest.raises(NotReady):
        run(refusing, "text", [pa.array(["a"])], bucketizer=HASH)


def test_input_that_does_not_fit():
    with pytest.raises(BadFeature, match="'user:c0' may not be a list"):
        run(lengths, "text", [pa.array([["a"]])], gives_ids=True)
    with pytest.raises(BadFeature, match="'user:c0' may not be a map"):
        run(lengths, "texts", [pa.array([{"a": 1}], pa.map_(pa.string(), pa.int32()))],
            gives_ids=True)  # fmt: skip
    broken = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
    )
    with pytest.raises(BadFeature, match="'f': input 'user:c0' is not valid UTF-8"):
        run(lengths, "text", [broken], gives_ids=True)


@pytest.mark.parametrize(
    ("payload", "options"),
    [
        ((lengths, "words", False, None), {"form": "text"}),
        ((lengths, "text", True, None), {"form": "ids", "bucketizer": HASH}),
        ((lengths, "text", False, None), {"form": "ids"}),
        ((lengths, "text", True, None), {"form": "text"}),
    ],
)
def test_payloads_that_make_no_sense(payload, options):
    plan = CompiledPlan(["c"], [], 1)
    with pytest.raises(ValueError, match=r"function|bucketizer"):
        plan.add("called", "f", [("slot", 0, False, False, "user:c")], value_dim=0,
                 details=payload, **options)  # fmt: skip
