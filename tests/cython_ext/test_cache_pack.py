"""What the packer leaves out, counts and refuses."""

import pyarrow as pa
import pytest
from cache_segments import pack_rows, private_map

from cython_ext.cache_pack import RowPacker
from cython_ext.cache_records import RecordLayout, RecordPart
from cython_ext.column import Column, Kind

LONGEST_ID = RecordPart.LONGEST_ID


def packer(ids: pa.Array, *columns: pa.Array) -> RowPacker:
    cells = [Column.from_arrow(column) for column in columns]
    layout = RecordLayout([cell.kind for cell in cells])
    return RowPacker(layout, Column.from_arrow(ids), cells)


def test_rows_without_a_usable_id_are_left_out() -> None:
    ids = pa.array(["a", None, "x" * LONGEST_ID, "y" * (LONGEST_ID + 1), None, "b"])
    records, pack = pack_rows(ids, [pa.array(range(6), pa.int64())])
    assert (pack.null_keys, pack.long_keys, pack.huge_rows) == (2, 1, 0)
    assert [records.id_of(i) for i in range(3)] == ["a", "x" * LONGEST_ID, "b"]


def test_measure_stops_where_there_is_no_room() -> None:
    pack = packer(pa.array([1, None, 2, 3, None], pa.int32()), pa.array(["ab"] * 5))
    assert pack.measure(0, 2) == (3, 2, 4)
    assert pack.measure(3, 2) == (5, 1, 2)
    assert pack.measure(5, 2) == (5, 0, 0)
    assert pack.measure(0, 0) == (0, 0, 0)


def test_memory_is_checked_before_it_is_written() -> None:
    pack = packer(pa.array(["a", "b"]), pa.array(["xx", "yy"]))
    mapping = private_map(200)
    for arguments in (
        (0, 3, 0, 100),
        (-1, 2, 0, 100),
        (0, 2, 4, 100),
        (0, 2, 160, 100),
        (0, 2, 0, 196),
        (0, 2, -8, 100),
        (0, 2, 0, 2**62),
    ):
        with pytest.raises(IndexError):
            pack.pack(mapping, *arguments)
    assert not any(memoryview(mapping))


def test_columns_must_fit_the_layout() -> None:
    layout = RecordLayout([Kind.INT64])
    ids = Column.from_arrow(pa.array([1, 2]))
    with pytest.raises(TypeError, match="FLOAT64"):
        RowPacker(layout, Column.from_arrow(pa.array([1.0])), [ids])
    with pytest.raises(TypeError, match="STRING"):
        RowPacker(layout, ids, [Column.from_arrow(pa.array(["a", "b"]))])
    with pytest.raises(ValueError, match="rows"):
        RowPacker(layout, ids, [Column.from_arrow(pa.array([1]))])
    with pytest.raises(ValueError, match="columns"):
        RowPacker(layout, ids, [])
    RowPacker(layout, ids, [Column.null(2)])
