# cython: language_level=3, cdivision=True
"""Numbers to text and text to numbers, without locale and without the GIL.

Float texts are the shortest that read back as the same number, laid out as
Python's ``repr`` does except that integral values carry no ``.0``.
"""

from libc.math cimport INFINITY, NAN, isinf, isnan
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from "locale.h" nogil:
    ctypedef struct __locale_struct:
        pass
    ctypedef __locale_struct *locale_t
    int LC_ALL_MASK
    locale_t newlocale(int mask, const char *name, locale_t base)

cdef extern from "stdlib.h" nogil:
    double strtod_l(const char *text, char **end, locale_t locale)

cdef enum:
    MAX_DIGITS = 17
    EXACT_POWERS = 22
    LARGEST_FIXED = 16       # 1e16 and above are written with an exponent
    SMALLEST_FIXED = -4

# NOTE: another library may set LC_NUMERIC; numbers in features use a point.
cdef locale_t C_LOCALE = newlocale(LC_ALL_MASK, "C", NULL)

cdef double[23] POWERS
POWERS[:] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
    1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
]


# ------------------------------------------------------------ text to number

cdef inline bint _is_space(char c) noexcept nogil:
    return c == 32 or (9 <= c <= 13)


cdef inline bint _is_digit(char c) noexcept nogil:
    return 48 <= c <= 57


cdef int parse_int64(const char *p, int64_t length, int64_t *out) noexcept nogil:
    """Reads ``[spaces][+-]digits`` to its end.

    Returns PARSED, OUT_OF_RANGE (``out`` is then the nearest int64) or
    NOT_A_NUMBER.
    """
    cdef const char *end = p + length
    cdef bint negative = False
    cdef bint overflow = False
    cdef uint64_t value = 0
    cdef uint64_t limit = <uint64_t>INT64_MAX
    cdef uint64_t digit
    while p != end and _is_space(p[0]):
        p += 1
    if p != end and (p[0] == 43 or p[0] == 45):
        negative = p[0] == 45
        p += 1
    if p == end:
        return NOT_A_NUMBER
    if negative:
        limit += 1
    while p != end:
        if not _is_digit(p[0]):
            return NOT_A_NUMBER
        digit = <uint64_t>(p[0] - 48)
        if not overflow:
            if value > (limit - digit) // 10:
                overflow = True
            else:
                value = value * 10 + digit
        p += 1
    if overflow:
        out[0] = INT64_MIN if negative else INT64_MAX
        return OUT_OF_RANGE
    out[0] = <int64_t>(0 - value) if negative else <int64_t>value
    return PARSED


cdef bint _same_letters(
    const char *p, const char *end, const char *word, int64_t length
) noexcept nogil:
    cdef int64_t i
    if end - p != length:
        return False
    for i in range(length):
        if (p[i] | 32) != word[i]:
            return False
    return True


cdef int _parse_slowly(const char *p, int64_t length, double *out) noexcept nogil:
    """Correctly rounded reading of a text already known to be a number."""
    cdef char[128] small
    cdef char *text = small
    cdef char *end
    if length >= 128:
        text = <char *>malloc(length + 1)
        if text == NULL:
            return NOT_A_NUMBER
    memcpy(text, p, length)
    text[length] = 0
    out[0] = strtod_l(text, &end, C_LOCALE)
    if text != small:
        free(text)
    return PARSED


