# cython: language_level=3
"""Maps of shared memory that close with their last user."""

from libc.stdint cimport int64_t


cdef class Mapping:
    cdef char *base
    cdef int64_t size
    cdef bint writable
    cdef int64_t exports

    cdef char *word(self, int64_t offset) except NULL
