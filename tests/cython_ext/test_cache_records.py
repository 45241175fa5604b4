"""Record layout and the checks on a segment's blocks."""

import pyarrow as pa
import pytest
from cache_segments import pack_rows, private_map

from cython_ext.cache_records import RecordLayout, RecordPart, Records
from cython_ext.column import Kind


def test_offsets_of_a_mixed_schema() -> None:
    kinds = [Kind.INT32, Kind.STRING, Kind.FLOAT64, Kind.LIST_INT64, Kind.ABSENT]
    about = RecordLayout(kinds).describe()
    # heap, id | float64 | int32 | three bounds | six bits
    assert about == {
        "stride": 48,
        "slots": [24, 28, 16, 32, 0],
        "bounds": 28,
        "bits": 40,
    }


def test_a_typical_record_takes_one_to_three_cache_lines() -> None:
    kinds = [Kind.INT64] * 8 + [Kind.FLOAT32] * 10 + [Kind.STRING] * 10
    assert RecordLayout(kinds).stride <= 3 * 64
    assert RecordLayout([Kind.FLOAT32] * 8).stride <= 64


def test_no_columns_and_no_such_kind() -> None:
    assert RecordLayout([]).stride == 24
    for kind in (-1, 31, 1000):
        with pytest.raises(ValueError, match="no kind"):
            RecordLayout([kind])


def test_blocks_outside_of_the_segment_are_refused() -> None:
    layout = RecordLayout([Kind.INT64])
    good = private_map(4096)
    good.store(0, 64)
    Records(good, layout, 10, 14, 0)
    for rows, shift, blocks in (
        (10, 14, -8),
        (10, 14, 4),
        (10, 14, 4096),
        (10, 14, 2**62),
        (-1, 14, 0),
        (10, 31, 0),
        (10, -1, 0),
        (4096, 14, 0),
        (2**62, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"block|directory"):
            Records(good, layout, rows, shift, blocks)
    for start in (1, 4096, 4090, 2**63, 2**64 - 8):
        good.store(0, start)
        with pytest.raises(ValueError, match="block 0"):
            Records(good, layout, 10, 14, 0)


def test_ids_of_rows() -> None:
    ids = ["a", "", "7", "-7", "07", "\0x", "ü" * 300]
    records, _ = pack_rows(pa.array(ids), [])
    assert [records.id_of(i) for i in range(len(ids))] == [
        "a", "", 7, -7, "07", "\0x", "ü" * 300,
    ]  # fmt: skip
    for row in (-1, len(ids)):
        with pytest.raises(IndexError):
            records.id_of(row)


def test_damaged_id_is_refused() -> None:
    records, _ = pack_rows(pa.array(["text"]), [])
    records.mapping.store(64 + RecordPart.RECORD_HEAP, 2**63)
    with pytest.raises(ValueError, match="damaged"):
        records.id_of(0)
