"""Events by item: what is refused, what is counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from cache_deltas import make_table

from cython_ext.cache_events import Events
from cython_ext.column import Column

IDS = pa.array(["a", "7", "c"])
NUMBERS = pa.array([1, 2, 3], pa.int64())
WORDS = pa.array(["x", None, "z"])


def ids(*keys: str | None) -> Column:
    return Column.from_arrow(pa.array(keys, pa.string()))


def test_what_does_not_fit_is_refused() -> None:
    table = make_table(IDS, [NUMBERS, WORDS])
    layout, number = table.base.layout, Column.from_arrow(NUMBERS)
    with pytest.raises(TypeError, match="column 1 is INT64"):
        Events(layout, [(ids("a", "b", "c"), [(1, number)], None)])
    with pytest.raises(ValueError, match="column 0 has 3 rows"):
        Events(layout, [(ids("a"), [(0, number)], None)])
    with pytest.raises(ValueError, match="column 2 of 2"):
        Events(layout, [(ids("a", "b", "c"), [(2, number)], None)])
    with pytest.raises(ValueError, match="2 times of 1 events"):
        Events(layout, [(ids("a"), None, np.zeros(2, np.int64))])
    with pytest.raises(TypeError, match="ids of events"):
        Events(layout, [(Column.from_arrow(pa.array([1.0])), None, None)])


def test_items_are_told_apart_by_bytes_and_by_number() -> None:
    layout = make_table(IDS, [NUMBERS]).base.layout
    numbers = Column.from_arrow(pa.array([7, 7, 8, None], pa.int64()))
    texts = ids("7", "07", "8", None, "x" * 70_000, "")
    found = Events(layout, [(texts, None, None), (numbers, [], None)])
    # A number is the item that its digits are.
    assert (found.items, found.null_keys, found.long_keys) == (4, 2, 1)
    assert Events(layout, []).items == 0
