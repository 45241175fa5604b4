# cython: language_level=3
"""The one column format: Arrow layout behind a C struct.

Every producer (Arrow batches, the wire decoder, the cache's gather) fills a
``ColumnView`` and every FG kernel reads one.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t


cpdef enum Kind:
    """Type of a cell; the numbers are the field numbers of ``PBFeature``."""
    ABSENT = 0
    INT32 = 1
    INT64 = 2
    STRING = 3
    FLOAT32 = 4
    FLOAT64 = 5
    MAP_INT64_STRING = 6
    MAP_INT64_INT32 = 7
    MAP_INT64_INT64 = 8
    MAP_INT64_FLOAT32 = 9
    MAP_INT64_FLOAT64 = 10
    MAP_STRING_STRING = 11
    MAP_STRING_INT32 = 12
    MAP_STRING_INT64 = 13
    MAP_STRING_FLOAT32 = 14
    MAP_STRING_FLOAT64 = 15
    MAP_INT32_STRING = 16
    MAP_INT32_INT32 = 17
    MAP_INT32_INT64 = 18
    MAP_INT32_FLOAT32 = 19
    MAP_INT32_FLOAT64 = 20
    LIST_INT32 = 21
    LIST_INT64 = 22
    LIST_STRING = 23
    LIST_FLOAT32 = 24
    LIST_FLOAT64 = 25
    LISTS_INT32 = 26
    LISTS_INT64 = 27
    LISTS_STRING = 28
    LISTS_FLOAT32 = 29
    LISTS_FLOAT64 = 30


cpdef enum Shape:
    """What a cell holds: one value, a list, a list of lists, or a map."""
    SCALAR = 0
    LIST = 1
    LISTS = 2
    MAP = 3


ctypedef struct Values:
    # A flat run of scalars. Strings: offsets[length + 1] into data.
    int32_t scalar           # INT32, INT64, STRING, FLOAT32 or FLOAT64
    int64_t length
    const void *data
    const int32_t *offsets   # strings only
    const uint8_t *valid     # bitmap, least significant bit first; NULL: all valid
    int64_t valid_offset     # number of the first value's bit


ctypedef struct ColumnView:
    int32_t kind
    int32_t shape
    int64_t rows
    const uint8_t *valid     # validity of cells, as above
    int64_t valid_offset
    const int32_t *offsets   # LIST, MAP: into values; LISTS: into inner; rows + 1
    const uint8_t *inner_valid
    int64_t inner_valid_offset
    const int32_t *inner     # LISTS only: into values
    Values values            # SCALAR: value i is cell i
    Values keys              # MAP only, parallel to values


cdef inline bint bit_is_set(const uint8_t *bits, int64_t i) noexcept nogil:
    return (bits[i >> 3] >> (i & 7)) & 1


cdef inline bint cell_is_null(const ColumnView *c, int64_t row) noexcept nogil:
    if c.kind == 0:
        return True
    return c.valid != NULL and not bit_is_set(c.valid, c.valid_offset + row)


cdef inline bint inner_is_null(const ColumnView *c, int64_t i) noexcept nogil:
    return c.inner_valid != NULL and not bit_is_set(
        c.inner_valid, c.inner_valid_offset + i)


cdef inline bint value_is_null(const Values *v, int64_t i) noexcept nogil:
    return v.valid != NULL and not bit_is_set(v.valid, v.valid_offset + i)


cdef inline const char *string_at(
    const Values *v, int64_t i, int64_t *length
) noexcept nogil:
    length[0] = v.offsets[i + 1] - v.offsets[i]
    return <const char *>v.data + v.offsets[i]


cdef int32_t kind_shape(int32_t kind) noexcept nogil
cdef int32_t kind_value(int32_t kind) noexcept nogil
cdef int32_t kind_key(int32_t kind) noexcept nogil
cdef int64_t scalar_width(int32_t scalar) noexcept nogil


cdef class Column:
    cdef ColumnView view
    cdef object owner


cdef Column wrap_column(const ColumnView *view, object owner)
