"""Compiled plans: what they refuse, what they return, many threads at once."""

import gc
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.errors import BadFeature

HASH = ("std_hash", 1 << 40, 0, None)
SOURCE = [("slot", 0, False, False, "item:x")]


def id_plan():
    plan = CompiledPlan(["x"], [], 1)
    plan.add("id", "f", SOURCE, form="ids", value_dim=0, bucketizer=HASH)
    return plan


def test_arrays_are_writable_and_torch_takes_them_as_they_are():
    array = pa.array([str(i) for i in range(1000)])
    tensors = id_plan().run([Column.from_arrow(array)], 1000, tile=False)
    gc.collect()
    for name, dtype in (("f.values", np.int64), ("f.lengths", np.int32)):
        found = tensors[name]
        assert found.dtype == dtype
        assert found.flags.writeable
        assert found.flags.c_contiguous
        assert torch.from_numpy(found).data_ptr() == found.ctypes.data
    tensors["f.values"][0] = 5
    assert torch.from_numpy(tensors["f.values"])[0] == 5


def test_arrays_outlive_plan_and_input():
    plan = id_plan()
    column = Column.from_arrow(pa.array(["abc"] * 100_000))
    values = plan.run([column], 100_000, tile=False)["f.values"]
    copy = values.copy()
    del plan, column
    gc.collect()
    np.testing.assert_array_equal(values, copy)


def test_runs_do_not_grow_references():
    plan = id_plan()
    column = Column.from_arrow(pa.array(["abc"]))
    before = sys.getrefcount(column)
    for _ in range(100):
        plan.run([column], 1, tile=False)
    assert sys.getrefcount(column) == before


@pytest.mark.parametrize(
    "change",
    [
        {"separator": b"ab"},
        {"delim": b""},
        {"value_dim": -1},
        {"limit": -1},
        {"bucketizer": None},
        {"form": "numbers"},
        {"sources": []},
        {"sources": [("slot", 1, False, False, "item:y")]},
        {"sources": [("node", 0, False, False, "feature:f")]},
        {"sources": [("const", 0, False, False, "const:")]},
        {"operator": "lookup"},
    ],
)
def test_what_cannot_be_compiled(change):
    arguments = {
        "operator": "id", "name": "f", "sources": SOURCE, "form": "ids",
        "value_dim": 0, "bucketizer": HASH,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=r"feature|source|operator|input"):
        CompiledPlan(["x"], [], 1).add(**arguments)


def test_room_for_features_is_checked():
    plan = id_plan()
    with pytest.raises(ValueError, match="more features"):
        plan.add("id", "g", SOURCE, form="ids", value_dim=0, bucketizer=HASH)


def test_rows():
    plan = id_plan()
    five = Column.from_arrow(pa.array(list("abcde")))
    assert len(plan.run([five], 3, tile=False)["f.lengths"]) == 3
    assert len(plan.run([five], 0, tile=False)["f.lengths"]) == 0
    assert len(plan.run([None], 4, tile=False)["f.lengths"]) == 4
    one = five.slice(0, 1)
    assert plan.run([one], 2, tile=False)["f.lengths"].tolist() == [1, 1]
    with pytest.raises(BadFeature, match="input 'x' has 5 rows, not 6"):
        plan.run([five], 6, tile=False)
    with pytest.raises(BadFeature, match="input 'x' has 0 rows, not 1"):
        plan.run([five.slice(0, 0)], 1, tile=False)
    with pytest.raises(ValueError, match="columns for"):
        plan.run([], 1, tile=False)


def test_values_of_chosen_features():
    plan = id_plan()
    column = Column.from_arrow(pa.array(["a", None]))
    (values,) = plan.values([column], 2, [0])
    assert [len(cell) for cell in values.to_pylist()] == [1, 0]
    with pytest.raises(IndexError):
        plan.values([column], 2, [1])


def test_threads_share_a_plan():
    plan = id_plan()
    columns = [
        Column.from_arrow(pa.array([f"{n}:{i}" for i in range(2000)])) for n in range(4)
    ]
    expected = [plan.run([c], 2000, tile=False)["f.values"].copy() for c in columns]
    wrong = []

    def work(n):
        for _ in range(30):
            found = plan.run([columns[n]], 2000, tile=False)["f.values"]
            if not np.array_equal(found, expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
