# cython: language_level=3
"""Open-addressing index from item ids to row numbers, inside a segment."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_records cimport ItemId, Records
from cython_ext.column cimport Column


ctypedef struct Slot:
    uint64_t key
    uint32_t row
    uint32_t tag


cdef class ItemIndex:
    cdef readonly Records records
    cdef Slot *slots
    cdef readonly int64_t capacity

    cdef void fetch(self, uint64_t hash_) noexcept nogil
    cdef int64_t find_row(self, const ItemId *item, uint64_t hash_) noexcept nogil
    cdef int _lookup(
        self, Column ids, int64_t *out, Overlay overlay, int64_t count
    ) except -1 nogil
    cdef void _find_all(
        self, const ItemId *items, const uint64_t *hashes, const bint *present,
        int64_t batch, int64_t *out, Overlay overlay, int64_t count,
    ) noexcept nogil
    cdef Slot *_find(self, const ItemId *item, uint64_t hash_) noexcept nogil
    cdef void _fetch_text(self, uint64_t hash_) noexcept nogil
    cdef bint _equal(self, const Slot *slot, const ItemId *item) noexcept nogil
    cdef int64_t _fill(self) except -1 nogil
    cdef void _fetch(self, const char *record) noexcept nogil
