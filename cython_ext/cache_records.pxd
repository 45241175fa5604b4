# cython: language_level=3
"""Row records of the item cache: where things stand in one, and in a segment."""

from libc.stdint cimport (
    INT64_MAX,
    int8_t,
    int32_t,
    int64_t,
    uint8_t,
    uint32_t,
    uint64_t,
)

from cython_ext.column cimport ColumnView, cell_is_null, string_at
from cython_ext.shm cimport Mapping


cpdef enum RecordPart:
    """Offsets inside a record, and limits, of layout version 3."""
    RECORD_HEAP = 0          # u64: where in the segment the row's heap bytes are
    RECORD_ID = 8            # u64: integer id, or XXH64 of the id's text
    RECORD_CELLS = 16        # 8-byte cells, 4-byte cells, u32 bounds, bits
    LONGEST_ID = 65535       # bytes of an id's text


ctypedef struct Field:
    # One column inside a record.
    int32_t kind
    int32_t shape
    int32_t scalar
    int32_t key
    int32_t width            # 4 or 8; 0: in the heap, or nowhere (ABSENT)
    int32_t bit              # number of the null bit
    int64_t slot             # of the cell, or of the u32 pair (start, end)


ctypedef struct ItemId:
    # An item id as the index knows it: decimal text and integers are one.
    uint64_t word            # integer value, or XXH64 of the text
    const char *text         # NULL: an integer
    int64_t length


cdef class RecordLayout:
    cdef Field *fields
    cdef readonly int64_t count
    cdef readonly int64_t stride
    cdef int64_t bounds
    cdef int64_t last_bound
    cdef int64_t bits
    cdef int64_t stamped     # number of the bit: stamps follow the cells
    cdef int64_t stamp_bytes  # of a bitmap of columns, row and deletion


cdef class Records:
    cdef readonly Mapping mapping
    cdef readonly RecordLayout layout
    cdef readonly int64_t rows
    cdef int64_t shift
    cdef int64_t mask
    cdef const uint64_t *blocks
    cdef char *missing       # the record that stands for row -1: all null


cdef inline char *record_at(Records r, int64_t row) noexcept nogil:
    """The record of a row in range."""
    return r.mapping.base + r.blocks[row >> r.shift] + (
        (row & r.mask) * r.layout.stride)


cdef inline bint bit_of(const char *record, int64_t bits, int64_t bit) noexcept nogil:
    return ((<const uint8_t *>record)[bits + (bit >> 3)] >> (bit & 7)) & 1


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """The finalizer of MurmurHash3: spreads an integer id over 64 bits."""
    x = (x ^ (x >> 33)) * <uint64_t>0xFF51AFD7ED558CCD
    x = (x ^ (x >> 33)) * <uint64_t>0xC4CEB9FE1A85EC53
    return x ^ (x >> 33)


cdef inline bint parse_decimal(
    const char *p, int64_t length, int64_t *out
) noexcept nogil:
    """Whether the text is what ``str(int)`` writes for an int64."""
    cdef uint64_t value = 0
    cdef int64_t i = 0
    cdef uint8_t digit
    cdef bint negative
    if length == 0 or length > 20:
        return False
    negative = p[0] == 45
    if negative:
        i = 1
    # SAFETY: 19 digits always fit 64 bits, so the sum cannot wrap.
    if length - i < 1 or length - i > 19:
        return False
    if p[i] == 48 and length > 1:
        return False
    while i < length:
        digit = <uint8_t>p[i] - 48
        if digit > 9:
            return False
        value = value * 10 + digit
        i += 1
    if value > <uint64_t>INT64_MAX + negative:
        return False
    out[0] = <int64_t>(0 - value) if negative else <int64_t>value
    return True


cdef inline uint64_t hash_of(const ItemId *item) noexcept nogil:
    return item.word if item.text != NULL else mix(item.word)


cdef bint read_id(const ColumnView *ids, int64_t row, ItemId *out) noexcept nogil


# The id of a record; text is NULL for an integer. False: it is damaged.
cdef bint id_in_record(
    Records records, const char *record, ItemId *out
) noexcept nogil


# Heap bytes of a record, id, cells and stamps; -1: it is damaged.
cdef int64_t heap_extent(
    Records records, const char *record
) noexcept nogil
