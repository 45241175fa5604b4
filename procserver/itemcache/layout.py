"""Byte layout of the item cache in POSIX shared memory, version 3.

Everything is little-endian; offsets count from the first byte of the segment.

Control segment, ``/procserver.<service>.<ownerpid>.control``, one page, written
by the owner's refresher and mapped read-only by the workers::

    offset  size  field
         0     8  magic "PSRVCTRL"
         8     4  layout version
        12     4  owner pid
        16     8  owner start time (clock ticks, field 22 of /proc/PID/stat)
        24     8  XXH64 of bytes 0..23
        64     8  last generation number handed out (writer only)
       128     8  state of table 0: generation << 24 | records of its delta
       192     8  state of table 1 ... one cache line per table, 62 tables

A state is one word, so a reader learns generation and delta count by a single
atomic load (acquire) and the writer publishes both by a single atomic store
(release). State 0: nothing published yet.

Generation segment, ``/procserver.<service>.<ownerpid>.<generation>``, immutable
once its number has been published::

    offset  size  field
         0     8  magic "PSRVITEM"
         8     4  layout version
        12     4  owner pid
        16     8  owner start time
        24     8  generation
        32     4  flags: 1 = sealed, 2 = companion, 4 = delta
        36     4  number of the table in the control segment
        40     8  built at, nanoseconds since 1970
        48     8  rows (records)
        56     8  items (distinct ids; older rows of an id are not reachable)
        64     4  record size
        68     4  block shift: a block holds 1 << shift records
        72     8  segment size
        80     8  schema offset
        88     8  schema size
        96     8  XXH64 of the schema section
       104     8  directory offset: one u64 per block, the block's offset
       112     8  index offset
       120     8  index slots
       128     8  XXH64 of the body: everything behind the header
       136     8  XXH64 of bytes 0..135
       256     -  body

Body, in the order in which it is appended::

    schema      UTF-8 JSON {"key": name, "columns": [[name, kind], ...],
                "source": digest of the source's configuration}
    blocks      for each block, 64-byte aligned: its records, then heap bytes of
                its rows
    directory
    index       64-byte aligned; see cython_ext/cache_index.pyx

Record, 8-byte aligned, at block[row >> shift] + (row & mask) * record size::

    offset  size  field
         0     8  offset of the row's heap bytes
         8     8  item id: the integer, or XXH64 of the text
        16     8  each 8-byte cell, then 4 for each 4-byte cell
         .     4  end of the id's text, then end of each variable cell, counted
                  from the row's heap bytes; a cell starts where the one before ends
         .     -  bits: 0 = id is text, 1 + i = column i is null, the one behind
                  these = stamps follow the cells; padded to 8

Companion segment, ``/procserver.<service>.<ownerpid>.<generation>-<digest>``: what
was generated ahead from a generation, by whomever a digest stands for (its first
12 digits are in the name). Sealed before the generation is published, or later;
unlinked with it. Laid out like a generation segment, but for:

    flags       3 = sealed, companion
    generation  the number of the generation; owner, table and rows are the same too
    items       rows
    index       none: offset and slots are 0
    schema      {"key": "", "columns": [[name, kind], ...], "digest": digest}
    record      row r belongs to the generation's row r; its item id is r

Delta segment, ``/procserver.<service>.<ownerpid>.<generation>-delta``: what has
changed since the generation was built. One writer appends while workers read; how
many records they may read is in the state. Most of it is sparse: whatever is going
to be written gets its memory first. Laid out like a generation segment, but for:

    flags       4 = delta; never sealed, no checksum of the body; but behind the
                header's own one, at 192 and 208, a count of records (u64) and the
                checksum of so many (u64), see procserver/itemcache/signing.py
    rows        how many records there can be
    items       how many distinct ids there can be
    block shift 24
    directory   one u64, the offset of the records; a second one, in the delta of a
                companion: how many records have been written
    index       overlay: see cython_ext/cache_overlay.pyx; then, 64-byte aligned
                each: links (u32 for each record), records, heap bytes

A record of a delta is the whole item as it was from then on; record n stands for row
``rows of the generation + n``. What was written behind the published count (the
writer died, or gave up) is overwritten.

Delta of a companion, ``...<generation>-<digest>-delta``: what was generated of the
delta's records, with the same numbers; flags 6 = companion, delta; no overlay and no
links; signed like a delta. Written before the count is published. Where it ends early
(its second directory word), what is behind it is generated when it is asked for.

A row's heap bytes are the id's text (if it is no integer), the variable cells
in column order, and stamps (event times; see cython_ext/cache_stamps.pxd) if it
has any; how a cell is written is told in cython_ext/cache_pack.pyx. The
offsets inside a record are computed by ``cython_ext.cache_records.RecordLayout``.
"""

