# cython: language_level=3, boundscheck=False, cdivision=True
"""The operations of the expression language (spec section 7), as loops.

NOTE(7): where the C library has several answers, muParser's formula is written
out: asinh, acosh, atanh, log2, rint, sign, min and max.
"""

import os

from libc.math cimport (
    NAN, acos, asin, atan, atan2, ceil, cos, cosh, exp, floor, fmod, log, log10,
    pow, sin, sinh, sqrt, tan, tanh, trunc)
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <math.h>
    #include <stdint.h>
    #include <unistd.h>
    static uint64_t fg_expr_counter;
    /* Claims n numbers of one sequence for all threads. */
    static inline uint64_t fg_expr_claim(uint64_t n) {
        return __atomic_fetch_add(&fg_expr_counter, n, __ATOMIC_RELAXED);
    }
    """
    uint64_t fg_expr_counter
    uint64_t fg_expr_claim(uint64_t n) noexcept nogil
    double c_round "round"(double x) noexcept nogil
    int getpid() noexcept nogil

OPS = {
    "load": OP_LOAD, "expand": OP_EXPAND, "rnd": OP_RANDOM, "neg": OP_NEGATE,
    "abs": OP_ABSOLUTE, "+": OP_ADD, "-": OP_SUBTRACT, "*": OP_MULTIPLY,
    "/": OP_DIVIDE, "<": OP_LESS, "<=": OP_LESS_EQUAL, ">": OP_GREATER,
    ">=": OP_GREATER_EQUAL, "==": OP_EQUAL, "!=": OP_NOT_EQUAL, "&&": OP_BOTH,
    "||": OP_EITHER, "min": OP_SMALLER, "max": OP_LARGER, "?:": OP_SELECT,
    "haversine": OP_HAVERSINE,
    "len": OP_LENGTH, "reduce_sum": OP_SUM, "reduce_prod": OP_PRODUCT,
    "reduce_min": OP_MINIMUM, "reduce_max": OP_MAXIMUM, "reduce_mean": OP_MEAN,
    "squared_norm": OP_SQUARED_NORM, "l2_norm": OP_NORM, "variance": OP_VARIANCE,
    "pop_variance": OP_SAMPLE_VARIANCE, "std_dev": OP_DEVIATION,
    "pop_std_dev": OP_SAMPLE_DEVIATION, "dot": OP_DOT,
    "euclid_dist": OP_DISTANCE, "corr": OP_CORRELATION,
}


# ---------------------------------------------------------- scalar functions

cdef double _asinh(double v) noexcept nogil:
    return log(v + sqrt(v * v + 1))


cdef double _acosh(double v) noexcept nogil:
    return log(v + sqrt(v * v - 1))


cdef double _atanh(double v) noexcept nogil:
    return 0.5 * log((1 + v) / (1 - v))


cdef double _log2(double v) noexcept nogil:
    return log(v) / log(2.0)


cdef double _rint(double v) noexcept nogil:
    return floor(v + 0.5)


cdef double _sign(double v) noexcept nogil:
    return -1 if v < 0 else 1 if v > 0 else 0


cdef double _cot(double v) noexcept nogil:
    return 1 / tan(v)


cdef double _coth(double v) noexcept nogil:
    return 1 / tanh(v)


cdef double _sigmoid(double v) noexcept nogil:
    return 1 / (1 + exp(-v))


cdef double _isnan(double v) noexcept nogil:
    return v != v


cdef double _roundp(double x, double places) noexcept nogil:
    """``x`` rounded half away from zero to a number of decimal places."""
    cdef double scale = pow(10, places)
    return c_round(x * scale) / scale


cdef inline int64_t _truncated(double v) noexcept nogil:
    # NOTE(14.8): bits of what no int64 can hold: what an x86 cast gives.
    if not (v >= -9223372036854775808.0 and v < 9223372036854775808.0):
        return INT64_MIN
    return <int64_t>v


cdef double _bit_and(double a, double b) noexcept nogil:
    return <double>(_truncated(a) & _truncated(b))


cdef double _bit_or(double a, double b) noexcept nogil:
    return <double>(_truncated(a) | _truncated(b))


cdef double _haversine(
    double lng1, double lat1, double lng2, double lat2
) noexcept nogil:
    """Great-circle kilometres between two points given in degrees."""
    # NOTE(14.16): a sphere of 6371 km; sphere_dist and haversine are one formula.
    cdef double radian = 0.017453292519943295
    cdef double across = sin((lng2 - lng1) * radian / 2)
    cdef double up = sin((lat2 - lat1) * radian / 2)
    cdef double h = up * up + (
        cos(lat1 * radian) * cos(lat2 * radian) * across * across)
    return 12742.0 * asin(sqrt(1.0 if h > 1 else h))


UNARY = (
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
    "acosh", "atanh", "log", "log2", "log10", "exp", "sqrt", "sign", "rint",
    "floor", "ceil", "trunc", "round", "sigmoid", "isnan", "cot", "coth")
BINARY = ("^", "mod", "atan2", "roundp", "&", "|")

cdef Unary[27] UNARY_CODE = [
    sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, _asinh, _acosh, _atanh, log,
    _log2, log10, exp, sqrt, _sign, _rint, floor, ceil, trunc, c_round, _sigmoid,
    _isnan, _cot, _coth]
cdef Binary[6] BINARY_CODE = [pow, fmod, atan2, _roundp, _bit_and, _bit_or]


# ------------------------------------------------------------- random numbers

cdef uint64_t _STEP = 0x9E3779B97F4A7C15
fg_expr_counter = int.from_bytes(os.urandom(8), "little")


cdef inline double _uniform(uint64_t state) noexcept nogil:
    """SplitMix64's output for a state, as a double in [0, 1)."""
    state = (state ^ (state >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * <uint64_t>0x94D049BB133111EB
    return <double>((state ^ (state >> 31)) >> 11) * 1.1102230246251565e-16


cdef void _random(double *out, int64_t n) noexcept nogil:
    # NOTE: the pid tells apart workers that were forked after the import.
    cdef uint64_t state = fg_expr_claim(<uint64_t>n) + (<uint64_t>getpid() << 40)
    cdef int64_t i
    for i in range(n):
        out[i] = _uniform((state + <uint64_t>i) * _STEP)


# -------------------------------------------------------------------- loops

cdef void elementwise(
    const Operation *operation, double *out, const double *a, const double *b,
    const double *c, const double *d, int64_t n
) noexcept nogil:
    """One operation over ``n`` elements; ``out`` overlaps no argument."""
    cdef int64_t i
    cdef int32_t op = operation.code
    cdef double x, y
    cdef Unary unary
    cdef Binary binary
    if op == OP_UNARY:
        unary = operation.unary
        for i in range(n):
            out[i] = unary(a[i])
    elif op == OP_BINARY:
        binary = operation.binary
        for i in range(n):
            out[i] = binary(a[i], b[i])
    elif op == OP_ADD:
        for i in range(n):
            out[i] = a[i] + b[i]
    elif op == OP_SUBTRACT:
        for i in range(n):
            out[i] = a[i] - b[i]
    elif op == OP_MULTIPLY:
        for i in range(n):
            out[i] = a[i] * b[i]
    elif op == OP_DIVIDE:
        for i in range(n):
            out[i] = a[i] / b[i]
    elif op == OP_NEGATE:
        for i in range(n):
            out[i] = -a[i]
    elif op == OP_ABSOLUTE:
        for i in range(n):
            out[i] = a[i] if a[i] >= 0 else -a[i]
    elif op == OP_LESS:
        for i in range(n):
            out[i] = 1.0 if a[i] < b[i] else 0.0
    elif op == OP_LESS_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] <= b[i] else 0.0
    elif op == OP_GREATER:
        for i in range(n):
            out[i] = 1.0 if a[i] > b[i] else 0.0
    elif op == OP_GREATER_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] >= b[i] else 0.0
    elif op == OP_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] == b[i] else 0.0
    elif op == OP_NOT_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] != b[i] else 0.0
    elif op == OP_BOTH:
        for i in range(n):
            out[i] = 1.0 if (a[i] != 0) & (b[i] != 0) else 0.0
    elif op == OP_EITHER:
        for i in range(n):
            out[i] = 1.0 if (a[i] != 0) | (b[i] != 0) else 0.0
    elif op == OP_SMALLER:
        for i in range(n):
            out[i] = b[i] if b[i] < a[i] else a[i]
    elif op == OP_LARGER:
        for i in range(n):
            out[i] = b[i] if a[i] < b[i] else a[i]
    elif op == OP_SELECT:
        # PERF: both are read whatever the condition, so that the loop becomes
        # vector instructions.
        for i in range(n):
            x = b[i]
            y = c[i]
            out[i] = x if a[i] != 0 else y
    elif op == OP_HAVERSINE:
        for i in range(n):
            out[i] = _haversine(a[i], b[i], c[i], d[i])
    elif op == OP_RANDOM:
        _random(out, n)


