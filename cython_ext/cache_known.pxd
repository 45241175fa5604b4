# cython: language_level=3
"""Event times that a table knows of some ids, as stamps of other records."""

from libc.stdint cimport int64_t, uint8_t

from cython_ext.cache_index cimport ItemIndex
from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_records cimport RecordLayout
from cython_ext.column cimport Column


ctypedef struct Groups:
    # Stamps of a record where they are; count 0: it has none that stay.
    const char *first
    int64_t count


cdef class KnownTimes:
    cdef readonly int64_t rows
    cdef RecordLayout layout   # of the stamps here
    cdef int64_t *offsets      # of each row's stamps, and one more
    cdef uint8_t *data

    cdef int _find(
        self, Column ids, ItemIndex index, Overlay overlay, int64_t count,
        Groups *found,
    ) except -1 nogil
    cdef int64_t _measure(
        self, const Groups *found, int64_t bytes_each, const int64_t *bits,
        int64_t bit_count,
    ) noexcept nogil
    cdef void _write(
        self, const Groups *found, int64_t bytes_each, const int64_t *bits,
        int64_t bit_count,
    ) noexcept nogil


cdef inline int64_t known_size(KnownTimes known, int64_t row) noexcept nogil:
    """Bytes of the stamps of a row; 0: it has none."""
    return known.offsets[row + 1] - known.offsets[row]