import json
import struct
from dataclasses import dataclass, replace

from cython_ext.cache_index import SLOT_BYTES
from cython_ext.cache_records import RecordLayout
from cython_ext.column import Kind
from cython_ext.xxh64 import xxh64
from procserver.errors import SourceError
from procserver.shm import PROLOGUE, Owner

VERSION = 3

CONTROL = "control"
CURSOR = "cursor"
CURSOR_DRAFT = "cursordraft"
CONTROL_MAGIC = b"PSRVCTRL"
CONTROL_CHECKSUM = PROLOGUE.size
CONTROL_ALLOCATED = 64
CONTROL_STATES = 128
CONTROL_BYTES = 4096
STATE_STRIDE = 64
TABLES = (CONTROL_BYTES - CONTROL_STATES) // STATE_STRIDE
DELTA_BITS = 24

MAGIC = b"PSRVITEM"
HEAD = struct.Struct("<8sIIQQIIQQQIIQQQQQQQQ")
HEAD_CHECKSUM = HEAD.size
HEAD_BYTES = 256
SEALED = 1
COMPANION = 2
DELTA = 4
DELTA_PART = "delta"
DELTA_SIGNATURES = (192, 208)
DELTA_SHIFT = 24
DIGEST_DIGITS = 12
ALIGNMENT = 64
BLOCK_SHIFT = 14
# NOTE: two thirds full. A hit then takes 2 probes and a miss 5 on average, for
# 24 bytes per item; id texts come on top.
LOAD_NUMERATOR, LOAD_DENOMINATOR = 2, 3

KINDS = {int(kind): kind for kind in Kind}


def aligned(offset: int) -> int:
    """The next offset at a cache line."""
    return (offset + ALIGNMENT - 1) & ~(ALIGNMENT - 1)


def index_slots(rows: int) -> int:
    """Slots of an index over ``rows`` records; always one is empty."""
    return rows * LOAD_DENOMINATOR // LOAD_NUMERATOR + 1


def index_bytes(rows: int) -> int:
    """Bytes of an index over ``rows`` records."""
    return index_slots(rows) * SLOT_BYTES


def state_offset(table: int) -> int:
    """Where the state of a table stands in the control segment."""
    if not 0 <= table < TABLES:
        raise SourceError(f"item table {table}: at most {TABLES} tables")
    return CONTROL_STATES + table * STATE_STRIDE


def pack_state(generation: int, deltas: int = 0) -> int:
    """One word out of a generation number and its delta count."""
    if not 0 <= deltas < 1 << DELTA_BITS or not 0 < generation < 1 << 40:
        raise ValueError(f"generation {generation} with {deltas} deltas")
    return generation << DELTA_BITS | deltas


def unpack_state(state: int) -> tuple[int, int]:
    """Generation and delta count of a state word."""
    return state >> DELTA_BITS, state & ((1 << DELTA_BITS) - 1)


def pack_control(owner: Owner) -> bytes:
    """The head of a control segment, checksum included."""
    head = PROLOGUE.pack(CONTROL_MAGIC, VERSION, owner.pid, owner.started)
    return head + xxh64(head).to_bytes(8, "little")


def unpack_control(data: bytes) -> Owner:
    """Owner of a control segment.

    :raises SourceError: if ``data`` is not the head of one
    """
    head = bytes(data[:CONTROL_CHECKSUM])
    if len(data) < CONTROL_CHECKSUM + 8 or head[:8] != CONTROL_MAGIC:
        raise SourceError("not a control segment of the item cache")
    checksum = int.from_bytes(data[CONTROL_CHECKSUM : CONTROL_CHECKSUM + 8], "little")
    if checksum != xxh64(head):
        raise SourceError("the head of the control segment is damaged")
    _, version, pid, started = PROLOGUE.unpack(head)
    if version != VERSION:
        raise SourceError(f"item cache layout {version}, this is layout {VERSION}")
    return Owner(pid, started)


