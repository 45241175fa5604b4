# cython: language_level=3
"""A bump allocator: everything that a request allocates, freed at once."""

from libc.stdint cimport int64_t


cdef struct Block:
    Block *next
    char *data
    int64_t size
    int64_t used


cdef void *block_alloc(Block **head, int64_t size) except NULL nogil


cdef class Arena:
    cdef Block *_head

    cdef void *alloc(self, int64_t size) except NULL nogil
