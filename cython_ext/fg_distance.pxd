# cython: language_level=3
"""Edit distance of two texts."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.arena cimport Block


ctypedef struct Points:
    # The characters of a text; memory that is used again for the next text.
    uint32_t *items
    int64_t count
    int64_t capacity


cdef int take_points(
    Block **head, Points *points, const char *text, int64_t length, bint utf8
) except -1 nogil
cdef int64_t edit_distance_of(
    Block **head, const Points *a, const Points *b) except -2 nogil
