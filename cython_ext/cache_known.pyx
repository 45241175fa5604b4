# cython: language_level=3
"""Event times that a table knows of some ids, as stamps of other records.

When everything is loaded again the values are the load's, but what is known of the
times of events is not forgotten: an event that is older than one that was seen is
too old whatever was loaded in between. See ``cache_stamps.pxd`` for how times are
kept.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import numpy as np

from cython_ext.cache_index cimport ItemIndex
from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    Field,
    ItemId,
    RecordLayout,
    Records,
    bit_of,
    hash_of,
    heap_extent,
    read_id,
    record_at,
)
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
from cython_ext.column cimport INT32, INT64, STRING, Column

cdef enum:
    BATCH = 128              # ids hashed before their records are looked for


cdef int _damaged() except -1 nogil:
    with gil:
        raise ValueError("a record of the item cache is damaged")


cdef int _groups_of(Records records, int64_t row, Groups *out) except -1 nogil:
    """Where the stamps of a record in range are."""
    cdef const char *record = record_at(records, row)
    cdef uint64_t end
    out.first = NULL
    out.count = 0
    if not bit_of(record, records.layout.bits, records.layout.stamped):
        return 0
    if heap_extent(records, record) < 0:
        _damaged()
    end = (<const uint64_t *>(record + RECORD_HEAP))[0] + (
        (<const uint32_t *>(record + records.layout.last_bound))[0])
    out.first = stamps_at(
        records.mapping.base + end, records.mapping.size - end,
        records.layout.stamp_bytes, &out.count)
    return 0


cdef bint _stays(
    const char *group, const int64_t *bits, int64_t bit_count
) noexcept nogil:
    """Whether something of a group is there in the other records."""
    cdef int64_t bit
    for bit in range(bit_count):
        if bits[bit] >= 0 and stamp_has(group, bit):
            return True
    return False


cdef class KnownTimes:
    """What ``index`` and the first ``count`` records of ``overlay`` know of ``ids``.

    ``layout`` is that of the records that they are for; ``columns`` (int64) has for
    each column of the old records its number there, or -1. Deleted items have times
    too. Everything is copied: nothing refers to the old records afterwards.

    Attributes: ``rows`` (ids), ``nbytes`` (of all stamps).

    :raises IndexError: if there are no such records or columns
    :raises TypeError: if ids are no ids, or both segments differ in their layout
    :raises ValueError: if a record is damaged
    """

    def __cinit__(
        self, Column ids not None, ItemIndex index not None, Overlay overlay,
        int64_t count, RecordLayout layout not None, const int64_t[::1] columns,
    ):
        cdef RecordLayout old = index.records.layout
        cdef int64_t i
        cdef int64_t total = 0
        cdef int64_t bit_count = old.count + STAMP_EXTRA
        cdef int64_t *bits = NULL
        cdef Groups *found = NULL
        if ids.view.kind not in (0, INT32, INT64, STRING):
            raise TypeError("ids are STRING, INT32 or INT64")
        if columns.shape[0] != old.count:
            raise IndexError(f"{columns.shape[0]} of {old.count} columns")
        if overlay is None:
            count = 0
        elif not 0 <= count <= overlay.records.rows:
            raise IndexError(f"{count} records of {overlay.records.rows}")
        elif overlay.records.layout.stride != old.stride or (
            overlay.records.layout.count != old.count
        ):
            raise TypeError("records of another layout")
        self.layout = layout
        self.rows = ids.view.rows
        self.offsets = <int64_t *>calloc(self.rows + 1, sizeof(int64_t))
        try:
            bits = <int64_t *>malloc(bit_count * sizeof(int64_t))
            found = <Groups *>calloc(self.rows + 1, sizeof(Groups))
            if self.offsets == NULL or bits == NULL or found == NULL:
                raise MemoryError
            for i in range(old.count):
                if columns[i] < -1 or columns[i] >= layout.count:
                    raise IndexError(f"column {columns[i]} of {layout.count}")
                bits[i] = columns[i]
            for i in range(STAMP_EXTRA):
                bits[old.count + i] = layout.count + i
            with nogil:
                if ids.view.kind != 0:
                    self._find(ids, index, overlay, count, found)
                total = self._measure(found, old.stamp_bytes, bits, bit_count)
            self.data = <uint8_t *>malloc(total + 1)
            if self.data == NULL:
                raise MemoryError
            with nogil:
                self._write(found, old.stamp_bytes, bits, bit_count)
        finally:
            free(bits)
            free(found)

    def __dealloc__(self):
        free(self.offsets)
        free(self.data)

    @property
    def nbytes(self) -> int:
        """Of all stamps."""
        return self.offsets[self.rows]

    cdef int _find(
        self, Column ids, ItemIndex index, Overlay overlay, int64_t count,
        Groups *found,
    ) except -1 nogil:
        cdef ItemId[BATCH] items
        cdef uint64_t[BATCH] hashes
        cdef bint[BATCH] present
        cdef int64_t i, batch, number
        cdef int64_t start = 0
        while start < self.rows:
            batch = min(self.rows - start, <int64_t>BATCH)
            for i in range(batch):
                present[i] = read_id(&ids.view, start + i, &items[i])
                if present[i]:
                    hashes[i] = hash_of(&items[i])
                    index.fetch(hashes[i])
                    if count:
                        overlay.fetch(hashes[i])
            for i in range(batch):
                if not present[i]:
                    continue
                number = -1
                if count:
                    number = overlay.find(&items[i], hashes[i], count)
                if number >= 0:
                    _groups_of(overlay.records, number, &found[start + i])
                    continue
                number = index.find_row(&items[i], hashes[i])
                if number >= 0:
                    _groups_of(index.records, number, &found[start + i])
            start += batch
        return 0

    cdef int64_t _measure(
        self, const Groups *found, int64_t bytes_each, const int64_t *bits,
        int64_t bit_count,
    ) noexcept nogil:
        cdef int64_t row, kept, _k
        cdef int64_t total = 0
        cdef const char *p
        for row in range(self.rows):
            kept = 0
            p = found[row].first
            for _k in range(found[row].count):
                kept += _stays(p, bits, bit_count)
                p += STAMP_TIME + bytes_each
            if kept:
                total += stamps_size(kept, self.layout.stamp_bytes)
            self.offsets[row + 1] = total
        return total

    cdef void _write(
        self, const Groups *found, int64_t bytes_each, const int64_t *bits,
        int64_t bit_count,
    ) noexcept nogil:
        cdef int64_t row, bit, groups, _k
        cdef int64_t each = STAMP_TIME + self.layout.stamp_bytes
        cdef const char *p
        cdef uint8_t *out
        for row in range(self.rows):
            if known_size(self, row) == 0:
                continue
            groups = (known_size(self, row) - stamps_size(
                0, self.layout.stamp_bytes)) // each
            out = self.data + self.offsets[row]
            out = <uint8_t *>put_stamp_count(<char *>out, groups)
            p = found[row].first
            for _k in range(found[row].count):
                if _stays(p, bits, bit_count):
                    memcpy(out, p, STAMP_TIME)
                    out += STAMP_TIME
                    memset(out, 0, self.layout.stamp_bytes)
                    for bit in range(bit_count):
                        if bits[bit] >= 0 and stamp_has(p, bit):
                            out[bits[bit] >> 3] |= <uint8_t>(1 << (bits[bit] & 7))
                    out += self.layout.stamp_bytes
                p += STAMP_TIME + bytes_each


def any_times(Records records not None, int64_t count) -> bool:
    """Whether one of the first ``count`` records has times.

    :raises IndexError: if there are not that many
    """
    cdef int64_t row
    cdef bint found = False
    if not 0 <= count <= records.rows:
        raise IndexError(f"{count} records of {records.rows}")
    with nogil:
        for row in range(count):
            if bit_of(
                record_at(records, row), records.layout.bits, records.layout.stamped
            ):
                found = True
                break
    return found


def latest_times(Records records not None, const int64_t[::1] rows not None):
    """The time of the latest event of each record (int64); ``NO_TIME``: of none.

    :raises IndexError: for a row that does not exist
    :raises ValueError: if a record is damaged
    """
    cdef int64_t i, _k
    cdef Groups groups
    cdef const char *p
    found = np.full(rows.shape[0], no_time(), dtype=np.int64)
    cdef int64_t[::1] out = found
    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < records.rows:
            raise IndexError(f"row {rows[i]} of {records.rows}")
        _groups_of(records, rows[i], &groups)
        p = groups.first
        for _k in range(groups.count):
            out[i] = max(out[i], stamp_time(p))
            p += STAMP_TIME + records.layout.stamp_bytes
    return found


def int64_cells(
    Records records not None, int64_t column, const int64_t[::1] rows not None
):
    """The cells of an INT64 column (int64); ``NO_TIME`` for null and for row -1.

    :raises IndexError: for a row or column that does not exist
    :raises TypeError: if the column is of another kind
    """
    cdef int64_t i
    cdef const char *record
    if not 0 <= column < records.layout.count:
        raise IndexError(f"column {column} of {records.layout.count}")
    cdef Field *field = &records.layout.fields[column]
    if field.kind != INT64:
        raise TypeError(f"column {column} is no INT64")
    found = np.full(rows.shape[0], no_time(), dtype=np.int64)
    cdef int64_t[::1] out = found
    for i in range(rows.shape[0]):
        if not -1 <= rows[i] < records.rows:
            raise IndexError(f"row {rows[i]} of {records.rows}")
    with nogil:
        for i in range(rows.shape[0]):
            if rows[i] < 0:
                continue
            record = record_at(records, rows[i])
            if not bit_of(record, records.layout.bits, field.bit):
                out[i] = (<const int64_t *>(record + field.slot))[0]
    return found
