# cython: language_level=3
"""Index from item ids to the records of a delta, read while it is written."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.cache_records cimport ItemId, Records


cdef enum:
    NUMBER_BITS = 24         # of a slot: record number + 1
    NUMBER_MASK = (1 << 24) - 1


cdef class Overlay:
    cdef readonly Records records
    cdef uint64_t *slots
    cdef readonly int64_t capacity
    cdef uint32_t *links

    cdef int64_t find(
        self, const ItemId *item, uint64_t hash_, int64_t count
    ) noexcept nogil
    cdef bint is_grave(self, int64_t number) noexcept nogil
    cdef void fetch(self, uint64_t hash_) noexcept nogil
    cdef void fetch_record(self, uint64_t hash_) noexcept nogil
    cdef int64_t _walk(self, int64_t number, int64_t count) noexcept nogil
    cdef int64_t _enter(
        self, int64_t first, const uint8_t *graves, int64_t count
    ) noexcept nogil
    cdef uint64_t *_place(
        self, const ItemId *item, uint64_t hash_, int64_t *before
    ) noexcept nogil
    cdef bint _equal(self, int64_t number, const ItemId *item) noexcept nogil