@dataclass(frozen=True)
class Header:
    """The header of a generation segment; fields as drawn above."""

    owner_pid: int
    owner_started: int
    generation: int
    flags: int
    table: int
    built_at: int
    rows: int
    items: int
    record_size: int
    block_shift: int
    size: int
    schema_offset: int
    schema_size: int
    schema_hash: int
    directory: int
    index: int
    index_slots: int
    body_hash: int

    @property
    def owner(self) -> Owner:
        """The process whose end makes this segment garbage."""
        return Owner(self.owner_pid, self.owner_started)

    def pack(self) -> bytes:
        """The header's bytes, checksum included."""
        head = HEAD.pack(
            MAGIC,
            VERSION,
            self.owner_pid,
            self.owner_started,
            self.generation,
            self.flags,
            self.table,
            self.built_at,
            self.rows,
            self.items,
            self.record_size,
            self.block_shift,
            self.size,
            self.schema_offset,
            self.schema_size,
            self.schema_hash,
            self.directory,
            self.index,
            self.index_slots,
            self.body_hash,
        )
        return head + xxh64(head).to_bytes(8, "little")

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Reads and verifies a header.

        :raises SourceError: for foreign, damaged or newer bytes
        """
        head = bytes(data[:HEAD_CHECKSUM])
        if len(data) < HEAD_CHECKSUM + 8 or head[:8] != MAGIC:
            raise SourceError("not a generation segment of the item cache")
        checksum = int.from_bytes(data[HEAD_CHECKSUM : HEAD_CHECKSUM + 8], "little")
        if checksum != xxh64(head):
            raise SourceError("the header of the item cache generation is damaged")
        _, version, *fields = HEAD.unpack(head)
        if version != VERSION:
            raise SourceError(f"item cache layout {version}, this is layout {VERSION}")
        return cls(*fields)


@dataclass(frozen=True)
class DeltaPlan:
    """Where the parts of a delta segment are; ``size`` is that of all, sparse."""

    directory: int
    slots: int
    links: int
    records: int
    heap: int
    size: int

    @classmethod
    def of(cls, start: int, slots: int, links: int, size: int) -> "DeltaPlan":
        """Behind ``start``: that many slots and links, ``size`` bytes of records."""
        directory = aligned(start)
        overlay = aligned(directory + 16)
        linked = aligned(overlay + 8 * slots)
        records = aligned(linked + 4 * links)
        heap = aligned(records + size)
        return cls(directory, overlay, linked, records, heap, heap)

    @classmethod
    def of_header(cls, header: Header) -> "DeltaPlan":
        """That of an existing delta."""
        overlay = bool(header.index_slots)
        plan = cls.of(
            header.schema_offset + header.schema_size,
            header.index_slots,
            header.rows if overlay else 0,
            header.rows * header.record_size,
        )
        return replace(plan, size=header.size)


def pack_schema(
    key: str, schema: dict[str, Kind], digest: str = "", source: str = ""
) -> bytes:
    """The schema section; ``digest`` is for companions, ``source`` for others."""
    tree: dict[str, object] = {
        "key": key,
        "columns": [[name, int(kind)] for name, kind in schema.items()],
    }
    if digest:
        tree["digest"] = digest
    if source:
        tree["source"] = source
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def unpack_schema(data: bytes) -> tuple[str, dict[str, Kind], str]:
    """Key column, schema, and the digest of a companion.

    :raises SourceError: if the section is not what :func:`pack_schema` writes
    """
    try:
        tree = json.loads(data)
        columns = {str(name): KINDS[kind] for name, kind in tree["columns"]}
        return str(tree["key"]), columns, str(tree.get("digest", ""))
    except (ValueError, LookupError, TypeError) as error:
        raise SourceError("the schema of the item cache generation is damaged") from (
            error
        )


def source_of(data: bytes) -> str:
    """Digest of the configuration of the source that a generation was loaded from."""
    return str(json.loads(data).get("source", ""))


def record_layout(schema: dict[str, Kind]) -> RecordLayout:
    """Offsets inside the records of a schema."""
    return RecordLayout(list(schema.values()))
