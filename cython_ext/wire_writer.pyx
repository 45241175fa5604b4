# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""``ArrayProto`` and map entries written into memory of the right size.

An output is measured first (its buffer held meanwhile), then all outputs are
written into one bytes object; float data is copied once, by memcpy.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer)
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport (
    INT32_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t)
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from collections.abc import Mapping

import numpy as np

from procserver.errors import PredictFailed

cdef enum:
    LEN = 2

ctypedef fused integer:
    int8_t
    uint8_t
    int16_t
    uint16_t
    int32_t
    int64_t


cdef int64_t size_ints(const integer *data, int64_t n) noexcept nogil:
    """Bytes of the values as varints (negative ones take ten)."""
    cdef int64_t total = 0, i
    for i in range(n):
        total += varint_size(<uint64_t><int64_t>data[i])
    return total


cdef uint8_t *put_ints(uint8_t *p, const integer *data, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        p = put_varint(p, <uint64_t><int64_t>data[i])
    return p


cdef int32_t measure_values(Tensor *t) noexcept nogil:
    """Fills dtype, field, count and payload by the format; 0 if it has none."""
    cdef const void *data = t.buffer.buf
    cdef int64_t n = t.count
    t.field = 5
    if t.format == b"f" or t.format == b"d":
        t.field = 3 if t.format == b"f" else 4
        t.payload = t.buffer.len
        return 1 if t.format == b"f" else 2
    if t.format == b"q" or t.format == b"l":
        t.field = 7
        t.payload = size_ints(<const int64_t *>data, n)
        return 9
    if t.format == b"i":
        t.payload = size_ints(<const int32_t *>data, n)
        return 3
    if t.format == b"B":
        t.payload = size_ints(<const uint8_t *>data, n)
        return 4
    if t.format == b"h":
        t.payload = size_ints(<const int16_t *>data, n)
        return 5
    if t.format == b"b" or t.format == b"?":
        # NOTE: torch's ArrayProto has no bool_val, and the Python SDK returns
        # nothing for DT_UINT8, so truth values go out as DT_INT8 0 and 1.
        t.payload = size_ints(<const int8_t *>data, n)
        return 6
    if t.format == b"H":
        t.payload = size_ints(<const uint16_t *>data, n)
        return 17
    return 0


cdef uint8_t *put_values(uint8_t *p, const Tensor *t) noexcept nogil:
    cdef const void *data = t.buffer.buf
    if t.field == 3 or t.field == 4:
        memcpy(p, data, t.payload)
        return p + t.payload
    if t.field == 7:
        return put_ints(p, <const int64_t *>data, t.count)
    if t.format == b"i":
        return put_ints(p, <const int32_t *>data, t.count)
    if t.format == b"B":
        return put_ints(p, <const uint8_t *>data, t.count)
    if t.format == b"h":
        return put_ints(p, <const int16_t *>data, t.count)
    if t.format == b"H":
        return put_ints(p, <const uint16_t *>data, t.count)
    return put_ints(p, <const int8_t *>data, t.count)


cdef uint8_t *put_array(uint8_t *p, const Tensor *t) noexcept nogil:
    cdef int i
    p[0] = 1 << 3
    p = put_varint(p + 1, t.dtype)
    # The shape message is there even when it is empty (a scalar).
    p = put_head(p, 2 << 3 | LEN, field_size(t.shape) if t.shape else 0)
    if t.shape:
        p = put_head(p, 1 << 3 | LEN, t.shape)
        for i in range(t.buffer.ndim):
            p = put_varint(p, <uint64_t>t.buffer.shape[i])
    if t.payload:
        p = put_head(p, <uint8_t>(t.field << 3 | LEN), t.payload)
        p = put_values(p, t)
    return p


cdef object _plain(array):
    """The array in a memory layout and dtype that can be written as it is."""
    array = np.asarray(array)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype == np.uint32:
        array = array.astype(np.int64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # ascontiguousarray would turn a scalar into one row.
    return np.require(array, requirements="C")


cdef bint _hold(array, Tensor *t) except -1:
    """Takes the array's buffer; False if it is not a plain one."""
    cdef const char *format
    PyObject_GetBuffer(array, &t.buffer, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    t.held = True
    format = t.buffer.format
    t.count = t.buffer.len // t.buffer.itemsize if t.buffer.itemsize else 0
    if format == NULL:
        t.format = b"B"
        return True
    if format[0] == b"@" or format[0] == b"=" or format[0] == b"<":
        format += 1
    t.format = format[0]
    if format[0] == b"Z" and (format[1] == b"f" or format[1] == b"d"):
        # Complex numbers are pairs of floats.
        t.format = format[1]
        t.count *= 2
        return True
    return format[0] != 0 and format[1] == 0


cdef int _measure(array, where, Tensor *t) except -1:
    cdef int i
    cdef bint plain = False
    try:
        plain = _hold(array, t)
    except (BufferError, ValueError, TypeError):
        pass
    t.dtype = measure_values(t) if plain else 0
    if t.dtype == 0:
        if t.held:
            PyBuffer_Release(&t.buffer)
            t.held = False
        dtype = getattr(array, "dtype", type(array).__name__)
        try:
            plain = _hold(_plain(array), t)
        except (BufferError, ValueError, TypeError):
            plain = False
        t.dtype = measure_values(t) if plain else 0
        if t.dtype == 0:
            raise PredictFailed(
                f"output {where!r} has dtype {dtype}, which the protocol lacks")
    if t.format == b"f" and t.buffer.itemsize == 8:
        t.dtype = 8
    elif t.format == b"d" and t.buffer.itemsize == 16:
        t.dtype = 18
    t.shape = 0
    for i in range(t.buffer.ndim):
        t.shape += varint_size(<uint64_t>t.buffer.shape[i])
    t.size = 1 + varint_size(t.dtype)
    t.size += field_size(field_size(t.shape) if t.shape else 0)
    if t.payload:
        t.size += field_size(t.payload)
    if t.size > INT32_MAX:
        raise PredictFailed(f"output {where!r} is over 2 GiB")
    return 0


cdef class Tensors:
    """The outputs of one response: measured, then written."""

    def __cinit__(self):
        self._tensors = NULL
        self._n = 0

    def __dealloc__(self):
        cdef int64_t i
        for i in range(self._n):
            if self._tensors[i].held:
                PyBuffer_Release(&self._tensors[i].buffer)
        free(self._tensors)

    cdef int64_t measure(self, outputs) except -1:
        """Bytes that ``write`` will write for a mapping or a sequence."""
        cdef Tensor *t
        cdef int64_t total = 0, n = len(outputs), i = 0
        cdef bint named = type(outputs) is dict or isinstance(outputs, Mapping)
        self._names = list(outputs) if named else None
        self._tensors = <Tensor *>calloc(n + 1, sizeof(Tensor))
        if self._tensors == NULL:
            raise MemoryError("outputs")
        self._n = n
        for i in range(n):
            t = &self._tensors[i]
            if named:
                name = self._names[i]
                t.name = PyUnicode_AsUTF8AndSize(name, &t.name_size)
                _measure(outputs[name], name, t)
                t.entry = field_size(t.name_size) + field_size(t.size)
                total += field_size(t.entry)
            else:
                _measure(outputs[i], i, t)
                total += field_size(t.size)
        return total

    cdef uint8_t *write(self, uint8_t *p, uint8_t tag) noexcept nogil:
        """Writes map entries or messages, each behind ``tag``."""
        cdef int64_t i
        cdef const Tensor *t
        for i in range(self._n):
            t = &self._tensors[i]
            if t.name == NULL:
                p = put_head(p, tag, t.size)
            else:
                p = put_head(p, tag, t.entry)
                p = put_bytes(p, 1 << 3 | LEN, t.name, t.name_size)
                p = put_head(p, 2 << 3 | LEN, t.size)
            p = put_array(p, t)
        return p