cdef int parse_double(const char *p, int64_t length, double *out) noexcept nogil:
    """Reads a decimal number, ``inf``, ``infinity`` or ``nan``, to its end.

    ASCII white space around it is allowed. Returns PARSED or NOT_A_NUMBER.
    """
    cdef const char *end = p + length
    cdef const char *start
    cdef const char *number
    cdef bint negative = False
    cdef bint exponent_negative = False
    cdef uint64_t mantissa = 0
    cdef int64_t kept = 0
    cdef int64_t digits = 0
    cdef int64_t scale = 0
    cdef int64_t exponent = 0
    while p != end and _is_space(p[0]):
        p += 1
    while p != end and _is_space(end[-1]):
        end -= 1
    number = p
    if p != end and (p[0] == 43 or p[0] == 45):
        negative = p[0] == 45
        p += 1
    if p == end:
        return NOT_A_NUMBER
    if not _is_digit(p[0]) and p[0] != 46:
        if _same_letters(p, end, b"inf", 3) or _same_letters(p, end, b"infinity", 8):
            out[0] = -INFINITY if negative else INFINITY
            return PARSED
        if _same_letters(p, end, b"nan", 3):
            out[0] = NAN
            return PARSED
        return NOT_A_NUMBER
    while p != end and _is_digit(p[0]):
        digits += 1
        if mantissa or p[0] != 48:
            kept += 1
            if kept <= 18:
                mantissa = mantissa * 10 + <uint64_t>(p[0] - 48)
        p += 1
    if p != end and p[0] == 46:
        p += 1
        while p != end and _is_digit(p[0]):
            digits += 1
            if kept < 18:
                scale -= 1
            if mantissa or p[0] != 48:
                kept += 1
                if kept <= 18:
                    mantissa = mantissa * 10 + <uint64_t>(p[0] - 48)
            p += 1
    if digits == 0:
        return NOT_A_NUMBER
    if p != end and (p[0] | 32) == 101:
        p += 1
        if p != end and (p[0] == 43 or p[0] == 45):
            exponent_negative = p[0] == 45
            p += 1
        start = p
        while p != end and _is_digit(p[0]):
            if exponent < 100000:
                exponent = exponent * 10 + (p[0] - 48)
            p += 1
        if p == start:
            return NOT_A_NUMBER
        scale += -exponent if exponent_negative else exponent
    if p != end:
        return NOT_A_NUMBER
    # PERF: with both factors exact in a double, one rounding is the right one.
    if kept <= 18 and mantissa <= (<uint64_t>1 << 53) and (
        -EXACT_POWERS <= scale <= EXACT_POWERS
    ):
        if scale < 0:
            out[0] = <double>mantissa / POWERS[-scale]
        else:
            out[0] = <double>mantissa * POWERS[scale]
        if negative:
            out[0] = -out[0]
        return PARSED
    return _parse_slowly(number, end - number, out)


# ------------------------------------------------------------ number to text

cdef bint _reads_back(
    const char *digits, int count, int exponent, double value, bint single
) noexcept nogil:
    """Whether ``d.ddd * 10**exponent`` is read as ``value``."""
    cdef char[NUMBER_CHARS] text
    cdef double back = 0
    cdef int length = count
    memcpy(text, digits, count)
    text[length] = 101
    length += 1
    length += format_int64(exponent - (count - 1), text + length)
    parse_double(text, length, &back)
    if single:
        return <float>back == <float>value
    return back == value


cdef bint _neighbour_reads_back(
    char *digits, int count, int exponent, double value, bint single, int step
) noexcept nogil:
    """Tries the last digit plus ``step`` (1 or -1); keeps it if that reads back."""
    cdef char last = digits[count - 1]
    if not 48 <= last + step <= 57:
        return False
    digits[count - 1] = <char>(last + step)
    if _reads_back(digits, count, exponent, value, single):
        return True
    digits[count - 1] = last
    return False


cdef int _shortest(
    double value, bint single, char *digits, int *exponent
) noexcept nogil:
    """The fewest digits of positive ``value`` that read back; their count."""
    cdef char[48] text
    cdef int first = 6 if single else 15
    cdef int count, i, at, power
    cdef bint negative
    # A subnormal has fewer digits of precision than a normal number.
    if value < (1.1754943508222875e-38 if single else 2.2250738585072014e-308):
        first = 1
    for count in range(first, MAX_DIGITS + 1):
        snprintf(text, 48, "%.*e", count - 1, value)
        i = 0
        at = 0
        while text[i] != 101:
            if _is_digit(text[i]):
                digits[at] = text[i]
                at += 1
            i += 1
        negative = text[i + 1] == 45
        i += 2
        power = 0
        while text[i] != 0:
            power = power * 10 + (text[i] - 48)
            i += 1
        exponent[0] = -power if negative else power
        if _reads_back(digits, count, exponent[0], value, single):
            break
        # NOTE: just above a power of two the gap below is half the gap above,
        # so the neighbour of the nearest decimal may read back instead.
        if count < MAX_DIGITS and (
            _neighbour_reads_back(digits, count, exponent[0], value, single, 1)
            or _neighbour_reads_back(digits, count, exponent[0], value, single, -1)
        ):
            break
    while count > 1 and digits[count - 1] == 48:
        count -= 1
    return count


