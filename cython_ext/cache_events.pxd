# cython: language_level=3
"""Events of a delta's batch, by item."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from cython_ext.cache_known cimport KnownTimes
from cython_ext.cache_records cimport ItemId, RecordLayout
from cython_ext.column cimport Column, ColumnView

cdef struct Pick:
    # Which event a cell comes from; or KEPT, NULLED as its step.
    int32_t step
    int32_t row


cdef struct Step:
    const ColumnView *ids
    const ColumnView **cells  # by column; NULL where the event has none
    const int64_t *times      # NULL: none has one
    bint deletion
    const int64_t *known      # where the stamps of each row are, if that is all
    const uint8_t *stamps


cdef struct Item:
    ItemId id
    uint64_t hash
    int64_t first            # of its events
    int64_t last
    const char *record       # what it is now; NULL: unknown
    const char *base         # of the record's segment
    int64_t size
    bint dead                # the record is a grave
    bint fresh               # the delta has no record of it
    bint grave               # what it becomes
    int64_t heap             # bytes that it becomes; -1: it stays as it is


cdef class Events:
    cdef RecordLayout layout
    cdef list _owners
    cdef Step *steps
    cdef int64_t step_count
    cdef Item *found
    cdef Pick *events        # by item, in order of arrival
    cdef Pick *picks         # of one item: one for each column
    cdef int64_t *times      # of one item: columns, row, deletion
    cdef readonly int64_t items
    cdef readonly int64_t null_keys
    cdef readonly int64_t long_keys

    cdef int _open(self, Step *step, Column ids, columns, times) except -1
    cdef int _open_known(self, Step *step, KnownTimes known, int64_t rows) except -1
    cdef int _group(self, int64_t total) except -1
    cdef void _find_items(
        self, int32_t *table, int64_t mask, int32_t *items
    ) noexcept nogil
    cdef bint _same(self, const Item *a, const Item *b) noexcept nogil
    cdef void _sort_events(self, const int32_t *items) noexcept nogil
