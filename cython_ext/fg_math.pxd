# cython: language_level=3
"""The operations of the expression language (spec section 7), as loops."""

from libc.stdint cimport int32_t, int64_t

ctypedef double (*Unary)(double) noexcept nogil
ctypedef double (*Binary)(double, double) noexcept nogil


cdef enum Op:
    OP_LOAD = 0
    OP_EXPAND
    OP_RANDOM
    OP_NEGATE
    OP_ABSOLUTE
    OP_ADD
    OP_SUBTRACT
    OP_MULTIPLY
    OP_DIVIDE
    OP_LESS
    OP_LESS_EQUAL
    OP_GREATER
    OP_GREATER_EQUAL
    OP_EQUAL
    OP_NOT_EQUAL
    OP_BOTH
    OP_EITHER
    OP_SMALLER
    OP_LARGER
    OP_SELECT
    OP_UNARY
    OP_BINARY
    OP_HAVERSINE
    OP_REDUCE_FIRST          # what follows turns the elements of a unit into one
    OP_LENGTH
    OP_SUM
    OP_PRODUCT
    OP_MINIMUM
    OP_MAXIMUM
    OP_MEAN
    OP_SQUARED_NORM
    OP_NORM
    OP_VARIANCE
    OP_SAMPLE_VARIANCE
    OP_DEVIATION
    OP_SAMPLE_DEVIATION
    OP_DOT
    OP_DISTANCE
    OP_CORRELATION


ctypedef struct Operation:
    int32_t code
    Unary unary              # of OP_UNARY
    Binary binary            # of OP_BINARY


cdef int load_operation(Operation *operation, str name) except -1
cdef void elementwise(
    const Operation *operation, double *out, const double *a, const double *b,
    const double *c, const double *d, int64_t n) noexcept nogil
cdef double reduced(
    int32_t op, const double *a, const double *b, int64_t n) noexcept nogil
