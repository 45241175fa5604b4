# cython: language_level=3
"""``ArrayProto`` messages checked, counted and gathered."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from cython_ext.wire_reader cimport Fail

cdef enum:
    MAX_DIMS = 64            # as numpy


cdef enum Field:
    DTYPE = 1
    SHAPE = 2
    FLOAT_VAL = 3
    DOUBLE_VAL = 4
    INT_VAL = 5
    STRING_VAL = 6
    INT64_VAL = 7


ctypedef const uint8_t *address


ctypedef struct Array:
    # One ArrayProto, checked: spans into the body and counts by field.
    const uint8_t *name      # map key; NULL: positional
    const uint8_t *name_end
    bint dropped             # map entry with an unknown field: as upb, left out
    bint merged              # the span is a copy: see merge_values
    const uint8_t *start
    const uint8_t *end
    int32_t dtype
    int32_t ndim             # may be over MAX_DIMS: then not all are in dims
    int64_t[MAX_DIMS] dims
    int64_t[8] count
    int64_t[8] runs
    address[8] first


cdef int scan_array(
    const uint8_t *p, const uint8_t *end, int depth, Array *a, Fail *fail
) noexcept nogil
cdef int fill_array(
    const Array *a, uint32_t field, char *out, int64_t room, int64_t width,
    int64_t low, int64_t high, int64_t *wrong
) noexcept nogil