cdef int _layout(
    const char *digits, int count, int exponent, char *out
) noexcept nogil:
    """Fixed or exponent notation, as ``repr`` chooses; returns the length.

    NOTE(14.9): integral values have no ``.0``; float32 and float64 alike.
    """
    cdef int n = 0
    cdef int i, _i
    if SMALLEST_FIXED <= exponent < LARGEST_FIXED:
        if exponent < 0:
            out[0] = 48
            out[1] = 46
            n = 2
            for _i in range(-exponent - 1):
                out[n] = 48
                n += 1
        for i in range(count):
            if exponent >= 0 and i == exponent + 1:
                out[n] = 46
                n += 1
            out[n] = digits[i]
            n += 1
        for _i in range(count, exponent + 1):
            out[n] = 48
            n += 1
        return n
    out[0] = digits[0]
    n = 1
    if count > 1:
        out[n] = 46
        n += 1
        for i in range(1, count):
            out[n] = digits[i]
            n += 1
    out[n] = 101
    out[n + 1] = 45 if exponent < 0 else 43
    n += 2
    if exponent < 0:
        exponent = -exponent
    if exponent < 10:
        out[n] = 48
        n += 1
    return n + format_int64(exponent, out + n)


cdef int _format(double value, bint single, char *out) noexcept nogil:
    cdef char[MAX_DIGITS + 1] digits
    cdef int exponent = 0
    cdef int count
    cdef int sign = 0
    if isnan(value):
        memcpy(out, b"nan", 3)
        return 3
    if -9007199254740992.0 <= value <= 9007199254740992.0 and (
        value == <double><int64_t>value and value != 0 and not single
    ):
        # PERF: an integral double is exact in int64; no search is needed.
        return format_int64(<int64_t>value, out)
    if value < 0 or (value == 0 and 1 / value < 0):
        out[0] = 45
        sign = 1
        value = -value
    if isinf(value):
        memcpy(out + sign, b"inf", 3)
        return sign + 3
    if value == 0:
        out[sign] = 48
        return sign + 1
    count = _shortest(value, single, digits, &exponent)
    return sign + _layout(digits, count, exponent, out + sign)


cdef int format_double(double value, char *out) noexcept nogil:
    """Writes the shortest text of a float64 (at most NUMBER_CHARS)."""
    return _format(value, False, out)


cdef int format_float(float value, char *out) noexcept nogil:
    """Writes the shortest text of a float32 (at most NUMBER_CHARS)."""
    return _format(value, True, out)


# ------------------------------------------------------------- Python's face

def number_text(value: float, *, bint single=False) -> bytes:
    """The text that a float (``single``: float32) becomes in an id feature."""
    cdef char[NUMBER_CHARS] out
    cdef int length
    if single:
        length = format_float(<float><double>value, out)
    else:
        length = format_double(value, out)
    return out[:length]


def integer_text(int64_t value) -> bytes:
    """The decimal text of an int64."""
    cdef char[NUMBER_CHARS] out
    cdef int length = format_int64(value, out)
    return out[:length]


def read_number(bytes text not None) -> float | None:
    """The number that ``text`` is, or None."""
    cdef double value = 0
    if parse_double(text, len(text), &value) != PARSED:
        return None
    return value


def read_integer(bytes text not None) -> int | None:
    """The integer that ``text`` is (clamped to int64), or None."""
    cdef int64_t value = 0
    if parse_int64(text, len(text), &value) == NOT_A_NUMBER:
        return None
    return value
