# cython: language_level=3
"""Combiners of several numbers (spec section 8.5)."""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport Block


cdef enum Combiner:
    COMBINE_NONE = 0
    COMBINE_SUM = 1
    COMBINE_MEAN = 2
    COMBINE_MIN = 3
    COMBINE_MAX = 4
    COMBINE_COUNT = 5
    COMBINE_GAP_MIN = 6
    COMBINE_GAP_MAX = 7


ctypedef struct Combined:
    # Numbers on their way to one.
    int32_t combiner
    Block **head
    int64_t count
    double sum
    double least
    double most
    double *items            # gaps only
    int64_t capacity


cdef int32_t combiner_of(str name) except -1
cdef int keep_item(Combined *c, double x) except -1 nogil
cdef double combined(Combined *c) noexcept nogil


cdef inline void start_combined(
    Combined *c, int32_t combiner, Block **head
) noexcept nogil:
    """Before the first numbers of a run; ``count`` = 0 before those of a row."""
    c.combiner = combiner
    c.head = head
    c.count = 0
    c.items = NULL
    c.capacity = 0


cdef inline int combine_number(Combined *c, double x) except -1 nogil:
    if c.combiner >= COMBINE_GAP_MIN:
        return keep_item(c, x)
    if c.count == 0:
        c.sum = x
        c.least = x
        c.most = x
    else:
        c.sum += x
        if x < c.least:
            c.least = x
        if x > c.most:
            c.most = x
    c.count += 1
    return 0
