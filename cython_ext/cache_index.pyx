# cython: language_level=3
"""Open-addressing index from item ids to row numbers, inside a segment.

A slot is 16 bytes::

    0  u64  key    integer id; or offset of the id's text << 16 | its length
    8  u32  row    row number + 1; 0: empty
   12  u32  tag    31 bits of the hash << 1 | id is text

An integer id is verified by its value, a text by tag, length and bytes. The text
of a decimal int64 as ``str(int)`` writes it is kept as the integer, so ``"123"``
and 123 are one id by construction while ``"0123"`` is another. The home slot
comes from the upper bits of the hash (multiply and shift), so capacity need not
be a power of two; collisions go to the next slot.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp

import numpy as np

from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_records cimport (
    LONGEST_ID,
    RECORD_HEAP,
    RECORD_ID,
    ItemId,
    Records,
    bit_of,
    hash_of,
    id_in_record,
    mix,
    parse_decimal,
    read_id,
    record_at,
)
from cython_ext.column cimport INT32, INT64, STRING, Column
from cython_ext.intrinsics cimport mul_high, prefetch
from cython_ext.xxh64 cimport xxh64_bytes

cdef enum:
    BATCH = 64               # ids hashed before their slots are looked at
    AHEAD = 16               # records fetched ahead while the index is filled


SLOT_BYTES = sizeof(Slot)


cdef inline uint32_t _tag(uint64_t hash_, bint text) noexcept nogil:
    return <uint32_t>(hash_ << 1) | text


cdef class ItemIndex:
    """``capacity`` slots at ``offset`` of the segment of ``records``.

    :raises ValueError: if they do not lie inside the segment, or if there are
        not more slots than rows (a probe must end at an empty slot)
    """

    def __cinit__(
        self, Records records not None, int64_t offset, int64_t capacity
    ):
        cdef int64_t size = records.mapping.size
        if offset < 0 or offset % 8 or capacity <= records.rows or (
            capacity > (size - offset) // <int64_t>sizeof(Slot)
        ):
            raise ValueError(f"no index of {capacity} slots at {offset}")
        self.records = records
        self.slots = <Slot *>(records.mapping.base + offset)
        self.capacity = capacity

    def fill(self) -> int:
        """Enters every row into the zeroed index; the last row of an id wins.

        :return: rows that a later row of the same id replaced
        :raises BufferError: if the segment is mapped read-only
        :raises ValueError: if a record is damaged or rows pass 32 bits
        """
        cdef int64_t duplicates
        if not self.records.mapping.writable:
            raise BufferError("the map is read-only")
        if self.records.rows >= 0xFFFFFFFF:
            raise ValueError(f"{self.records.rows} rows are too many for the index")
        with nogil:
            duplicates = self._fill()
        return duplicates

    def lookup(self, Column ids not None, Overlay overlay=None, int64_t count=0):
        """Row numbers (int64) of a column of ids; -1: null or unknown.

        With ``overlay``, the first ``count`` records of a delta come before the
        rows: record n has row number ``records.rows + n``, a grave is -1.

        :raises TypeError: if the column is not STRING, INT32 or INT64
        :raises IndexError: if the delta cannot have that many records
        """
        if overlay is not None and not 0 <= count <= overlay.records.rows:
            raise IndexError(f"{count} records of {overlay.records.rows}")
        if ids.view.kind == 0:
            return np.full(ids.view.rows, -1, dtype=np.int64)
        if ids.view.kind not in (INT32, INT64, STRING):
            raise TypeError(f"item ids cannot be {ids.kind.name}")
        rows = np.empty(ids.view.rows, dtype=np.int64)
        cdef int64_t[::1] out = rows
        if ids.view.rows:
            with nogil:
                self._lookup(ids, &out[0], overlay, count if overlay is not None else 0)
        return rows

    def reachable(self) -> bytearray:
        """One byte for each row: 1 if it is the row of an id, 0 if a later one is."""
        found = bytearray(self.records.rows)
        cdef uint8_t[::1] out = found
        cdef int64_t i, row
        if self.records.rows:
            with nogil:
                for i in range(self.capacity):
                    row = <int64_t>self.slots[i].row - 1
                    if 0 <= row < self.records.rows:
                        out[row] = 1
        return found

    def covered(self, Overlay overlay not None, int64_t first, int64_t count):
        """Row (int64) that each record ``first`` ... of a delta stands for; -1: none.

        :raises IndexError: if there are not that many records
        """
        if first < 0 or count < 0 or count > overlay.records.rows - first:
            raise IndexError(f"records {first}:{first + count}")
        rows = np.full(count, -1, dtype=np.int64)
        cdef int64_t[::1] out = rows
        cdef int64_t i
        cdef ItemId item
        with nogil:
            for i in range(count):
                if id_in_record(
                    overlay.records, record_at(overlay.records, first + i), &item
                ):
                    out[i] = self.find_row(&item, hash_of(&item))
        return rows

    def find(self, bytes text not None) -> int:
        """Row number of one id given as its UTF-8 text; -1: unknown."""
        cdef ItemId item
        cdef int64_t value = 0
        cdef const char *start = text
        item.text = start
        item.length = len(text)
        if item.length > LONGEST_ID:
            return -1
        item.word = xxh64_bytes(start, item.length, 0)
        if parse_decimal(start, item.length, &value):
            item.text = NULL
            item.length = 0
            item.word = <uint64_t>value
        return self.find_row(&item, hash_of(&item))

    def missing(self, Overlay overlay not None, const int64_t[::1] records not None):
        """Whether each of these records of a delta is of an id that no row has.

        :raises IndexError: for a record that there cannot be
        """
        found = np.zeros(records.shape[0], dtype=np.bool_)
        cdef uint8_t[::1] out = found.view(np.uint8)
        cdef int64_t i
        cdef ItemId item
        for i in range(records.shape[0]):
            if not 0 <= records[i] < overlay.records.rows:
                raise IndexError(f"record {records[i]} of {overlay.records.rows}")
            if id_in_record(
                overlay.records, record_at(overlay.records, records[i]), &item
            ):
                out[i] = self.find_row(&item, hash_of(&item)) < 0
        return found

    cdef int _lookup(
        self, Column ids, int64_t *out, Overlay overlay, int64_t count
    ) except -1 nogil:
        cdef ItemId[BATCH] items
        cdef uint64_t[BATCH] hashes
        cdef bint[BATCH] present
        cdef int64_t i, batch
        cdef int64_t start = 0
        while start < ids.view.rows:
            batch = min(ids.view.rows - start, <int64_t>BATCH)
            for i in range(batch):
                present[i] = read_id(&ids.view, start + i, &items[i])
                if present[i]:
                    hashes[i] = hash_of(&items[i])
                    prefetch(&self.slots[mul_high(hashes[i], self.capacity)])
                    if count:
                        overlay.fetch(hashes[i])
            if ids.view.kind == STRING:
                for i in range(batch):
                    if present[i] and items[i].text != NULL:
                        self._fetch_text(hashes[i])
            if count:
                for i in range(batch):
                    if present[i]:
                        overlay.fetch_record(hashes[i])
            self._find_all(
                items, hashes, present, batch, out + start, overlay, count)
            start += batch
        return 0

    cdef void _find_all(
        self, const ItemId *items, const uint64_t *hashes, const bint *present,
        int64_t batch, int64_t *out, Overlay overlay, int64_t count,
    ) noexcept nogil:
        cdef int64_t i, number
        for i in range(batch):
            out[i] = -1
            if not present[i]:
                continue
            if count:
                number = overlay.find(&items[i], hashes[i], count)
                if number >= 0:
                    if not overlay.is_grave(number):
                        out[i] = self.records.rows + number
                    continue
            out[i] = self.find_row(&items[i], hashes[i])

    cdef void fetch(self, uint64_t hash_) noexcept nogil:
        """Asks for the home slot of an id."""
        prefetch(&self.slots[mul_high(hash_, self.capacity)])

    cdef int64_t find_row(self, const ItemId *item, uint64_t hash_) noexcept nogil:
        """Row number of an id; -1: unknown."""
        cdef int64_t row = <int64_t>self._find(item, hash_).row - 1
        # SAFETY: a damaged slot may hold any number.
        return row if row < self.records.rows else -1

    cdef inline Slot *_find(self, const ItemId *item, uint64_t hash_) noexcept nogil:
        """The slot of an id, or the empty one where it would stand."""
        cdef int64_t at = mul_high(hash_, self.capacity)
        cdef uint32_t tag = _tag(hash_, item.text != NULL)
        cdef int64_t probes = self.capacity
        cdef Slot *slot = &self.slots[at]
        # SAFETY: bounded, so that even a damaged index without an empty slot
        # cannot keep a worker.
        while slot.row != 0 and probes > 0:
            if slot.tag == tag and self._equal(slot, item):
                return slot
            at += 1
            probes -= 1
            if at == self.capacity:
                at = 0
            slot = &self.slots[at]
        return slot if slot.row == 0 else &NO_SLOT

    cdef inline void _fetch_text(self, uint64_t hash_) noexcept nogil:
        """Asks for the text behind the home slot, where most ids are."""
        cdef const Slot *slot = &self.slots[mul_high(hash_, self.capacity)]
        if slot.tag == _tag(hash_, True):
            prefetch(<const void *>(
                <uintptr_t>self.records.mapping.base + (slot.key >> 16)))

    cdef inline bint _equal(self, const Slot *slot, const ItemId *item) noexcept nogil:
        cdef uint64_t start
        if item.text == NULL:
            return slot.key == item.word
        start = slot.key >> 16
        if <int64_t>(slot.key & 0xFFFF) != item.length or (
            start + item.length > <uint64_t>self.records.mapping.size
        ):
            return False
        return memcmp(
            self.records.mapping.base + start, item.text, item.length) == 0

    cdef int64_t _fill(self) except -1 nogil:
        cdef int64_t row, duplicates = 0
        cdef const char *record
        cdef ItemId item
        cdef uint64_t hash_, heap = 0
        cdef Slot *slot
        for row in range(self.records.rows):
            if row + AHEAD < self.records.rows:
                self._fetch(record_at(self.records, row + AHEAD))
            record = record_at(self.records, row)
            if not id_in_record(self.records, record, &item):
                with gil:
                    raise ValueError("a record of the item cache is damaged")
            heap = (<const uint64_t *>(record + RECORD_HEAP))[0]
            hash_ = hash_of(&item)
            slot = self._find(&item, hash_)
            if slot == &NO_SLOT:
                with gil:
                    raise ValueError("the index of the item cache is damaged")
            duplicates += slot.row != 0
            slot.key = item.word
            if item.text != NULL:
                slot.key = heap << 16 | <uint64_t>item.length
            slot.tag = _tag(hash_, item.text != NULL)
            slot.row = <uint32_t>(row + 1)
        return duplicates

    cdef void _fetch(self, const char *record) noexcept nogil:
        cdef uint64_t hash_ = (<const uint64_t *>(record + RECORD_ID))[0]
        if not bit_of(record, self.records.layout.bits, 0):
            hash_ = mix(hash_)
        prefetch(&self.slots[mul_high(hash_, self.capacity)])


# What a lookup gets when the index has no end: an empty slot of no index.
cdef Slot NO_SLOT
NO_SLOT.key = 0
NO_SLOT.row = 0
NO_SLOT.tag = 0
