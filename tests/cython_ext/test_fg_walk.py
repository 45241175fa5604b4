"""Rows, elements and broadcasting of operators of several inputs."""

import pyarrow as pa
from one_operator import HASH, h, run

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan


def mask(columns, sequences, rows, **options):
    """A bool_mask over columns of which some are sequences."""
    names = [f"c{i}" for i in range(len(columns))]
    plan = CompiledPlan(names, [], 1)
    sources = [
        ("slot", i, sequence, False, name)
        for i, (name, sequence) in enumerate(zip(names, sequences, strict=True))
    ]
    options = {"form": "ids", "bucketizer": HASH, "value_dim": 0} | options
    plan.add("bool_mask", "f", sources, separator=b",", sequence=True, **options)
    found = plan.run(
        [Column.from_arrow(pa.array(c)) for c in columns], rows, tile=False
    )
    return {name[2:]: array.tolist() for name, array in found.items()}


def test_a_piece_of_no_sequence_stays_from_element_to_element():
    columns = [["a,b;c,d", ""], ["1,0", "1,1"]]
    found = mask(columns, (True, False), 2, default_text=b"x", default_id=5, keys=True)
    assert found["lengths"] == [2, 1]
    assert found["values"] == [h("a"), h("c"), 5]
    assert found["key_lengths"] == [1, 1, 1]


def test_one_row_serves_all_rows_even_if_the_first_has_no_elements():
    found = mask([["", "a;b"], ["1"]], (True, False), 2)
    assert found["lengths"] == [1, 2]
    assert found["values"] == [h("a"), h("b")]


def test_the_longest_sequence_counts():
    found = mask(
        [["a;b;c"], ["1;1"]],
        (True, True),
        1,
        default_text=b"x",
        default_id=5,
        keys=True,
    )
    assert found["values"] == [h("a"), h("b"), 5]
    found = mask([["a;b;c"], ["1;1"]], (True, True), 1, limit=1)
    assert found["values"] == [h("a")]


def test_no_sequence_at_all_is_one_default():
    found = mask([["a"], ["1"]], (False, False), 1, default_text=b"x", default_id=5)
    assert found == {"values": [5], "lengths": [1]}


def test_one_row_of_input_is_one_row_of_output():
    found = run(
        "bool_mask", [pa.array(["a"]), pa.array(["1"])], rows=3, form="ids",
        bucketizer=HASH,
    )  # fmt: skip
    assert found == {"values": [h("a")] * 3, "lengths": [1, 1, 1]}
