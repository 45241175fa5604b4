# cython: language_level=3
"""XXH64: the hash of item ids and the checksum of cache segments.

Written from the published algorithm description (xxHash specification, XXH64):
four lanes over 32-byte stripes, merged, then the tail and an avalanche.
Little-endian machines only, as all of the cache is.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef uint64_t P1 = 0x9E3779B185EBCA87
cdef uint64_t P2 = 0xC2B2AE3D27D4EB4F
cdef uint64_t P3 = 0x165667B19E3779F9
cdef uint64_t P4 = 0x85EBCA77C2B2AE63
cdef uint64_t P5 = 0x27D4EB2F165667C5


cdef inline uint64_t _rotate(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline uint64_t _read64(const uint8_t *p) noexcept nogil:
    cdef uint64_t x
    memcpy(&x, p, 8)
    return x


cdef inline uint64_t _read32(const uint8_t *p) noexcept nogil:
    cdef uint32_t x
    memcpy(&x, p, 4)
    return x


cdef inline uint64_t _round(uint64_t lane, uint64_t word) noexcept nogil:
    return _rotate(lane + word * P2, 31) * P1


cdef inline uint64_t _merge(uint64_t hash_, uint64_t lane) noexcept nogil:
    return (hash_ ^ _round(0, lane)) * P1 + P4


cdef uint64_t xxh64_bytes(
    const void *data, int64_t length, uint64_t seed
) noexcept nogil:
    """XXH64 of ``length`` bytes; reads nothing beyond them."""
    cdef const uint8_t *p = <const uint8_t *>data
    cdef const uint8_t *end = p + length
    cdef uint64_t a, b, c, d, h
    if length >= 32:
        a = seed + P1 + P2
        b = seed + P2
        c = seed
        d = seed - P1
        while end - p >= 32:
            a = _round(a, _read64(p))
            b = _round(b, _read64(p + 8))
            c = _round(c, _read64(p + 16))
            d = _round(d, _read64(p + 24))
            p += 32
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        h = _merge(_merge(_merge(_merge(h, a), b), c), d)
    else:
        h = seed + P5
    h += <uint64_t>length
    while end - p >= 8:
        h = _rotate(h ^ _round(0, _read64(p)), 27) * P1 + P4
        p += 8
    if end - p >= 4:
        h = _rotate(h ^ (_read32(p) * P1), 23) * P2 + P3
        p += 4
    while p < end:
        h = _rotate(h ^ (p[0] * P5), 11) * P1
        p += 1
    h = (h ^ (h >> 33)) * P2
    h = (h ^ (h >> 29)) * P3
    return h ^ (h >> 32)


def xxh64(const uint8_t[::1] data not None, uint64_t seed=0) -> int:
    """XXH64 of a contiguous buffer, without the GIL."""
    cdef uint64_t result
    cdef int64_t length = data.shape[0]
    if length == 0:
        return xxh64_bytes(NULL, 0, seed)
    with nogil:
        result = xxh64_bytes(&data[0], length, seed)
    return result
