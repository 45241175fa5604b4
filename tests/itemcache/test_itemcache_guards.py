"""Builds that would replace a better generation are refused before publication."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_itemcache_cells import BAD_TEXT, Odd
from test_itemcache_companion import Doubled, Items

from cython_ext.column import Column, Kind
from procserver import shm
from procserver.errors import Refused
from procserver.itemcache import budget, layout, refresh
from procserver.itemcache.budget import Room
from procserver.itemcache.cells import TableReader, column_kind
from procserver.itemcache.companion import CompanionMaker
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.guards import Guard, Limits, sifted
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import Delete, Description, Upsert

MB = 1 << 20


class Table(Items):
    """Columns as they are given, with or without a count of rows."""

    def __init__(self, rows: int | None = None, **columns: Any) -> None:
        super().__init__(pa.RecordBatch.from_pydict(columns))
        self.rows = rows
        self.schema = self.batches[0].schema

    def describe(self) -> Description:
        kinds = {one.name: column_kind(one.name, one.type) for one in self.schema}
        return Description("id", kinds, self.rows)


class Reader:
    """Reads ``n`` for one feature, as a number."""

    reads: Mapping[str, list[str]] = {"n": ["price"]}

    def unfit(self, schema: Mapping[str, Kind]) -> list[str]:
        if schema.get("n", Kind.INT64) > Kind.FLOAT64:
            return ["column 'n' holds maps, which feature 'price' cannot take"]
        return []

    def refused(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, np.ndarray]:
        return {}


def build(
    control: ControlSegment,
    table: Items,
    reader: TableReader | None = None,
    maker: CompanionMaker | None = None,
    **limits: Any,
) -> refresh.BuildReport:
    guard = Guard(Limits(**limits), control, reader=reader)
    return refresh.build(table, control, guard=guard, companion=maker)


def current(control: ControlSegment) -> Generation:
    return CacheReader(control.name).current()


def table(rows: int, **columns: Any) -> Table:
    return Table(rows, id=[f"i{i}" for i in range(rows)], **columns)


def refuse(control: ControlSegment, message: str, *args: Any, **limits: Any) -> None:
    """The build is refused, and nothing of it is left."""
    number, _ = control.state()
    before = shm.list_segments(control.name.removesuffix("control"))
    with pytest.raises(Refused, match=message):
        build(control, *args, **limits)
    assert control.state() == (number, 0)
    assert shm.list_segments(control.name.removesuffix("control")) == before


def test_a_loss_of_rows(control: ControlSegment) -> None:
    build(control, table(100))
    build(control, table(50))
    refuse(control, "24 items instead of 50: a loss of 52%", table(24))
    refuse(control, "48 items instead of 50", table(48), max_row_drop=0.03)
    assert build(control, table(24), max_row_drop=1).rows == 24
    empty = Table(0, id=pa.array([], pa.string()))
    refuse(control, "no items, the item cache holds 24", empty, max_row_drop=1)
    assert current(control).item_count == 24


def test_an_empty_first_build_is_no_loss(control: ControlSegment) -> None:
    empty = Table(0, id=pa.array([], pa.string()))
    assert build(control, empty).rows == 0
    assert build(control, table(3)).rows == 3


def test_columns_that_features_read_stay(control: ControlSegment) -> None:
    build(control, table(3, n=[1, 2, 3], unused=[1, 2, 3]), Reader())
    vanished = "item column 'n', which 'price' read, is in no item table any more"
    refuse(control, vanished, table(3), Reader())
    maps = pa.array([[(1, 2)]] * 3, pa.map_(pa.int64(), pa.int64()))
    refuse(control, "'n' holds maps, which feature 'price'", table(3, n=maps), Reader())
    # New columns, unused ones that go, other numbers.
    report = build(control, table(3, n=[1.5, 2, 3], new=["a", "b", "c"]), Reader())
    assert (report.rows, report.skipped) == (3, {})
    # Nobody knows who reads what.
    assert build(control, table(3)).rows == 3


def test_bad_rows_are_counted_and_left_out(control: ControlSegment) -> None:
    ids = [f"i{i}" for i in range(100)]
    ids[7], ids[8], ids[9] = None, "x" * 65_536, "i10"
    texts = ["t"] * 100
    texts[50] = "y" * (1 << 16)
    report = build(control, Table(None, id=ids, t=texts), max_cell_bytes=1 << 15)
    assert report.rows == 97
    assert report.skipped == {
        **{"null_key": 1, "long_key": 1, "duplicate_key": 1},
        "long_cell": 1,
    }
    assert current(control).get("i50") == {"id": "i50", "t": None}
    keys = Table(None, id=BAD_TEXT)
    report = build(control, keys, max_bad_rows=0.5, max_row_drop=1)
    assert (report.rows, report.skipped) == (2, {"bad_key": 1})


def test_too_many_bad_rows(control: ControlSegment) -> None:
    ids: list[str | None] = [f"i{i}" for i in range(20)]
    ids[3] = ids[4] = None
    assert build(control, Table(20, id=ids)).rows == 18
    ids[5] = None
    message = r"3 of 20 rows are bad \(3 null_key\), more than procserver.max_bad_rows"
    refuse(control, message, Table(20, id=ids))
    # Without a count of rows it is known at the end only.
    refuse(control, message, Table(None, id=ids))
    refuse(
        control,
        r"item column 'n': 10 of 20 cells are bad \(refused_cell: not as many values"
        " as 'feature' take",
        table(20, n=list(range(20))),
        Odd(),
    )
    report = build(control, table(20, n=list(range(20))), Odd(), max_bad_rows=0.5)
    assert report.skipped == {"refused_cell": 10}
    assert current(control).get("i3") == {"id": "i3", "n": None}


def test_memory_is_counted_first() -> None:
    room = Room(shared=1000 * MB, memory=500 * MB)
    budget.check(1, 250 * MB, 0, None, room)
    with pytest.raises(Refused) as raised:
        budget.check(7, 400 * MB, 0, None, room)
    assert f"about {400 * MB} bytes needed for 7 rows" in str(raised.value)
    assert f"{500 * MB} free on this machine or in this container" in str(raised.value)
    # What is there already is not needed again.
    budget.check(7, 400 * MB, 200 * MB, None, room)
    with pytest.raises(Refused, match=rf"{1000 * MB} free in /dev/shm.*--shm-size"):
        budget.check(7, 1001 * MB, 0, None, Room(1000 * MB, None))
    with pytest.raises(Refused, match=r"procserver.max_cache_bytes allows 99"):
        budget.check(7, 100, 0, 99, room)
    assert Room.now().shared > 0
    assert Room.now().memory != 0


def test_a_build_too_large_is_refused_before_it_is_read(
    control: ControlSegment,
) -> None:
    build(control, table(1000, n=list(range(1000))), maker=Doubled())
    size = current(control).nbytes
    name = f"{control.generation_name(1)}-"
    both = size + shm.total_size(name)
    assert both > size
    unread = table(2000)
    unread.batches = []
    refuse(control, f"about {2 * both} bytes", unread, max_cache_bytes=2 * both - 1)
    rows = (1 << layout.BLOCK_SHIFT) + 1
    largest = table(rows)
    # It claims ten times as many: the first block tells how large they are.
    largest.rows = 10 * rows
    control.go_on(control.allocated(), {0: (1, 0)})
    refuse(control, f"for {10 * rows} rows", largest, max_cache_bytes=5 * MB)


def test_what_was_sealed_is_what_its_name_leads_to(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes to the segment, or takes its name away, before publication."""
    from procserver.itemcache.writer import GenerationWriter

    seal = GenerationWriter.seal

    def overwritten(writer: GenerationWriter) -> None:
        seal(writer)
        path = shm.SHM / writer.name[1:]
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"somebody was here")

    monkeypatch.setattr(GenerationWriter, "seal", overwritten)
    with pytest.raises(Exception, match="body is damaged"):
        build(control, table(100))
    monkeypatch.setattr(
        GenerationWriter,
        "seal",
        lambda writer: (seal(writer), os.unlink(shm.SHM / writer.name[1:])),
    )
    with pytest.raises(Refused, match="somebody removed it"):
        build(control, table(100))
    assert control.state() == (0, 0)


def test_changes_with_bad_cells_are_left_out(control: ControlSegment) -> None:
    """What the cache holds is better than null."""
    build(control, table(6, n=list(range(6)), t=["t"] * 6))
    changed = pa.RecordBatch.from_pydict(
        {
            "id": [f"i{i}" for i in range(6)],
            "n": ["0", "1", "x", None, "4", "6"],
            "t": ["a", "b", "c", "d", "e" * 2000, "f"],
        }
    )
    step = Upsert(changed, np.arange(6))
    limits = Limits(max_cell_bytes=1000)
    good, why = sifted(step, current(control), limits, Odd())
    assert isinstance(good, Upsert)
    assert good.batch["id"].to_pylist() == ["i0", "i3", "i5"]
    assert good.times is not None
    assert good.times.tolist() == [0, 3, 5]
    assert why == {"refused_cell": 1, "bad_value": 1, "long_cell": 1}
    assert sifted(step, current(control), None, Odd())[0] is step
    gone = Delete(pa.array(["i0"]))
    assert sifted(gone, current(control), limits, Odd()) == (gone, {})
    few = Upsert(changed.slice(0, 1))
    assert sifted(few, current(control), limits, Odd()) == (few, {})
