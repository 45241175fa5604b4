"""The drawn byte layout: packed by hand with ``struct``, read by the product."""

import os
import struct

import pyarrow as pa
import pytest

from cython_ext.column import Column, Kind
from cython_ext.shm import Mapping
from cython_ext.xxh64 import xxh64
from procserver.errors import SourceError
from procserver.itemcache import layout
from procserver.itemcache.reader import Generation


def mapped(data: bytes) -> Mapping:
    fd = os.memfd_create("layout")
    try:
        os.write(fd, data)
        return Mapping(fd, len(data))
    finally:
        os.close(fd)


def by_hand(**changed: int) -> bytearray:
    """A generation of two items, item 7 and item "ab", out of literal numbers.

    Columns: price FLOAT64, size INT32, title STRING. A record is
    heap 0, id 8, price 16, size 24, bounds 28 (id) and 32 (title), bits 36: 40 bytes.
    """
    schema = b'{"key":"id","columns":[["price",5],["size",1],["title",3]]}'
    blocks = 320
    heap = blocks + 2 * 40
    records = struct.pack("<QqdiIIBxxx", heap, 7, 2.5, -3, 0, 5, 0b0000)
    records += struct.pack("<QQdiIIBxxx", heap + 5, xxh64(b"ab"), 0.0, 9, 2, 2, 0b1011)
    texts = b"shirt" + b"ab"
    directory = 448
    index = 512
    slots = [b"\0" * 16] * 4
    for key, row, hash_, text in (
        (7, 1, fmix(7), 0),
        ((heap + 5) << 16 | 2, 2, xxh64(b"ab"), 1),
    ):
        at = hash_ * 4 >> 64
        while slots[at] != b"\0" * 16:
            at = (at + 1) % 4
        slots[at] = struct.pack("<QII", key, row, (hash_ << 1 & 0xFFFFFFFF) | text)
    body = bytearray(576)
    body[256 : 256 + len(schema)] = schema
    body[blocks : blocks + len(records)] = records
    body[heap : heap + len(texts)] = texts
    body[directory : directory + 8] = struct.pack("<Q", blocks)
    body[index:] = b"".join(slots)
    fields = {
        "version": 3, "pid": 1234, "started": 99, "generation": 5, "flags": 1,
        "table": 0, "built_at": 1_700_000_000 * 10**9, "rows": 2, "items": 2,
        "record": 40, "shift": 14, "size": 576, "schema": 256,
        "schema_size": len(schema), "schema_hash": xxh64(schema),
        "directory": directory, "index": index, "slots": 4,
        "body": xxh64(bytes(body[256:])),
    }  # fmt: skip
    head = b"PSRVITEM" + struct.pack(
        "<IIQQIIQQQIIQQQQQQQQ", *(fields | changed).values()
    )
    body[: len(head) + 8] = head + struct.pack("<Q", xxh64(head))
    return body


def fmix(x: int) -> int:
    mask = (1 << 64) - 1
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> 33)) * factor & mask
    return x ^ (x >> 33)


def test_a_segment_packed_by_hand_is_read() -> None:
    generation = Generation(mapped(by_hand()))
    generation.verify()
    assert generation.number == 5
    assert generation.key == "id"
    assert generation.built_at == 1_700_000_000
    assert generation.schema == {
        "price": Kind.FLOAT64,
        "size": Kind.INT32,
        "title": Kind.STRING,
    }
    assert generation.get(7) == {"price": 2.5, "size": -3, "title": "shirt"}
    assert generation.get("ab") == {"price": None, "size": 9, "title": None}
    ids = Column.from_arrow(pa.array(["ab", "7", "x"]))
    assert generation.lookup(ids).tolist() == [1, 0, -1]
    assert [generation.item_id(row) for row in (0, 1)] == [7, "ab"]


def test_header_constants_stand_where_they_are_drawn() -> None:
    head = bytes(by_hand())
    header = layout.Header.unpack(head)
    assert header.pack() == head[: layout.HEAD_CHECKSUM + 8]
    assert (layout.HEAD_CHECKSUM, layout.HEAD_BYTES) == (136, 256)
    assert struct.unpack_from("<I", head, 12)[0] == header.owner_pid == 1234
    assert struct.unpack_from("<Q", head, 104)[0] == header.directory
    assert struct.unpack_from("<Q", head, 128)[0] == header.body_hash
    assert layout.TABLES == 62
    assert layout.state_offset(1) == 192


@pytest.mark.parametrize("at", range(0, 144, 5))
def test_any_damaged_header_byte_is_refused(at: int) -> None:
    data = by_hand()
    data[at] ^= 0x10
    with pytest.raises(SourceError, match=r"damaged|not a generation"):
        Generation(mapped(bytes(data)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 2}, "layout 2"),
        ({"flags": 0}, "not complete"),
        ({"size": 577}, "576 bytes instead of 577"),
        ({"record": 48}, "records do not fit"),
        ({"schema_hash": 1}, "schema is damaged"),
        ({"schema_size": 2**40}, "schema is damaged"),
        ({"rows": 2**40}, "directory"),
        ({"rows": 20}, "block 0"),
        ({"shift": 60}, "blocks"),
        ({"directory": 2**63}, "generation 5"),
        ({"index": 568}, "index"),
        ({"slots": 2}, "index"),
    ],
)
def test_wrong_header_fields_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Generation(mapped(bytes(by_hand(**changed))))


def test_short_and_foreign_segments_are_refused() -> None:
    good = bytes(by_hand())
    for data in (
        good[:-1],
        good[:300],
        good[:100],
        good[:8],
        b"\0" * 4096,
        good + b"x",
    ):
        with pytest.raises(SourceError):
            Generation(mapped(data))


def test_verify_finds_a_changed_body_byte() -> None:
    data = by_hand()
    data[340] ^= 1
    generation = Generation(mapped(bytes(data)))
    with pytest.raises(SourceError, match="body is damaged"):
        generation.verify()


def test_states() -> None:
    assert layout.unpack_state(layout.pack_state(77, 5)) == (77, 5)
    assert layout.unpack_state(0) == (0, 0)
    for generation, deltas in ((0, 0), (1 << 40, 0), (1, 1 << 24), (1, -1)):
        with pytest.raises(ValueError, match="deltas"):
            layout.pack_state(generation, deltas)
    with pytest.raises(SourceError, match="62"):
        layout.state_offset(62)


def test_schema_section() -> None:
    schema = {'a "quoted" ü': Kind.LISTS_STRING, "b": Kind.ABSENT}
    section = layout.pack_schema("ü", schema)
    assert layout.unpack_schema(section) == ("ü", schema, "")
    section = layout.pack_schema("", schema, "0d19")
    assert layout.unpack_schema(section) == ("", schema, "0d19")
    for data in (
        b"",
        b"[]",
        b'{"key":"a"}',
        b'{"key":"a","columns":[["b",99]]}',
        b"\xff",
    ):
        with pytest.raises(SourceError, match="schema"):
            layout.unpack_schema(data)


@pytest.mark.parametrize("rows", [0, 1, 2, 10, 16_384, 1_000_000])
def test_index_memory_is_bounded(rows: int) -> None:
    assert layout.index_slots(rows) > rows
    assert layout.index_bytes(rows) <= 24 * rows + 16
