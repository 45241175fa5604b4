# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Columns whose rows are all one plain scalar, in one pass.

PERF: this is what engines send for every item, so it is read without cells.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    FLOAT32, FLOAT64, INT32, INT64, SCALAR, STRING, ColumnView, Values,
    scalar_width)
from cython_ext.wire_cells cimport scalar_tag
from cython_ext.wire_reader cimport (
    Fail, is_ascii, load64, read_span, read_varint, valid_utf8)

cdef enum:
    COPY_SLACK = 16


cdef int fast_rows(
    const uint8_t *p, const uint8_t *end, Arena arena, ColumnView *out
) except -1 nogil:
    """Reads rows that are all the same plain scalar; 0 if they are not.

    PERF: one pass and no cells. Whatever is unusual (another type, an unknown
    field, broken bytes) is left to the general way, errors included.
    """
    cdef int32_t kind
    if end - p < 4 or p[0] != 0x0A:
        return 0
    kind = p[2] >> 3
    if kind == 0 or kind > FLOAT64 or p[2] != scalar_tag(kind, kind):
        return 0
    out.values.scalar = kind
    if kind <= INT64:
        out.rows = fast_ints(p, end, kind, arena, &out.values)
    elif kind == STRING:
        out.rows = fast_texts(p, end, arena, &out.values)
    else:
        out.rows = fast_floats(p, end, kind, arena, &out.values)
    if out.rows == 0:
        memset(out, 0, sizeof(ColumnView))
        return 0
    out.kind = kind
    out.shape = SCALAR
    out.values.length = out.rows
    return 1


cdef inline bint short_varint(
    uint64_t word, int n, uint64_t *out
) noexcept nogil:
    """Decodes a varint of one to eight bytes; False if it is not n bytes long.

    PERF: all bytes at once: check the continuation bits, then close the gaps
    between the 7-bit groups, pair by pair.
    """
    cdef uint64_t last = <uint64_t>0x80 << (8 * n - 8)
    # Continuation bits: set in all bytes below the last, clear in the last.
    if (word & (last | (last - 1)) & 0x8080808080808080ULL) != (
        (last - 1) & 0x8080808080808080ULL
    ):
        return False
    word &= (last - 1) & 0x7F7F7F7F7F7F7F7FULL
    word = (word & 0x007F007F007F007FULL) | ((word & 0x7F007F007F007F00ULL) >> 1)
    word = (word & 0x00003FFF00003FFFULL) | ((word & 0x3FFF00003FFF0000ULL) >> 2)
    word = (word & 0x000000000FFFFFFFULL) | ((word & 0x0FFFFFFF00000000ULL) >> 4)
    out[0] = word
    return True


cdef int64_t fast_ints(
    const uint8_t *p, const uint8_t *end, int32_t kind, Arena arena, Values *values
) except -1 nogil:
    cdef int64_t rows = 0
    cdef int64_t width = scalar_width(kind)
    cdef uint8_t tag = <uint8_t>(kind << 3)
    cdef const uint8_t *stop
    cdef uint64_t value
    cdef Fail fail
    # A row takes four bytes at least.
    cdef char *data = <char *>arena.alloc(((end - p) // 4) * width)
    while p < end:
        if end - p < 4 or p[0] != 0x0A or p[2] != tag or p[1] < 2 or p[1] > 11:
            return 0
        if end - p < 2 + p[1]:
            return 0
        stop = p + 2 + p[1]
        p += 3
        if stop - p <= 8 and end - p >= 8:
            if not short_varint(load64(p), <int>(stop - p), &value):
                return 0
            p = stop
        else:
            p = read_varint(p, stop, &value, &fail)
            if p != stop:
                return 0
        if kind == INT32:
            (<int32_t *>data)[rows] = <int32_t><uint32_t>value
        else:
            (<int64_t *>data)[rows] = <int64_t>value
        rows += 1
    values.data = data
    return rows


cdef int64_t fast_floats(
    const uint8_t *p, const uint8_t *end, int32_t kind, Arena arena, Values *values
) except -1 nogil:
    cdef int64_t rows = 0
    cdef int64_t width = scalar_width(kind)
    cdef int64_t stride = width + 3
    cdef uint8_t tag = <uint8_t>scalar_tag(kind, kind)
    cdef char *data
    if (end - p) % stride:
        return 0
    data = <char *>arena.alloc((end - p) // stride * width)
    while p < end:
        if p[0] != 0x0A or p[1] != width + 1 or p[2] != tag:
            return 0
        if kind == FLOAT32:
            memcpy(data + rows * 4, p + 3, 4)
        else:
            memcpy(data + rows * 8, p + 3, 8)
        p += stride
        rows += 1
    values.data = data
    return rows


cdef int64_t fast_texts(
    const uint8_t *p, const uint8_t *end, Arena arena, Values *values
) except -1 nogil:
    cdef int64_t rows = 0, used = 0, n, i
    cdef const uint8_t *row_end
    cdef const uint8_t *stop
    cdef Fail fail
    cdef int32_t *offsets = <int32_t *>arena.alloc(
        ((end - p) // 4 + 1) * sizeof(int32_t))
    cdef char *data = <char *>arena.alloc(end - p + COPY_SLACK)
    offsets[0] = 0
    while p < end:
        if p[0] != 0x0A:
            return 0
        p = read_span(p + 1, end, &row_end, &fail)
        if p == NULL or row_end - p < 2 or p[0] != 0x1A:
            return 0
        p = read_span(p + 1, row_end, &stop, &fail)
        if p == NULL or stop != row_end:
            return 0
        n = stop - p
        if n <= COPY_SLACK and end - p >= COPY_SLACK:
            # PERF: two fixed copies; what is too much is overwritten next.
            memcpy(data + used, p, 8)
            memcpy(data + used + 8, p + 8, 8)
        else:
            memcpy(data + used, p, n)
        used += n
        rows += 1
        offsets[rows] = <int32_t>used
        p = stop
    if not is_ascii(<const uint8_t *>data, used):
        for i in range(rows):
            if not valid_utf8(
                <const uint8_t *>data + offsets[i],
                <const uint8_t *>data + offsets[i + 1]
            ):
                return 0
    values.data = data
    values.offsets = offsets
    return rows
