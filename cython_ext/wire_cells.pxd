# cython: language_level=3
"""``PBFeature`` messages checked and measured: the first pass."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.arena cimport Arena
from cython_ext.column cimport FLOAT32, FLOAT64, INT32, INT64, STRING
from cython_ext.wire_reader cimport (
    FIXED32, FIXED64, LEN, TRUNCATED, VARINT, Fail, fail_at, load32, load64,
    read_text, read_varint)

cdef enum:
    FIRST_MAP = 6
    LAST_KIND = 30


ctypedef struct Item:
    int64_t bits             # integers sign-extended; raw bits of floats
    const uint8_t *data      # strings
    const uint8_t *end


ctypedef struct Cell:
    int32_t kind             # 0: no alternative is set
    int64_t inner            # lists in a list of lists
    int64_t count            # values in a list, list of lists or map
    int64_t text             # bytes of the values that are strings
    int64_t key_text
    Item item                # the scalar, or the span of the message


ctypedef struct MapEntry:
    Item key
    Item value
    bint dropped


cdef void clear_item(Item *item) noexcept nogil
cdef const char *scalar_text(int32_t scalar) noexcept nogil
cdef const uint8_t *read_entry(
    int32_t key, int32_t value, const uint8_t *p, const uint8_t *end, int depth,
    MapEntry *entry, Fail *fail
) noexcept nogil
cdef int scan_feature(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena scratch, Cell *cell, Fail *fail
) except -1 nogil


cdef inline uint32_t scalar_tag(uint32_t number, int32_t scalar) noexcept nogil:
    """The tag of a scalar in field ``number``, not packed."""
    cdef uint32_t wire = VARINT
    if scalar == STRING:
        wire = LEN
    elif scalar == FLOAT32:
        wire = FIXED32
    elif scalar == FLOAT64:
        wire = FIXED64
    return number << 3 | wire


cdef inline const uint8_t *read_item(
    int32_t scalar, const uint8_t *p, const uint8_t *end, Item *item, Fail *fail
) noexcept nogil:
    """One value of a scalar type, whose tag has been read."""
    cdef uint64_t value
    cdef const uint8_t *stop
    if scalar == INT32 or scalar == INT64:
        p = read_varint(p, end, &value, fail)
        if p == NULL:
            fail.what = scalar_text(scalar)
            return NULL
        item.bits = (
            <int64_t><int32_t><uint32_t>value if scalar == INT32
            else <int64_t>value)
        return p
    if scalar == FLOAT32:
        if end - p < 4:
            return fail_at(fail, TRUNCATED, scalar_text(scalar))
        item.bits = load32(p)
        return p + 4
    if scalar == FLOAT64:
        if end - p < 8:
            return fail_at(fail, TRUNCATED, scalar_text(scalar))
        item.bits = <int64_t>load64(p)
        return p + 8
    p = read_text(p, end, &stop, fail)
    if p == NULL:
        fail.what = scalar_text(scalar)
        return NULL
    item.data = p
    item.end = stop
    return stop
