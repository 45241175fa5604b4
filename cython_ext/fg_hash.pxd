# cython: language_level=3
"""The two string hashes of the Feature Generator (spec sections 4.1 and 4.2)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    SHORT_FARM = 32


cdef inline uint64_t load64(const char *p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return word


cdef inline uint64_t load32(const char *p) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, p, 4)
    return word


cdef inline uint64_t rotate(uint64_t v, int shift) noexcept nogil:
    return (v >> shift) | (v << (64 - shift))


cdef inline uint64_t fold(uint64_t v) noexcept nogil:
    return v ^ (v >> 47)


cdef inline uint64_t std_hash(const char *p, int64_t length) noexcept nogil:
    """libstdc++'s ``std::hash<std::string>`` on 64-bit machines."""
    cdef uint64_t mul = <uint64_t>0xc6a4a7935bd1e995u
    cdef uint64_t h = <uint64_t>0xc70f6907u ^ (<uint64_t>length * mul)
    cdef uint64_t word
    cdef const char *aligned_end = p + (length & ~<int64_t>7)
    cdef int64_t tail = length & 7
    while p != aligned_end:
        h = (h ^ (fold(load64(p) * mul) * mul)) * mul
        p += 8
    if tail:
        # NOTE: the tail is mixed raw, unlike in MurmurHash64A.
        word = 0
        memcpy(&word, p, tail)
        h = (h ^ word) * mul
    return fold(fold(h) * mul)


cdef inline uint64_t mix16(uint64_t u, uint64_t v, uint64_t mul) noexcept nogil:
    return fold((v ^ fold((u ^ v) * mul)) * mul) * mul


cdef inline uint64_t farm_short(const char *p, int64_t length) noexcept nogil:
    """Fingerprint64 of at most ``SHORT_FARM`` bytes."""
    cdef uint64_t k0 = <uint64_t>0xc3a5c85c97cb3127u
    cdef uint64_t k1 = <uint64_t>0xb492b66fbe98f273u
    cdef uint64_t k2 = <uint64_t>0x9ae16a3b2f90404fu
    cdef uint64_t mul = k2 + <uint64_t>length * 2
    cdef uint64_t a, b, c, d
    cdef const unsigned char *u = <const unsigned char *>p
    if length > 16:
        a = load64(p) * k1
        b = load64(p + 8)
        c = load64(p + length - 8) * mul
        d = load64(p + length - 16) * k2
        return mix16(
            rotate(a + b, 43) + rotate(c, 30) + d, a + rotate(b + k2, 18) + c, mul)
    if length >= 8:
        a = load64(p) + k2
        b = load64(p + length - 8)
        c = rotate(b, 37) * mul + a
        d = (rotate(a, 25) + b) * mul
        return mix16(c, d, mul)
    if length >= 4:
        return mix16(
            <uint64_t>length + (load32(p) << 3), load32(p + length - 4), mul)
    if length > 0:
        a = <uint64_t>u[0] + (<uint64_t>u[length >> 1] << 8)
        b = <uint64_t>length + (<uint64_t>u[length - 1] << 2)
        return fold((a * k2) ^ (b * k0)) * k2
    return k2


cdef inline uint64_t std_hash_words(
    uint64_t first, uint64_t last, int64_t length
) noexcept nogil:
    """``std_hash`` of at most 16 bytes that are in registers.

    ``first``: the first eight bytes, zero extended; ``last``: the last eight, used
    if there are more than eight.
    """
    cdef uint64_t mul = <uint64_t>0xc6a4a7935bd1e995u
    cdef uint64_t h = <uint64_t>0xc70f6907u ^ (<uint64_t>length * mul)
    if length < 8:
        if length:
            h = (h ^ first) * mul
        return fold(fold(h) * mul)
    h = (h ^ (fold(first * mul) * mul)) * mul
    if length == 16:
        h = (h ^ (fold(last * mul) * mul)) * mul
    elif length > 8:
        h = (h ^ (last >> (8 * (16 - length)))) * mul
    return fold(fold(h) * mul)


cdef inline uint64_t farm_hash_words(
    uint64_t first, uint64_t last, int64_t length
) noexcept nogil:
    """Fingerprint64 of 1 to 16 bytes in registers, as for ``std_hash_words``."""
    cdef uint64_t k0 = <uint64_t>0xc3a5c85c97cb3127u
    cdef uint64_t k2 = <uint64_t>0x9ae16a3b2f90404fu
    cdef uint64_t mul = k2 + <uint64_t>length * 2
    cdef uint64_t a, b, c, d
    if length >= 8:
        if length == 8:
            last = first
        a = first + k2
        b = last
        c = rotate(b, 37) * mul + a
        d = (rotate(a, 25) + b) * mul
        return mix16(c, d, mul)
    if length >= 4:
        a = first & 0xffffffffu
        b = (first >> (8 * (length - 4))) & 0xffffffffu
        return mix16(<uint64_t>length + (a << 3), b, mul)
    a = (first & 0xff) + (((first >> (8 * (length >> 1))) & 0xff) << 8)
    b = <uint64_t>length + (((first >> (8 * (length - 1))) & 0xff) << 2)
    return fold((a * k2) ^ (b * k0)) * k2


cdef uint64_t farm_long(const char *p, int64_t length) noexcept nogil


cdef inline uint64_t farm_hash(const char *p, int64_t length) noexcept nogil:
    """FarmHash Fingerprint64."""
    if length <= SHORT_FARM:
        return farm_short(p, length)
    return farm_long(p, length)
