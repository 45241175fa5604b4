"""Cells cut into tokens and elements, and outputs that grow and repeat."""

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.errors import BadFeature


def plan_of(**options):
    plan = CompiledPlan(["x"], [], 1)
    options = {"form": "ids", "bucketizer": ("number", 100, 0, None)} | options
    plan.add(
        "id", "f", [("slot", 0, options.get("sequence", False), False, "user:x")],
        **{"value_dim": 0, "default_text": b"9", "default_id": 9} | options,
    )  # fmt: skip
    return plan


def run(plan, values, kind=None, rows=None, *, tile=False):
    column = Column.from_arrow(pa.array(values, kind))
    tensors = plan.run([column], rows or len(values), tile=tile)
    return {name[2:]: array.tolist() for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ("1|2|1", [1, 2, 1]),
        ("1", [1]),
        ("", [9]),
        (None, [9]),
        ("|", [9]),
        ("||1||2|", [1, 2]),
    ],
)
def test_tokens(cell, ids):
    found = run(plan_of(separator=b"|"), [cell], pa.string())
    assert found == {"values": ids, "lengths": [len(ids)]}


@pytest.mark.parametrize(
    ("cell", "kind", "elements"),
    [
        ("3||1|2|", pa.string(), [[3], [9], [1], [2], [9]]),
        ("", pa.string(), [[9]]),
        (None, pa.string(), [[9]]),
        ("|", pa.string(), [[9], [9]]),
        (7, pa.int64(), [[7]]),
        (7.9, pa.float32(), [[7]]),
        ([1, None, 3], pa.list_(pa.int32()), [[1], [9], [3]]),
        ([], pa.list_(pa.int32()), [[9]]),
        (["1,2", "", "3"], pa.list_(pa.string()), [[1, 2], [9], [3]]),
        ([["1,2"], [], None], pa.list_(pa.list_(pa.string())), [[0], [9], [9]]),
        ([[1, 2], [3]], pa.list_(pa.list_(pa.int64())), [[1, 2], [3]]),
        ([[]], pa.list_(pa.list_(pa.int64())), [[9]]),
        ([None], pa.list_(pa.list_(pa.int64())), [[9]]),
    ],
)
def test_elements(cell, kind, elements):
    plan = plan_of(sequence=True, separator=b",", delim=b"|", keys=True)
    found = run(plan, [cell], kind)
    assert found == {
        "values": [one for element in elements for one in element],
        "lengths": [len(elements)],
        "key_lengths": [len(one) for one in elements],
    }


def test_outputs_grow():
    values = ["|".join(["5"] * n) for n in range(1, 300)]
    found = run(plan_of(separator=b"|"), values)
    assert found["lengths"] == list(range(1, 300))
    assert found["values"] == [5] * sum(range(1, 300))


def test_one_row_is_repeated_or_kept():
    plan = plan_of(separator=b"|", one_row=True)
    assert run(plan, ["1|2"], rows=3) == {"values": [1, 2] * 3, "lengths": [2] * 3}
    assert run(plan, ["1|2"], rows=3, tile=True) == {"values": [1, 2], "lengths": [2]}


def test_a_request_cannot_be_repeated_without_bound():
    plan = plan_of(separator=b"|")
    cell = "|".join(["1"] * 100_000)
    with pytest.raises(BadFeature, match=r"feature 'f' has more than"):
        run(plan, [cell], rows=1_000_000)


def test_slices_of_columns():
    column = Column.from_arrow(pa.array(["a", "1|2", None, "3"])).slice(1, 3)
    found = plan_of(separator=b"|").run([column], 3, tile=False)
    assert found["f.values"].tolist() == [1, 2, 9, 3]
    assert found["f.lengths"].dtype == np.int32
