# cython: language_level=3
"""What events leave of each item."""

from libc.stdint cimport int32_t, int64_t

from cython_ext.cache_events cimport Events, Item, Pick, Step
from cython_ext.cache_index cimport ItemIndex
from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_records cimport Field, Records

cdef enum:
    KEPT = -1                # a pick: the cell stays
    NULLED = -2


cdef int damaged() except -1 nogil


cdef class Settlement(Events):
    cdef bint timed          # some column of the item in hand has a time
    cdef readonly int64_t huge_rows
    cdef readonly int64_t kept
    cdef readonly int64_t fresh
    cdef readonly int64_t heap
    cdef readonly int64_t upserted
    cdef readonly int64_t deleted
    cdef readonly int64_t stale

    cdef void _locate(
        self, ItemIndex index, Overlay overlay, int64_t count
    ) noexcept nogil
    cdef void _found_in(self, Item *item, Records records, int64_t row) noexcept nogil
    cdef int _measure(self) except -1 nogil
    cdef bint _settle(self, Item *item, bint counted) except -1 nogil
    cdef int _load_times(self, const Item *item) except -1 nogil
    cdef bint _raise(self, const Step *step, int64_t row) noexcept nogil
    cdef int64_t _bury(self, int64_t time, bint *alive) noexcept nogil
    cdef int64_t _lay_over(
        self, const Pick *event, const Step *step, int64_t time, bint *alive
    ) noexcept nogil
    cdef int64_t _groups(self) noexcept nogil
    cdef const char *_kept_cell(
        self, const Item *item, const Field *field, int64_t *size
    ) except NULL nogil
    cdef int64_t _size(self, const Item *item) except -1 nogil
