# cython: language_level=3
"""XXH64: the hash of item ids and the checksum of cache segments."""

from libc.stdint cimport int64_t, uint64_t


cdef uint64_t xxh64_bytes(
    const void *data, int64_t length, uint64_t seed
) noexcept nogil
