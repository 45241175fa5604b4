# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""``PredictRequest`` bytes to arrays."""

import numpy as np

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer)
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport (
    INT32_MAX, INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t)
from libc.string cimport memcpy, memset

from procserver.errors import BadTensor, TooLarge, Undecodable

from cython_ext.arena cimport Arena
from cython_ext.wire_arrays cimport (
    DOUBLE_VAL, FLOAT_VAL, INT64_VAL, INT_VAL, MAX_DIMS, Array, fill_array,
    scan_array)
from cython_ext.wire_reader cimport (
    LEN, MAX_DEPTH, VARINT, Fail, fault_text, read_span, read_tag, read_text,
    read_varint, skip_field)

cdef enum:
    MAX_TENSORS = 1 << 14    # also indexes in output_filter

cdef int64_t MAX_ELEMENTS = INT64_MAX >> 4

cdef tuple FIELD_NAMES = (
    "", "dtype", "array_shape", "float_val", "double_val", "int_val",
    "string_val", "int64_val")

cdef tuple DTYPE_NAMES = (
    "DT_INVALID", "DT_FLOAT", "DT_DOUBLE", "DT_INT32", "DT_UINT8", "DT_INT16",
    "DT_INT8", "DT_STRING", "DT_COMPLEX64", "DT_INT64", "DT_BOOL", "DT_QINT8",
    "DT_QUINT8", "DT_QINT32", "DT_BFLOAT16", "DT_QINT16", "DT_QUINT16",
    "DT_UINT16", "DT_COMPLEX128", "DT_HALF", "DT_RESOURCE", "DT_VARIANT")

# ArrayDataType -> field that carries it, dtype of the array, values per element.
cdef dict CARRIERS = {
    1: (FLOAT_VAL, np.dtype(np.float32), 1),
    2: (DOUBLE_VAL, np.dtype(np.float64), 1),
    3: (INT_VAL, np.dtype(np.int32), 1),
    4: (INT_VAL, np.dtype(np.uint8), 1),
    5: (INT_VAL, np.dtype(np.int16), 1),
    6: (INT_VAL, np.dtype(np.int8), 1),
    8: (FLOAT_VAL, np.dtype(np.complex64), 2),
    9: (INT64_VAL, np.dtype(np.int64), 1),
    10: (INT_VAL, np.dtype(np.bool_), 1),
    11: (INT_VAL, np.dtype(np.int8), 1),
    12: (INT_VAL, np.dtype(np.uint8), 1),
    13: (INT_VAL, np.dtype(np.int32), 1),
    14: (FLOAT_VAL, np.dtype(np.float32), 1),
    15: (INT_VAL, np.dtype(np.int16), 1),
    16: (INT_VAL, np.dtype(np.uint16), 1),
    17: (INT_VAL, np.dtype(np.uint16), 1),
    18: (DOUBLE_VAL, np.dtype(np.complex128), 2),
    19: (FLOAT_VAL, np.dtype(np.float32), 1),
}


ctypedef struct Request:
    int32_t debug_level
    int64_t tensors
    int64_t positional
    int64_t filters
    Fail fail
    int64_t broken           # tensor that fail is about; -1: the request itself