cdef double _sum(const double *a, int64_t n) noexcept nogil:
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += a[i]
    return total


cdef double _squares(const double *a, const double *b, int64_t n) noexcept nogil:
    """Sum of squared differences."""
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += (a[i] - b[i]) * (a[i] - b[i])
    return total


cdef double _dot(const double *a, const double *b, int64_t n) noexcept nogil:
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += a[i] * b[i]
    return total


cdef double _spread(const double *a, int64_t n) noexcept nogil:
    """Sum of squared differences from the mean."""
    cdef double mean = _sum(a, n) / <double>n
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += (a[i] - mean) * (a[i] - mean)
    return total


cdef double _correlation(const double *a, const double *b, int64_t n) noexcept nogil:
    """Pearson's; not a number where a side does not vary."""
    cdef double mean_a = _sum(a, n) / <double>n
    cdef double mean_b = _sum(b, n) / <double>n
    cdef double together = 0
    cdef int64_t i
    for i in range(n):
        together += (a[i] - mean_a) * (b[i] - mean_b)
    return together / sqrt(_spread(a, n) * _spread(b, n))


cdef double reduced(
    int32_t op, const double *a, const double *b, int64_t n
) noexcept nogil:
    """One vector function of ``n`` (at least one) elements."""
    cdef double found
    cdef int64_t i
    # NOTE(7): std_dev and variance divide by n, the pop_ versions by n - 1: the
    # names are upside down, and so upstream.
    if op == OP_LENGTH:
        return <double>n
    if op == OP_SUM:
        return _sum(a, n)
    if op == OP_MEAN:
        return _sum(a, n) / <double>n
    if op == OP_SQUARED_NORM:
        return _dot(a, a, n)
    if op == OP_NORM:
        return sqrt(_dot(a, a, n))
    if op == OP_VARIANCE:
        return _spread(a, n) / <double>n
    if op == OP_SAMPLE_VARIANCE:
        return _spread(a, n) / <double>(n - 1)
    if op == OP_DEVIATION:
        return sqrt(_spread(a, n) / <double>n)
    if op == OP_SAMPLE_DEVIATION:
        return sqrt(_spread(a, n) / <double>(n - 1))
    if op == OP_DOT:
        return _dot(a, b, n)
    if op == OP_DISTANCE:
        return sqrt(_squares(a, b, n))
    if op == OP_CORRELATION:
        return _correlation(a, b, n)
    found = a[0]
    for i in range(1, n):
        if op == OP_PRODUCT:
            found *= a[i]
        elif op == OP_MINIMUM:
            found = a[i] if a[i] < found else found
        else:
            found = a[i] if found < a[i] else found
    return found


# ------------------------------------------------------------- finding by name

cdef int load_operation(Operation *operation, str name) except -1:
    """Finds an operation by the name that the reader gives it."""
    operation.unary = NULL
    operation.binary = NULL
    if name in UNARY:
        operation.code = OP_UNARY
        operation.unary = UNARY_CODE[<int>UNARY.index(name)]
    elif name in BINARY:
        operation.code = OP_BINARY
        operation.binary = BINARY_CODE[<int>BINARY.index(name)]
    else:
        operation.code = OPS[name]
    return 0


def fold(str name not None, arguments) -> float:
    """One element-wise operation on numbers, exactly as programs compute it."""
    cdef Operation operation
    cdef double[4] args
    cdef double out = NAN
    memset(&args, 0, sizeof(args))
    load_operation(&operation, name)
    if not OP_RANDOM < operation.code < OP_REDUCE_FIRST or len(arguments) > 4:
        raise ValueError(f"{name} is not element-wise")
    for i, argument in enumerate(arguments):
        args[<int>i] = argument
    elementwise(
        &operation, &out, &args[0], &args[1], &args[2], &args[3], 1)
    return out
