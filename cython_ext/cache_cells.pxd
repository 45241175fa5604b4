# cython: language_level=3
"""Reading cells of variable length; the format is told in ``cache_pack``.

Every function takes where the cell ends and checks each length against it.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from cython_ext.column cimport STRING, scalar_width


ctypedef struct Run:
    # A run of elements inside a cell, every length checked.
    int64_t count
    const uint8_t *valid     # NULL: none is null
    const char *lengths      # texts only: count u32
    const char *data
    int64_t size             # bytes at data


cdef inline uint32_t u32_at(const char *p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline const char *read_head(
    const char *p, const char *end, int64_t *count, const uint8_t **valid
) noexcept nogil:
    """Returns what follows count and bitmap; NULL: they do not fit."""
    cdef uint32_t head
    cdef int64_t size
    if end - p < 4:
        return NULL
    head = u32_at(p)
    p += 4
    count[0] = head >> 1
    valid[0] = NULL
    if head & 1:
        size = (count[0] + 7) // 8
        if end - p < size:
            return NULL
        valid[0] = <const uint8_t *>p
        p += size
    return p


cdef inline const char *read_run(
    const char *p, const char *end, int32_t scalar, Run *run
) noexcept nogil:
    """Returns what follows the run; NULL: it does not fit."""
    cdef int64_t i
    p = read_head(p, end, &run.count, &run.valid)
    if p == NULL:
        return NULL
    run.lengths = NULL
    if scalar == STRING:
        if run.count > (end - p) // 4:
            return NULL
        run.lengths = p
        p += 4 * run.count
        run.size = 0
        for i in range(run.count):
            run.size += u32_at(run.lengths + 4 * i)
    else:
        run.size = run.count * scalar_width(scalar)
    if run.size > end - p:
        return NULL
    run.data = p
    return p + run.size
