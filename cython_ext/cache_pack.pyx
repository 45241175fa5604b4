# cython: language_level=3
"""Columns to row records: the writing half of the item cache.

A cell with a length is written as follows (unaligned, little-endian)::

    text       its bytes
    run        u32 count << 1 | some null, [bitmap of valid elements],
               count values, or count u32 lengths and the texts' bytes
    list       run of values
    map        run of keys, run of values
    lists      u32 count << 1 | some null, [bitmap of valid lists],
               count u32 lengths, run of all values

Stamps (see ``cache_stamps.pxd``) follow the cells of a row that has event times.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cython_ext.cache_known cimport KnownTimes, known_size
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    RECORD_ID,
    Field,
    ItemId,
    RecordLayout,
    read_id,
)
from cython_ext.cache_stamps cimport STAMP_TIME, put_stamp_count, stamps_size
from cython_ext.column cimport (
    INT32,
    INT64,
    LISTS,
    MAP,
    SCALAR,
    STRING,
    Column,
    ColumnView,
    Values,
    bit_is_set,
    cell_is_null,
    scalar_width,
)
from cython_ext.shm cimport Mapping

cdef enum:
    # PERF: rows written together: their records stay in the first-level cache
    # while one column after the other is filled in.
    STRIPE = 128

cdef int64_t MOST_HEAP = (<int64_t>1 << 31) - 1


cdef bint _some_null(
    const uint8_t *valid, int64_t offset, int64_t start, int64_t stop
) noexcept nogil:
    cdef int64_t i
    if valid != NULL:
        for i in range(start, stop):
            if not bit_is_set(valid, offset + i):
                return True
    return False


cdef int64_t _run_size(
    const Values *v, int64_t start, int64_t stop
) noexcept nogil:
    cdef int64_t count = stop - start
    cdef int64_t size = 4
    if _some_null(v.valid, v.valid_offset, start, stop):
        size += (count + 7) // 8
    if v.scalar == STRING:
        return size + 4 * count + v.offsets[stop] - v.offsets[start]
    return size + count * scalar_width(v.scalar)


cdef int64_t cell_size(const ColumnView *c, int64_t row) noexcept nogil:
    """Heap bytes of a cell that is not of fixed width."""
    cdef int64_t start, stop, size
    if cell_is_null(c, row):
        return 0
    if c.shape == SCALAR:
        return c.values.offsets[row + 1] - c.values.offsets[row]
    start = c.offsets[row]
    stop = c.offsets[row + 1]
    if c.shape == LISTS:
        size = 4 + 4 * (stop - start)
        if _some_null(c.inner_valid, c.inner_valid_offset, start, stop):
            size += (stop - start + 7) // 8
        return size + _run_size(&c.values, c.inner[start], c.inner[stop])
    size = _run_size(&c.values, start, stop)
    if c.shape == MAP:
        size += _run_size(&c.keys, start, stop)
    return size


cdef char *_write_head(
    char *out, const uint8_t *valid, int64_t offset, int64_t start, int64_t stop
) noexcept nogil:
    """Count and, where some element is null, the bitmap."""
    cdef bint nulls = _some_null(valid, offset, start, stop)
    cdef uint32_t head = <uint32_t>((stop - start) << 1) | nulls
    cdef int64_t i
    memcpy(out, &head, 4)
    out += 4
    if nulls:
        memset(out, 0, (stop - start + 7) // 8)
        for i in range(stop - start):
            if bit_is_set(valid, offset + start + i):
                (<uint8_t *>out)[i >> 3] |= <uint8_t>(1 << (i & 7))
        out += (stop - start + 7) // 8
    return out


cdef char *_write_lengths(
    char *out, const int32_t *offsets, int64_t start, int64_t stop
) noexcept nogil:
    cdef int64_t i
    cdef uint32_t length
    for i in range(start, stop):
        length = <uint32_t>(offsets[i + 1] - offsets[i])
        memcpy(out, &length, 4)
        out += 4
    return out


cdef char *_write_run(
    char *out, const Values *v, int64_t start, int64_t stop
) noexcept nogil:
    cdef int64_t first, size
    out = _write_head(out, v.valid, v.valid_offset, start, stop)
    if v.scalar == STRING:
        out = _write_lengths(out, v.offsets, start, stop)
        first = v.offsets[start]
        size = v.offsets[stop] - first
    else:
        first = start * scalar_width(v.scalar)
        size = (stop - start) * scalar_width(v.scalar)
    memcpy(out, <const char *>v.data + first, size)
    return out + size


cdef char *write_cell(char *out, const ColumnView *c, int64_t row) noexcept nogil:
    cdef int64_t start, stop
    if c.shape == SCALAR:
        start = c.values.offsets[row]
        stop = c.values.offsets[row + 1]
        memcpy(out, <const char *>c.values.data + start, stop - start)
        return out + (stop - start)
    start = c.offsets[row]
    stop = c.offsets[row + 1]
    if c.shape == LISTS:
        out = _write_head(out, c.inner_valid, c.inner_valid_offset, start, stop)
        out = _write_lengths(out, c.inner, start, stop)
        return _write_run(out, &c.values, c.inner[start], c.inner[stop])
    if c.shape == MAP:
        out = _write_run(out, &c.keys, start, stop)
    return _write_run(out, &c.values, start, stop)


cdef class RowPacker:
    """One Arrow batch on its way into records.

    ``key`` holds the item ids; ``columns`` are in the order of the layout, each of
    the layout's kind or ABSENT (all null), and as long as ``key``. Rows without an
    id, with an id of more than ``LONGEST_ID`` bytes or with 2 GiB of heap bytes are
    left out and counted. ``times``: int64 event times of the rows, kept with them; or
    ``known``: times that were known of them before. One thread at a time.

    :raises TypeError: if ``key`` is no id column or a column is of another kind
    :raises ValueError: if lengths differ
    """

    cdef RecordLayout layout
    cdef list _columns
    cdef Column _key
    cdef const ColumnView **views
    cdef int64_t *sizes      # heap bytes of a row; -1: left out
    cdef object _times_owner
    cdef const int64_t *times  # of the rows' events; NULL: none has one
    cdef KnownTimes known    # stamps of each row; None: none has some
    cdef readonly int64_t null_keys
    cdef readonly int64_t long_keys
    cdef readonly int64_t huge_rows

    def __cinit__(
        self, RecordLayout layout not None, Column key not None, columns, times=None,
        KnownTimes known=None,
    ):
        cdef const int64_t[::1] stamps
        cdef Column column
        cdef int64_t i
        self.layout = layout
        self._key = key
        self._columns = list(columns)
        if key.view.kind not in (INT32, INT64, STRING):
            raise TypeError(f"item ids cannot be {key.kind.name}")
        if len(self._columns) != layout.count:
            raise ValueError(f"{len(self._columns)} of {layout.count} columns")
        self.views = <const ColumnView **>calloc(layout.count + 1, sizeof(void *))
        self.sizes = <int64_t *>calloc(key.view.rows + 1, sizeof(int64_t))
        if self.views == NULL or self.sizes == NULL:
            raise MemoryError
        for i, column in enumerate(self._columns):
            if column.view.kind not in (0, layout.fields[i].kind):
                raise TypeError(f"column {i} is {column.kind.name}")
            if column.view.rows != key.view.rows:
                raise ValueError(f"column {i} has {column.view.rows} rows")
            self.views[i] = &column.view
        if times is not None:
            stamps = times
            if stamps.shape[0] != key.view.rows:
                raise ValueError(f"{stamps.shape[0]} times")
            self._times_owner = times
            if key.view.rows:
                self.times = &stamps[0]
        if known is not None:
            if times is not None or known.rows != key.view.rows:
                raise ValueError(f"known times of {known.rows} rows")
            if known.layout.count != layout.count:
                raise ValueError("known times of other records")
            self.known = known
        with nogil:
            self._measure()

    def __dealloc__(self):
        free(self.views)
        free(self.sizes)

    cdef int _measure(self) except -1 nogil:
        cdef int64_t i, row
        cdef ItemId item
        cdef const ColumnView *view
        cdef const ColumnView *ids = &self._key.view
        for i in range(self.layout.count):
            view = self.views[i]
            if view.kind != 0 and self.layout.fields[i].width == 0:
                for row in range(ids.rows):
                    self.sizes[row] += cell_size(view, row)
        for row in range(ids.rows):
            if read_id(ids, row, &item):
                self.sizes[row] += item.length
                if self.times != NULL:
                    self.sizes[row] += stamps_size(1, self.layout.stamp_bytes)
                elif self.known is not None:
                    self.sizes[row] += known_size(self.known, row)
                if self.sizes[row] > MOST_HEAP:
                    self.huge_rows += 1
                    self.sizes[row] = -1
                continue
            if cell_is_null(ids, row):
                self.null_keys += 1
            else:
                self.long_keys += 1
            self.sizes[row] = -1
        return 0

    def measure(self, int64_t start, int64_t room) -> tuple[int, int, int]:
        """How far ``room`` records reach from row ``start``.

        :return: the row to stop before, records kept, their heap bytes
        """
        cdef int64_t row = max(start, 0)
        cdef int64_t kept = 0
        cdef int64_t heap = 0
        while row < self._key.view.rows:
            if self.sizes[row] >= 0:
                if kept == room:
                    break
                kept += 1
                heap += self.sizes[row]
            row += 1
        return row, kept, heap

    def pack(
        self, Mapping mapping not None, int64_t start, int64_t stop,
        int64_t records, int64_t heap,
    ) -> tuple[int, int]:
        """Writes the kept rows of ``start`` to ``stop`` into zeroed memory.

        ``records`` and ``heap`` are offsets in the mapping, the first a multiple
        of 8.

        :return: both offsets after the last row
        :raises IndexError: if rows or memory do not suffice
        """
        cdef int64_t row, kept = 0, size = 0
        if start < 0 or stop > self._key.view.rows or start > stop:
            raise IndexError(f"rows {start}:{stop} of {self._key.view.rows}")
        for row in range(start, stop):
            if self.sizes[row] >= 0:
                kept += 1
                size += self.sizes[row]
        if not mapping.writable or records < 0 or heap < 0 or records % 8 or (
            kept * self.layout.stride > mapping.size - records
        ) or size > mapping.size - heap:
            raise IndexError(f"no room for {kept} records and {size} bytes")
        with nogil:
            self._pack(mapping.base, start, stop, records, heap)
        return records + kept * self.layout.stride, heap + size

    cdef int _pack(
        self, char *base, int64_t row, int64_t stop, int64_t record, int64_t heap
    ) except -1 nogil:
        cdef int64_t[STRIPE] picked
        cdef char *heads = NULL
        cdef int64_t count, i
        while row < stop:
            count = 0
            heads = base + record
            while row < stop and count < STRIPE:
                if self.sizes[row] >= 0:
                    picked[count] = row
                    self._write_id(base, record, heap, row)
                    record += self.layout.stride
                    heap += self.sizes[row]
                    count += 1
                row += 1
            for i in range(self.layout.count):
                self._write_column(base, heads, picked, count, i)
            if self.times != NULL:
                for i in range(count):
                    self._write_stamp(
                        base, heads + i * self.layout.stride, self.times[picked[i]])
            elif self.known is not None:
                for i in range(count):
                    self._write_known(
                        base, heads + i * self.layout.stride, picked[i])
        return 0

    cdef void _write_known(self, char *base, char *record, int64_t row) noexcept nogil:
        """What was known of the times before."""
        cdef int64_t bit = self.layout.stamped
        if known_size(self.known, row) == 0:
            return
        memcpy(
            base + (<uint64_t *>(record + RECORD_HEAP))[0] + (
                (<uint32_t *>(record + self.layout.last_bound))[0]),
            self.known.data + self.known.offsets[row], known_size(self.known, row))
        (<uint8_t *>record)[self.layout.bits + (bit >> 3)] |= (
            <uint8_t>(1 << (bit & 7)))

    cdef void _write_stamp(self, char *base, char *record, int64_t time) noexcept nogil:
        """Every column and the row itself have that time."""
        cdef int64_t bit
        cdef char *p = base + (<uint64_t *>(record + RECORD_HEAP))[0] + (
            (<uint32_t *>(record + self.layout.last_bound))[0])
        p = put_stamp_count(p, 1)
        memcpy(p, &time, STAMP_TIME)
        p += STAMP_TIME
        memset(p, 0, self.layout.stamp_bytes)
        for bit in range(self.layout.count + 1):
            (<uint8_t *>p)[bit >> 3] |= <uint8_t>(1 << (bit & 7))
        bit = self.layout.stamped
        (<uint8_t *>record)[self.layout.bits + (bit >> 3)] |= (
            <uint8_t>(1 << (bit & 7)))

    cdef int _write_id(
        self, char *base, int64_t offset, int64_t heap, int64_t row
    ) except -1 nogil:
        cdef ItemId item
        cdef char *record = base + offset
        read_id(&self._key.view, row, &item)
        (<uint64_t *>(record + RECORD_HEAP))[0] = heap
        (<uint64_t *>(record + RECORD_ID))[0] = item.word
        (<uint32_t *>(record + self.layout.bounds))[0] = <uint32_t>item.length
        if item.text != NULL:
            memcpy(base + heap, item.text, item.length)
            record[self.layout.bits] |= 1
        return 0

    cdef int _write_column(
        self, char *base, char *record, const int64_t *picked, int64_t count,
        int64_t number,
    ) except -1 nogil:
        cdef const Field *field = &self.layout.fields[number]
        cdef const ColumnView *view = self.views[number]
        cdef int64_t stride = self.layout.stride
        cdef int64_t byte = self.layout.bits + (field.bit >> 3)
        cdef uint8_t mask = <uint8_t>(1 << (field.bit & 7))
        cdef uint32_t *bounds = NULL
        cdef char *heap
        cdef char *end
        cdef int64_t i
        for i in range(count):
            if field.width == 0 and field.kind != 0:
                bounds = <uint32_t *>(record + field.slot)
                bounds[1] = bounds[0]
            if cell_is_null(view, picked[i]):
                (<uint8_t *>record)[byte] |= mask
            elif field.width == 8:
                (<uint64_t *>(record + field.slot))[0] = (
                    (<const uint64_t *>view.values.data)[picked[i]])
            elif field.width == 4:
                (<uint32_t *>(record + field.slot))[0] = (
                    (<const uint32_t *>view.values.data)[picked[i]])
            else:
                heap = base + (<uint64_t *>(record + RECORD_HEAP))[0]
                end = write_cell(heap + bounds[0], view, picked[i])
                bounds[1] = <uint32_t>(end - heap)
            record += stride
        return 0
