# cython: language_level=3
"""``ArrayProto`` and map entries written into memory of the right size."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy


ctypedef struct Tensor:
    # One output, measured: what will be written, and from where.
    Py_buffer buffer
    bint held
    int32_t dtype            # ArrayDataType
    int32_t field            # 3 float_val, 4 double_val, 5 int_val, 7 int64_val
    char format              # of the elements in memory
    int64_t count            # values on the wire
    int64_t payload          # bytes of the packed values
    int64_t shape            # bytes of the packed dims
    int64_t size             # bytes of the whole ArrayProto
    const char *name         # map key, UTF-8; NULL: positional
    Py_ssize_t name_size
    int64_t entry            # bytes of the map entry


cdef class Tensors:
    cdef Tensor *_tensors
    cdef int64_t _n
    cdef list _names

    cdef int64_t measure(self, outputs) except -1
    cdef uint8_t *write(self, uint8_t *p, uint8_t tag) noexcept nogil


cdef inline int64_t varint_size(uint64_t value) noexcept nogil:
    cdef int64_t n = 1
    while value >= 0x80:
        value >>= 7
        n += 1
    return n


cdef inline uint8_t *put_varint(uint8_t *p, uint64_t value) noexcept nogil:
    while value >= 0x80:
        p[0] = <uint8_t>(value | 0x80)
        value >>= 7
        p += 1
    p[0] = <uint8_t>value
    return p + 1


cdef inline int64_t field_size(int64_t n) noexcept nogil:
    """Bytes of a length-delimited field below 16 with ``n`` bytes in it."""
    return 1 + varint_size(<uint64_t>n) + n


cdef inline uint8_t *put_head(uint8_t *p, uint8_t tag, int64_t n) noexcept nogil:
    p[0] = tag
    return put_varint(p + 1, <uint64_t>n)


cdef inline uint8_t *put_bytes(
    uint8_t *p, uint8_t tag, const char *data, int64_t n
) noexcept nogil:
    p = put_head(p, tag, n)
    memcpy(p, data, n)
    return p + n