cdef int scan_entry(
    const uint8_t *p, const uint8_t *end, int depth, Array *a, Arena arena,
    Fail *fail
) except -1 nogil:
    """A map entry; several values in it are merged as upb does."""
    cdef const uint8_t *start = p
    cdef const uint8_t *merged
    cdef const uint8_t *stop
    cdef uint8_t *copy
    cdef uint32_t tag
    cdef int64_t spans = 0, total = 0
    a.name = a.name_end = start
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag == (1 << 3 | LEN):
            p = read_text(p, end, &stop, fail)
            if p == NULL:
                return 1
            a.name = p
            a.name_end = stop
            p = stop
        elif tag == (2 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL or scan_array(p, stop, depth - 1, a, fail):
                return 1
            total += stop - p
            spans += 1
            p = stop
        else:
            a.dropped = True
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return 1
    if spans == 1:
        return 0
    if spans == 0:
        return scan_array(start, start, depth - 1, a, fail)
    copy = <uint8_t *>arena.alloc(total)
    merged = copy
    p = start
    while p != NULL and p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag != (2 << 3 | LEN):
            p = skip_field(p, end, tag, depth, fail)
            continue
        p = read_span(p, end, &stop, fail)
        if p == NULL or stop - p > total:
            return 1
        memcpy(copy, p, stop - p)
        copy += stop - p
        total -= stop - p
        p = stop
    a.merged = True
    return scan_array(merged, copy, depth - 1, a, fail)


cdef int walk_request(
    const uint8_t *p, const uint8_t *end, Request *r,
    Array *arrays, int32_t *filters, Arena arena
) except -1 nogil:
    """The whole message; without ``arrays`` only its top level is counted.

    Returns 1 with ``r.fail`` filled if the bytes are wrong.
    """
    cdef uint32_t tag
    cdef uint64_t value
    cdef const uint8_t *stop
    cdef Array *a
    cdef Fail *fail = &r.fail
    cdef int broken
    r.tensors = r.positional = r.filters = 0
    while p < end:
        r.broken = -1
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag == (1 << 3 | LEN) or tag == (3 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            if arrays != NULL:
                a = &arrays[r.tensors]
                a.name = a.name_end = NULL
                a.dropped = a.merged = False
                r.broken = r.tensors
                if tag == (1 << 3 | LEN):
                    broken = scan_array(p, stop, MAX_DEPTH - 1, a, fail)
                else:
                    broken = scan_entry(p, stop, MAX_DEPTH - 1, a, arena, fail)
                if broken:
                    return 1
            r.tensors += 1
            r.positional += tag == (1 << 3 | LEN)
            p = stop
        elif tag == (2 << 3 | VARINT):
            p = read_varint(p, end, &value, fail)
            if p != NULL:
                if filters != NULL:
                    filters[r.filters] = <int32_t><uint32_t>value
                r.filters += 1
        elif tag == (2 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            while p != NULL and p < stop:
                p = read_varint(p, stop, &value, fail)
                if p != NULL:
                    if filters != NULL:
                        filters[r.filters] = <int32_t><uint32_t>value
                    r.filters += 1
        elif tag == (100 << 3 | VARINT):
            p = read_varint(p, end, &value, fail)
            r.debug_level = <int32_t><uint32_t>value
        else:
            p = skip_field(p, end, tag, MAX_DEPTH, fail)
        if p == NULL:
            return 1
    return 0


cdef int64_t shape_product(const Array *a, where) except -1:
    cdef int64_t product = 1
    cdef bint empty = False
    cdef int i
    if a.ndim > MAX_DIMS:
        raise BadTensor(f"{where}: more than {MAX_DIMS} dimensions")
    for i in range(a.ndim):
        if a.dims[i] < 0:
            raise BadTensor(f"{where}: negative dimension {a.dims[i]}")
        empty |= a.dims[i] == 0
    for i in range(a.ndim):
        if a.dims[i] == 0:
            continue
        # Also beside a zero: numpy and torch compute strides from the rest.
        if product > MAX_ELEMENTS // a.dims[i]:
            raise BadTensor(
                f"{where}: the dimensions multiply to more than {MAX_ELEMENTS}")
        product *= a.dims[i]
    return 0 if empty else product


cdef tuple carrier_of(const Array *a, where):
    """Field, array dtype and values per element of the tensor's dtype."""
    carrier = CARRIERS.get(a.dtype)
    if carrier is not None:
        return carrier
    if a.dtype == 0:
        raise BadTensor(f"{where}: DT_INVALID (no dtype was set)")
    if 0 < a.dtype < len(DTYPE_NAMES):
        raise BadTensor(
            f"{where}: torch models take no {DTYPE_NAMES[a.dtype]} inputs")
    raise BadTensor(f"{where}: unknown dtype {a.dtype}")


cdef int check_fields(const Array *a, int field, where) except -1:
    """No values where the dtype does not look for them."""
    cdef int other
    for other in range(FLOAT_VAL, INT64_VAL + 1):
        if other != field and a.count[other]:
            raise BadTensor(
                f"{where}: {DTYPE_NAMES[a.dtype]} is read from "
                f"{FIELD_NAMES[field]}, which holds {a.count[field]} values; "
                f"{FIELD_NAMES[other]} holds {a.count[other]}")
    return 0


cdef object build_array(const Array *a, object body, const uint8_t *base, where):
    """The tensor as an array: over the body where aligned, else of its own."""
    cdef int64_t product, count
    cdef uint32_t field
    cdef int i
    cdef int64_t align, low = 0, high = 0, wrong = 0
    cdef Py_buffer buffer
    field, dtype, per_element = carrier_of(a, where)
    check_fields(a, field, where)
    product = shape_product(a, where)
    count = a.count[field]
    if count % per_element or count // per_element != product:
        pairs = " (pairs of them)" if per_element == 2 else ""
        raise BadTensor(
            f"{where}: shape {[a.dims[i] for i in range(a.ndim)]} has {product} "
            f"elements, but {FIELD_NAMES[field]} holds {count} values{pairs}")
    shape = tuple([a.dims[i] for i in range(a.ndim)])
    if product == 0:
        return np.empty(shape, dtype)
    align = 4 if field == FLOAT_VAL else 8
    if a.runs[field] == 1 and not a.merged and (
        field == FLOAT_VAL or field == DOUBLE_VAL
    ) and <uintptr_t>a.first[field] % <uintptr_t>align == 0:
        flat = np.frombuffer(body, dtype, product, a.first[field] - base)
        return flat if a.ndim == 1 else flat.reshape(shape)
    array = np.empty(shape, dtype)
    if field == INT64_VAL:
        low, high = -INT64_MAX - 1, INT64_MAX
    elif field == INT_VAL:
        if dtype.kind == "b":
            low, high = 0, 1
        else:
            limits = np.iinfo(dtype)
            low, high = limits.min, limits.max
    PyObject_GetBuffer(array, &buffer, PyBUF_WRITABLE)
    try:
        if fill_array(
            a, field, <char *>buffer.buf, count,
            dtype.itemsize // per_element, low, high, &wrong
        ):
            raise BadTensor(
                f"{where}: {wrong} is out of the range of {DTYPE_NAMES[a.dtype]}")
    finally:
        PyBuffer_Release(&buffer)
    return array


def decode_request(body):
    """Decodes a ``PredictRequest``.

    Returns ``(inputs, map_inputs, output_filter, debug_level)``, an input being
    ``(dtype, array)``; the first two are None if there are none.

    :raises Undecodable: if the bytes are not such a message
    :raises BadTensor: if dtype, shape and values of an input do not agree
    :raises TooLarge: for more than 16,384 tensors or indexes of outputs
    """
    cdef Py_buffer buffer
    PyObject_GetBuffer(body, &buffer, PyBUF_SIMPLE)
    try:
        return _decode(body, <const uint8_t *>buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


cdef str _where(const Array *arrays, int64_t i):
    cdef const Array *a = &arrays[i]
    cdef int64_t n = 0
    if a.name == NULL:
        for i in range(i):
            n += arrays[i].name == NULL
        return f"inputs[{n}]"
    name = a.name[:a.name_end - a.name].decode("utf-8", "replace")
    if len(name) > 100:
        name = name[:100] + "..."
    return f"map_inputs[{name!r}]"


cdef tuple _decode(body, const uint8_t *base, int64_t size):
    cdef Arena arena = Arena.__new__(Arena)
    cdef Request r
    cdef Array *arrays = NULL
    cdef int32_t *filters = NULL
    cdef int64_t i, place
    cdef int failed
    if size > INT32_MAX:
        raise TooLarge(f"body of {size} bytes; protobuf ends at {INT32_MAX}")
    memset(&r, 0, sizeof(Request))
    with nogil:
        failed = walk_request(base, base + size, &r, NULL, NULL, arena)
        if not failed and r.tensors <= MAX_TENSORS and r.filters <= MAX_TENSORS:
            arrays = <Array *>arena.alloc(r.tensors * sizeof(Array))
            filters = <int32_t *>arena.alloc(r.filters * sizeof(int32_t))
            failed = walk_request(base, base + size, &r, arrays, filters, arena)
    if failed:
        where = "request" if r.broken < 0 else _where(arrays, r.broken)
        raise Undecodable(f"{where}: {fault_text(&r.fail)}")
    if r.tensors > MAX_TENSORS:
        raise TooLarge(f"{r.tensors} tensors; at most {MAX_TENSORS} are read")
    if r.filters > MAX_TENSORS:
        # Two bytes on the wire become 36 in a list.
        raise TooLarge(
            f"output_filter of {r.filters}; at most {MAX_TENSORS} are read")
    cdef list inputs = []
    cdef dict named = {}
    for i in range(r.tensors):
        if arrays[i].name == NULL:
            inputs.append(i)
        elif not arrays[i].dropped:
            name = PyUnicode_DecodeUTF8(
                <const char *>arrays[i].name, arrays[i].name_end - arrays[i].name,
                NULL)
            named[name] = i
    for place in range(len(inputs)):
        i = inputs[place]
        inputs[place] = (
            arrays[i].dtype,
            build_array(&arrays[i], body, base, f"inputs[{place}]"))
    for name in named:
        i = named[name]
        named[name] = (
            arrays[i].dtype,
            build_array(&arrays[i], body, base, f"map_inputs[{name!r}]"))
    chosen = [filters[i] for i in range(r.filters)]
    return inputs or None, named or None, chosen, r.debug_level
