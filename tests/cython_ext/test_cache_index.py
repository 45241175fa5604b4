"""The index against a Python dict; ids of any bytes; integers and their texts."""

import random

import pyarrow as pa
import pytest
from cache_segments import pack_rows, private_map
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.cache_index import SLOT_BYTES, ItemIndex
from cython_ext.cache_records import RecordPart, Records
from cython_ext.column import Column

LONGEST_ID = RecordPart.LONGEST_ID


def indexed(ids: pa.Array, *, spare: int = 1) -> tuple[ItemIndex, int]:
    """An index over ``ids`` and the number of duplicates."""
    slots = len(ids) * 3 // 2 + spare
    records, _ = pack_rows(ids, [], room=slots * SLOT_BYTES)
    index = ItemIndex(records, len(records.mapping) - slots * SLOT_BYTES, slots)
    return index, index.fill()


def find(index: ItemIndex, ids: list, type_: pa.DataType | None = None) -> list[int]:
    return index.lookup(Column.from_arrow(pa.array(ids, type_))).tolist()


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
numbers = st.integers(-(2**63), 2**63 - 1)
decimals = numbers.map(str) | st.from_regex(r"\A[+-]?0?[0-9]{1,20}\Z")


@settings(deadline=None, max_examples=150)
@given(st.lists(texts | decimals, max_size=60), st.lists(texts | decimals, max_size=60))
def test_text_ids_as_a_dict_has_them(ids: list[str], others: list[str]) -> None:
    index, duplicates = indexed(pa.array(ids, pa.string()))
    rows = {id_: row for row, id_ in enumerate(ids)}
    asked = ids + others
    expected = [rows.get(id_, -1) for id_ in asked]
    assert find(index, asked, pa.string()) == expected
    assert [index.find(id_.encode()) for id_ in asked] == expected
    assert duplicates == len(ids) - len(rows)


@settings(deadline=None, max_examples=100)
@given(st.lists(numbers, max_size=60), st.lists(numbers | st.integers(-9, 9)))
def test_integers_and_their_texts_are_one_id(ids: list[int], others: list[int]) -> None:
    rows = {id_: row for row, id_ in enumerate(ids)}
    asked = ids + [id_ for id_ in others if -(2**63) <= id_ < 2**63]
    expected = [rows.get(id_, -1) for id_ in asked]
    small = [id_ for id_ in asked if -(2**31) <= id_ < 2**31]
    for stored in (pa.array(ids, pa.int64()), pa.array(map(str, ids), pa.string())):
        index, _ = indexed(stored)
        assert find(index, asked, pa.int64()) == expected
        assert find(index, [str(id_) for id_ in asked], pa.string()) == expected
        assert find(index, small, pa.int32()) == [rows.get(id_, -1) for id_ in small]


@pytest.mark.parametrize(
    "text",
    ["0123", "+1", " 1", "1 ", "-0", "00", "-", "", "1.0", "１", "1\0", "9" * 19,
     "-9223372036854775809", "9223372036854775808", "18446744073709551617", "0x1"],
)  # fmt: skip
def test_only_canonical_decimals_are_integers(text: str) -> None:
    index, _ = indexed(pa.array([123, 1, 0, -1, 2**63 - 1, -(2**63)]))
    assert find(index, [text]) == [-1]
    index, _ = indexed(pa.array(["a", text]))
    assert find(index, [text]) == [1]
    assert find(index, [123, 1, 0, -1, 2**63 - 1, -(2**63)]) == [-1] * 6


def test_last_row_of_an_id_wins() -> None:
    index, duplicates = indexed(pa.array(["a", "7", "a", "b", "7", "a"]))
    assert find(index, ["a", "7", "b"]) == [5, 4, 3]
    assert find(index, [7]) == [4]
    assert duplicates == 3


def test_ids_of_any_bytes() -> None:
    ids = ["", "\0", "a\0b", "a\0", "x" * 10_000, "x" * LONGEST_ID, "é", "e\u0301"]
    index, _ = indexed(pa.array(ids))
    assert find(index, ids) == list(range(len(ids)))
    strange = ["\0\0", "x" * 9_999, "x" * (LONGEST_ID + 1), "x" * 200_000, None]
    assert find(index, strange) == [-1] * 5
    assert index.find(b"x" * (LONGEST_ID + 1)) == -1
    assert index.find(b"\xff\xfe") == -1


def test_other_columns_of_ids() -> None:
    index, _ = indexed(pa.array(["a", "b"]))
    assert index.lookup(Column.null(3)).tolist() == [-1, -1, -1]
    assert find(index, [], pa.string()) == []
    for array in (pa.array([1.0]), pa.array([["a"]])):
        with pytest.raises(TypeError, match="item ids"):
            index.lookup(Column.from_arrow(array))
    sliced = Column.from_arrow(pa.array(["x", "b", None, "a"])).slice(1, 3)
    assert index.lookup(sliced).tolist() == [1, -1, 0]


def test_many_ids_and_misses() -> None:
    rng = random.Random(1)
    ids = [f"{rng.getrandbits(64):x}" for _ in range(50_000)]
    index, _ = indexed(pa.array(ids))
    rows = {id_: row for row, id_ in enumerate(ids)}
    asked = [rng.choice(ids) + rng.choice(["", "x"]) for _ in range(20_000)]
    assert find(index, asked) == [rows.get(id_, -1) for id_ in asked]


def test_index_must_lie_in_the_segment() -> None:
    records, _ = pack_rows(pa.array([1, 2, 3]), [], room=4 * SLOT_BYTES)
    size = len(records.mapping)
    for offset, capacity in ((size, 4), (-8, 4), (4, 4), (0, 3), (0, 2**60), (8, -1)):
        with pytest.raises(ValueError, match="no index"):
            ItemIndex(records, offset, capacity)


def test_a_damaged_index_never_hangs_or_crashes() -> None:
    rng = random.Random(5)
    ids = pa.array([f"id{i}" for i in range(50)])
    slots = 60
    records, _ = pack_rows(ids, [], room=slots * SLOT_BYTES)
    at = len(records.mapping) - slots * SLOT_BYTES
    ItemIndex(records, at, slots).fill()
    good = memoryview(records.mapping).tobytes()
    for _ in range(500):
        damaged = bytearray(good)
        for _ in range(rng.randrange(1, 200)):
            damaged[rng.randrange(at, len(good))] = rng.randrange(256)
        mapping = private_map(0, content=bytes(damaged))
        index = ItemIndex(Records(mapping, records.layout, 50, 30, 0), at, slots)
        index.lookup(Column.from_arrow(ids))
    full = bytearray(good)
    full[at:] = b"\1" * (len(good) - at)
    mapping = private_map(0, content=bytes(full))
    index = ItemIndex(Records(mapping, records.layout, 50, 30, 0), at, slots)
    assert find(index, ["none of them"]) == [-1]
    with pytest.raises(ValueError, match="damaged"):
        index.fill()
