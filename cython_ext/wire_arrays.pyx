# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""``ArrayProto`` messages checked, counted and gathered."""

from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t)
from libc.string cimport memcpy, memset

from cython_ext.wire_reader cimport (
    BAD_PACKED, FIXED32, FIXED64, LEN, MAX_DEPTH, TRUNCATED, VARINT, Fail,
    count_varints, fail_at, read_span, read_tag, read_varint, skip_field)

# Wire type of one value that is not packed, by field.
cdef int32_t[8] WIRE
WIRE[:] = [-1, -1, -1, FIXED32, FIXED64, VARINT, LEN, VARINT]


cdef void add_dim(Array *a, int64_t dim) noexcept nogil:
    if a.ndim < MAX_DIMS:
        a.dims[a.ndim] = dim
    if a.ndim <= MAX_DIMS:
        a.ndim += 1


cdef const uint8_t *scan_shape(
    const uint8_t *p, const uint8_t *end, int depth, Array *a, Fail *fail
) noexcept nogil:
    cdef uint32_t tag
    cdef uint64_t value
    cdef const uint8_t *stop
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return NULL
        if tag == (1 << 3 | VARINT):
            p = read_varint(p, end, &value, fail)
            if p != NULL:
                add_dim(a, <int64_t>value)
        elif tag == (1 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            while p != NULL and p < stop:
                p = read_varint(p, stop, &value, fail)
                if p != NULL:
                    add_dim(a, <int64_t>value)
        else:
            p = skip_field(p, end, tag, depth, fail)
        if p == NULL:
            return NULL
    return p


cdef const uint8_t *scan_value(
    uint32_t tag, const uint8_t *p, const uint8_t *end, Array *a, Fail *fail
) noexcept nogil:
    """One value or packed run of a value field, checked and counted."""
    cdef uint32_t field = tag >> 3
    cdef const uint8_t *stop
    cdef uint64_t value
    cdef int64_t count = 1
    cdef int64_t width = 4 if field == FLOAT_VAL else 8
    if (tag & 7) != LEN:
        a.runs[field] += 1
        a.count[field] += 1
        if a.first[field] == NULL:
            a.first[field] = p
        if (tag & 7) == VARINT:
            return read_varint(p, end, &value, fail)
        if end - p < width:
            return fail_at(fail, TRUNCATED, b"float" if width == 4 else b"double")
        return p + width
    p = read_span(p, end, &stop, fail)
    if p == NULL:
        return NULL
    if field == INT_VAL or field == INT64_VAL:
        count = count_varints(p, stop, fail)
        if count < 0:
            return NULL
    elif field != STRING_VAL:
        if (stop - p) % width:
            return fail_at(
                fail, BAD_PACKED, b"float" if width == 4 else b"double")
        count = (stop - p) // width
    if count == 0:
        return stop
    if a.first[field] == NULL:
        a.first[field] = p
    a.runs[field] += 1
    a.count[field] += count
    return stop


cdef int scan_array(
    const uint8_t *p, const uint8_t *end, int depth, Array *a, Fail *fail
) noexcept nogil:
    """Checks an ``ArrayProto`` and notes what is in it; 1 if it is broken."""
    cdef uint32_t tag, field
    cdef uint64_t value
    cdef const uint8_t *stop
    a.start = p
    a.end = end
    a.dtype = a.ndim = 0
    memset(a.count, 0, sizeof(a.count))
    memset(a.runs, 0, sizeof(a.runs))
    memset(<void *>a.first, 0, sizeof(a.first))
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        field = tag >> 3
        if FLOAT_VAL <= field <= INT64_VAL and (
            (tag & 7) == LEN or (tag & 7) == <uint32_t>WIRE[field]
        ):
            p = scan_value(tag, p, end, a, fail)
        elif tag == (DTYPE << 3 | VARINT):
            p = read_varint(p, end, &value, fail)
            a.dtype = <int32_t><uint32_t>value
        elif tag == (SHAPE << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p != NULL:
                p = scan_shape(p, stop, depth - 1, a, fail)
        else:
            p = skip_field(p, end, tag, depth, fail)
        if p == NULL:
            return 1
    return 0


ctypedef fused integer:
    int8_t
    int16_t
    int32_t
    int64_t


cdef const uint8_t *fill_ints(
    const uint8_t *p, const uint8_t *end, integer **out, int64_t *room,
    int64_t low, int64_t high, int64_t *wrong
) noexcept nogil:
    """Decodes varints until ``end``; NULL with ``wrong`` set if out of range."""
    cdef uint64_t value
    cdef int64_t number
    cdef Fail fail
    cdef integer *at = out[0]
    cdef int64_t left = room[0]
    while p < end and left > 0:
        p = read_varint(p, end, &value, &fail)
        if p == NULL:
            return NULL
        if integer is int64_t:
            number = <int64_t>value
        else:
            number = <int32_t><uint32_t>value
        if number < low or number > high:
            wrong[0] = number
            return NULL
        at[0] = <integer>number
        at += 1
        left -= 1
    out[0] = at
    room[0] = left
    return end


cdef const uint8_t *fill_run(
    uint32_t field, const uint8_t *p, const uint8_t *end, char **out,
    int64_t *room, int64_t width, int64_t low, int64_t high, int64_t *wrong
) noexcept nogil:
    """Appends one packed run (or one value) to ``out``."""
    cdef int64_t n
    if field == FLOAT_VAL or field == DOUBLE_VAL:
        n = (end - p) // width
        if n > room[0]:
            n = room[0]
        memcpy(out[0], p, n * width)
        out[0] += n * width
        room[0] -= n
        return end
    if width == 8:
        return fill_ints(p, end, <int64_t **>out, room, low, high, wrong)
    if width == 4:
        return fill_ints(p, end, <int32_t **>out, room, low, high, wrong)
    if width == 2:
        return fill_ints(p, end, <int16_t **>out, room, low, high, wrong)
    return fill_ints(p, end, <int8_t **>out, room, low, high, wrong)


cdef int fill_array(
    const Array *a, uint32_t field, char *out, int64_t room, int64_t width,
    int64_t low, int64_t high, int64_t *wrong
) noexcept nogil:
    """Gathers all values of a checked field; 1 if one is out of range."""
    cdef const uint8_t *p = a.start
    cdef const uint8_t *stop
    cdef const uint8_t *value
    cdef uint32_t tag
    cdef Fail fail
    while p < a.end:
        p = read_tag(p, a.end, &tag, &fail)
        if p == NULL:
            return 1
        if (tag >> 3) != field or (
            (tag & 7) != LEN and (tag & 7) != <uint32_t>WIRE[field]
        ):
            p = skip_field(p, a.end, tag, MAX_DEPTH, &fail)
            if p == NULL:
                return 1
            continue
        if (tag & 7) == LEN:
            value = read_span(p, a.end, &stop, &fail)
        else:
            value = p
            stop = skip_field(p, a.end, tag, MAX_DEPTH, &fail)
        if value == NULL or stop == NULL:
            return 1
        if fill_run(
            field, value, stop, &out, &room, width, low, high, wrong
        ) == NULL:
            return 1
        p = stop
    return 0
