# cython: language_level=3
"""The words of a histogram in shared memory, counted up without a lock."""

from libc.stdint cimport int64_t, uint64_t

from cython_ext.intrinsics cimport add_u64
from cython_ext.shm cimport Mapping

cdef enum:
    MOST_BOUNDS = 64


cdef class Buckets:
    """``len(bounds) + 2`` words of a map, from ``offset`` on.

    One for each bound (values up to and with it), one for greater values, one for
    the sum of all. Any number of processes and threads may add at once.

    :raises ValueError: for more than 64 bounds, or none, or bounds that do not grow
    :raises IndexError: if the words are not inside the map
    :raises BufferError: if the map is read-only
    """

    cdef Mapping _mapping
    cdef char *_words
    cdef int _count
    cdef int64_t _bounds[MOST_BOUNDS]

    def __cinit__(self, Mapping mapping not None, int64_t offset, bounds):
        cdef int i
        count = len(bounds)
        if not 0 < count <= MOST_BOUNDS:
            raise ValueError(f"{count} bounds, 1 to {MOST_BOUNDS} are possible")
        if not mapping.writable:
            raise BufferError("the map is read-only")
        for i in range(count):
            self._bounds[i] = bounds[i]
            if i and self._bounds[i] <= self._bounds[i - 1]:
                raise ValueError("bounds must grow")
        self._words = mapping.word(offset)
        mapping.word(offset + 8 * (count + 1))
        self._count = count
        # SAFETY: the map must not move while we point into it.
        mapping.exports += 1
        self._mapping = mapping

    def __dealloc__(self):
        if self._mapping is not None:
            self._mapping.exports -= 1

    def observe(self, int64_t value) -> None:
        """Counts one value; a negative one counts as 0."""
        cdef int i = 0
        if value < 0:
            value = 0
        while i < self._count and value > self._bounds[i]:
            i += 1
        add_u64(self._words + 8 * i, 1)
        add_u64(self._words + 8 * (self._count + 1), <uint64_t>value)
