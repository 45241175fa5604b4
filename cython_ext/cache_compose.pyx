# cython: language_level=3
"""Events to complete records: what a batch leaves of each item, as a delta has it.

A delta holds whole records, so an event that brings some columns is laid over what
the item is now. Cells that stay are copied as bytes; nothing is decoded. Which event
a cell comes from is settled in ``cache_settle.pyx``.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from cython_ext.cache_events cimport Item, Pick
from cython_ext.cache_pack cimport cell_size, write_cell
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    RECORD_ID,
    Field,
    Records,
    bit_of,
    heap_extent,
    record_at,
)
from cython_ext.cache_settle cimport KEPT, NULLED, Settlement, damaged
from cython_ext.cache_stamps cimport (
    STAMP_EXTRA,
    STAMP_TIME,
    no_time,
    put_stamp_count,
    stamp_has,
    stamp_time,
    stamps_at,
    stamps_size,
)
from cython_ext.column cimport ColumnView, cell_is_null
from cython_ext.shm cimport Mapping

# A time that is none.
NO_TIME = no_time()


cdef class Composer(Settlement):
    """The events of ``steps``, in order, on their way into records.

    First :meth:`resolve`, then :meth:`pack`.
    """

    def graves(self) -> bytearray:
        """One byte for each record that :meth:`pack` writes: 1 for a deleted item."""
        found = bytearray(self.kept)
        cdef int64_t i
        cdef int64_t at = 0
        for i in range(self.items):
            if self.found[i].heap >= 0:
                found[at] = self.found[i].grave
                at += 1
        return found

    def pack(self, Mapping mapping not None, int64_t records, int64_t heap) -> int:
        """Writes ``kept`` records, ``heap`` bytes behind each other.

        Both are offsets in the mapping, the first a multiple of 8; whatever was there
        is overwritten.

        :return: the heap's offset after the last record
        :raises IndexError: if memory does not suffice
        """
        if not mapping.writable or records < 0 or heap < 0 or records % 8 or (
            self.kept * self.layout.stride > mapping.size - records
        ) or self.heap > mapping.size - heap:
            raise IndexError(f"no room for {self.kept} records and {self.heap} bytes")
        with nogil:
            heap = self._pack(mapping.base, records, heap)
        return heap

    cdef int64_t _pack(self, char *base, int64_t at, int64_t heap) except -1 nogil:
        cdef int64_t i
        cdef Item *item
        cdef char *end
        for i in range(self.items):
            item = &self.found[i]
            if item.heap < 0:
                continue
            self._settle(item, False)
            end = self._write(item, base + at, base, heap)
            if end - (base + heap) != item.heap:
                # Somebody else has written what is read here.
                damaged()
            at += self.layout.stride
            heap += item.heap
        return heap

    cdef char *_write(
        self, const Item *item, char *record, char *base, int64_t heap
    ) except NULL nogil:
        cdef int64_t c
        cdef char *end = base + heap
        cdef const Field *field
        cdef int64_t room = item.heap - item.id.length
        memset(record, 0, self.layout.stride)
        (<uint64_t *>(record + RECORD_HEAP))[0] = heap
        (<uint64_t *>(record + RECORD_ID))[0] = item.id.word
        (<uint32_t *>(record + self.layout.bounds))[0] = <uint32_t>item.id.length
        if item.id.text != NULL:
            memcpy(end, item.id.text, item.id.length)
            end += item.id.length
            record[self.layout.bits] |= 1
        for c in range(self.layout.count):
            field = &self.layout.fields[c]
            if self._write_fixed(item, record, c):
                self._set(record, field.bit)
            elif field.width == 0:
                end = self._write_heap(item, end, &room, c)
            if field.width == 0 and field.kind != 0:
                (<uint32_t *>(record + field.slot + 4))[0] = <uint32_t>(
                    end - (base + heap))
        if self.timed and self._groups():
            end = self._write_stamps(end, &room)
            self._set(record, self.layout.stamped)
        return end

    cdef void _set(self, char *record, int64_t bit) noexcept nogil:
        (<uint8_t *>record)[self.layout.bits + (bit >> 3)] |= (
            <uint8_t>(1 << (bit & 7)))

    cdef bint _write_fixed(
        self, const Item *item, char *record, int64_t c
    ) noexcept nogil:
        """Writes a cell of fixed width; True: the cell, of any width, is null."""
        cdef const Field *field = &self.layout.fields[c]
        cdef const Pick *pick = &self.picks[c]
        cdef const ColumnView *view
        if item.grave or pick.step == NULLED or field.kind == 0:
            return True
        if pick.step == KEPT:
            memcpy(record + field.slot, item.record + field.slot, field.width)
            return bit_of(item.record, self.layout.bits, field.bit)
        view = self.steps[pick.step].cells[c]
        if cell_is_null(view, pick.row):
            return True
        if field.width == 8:
            (<uint64_t *>(record + field.slot))[0] = (
                (<const uint64_t *>view.values.data)[pick.row])
        elif field.width == 4:
            (<uint32_t *>(record + field.slot))[0] = (
                (<const uint32_t *>view.values.data)[pick.row])
        return False

    cdef char *_write_heap(
        self, const Item *item, char *end, int64_t *room, int64_t c
    ) except NULL nogil:
        """Writes a cell with a length that is not null; returns what is behind it."""
        cdef const Field *field = &self.layout.fields[c]
        cdef const Pick *pick = &self.picks[c]
        cdef const ColumnView *view
        cdef const char *cell
        cdef int64_t size = 0
        if pick.step == KEPT:
            cell = self._kept_cell(item, field, &size)
            if size <= room[0]:
                memcpy(end, cell, size)
        else:
            view = self.steps[pick.step].cells[c]
            size = cell_size(view, pick.row)
            if size <= room[0]:
                write_cell(end, view, pick.row)
        room[0] -= size
        if room[0] < 0:
            damaged()
        return end + size

    cdef char *_write_stamps(self, char *p, int64_t *room) except NULL nogil:
        cdef int64_t c, k
        cdef int64_t bits = self.layout.count + STAMP_EXTRA
        cdef int64_t groups = self._groups()
        room[0] -= stamps_size(groups, self.layout.stamp_bytes)
        if room[0] < 0:
            damaged()
        p = put_stamp_count(p, groups)
        for c in range(bits):
            if self.times[c] == no_time():
                continue
            for k in range(c):
                if self.times[k] == self.times[c]:
                    break
            else:
                memcpy(p, &self.times[c], STAMP_TIME)
                p += STAMP_TIME
                memset(p, 0, self.layout.stamp_bytes)
                for k in range(c, bits):
                    if self.times[k] == self.times[c]:
                        (<uint8_t *>p)[k >> 3] |= <uint8_t>(1 << (k & 7))
                p += self.layout.stamp_bytes
        return p


def buried(Records records not None, const int64_t[::1] rows not None):
    """When the items of these records were deleted (int64); NO_TIME: nobody said.

    :raises IndexError: for a row that does not exist
    :raises ValueError: if a record is damaged
    """
    cdef int64_t i, _k
    cdef int64_t groups = 0
    cdef int64_t bit = records.layout.count + 1
    cdef const char *record
    cdef const char *p
    cdef uint64_t end
    found = np.full(rows.shape[0], NO_TIME, dtype=np.int64)
    cdef int64_t[::1] out = found
    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < records.rows:
            raise IndexError(f"row {rows[i]} of {records.rows}")
        record = record_at(records, rows[i])
        if not bit_of(record, records.layout.bits, records.layout.stamped):
            continue
        if heap_extent(records, record) < 0:
            damaged()
        end = (<const uint64_t *>(record + RECORD_HEAP))[0] + (
            (<const uint32_t *>(record + records.layout.last_bound))[0])
        p = stamps_at(
            records.mapping.base + end, records.mapping.size - end,
            records.layout.stamp_bytes, &groups)
        for _k in range(groups):
            if stamp_has(p, bit):
                out[i] = stamp_time(p)
            p += STAMP_TIME + records.layout.stamp_bytes
    return found
