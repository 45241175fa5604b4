# cython: language_level=3
"""Checked features copied into the buffers of a column: the second pass."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from cython_ext.arena cimport Arena
from cython_ext.column cimport Values
from cython_ext.wire_cells cimport Cell, Item


ctypedef struct Sink:
    int32_t scalar
    int64_t n
    int64_t used             # bytes of text
    char *data
    int32_t *offsets


cdef int64_t text_bytes(int32_t scalar, int64_t count, int64_t text) noexcept nogil
cdef int open_sink(
    Sink *sink, int32_t scalar, int64_t count, int64_t text, Arena arena
) except -1 nogil
cdef void close_sink(const Sink *sink, Values *values) noexcept nogil
cdef int put(Sink *sink, int32_t scalar, const Item *item) noexcept nogil
cdef void put_null(Sink *sink) noexcept nogil
cdef int fill_list(
    int32_t scalar, const uint8_t *p, const uint8_t *end, int depth, Sink *sink
) noexcept nogil
cdef int fill_lists(
    const Cell *cell, int depth, int32_t *inner, int64_t *lists, Sink *values
) noexcept nogil
cdef int fill_map(
    const Cell *cell, int depth, Arena scratch, Sink *keys, Sink *values
) except -1 nogil
