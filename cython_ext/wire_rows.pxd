# cython: language_level=3
"""Columns whose rows are all one plain scalar, in one pass."""

from libc.stdint cimport uint8_t

from cython_ext.arena cimport Arena
from cython_ext.column cimport ColumnView


cdef int fast_rows(
    const uint8_t *p, const uint8_t *end, Arena arena, ColumnView *out
) except -1 nogil
