"""Event times that a table knows, for records of another layout."""

import numpy as np
import pyarrow as pa
import pytest
from cache_deltas import Table, make_table
from cache_segments import private_map

from cython_ext.cache_compose import NO_TIME, Composer
from cython_ext.cache_index import ItemIndex
from cython_ext.cache_known import KnownTimes, any_times, int64_cells, latest_times
from cython_ext.cache_overlay import Overlay
from cython_ext.cache_pack import RowPacker
from cython_ext.cache_records import RecordLayout, Records
from cython_ext.column import Column, Kind

IDS = pa.array(["a", "7", "b"])
SAME = np.arange(2, dtype=np.int64)


@pytest.fixture
def table() -> Table:
    cells = [pa.array([1, 2, None], pa.int64()), pa.array(["x", "y", "z"])]
    return make_table(IDS, cells)


def known(
    table: Table,
    ids: pa.Array,
    layout: RecordLayout | None = None,
    columns: np.ndarray = SAME,
) -> KnownTimes:
    return KnownTimes(
        Column.from_arrow(ids),
        table.index,
        table.overlay,
        table.count,
        table.base.layout if layout is None else layout,
        columns,
    )


def packed(layout: RecordLayout, ids: pa.Array, times: KnownTimes | None) -> Records:
    """Records of null cells, with these times."""
    cells = [Column.null(len(ids))] * layout.count
    packer = RowPacker(layout, Column.from_arrow(ids), cells, None, times)
    stop, rows, heap = packer.measure(0, len(ids))
    end = 64 + rows * layout.stride
    mapping = private_map(end + heap)
    mapping.store(0, 64)
    assert packer.pack(mapping, 0, stop, 64, end) == (end, end + heap)
    return Records(mapping, layout, rows, 30, 0)


def test_nothing_is_known_at_first(table: Table) -> None:
    assert not any_times(table.base, 3)
    times = known(table, IDS)
    assert (times.rows, times.nbytes) == (3, 0)
    records = packed(table.base.layout, IDS, times)
    assert latest_times(records, np.arange(3)).tolist() == [NO_TIME] * 3


def test_times_of_changed_and_deleted_items_are_known(table: Table) -> None:
    table.apply(pa.array(["a", "n"]), {0: pa.array([5, 5], pa.int64())}, [10, 11])
    table.apply(pa.array(["a"]), {1: pa.array(["t"])}, [20])
    table.apply(pa.array([7]), None, [30])
    assert any_times(table.delta, table.count)
    ids = pa.array(["n", "a", None, "b", "7", "nobody"])
    times = known(table, ids)
    # A time each and two for "a": a count, 8 bytes and a bitmap of 4 bits each.
    assert times.nbytes == 3 * 2 + 4 * (8 + 1)
    records = packed(table.base.layout, ids, times)
    rows = np.arange(5)
    assert latest_times(records, rows).tolist() == [11, 20, NO_TIME, 30, NO_TIME]
    # What comes of them: nothing older than each is taken.
    assert stale(records, "a", 0, 9) == 1
    assert stale(records, "a", 0, 10) == 0
    assert stale(records, "a", 1, 19) == 1
    assert stale(records, "7", 0, 29) == 1
    assert stale(records, "7", 0, 30) == 0


def stale(records: Records, item: str, column: int, time: int) -> int:
    """Whether an event comes too late for an item of some records."""
    heap = records.heap_end(records.rows - 1)
    start = (heap + 7) // 8 * 8
    content = bytes(memoryview(records.mapping)) + bytes(4096)
    mapping = private_map(len(content), content=content)
    own = Records(mapping, records.layout, records.rows, 30, 0)
    index = ItemIndex(own, start, 2 * records.rows + 1)
    index.fill()
    empty = make_table(IDS, [pa.array([1, 2, 3], pa.int64()), IDS])
    cell = pa.array([1], pa.int64()) if column == 0 else pa.array(["x"])
    step = (
        Column.from_arrow(pa.array([item])),
        [(column, Column.from_arrow(cell))],
        np.array([time], np.int64),
    )
    composer = Composer(records.layout, [step])
    composer.resolve(index, empty.overlay, 0)
    return composer.stale


def test_columns_have_other_numbers_or_are_gone(table: Table) -> None:
    table.apply(pa.array(["a"]), {0: pa.array([5], pa.int64())}, [10])
    table.apply(pa.array(["a", "b"]), {1: pa.array(["t", "t"])}, [20, 21])
    layout = RecordLayout([Kind.STRING] * 9 + [Kind.INT64])
    times = known(table, IDS, layout, np.array([9, -1]))
    # The rows' own times stay where the column is gone.
    assert times.nbytes == 2 * 2 + 3 * (8 + 2)
    records = packed(layout, IDS, times)
    assert latest_times(records, np.arange(3)).tolist() == [20, NO_TIME, 21]


def test_without_a_delta_the_base_is_asked(table: Table) -> None:
    ids = Column.from_arrow(IDS)
    times = KnownTimes(ids, table.index, None, 0, table.base.layout, SAME)
    assert times.nbytes == 0


def test_cells_of_rows(table: Table) -> None:
    rows = np.array([1, -1, 2, 0])
    assert int64_cells(table.base, 0, rows).tolist() == [2, NO_TIME, NO_TIME, 1]
    with pytest.raises(TypeError, match="INT64"):
        int64_cells(table.base, 1, rows)
    for column, row in ((2, 0), (-1, 0), (0, 3), (0, -2)):
        with pytest.raises(IndexError):
            int64_cells(table.base, column, np.array([row]))


def test_what_does_not_fit_is_refused(table: Table) -> None:
    layout = table.base.layout
    with pytest.raises(IndexError):
        known(table, IDS, columns=np.arange(3))
    with pytest.raises(IndexError):
        known(table, IDS, columns=np.array([0, 2]))
    with pytest.raises(IndexError):
        known(table, IDS, columns=np.array([0, -2]))
    with pytest.raises(TypeError):
        known(table, pa.array([1.0]))
    ids = Column.from_arrow(IDS)
    with pytest.raises(IndexError):
        KnownTimes(ids, table.index, table.overlay, 10**6, layout, SAME)
    other = make_table(IDS, [pa.array(["x"] * 3)])
    overlay: Overlay = other.overlay
    with pytest.raises(TypeError):
        KnownTimes(ids, table.index, overlay, 0, layout, SAME)
    times = known(table, IDS)
    cells = [Column.null(1)] * 2
    with pytest.raises(ValueError, match="3 rows"):
        RowPacker(layout, Column.from_arrow(pa.array(["a"])), cells, None, times)
    with pytest.raises(ValueError, match="other records"):
        RowPacker(RecordLayout([Kind.INT64]), ids, [Column.null(3)], None, times)
    for rows in ([3], [-1]):
        with pytest.raises(IndexError):
            latest_times(table.base, np.array(rows))
    with pytest.raises(IndexError):
        any_times(table.base, 4)


def test_damaged_stamps_are_refused(table: Table) -> None:
    table.apply(pa.array(["a"]), {0: pa.array([5], pa.int64())}, [10])
    view = memoryview(table.delta.mapping)
    at = table.starts["records"]
    view[at : at + 8] = (2**60).to_bytes(8, "little")
    with pytest.raises(ValueError, match="damaged"):
        latest_times(table.delta, np.array([0]))
