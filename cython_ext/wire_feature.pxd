# cython: language_level=3
"""``PBFeature`` messages to cells of a column."""

from libc.stdint cimport int32_t, int64_t, uint8_t

from cython_ext.arena cimport Arena
from cython_ext.column cimport ColumnView
from cython_ext.wire_reader cimport Fail


ctypedef struct Problem:
    # What is wrong with the rows of one feature.
    Fail fail            # the bytes
    int64_t row
    int32_t have         # the types: kind of the rows so far (0: no conflict)
    int32_t found        # kind of ``row``
    bint lossy           # have and found are numbers, but a value would change


cdef int build_feature(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena arena, Arena scratch, ColumnView *out, Problem *problem
) except -1 nogil
cdef int build_rows(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena arena, Arena scratch, ColumnView *out, Problem *problem
) except -1 nogil
cdef int check_value(
    const uint8_t *p, const uint8_t *end, bint in_rows, int depth,
    Arena scratch, Problem *problem
) except -1 nogil
cdef str alternative_name(int32_t kind)
