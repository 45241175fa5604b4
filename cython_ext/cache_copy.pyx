# cython: language_level=3
"""Records as they are, from one segment to another: how deltas are folded."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from cython_ext.cache_records cimport (
    RECORD_HEAP,
    RECORD_ID,
    Records,
    heap_extent,
    record_at,
)
from cython_ext.intrinsics cimport prefetch
from cython_ext.shm cimport Mapping

cdef enum:
    AHEAD = 8                # records fetched ahead

cdef struct Source:
    const char *record
    const char *heap
    int64_t size


cdef class RecordCopier:
    """``rows`` on their way into another segment; used like a ``RowPacker``.

    With ``delta``, of the same layout, its first ``count`` records are the rows
    behind those of ``records``. With ``number``, the copies' ids are that number
    and the following ones, as a companion's are.

    :raises IndexError: for a row that does not exist
    :raises ValueError: if a record is damaged
    """

    cdef Records records
    cdef Records delta
    cdef int64_t rows
    cdef Source *sources
    cdef int64_t number
    cdef readonly int64_t null_keys
    cdef readonly int64_t long_keys
    cdef readonly int64_t huge_rows

    def __cinit__(
        self, Records records not None, const int64_t[::1] rows not None,
        Records delta=None, int64_t count=0, int64_t number=-1,
    ):
        cdef int64_t i, row
        cdef int64_t limit = records.rows
        if delta is not None:
            if not 0 <= count <= delta.rows or (
                delta.layout.stride != records.layout.stride
            ):
                raise IndexError(f"{count} records of {delta.rows}")
            limit += count
        self.records = records
        self.delta = delta
        self.number = number
        self.rows = rows.shape[0]
        self.sources = <Source *>calloc(self.rows + 1, sizeof(Source))
        if self.sources == NULL:
            raise MemoryError
        for i in range(self.rows):
            row = rows[i]
            if row < 0 or row >= limit:
                raise IndexError(f"row {row} of {limit}")
        if self.rows:
            with nogil:
                self._open(&rows[0])

    def __dealloc__(self):
        free(self.sources)

    cdef int _open(self, const int64_t *rows) except -1 nogil:
        cdef int64_t i
        cdef Source *source
        for i in range(min(<int64_t>AHEAD, self.rows)):
            self._fetch(rows[i])
        for i in range(self.rows):
            if i + AHEAD < self.rows:
                self._fetch(rows[i + AHEAD])
            source = &self.sources[i]
            if rows[i] < self.records.rows:
                self._take(source, self.records, rows[i])
            else:
                self._take(source, self.delta, rows[i] - self.records.rows)
        return 0

    cdef void _fetch(self, int64_t row) noexcept nogil:
        if row < self.records.rows:
            prefetch(record_at(self.records, row))
        else:
            prefetch(record_at(self.delta, row - self.records.rows))

    cdef int _take(self, Source *source, Records records, int64_t row) except -1 nogil:
        source.record = record_at(records, row)
        source.size = heap_extent(records, source.record)
        if source.size < 0:
            with gil:
                raise ValueError("a record of the item cache is damaged")
        source.heap = records.mapping.base + (
            (<const uint64_t *>(source.record + RECORD_HEAP))[0])
        return 0

    def measure(self, int64_t start, int64_t room) -> tuple[int, int, int]:
        """How far ``room`` records reach from row ``start``.

        :return: the row to stop before, records, their heap bytes
        """
        cdef int64_t row
        cdef int64_t heap = 0
        start = max(start, 0)
        cdef int64_t stop = min(self.rows, start + max(room, 0))
        for row in range(start, stop):
            heap += self.sources[row].size
        return stop, max(stop - start, 0), heap

    def pack(
        self, Mapping mapping not None, int64_t start, int64_t stop,
        int64_t records, int64_t heap,
    ) -> tuple[int, int]:
        """Copies the rows ``start`` to ``stop``.

        ``records`` and ``heap`` are offsets in the mapping, the first a multiple
        of 8.

        :return: both offsets after the last row
        :raises IndexError: if rows or memory do not suffice
        """
        cdef int64_t row
        cdef int64_t size = 0
        cdef int64_t stride = self.records.layout.stride
        if start < 0 or stop > self.rows or start > stop:
            raise IndexError(f"rows {start}:{stop} of {self.rows}")
        for row in range(start, stop):
            size += self.sources[row].size
        if not mapping.writable or records < 0 or heap < 0 or records % 8 or (
            (stop - start) * stride > mapping.size - records
        ) or size > mapping.size - heap:
            raise IndexError(f"no room for {stop - start} records and {size} bytes")
        with nogil:
            self._pack(mapping.base, start, stop, records, heap)
        return records + (stop - start) * stride, heap + size

    cdef void _pack(
        self, char *base, int64_t start, int64_t stop, int64_t at, int64_t heap
    ) noexcept nogil:
        cdef int64_t row
        cdef const Source *source
        cdef int64_t stride = self.records.layout.stride
        for row in range(start, stop):
            source = &self.sources[row]
            memcpy(base + at, source.record, stride)
            (<uint64_t *>(base + at + RECORD_HEAP))[0] = heap
            if self.number >= 0:
                (<uint64_t *>(base + at + RECORD_ID))[0] = self.number + row
            memcpy(base + heap, source.heap, source.size)
            at += stride
            heap += source.size
