# cython: language_level=3
"""Numbers to text and text to numbers, without locale and without the GIL."""

from libc.stdint cimport int64_t, uint64_t
cimport cython

cdef enum:
    NUMBER_CHARS = 32        # the longest text that a number becomes


cdef enum Parsed:
    NOT_A_NUMBER = 0
    PARSED = 1
    OUT_OF_RANGE = 2


@cython.cdivision(True)
cdef inline int format_int64(int64_t value, char *out) noexcept nogil:
    """Writes decimal digits (at most 20); returns how many."""
    cdef char[24] digits
    cdef int at = 24
    cdef int length = 0
    cdef uint64_t v = <uint64_t>value
    cdef uint64_t rest
    if value < 0:
        out[0] = b"-"
        length = 1
        v = 0 - v
    while v >= 100:
        rest = v % 100
        v = v // 100
        at -= 2
        digits[at] = <char>(48 + rest // 10)
        digits[at + 1] = <char>(48 + rest % 10)
    if v >= 10:
        at -= 2
        digits[at] = <char>(48 + v // 10)
        digits[at + 1] = <char>(48 + v % 10)
    else:
        at -= 1
        digits[at] = <char>(48 + v)
    while at < 24:
        out[length] = digits[at]
        length += 1
        at += 1
    return length


cdef int format_double(double value, char *out) noexcept nogil
cdef int format_float(float value, char *out) noexcept nogil
cdef int parse_int64(const char *p, int64_t length, int64_t *out) noexcept nogil
cdef int parse_double(const char *p, int64_t length, double *out) noexcept nogil
