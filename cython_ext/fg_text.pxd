# cython: language_level=3
"""Numbers to text and text to numbers, without locale and without the GIL."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
cimport cython

cdef enum:
    NUMBER_CHARS = 32        # the longest text that a number becomes


cdef enum Parsed:
    NOT_A_NUMBER = 0
    PARSED = 1
    OUT_OF_RANGE = 2


cdef extern from *:
    int __builtin_ctzll(unsigned long long x) noexcept nogil


@cython.cdivision(True)
cdef inline uint64_t eight_digits(uint64_t v) noexcept nogil:
    """The digits of ``v`` < 10**8 as bytes 0 to 9, the first in the lowest byte.

    PERF: all eight at once, each step dividing several numbers in one word.
    """
    cdef uint64_t pair = (v // 10000) | ((v % 10000) << 32)
    cdef uint64_t hundreds = ((pair * 10486) >> 20) & <uint64_t>0x7f0000007fu
    cdef uint64_t tens
    hundreds = ((pair - 100 * hundreds) << 16) + hundreds
    tens = ((hundreds * 103) >> 10) & <uint64_t>0x000f000f000f000fu
    return tens + ((hundreds - 10 * tens) << 8)


@cython.cdivision(True)
cdef inline int digit_words(
    uint64_t v, uint64_t *first, uint64_t *last
) noexcept nogil:
    """The decimal text of ``v`` < 10**16 in registers; returns its length.

    ``first`` holds the first eight bytes (fewer: padded with zero bytes),
    ``last`` the last eight if there are more than eight.
    """
    cdef uint64_t ascii = <uint64_t>0x3030303030303030u
    cdef uint64_t digits
    cdef int zeros
    if v < 100000000:
        digits = eight_digits(v)
        # A byte that is 0 counts, but the last digit always stays.
        zeros = __builtin_ctzll(digits | (<uint64_t>1 << 56)) >> 3
        first[0] = (digits | ascii) >> (8 * zeros)
        return 8 - zeros
    last[0] = eight_digits(v % 100000000) | ascii
    digits = eight_digits(v // 100000000)
    zeros = __builtin_ctzll(digits) >> 3
    first[0] = (digits | ascii) >> (8 * zeros)
    if zeros:
        first[0] |= last[0] << (8 * (8 - zeros))
    return 16 - zeros


@cython.cdivision(True)
cdef inline int format_int64(int64_t value, char *out) noexcept nogil:
    """Writes decimal digits (at most 20); returns how many.

    ``out`` has room for NUMBER_CHARS; bytes after the text may be written too.
    """
    cdef uint64_t v = <uint64_t>value
    cdef uint64_t first = 0
    cdef uint64_t last = 0
    cdef int length = 0
    cdef int more
    if value < 0:
        out[0] = b"-"
        length = 1
        v = 0 - v
    if v >= <uint64_t>10000000000000000u:
        more = digit_words(v // <uint64_t>10000000000000000u, &first, &last)
        memcpy(out + length, &first, 8)
        length += more
        v = v % <uint64_t>10000000000000000u
        first = eight_digits(v // 100000000) | <uint64_t>0x3030303030303030u
        last = eight_digits(v % 100000000) | <uint64_t>0x3030303030303030u
        memcpy(out + length, &first, 8)
        memcpy(out + length + 8, &last, 8)
        return length + 16
    more = digit_words(v, &first, &last)
    memcpy(out + length, &first, 8)
    if more > 8:
        memcpy(out + length + more - 8, &last, 8)
    return length + more


cdef int format_double(double value, char *out) noexcept nogil
cdef int format_float(float value, char *out) noexcept nogil
cdef int parse_int64(const char *p, int64_t length, int64_t *out) noexcept nogil
cdef int parse_double(const char *p, int64_t length, double *out) noexcept nogil
