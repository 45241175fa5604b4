# cython: language_level=3
"""The two string hashes of the Feature Generator (spec sections 4.1 and 4.2)."""

from libc.stdint cimport int64_t, uint64_t

from cython_ext.column cimport STRING, Column, string_at

cdef struct Pair:
    uint64_t first
    uint64_t second


cdef inline Pair _weak32(const char *p, uint64_t a, uint64_t b) noexcept nogil:
    """Mixes 32 bytes into two seeds."""
    cdef uint64_t w = load64(p)
    cdef uint64_t x = load64(p + 8)
    cdef uint64_t y = load64(p + 16)
    cdef uint64_t z = load64(p + 24)
    cdef uint64_t c
    cdef Pair out
    a += w
    b = rotate(b + a + z, 21)
    c = a
    a += x + y
    b += rotate(a, 44)
    out.first = a + z
    out.second = b + c
    return out


cdef uint64_t _farm_33_to_64(const char *p, int64_t length) noexcept nogil:
    cdef uint64_t k2 = <uint64_t>0x9ae16a3b2f90404fu
    cdef uint64_t mul = k2 + <uint64_t>length * 2
    cdef uint64_t a = load64(p) * k2
    cdef uint64_t b = load64(p + 8)
    cdef uint64_t c = load64(p + length - 8) * mul
    cdef uint64_t d = load64(p + length - 16) * k2
    cdef uint64_t y = rotate(a + b, 43) + rotate(c, 30) + d
    cdef uint64_t z = mix16(y, a + rotate(b + k2, 18) + c, mul)
    cdef uint64_t e = load64(p + 16) * mul
    cdef uint64_t f = load64(p + 24)
    cdef uint64_t g = (y + load64(p + length - 32)) * mul
    cdef uint64_t h = (z + load64(p + length - 24)) * mul
    return mix16(rotate(e + f, 43) + rotate(g, 30) + h, e + rotate(f + a, 18) + g, mul)


cdef uint64_t farm_long(const char *p, int64_t length) noexcept nogil:
    """Fingerprint64 of more than ``SHORT_FARM`` bytes."""
    cdef uint64_t k0 = <uint64_t>0xc3a5c85c97cb3127u
    cdef uint64_t k1 = <uint64_t>0xb492b66fbe98f273u
    cdef uint64_t k2 = <uint64_t>0x9ae16a3b2f90404fu
    cdef uint64_t seed = 81
    cdef uint64_t x, y, z, mul, rest
    cdef Pair v, w
    cdef const char *end
    cdef const char *last
    if length <= 64:
        return _farm_33_to_64(p, length)
    rest = <uint64_t>(length - 1) & 63
    end = p + (((length - 1) >> 6) << 6)
    last = end + rest - 63
    x = seed * k2 + load64(p)
    y = seed * k1 + 113
    z = fold(y * k2 + 113) * k2
    v.first = v.second = w.first = w.second = 0
    while p != end:
        x = rotate(x + y + v.first + load64(p + 8), 37) * k1
        y = rotate(y + v.second + load64(p + 48), 42) * k1
        x ^= w.second
        y += v.first + load64(p + 40)
        z = rotate(z + w.first, 33) * k1
        v = _weak32(p, v.second * k1, x + w.first)
        w = _weak32(p + 32, z + w.second, y + load64(p + 16))
        x, z = z, x
        p += 64
    mul = k1 + ((z & 0xff) << 1)
    p = last
    w.first += rest
    v.first += w.first
    w.first += v.first
    x = rotate(x + y + v.first + load64(p + 8), 37) * mul
    y = rotate(y + v.second + load64(p + 48), 42) * mul
    x ^= w.second * 9
    y += v.first * 9 + load64(p + 40)
    z = rotate(z + w.first, 33) * mul
    v = _weak32(p, v.second * mul, x + w.first)
    w = _weak32(p + 32, z + w.second, y + load64(p + 16))
    x, z = z, x
    return mix16(
        mix16(v.first, w.first, mul) + fold(y) * k0 + z,
        mix16(v.second, w.second, mul) + x, mul)


def hash_text(bytes text not None, *, bint farm) -> int:
    """The 64-bit hash of ``text``: Fingerprint64 if ``farm``, else std::hash."""
    cdef const char *p = text
    cdef int64_t length = len(text)
    return farm_hash(p, length) if farm else std_hash(p, length)


def fold_hashes(Column column not None, *, bint farm) -> int:
    """The hashes of a text column's cells, xor-ed: the bare loop to compare with."""
    cdef uint64_t folded = 0
    cdef const char *p
    cdef int64_t length, i
    if column.view.kind != STRING:
        raise TypeError("not a text column")
    with nogil:
        for i in range(column.view.rows):
            p = string_at(&column.view.values, i, &length)
            folded ^= farm_hash(p, length) if farm else std_hash(p, length)
    return folded
