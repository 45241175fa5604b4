# cython: language_level=3, boundscheck=False, wraparound=False
"""Protobuf primitives: varints, tags, skipping of unknown fields, UTF-8."""

from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    VARINT_BYTES = 10
    TAG_BYTES = 5


cdef const uint8_t *fail_at(
    Fail *fail, int fault, const char *what
) noexcept nogil:
    """Notes the fault; NULL, so that callers can return it."""
    fail.fault = fault
    fail.what = what
    return NULL


cdef const uint8_t *read_long_varint(
    const uint8_t *p, const uint8_t *end, uint64_t *out, Fail *fail
) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(VARINT_BYTES):
        if p >= end:
            return fail_at(fail, TRUNCATED, b"varint")
        # Bits above the 64th are dropped, as upb does.
        value |= <uint64_t>(p[0] & 0x7F) << (7 * i)
        if p[0] < 0x80:
            out[0] = value
            return p + 1
        p += 1
    return fail_at(fail, LONG_VARINT, b"varint")


cdef const uint8_t *_raw_tag(
    const uint8_t *p, const uint8_t *end, uint32_t *tag, Fail *fail
) noexcept nogil:
    """A tag that may also end a group."""
    cdef const uint8_t *start = p
    cdef uint64_t value
    p = read_varint(p, end, &value, fail)
    if p == NULL:
        fail.what = b"tag"
        return NULL
    if p - start > TAG_BYTES or value > UINT32_MAX or (value >> 3) == 0:
        return fail_at(fail, BAD_TAG, b"tag")
    if (value & 7) > FIXED32:
        return fail_at(fail, BAD_TAG, b"tag")
    tag[0] = <uint32_t>value
    return p


cdef const uint8_t *read_long_tag(
    const uint8_t *p, const uint8_t *end, uint32_t *tag, Fail *fail
) noexcept nogil:
    p = _raw_tag(p, end, tag, fail)
    if p != NULL and (tag[0] & 7) == END_GROUP:
        return fail_at(fail, BAD_GROUP, b"group")
    return p


cdef const uint8_t *_skip_value(
    const uint8_t *p, const uint8_t *end, uint32_t wire, Fail *fail
) noexcept nogil:
    """Skips anything but a group."""
    cdef const uint8_t *stop
    cdef uint64_t value
    if wire == VARINT:
        return read_varint(p, end, &value, fail)
    if wire == LEN:
        if read_span(p, end, &stop, fail) == NULL:
            return NULL
        return stop
    cdef int64_t width = 8 if wire == FIXED64 else 4
    if end - p < width:
        return fail_at(fail, TRUNCATED, b"unknown field")
    return p + width


cdef const uint8_t *skip_field(
    const uint8_t *p, const uint8_t *end, uint32_t tag, int depth, Fail *fail
) noexcept nogil:
    """Skips the value behind ``tag``; ``depth`` levels may still be opened."""
    cdef uint32_t[MAX_DEPTH] open_groups
    cdef int level = 0
    if (tag & 7) != GROUP:
        return _skip_value(p, end, tag & 7, fail)
    while True:
        if (tag & 7) == GROUP:
            if level >= depth or level >= MAX_DEPTH:
                return fail_at(fail, TOO_DEEP, b"group")
            open_groups[level] = tag >> 3
            level += 1
        elif (tag & 7) == END_GROUP:
            level -= 1
            if open_groups[level] != tag >> 3:
                return fail_at(fail, BAD_GROUP, b"group")
            if level == 0:
                return p
        else:
            p = _skip_value(p, end, tag & 7, fail)
            if p == NULL:
                return NULL
        p = _raw_tag(p, end, &tag, fail)
        if p == NULL:
            return NULL


cdef bint is_ascii(const uint8_t *p, int64_t n) noexcept nogil:
    cdef uint64_t bits = 0
    cdef int64_t i = 0
    while i + 8 <= n:
        bits |= load64(p + i)
        i += 8
    while i < n:
        bits |= p[i]
        i += 1
    return (bits & 0x8080808080808080ULL) == 0


cdef inline bint _follows(uint8_t byte) noexcept nogil:
    return (byte & 0xC0) == 0x80


cdef bint valid_utf8(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Well-formed UTF-8: no surrogates, no over-long forms, no more than U+10FFFF."""
    cdef uint8_t lead, second
    while p < end:
        if end - p >= 8 and (load64(p) & 0x8080808080808080ULL) == 0:
            p += 8
            continue
        lead = p[0]
        if lead < 0x80:
            p += 1
            continue
        if lead < 0xC2 or lead > 0xF4 or end - p < 2:
            return False
        second = p[1]
        if not _follows(second):
            return False
        if lead < 0xE0:
            p += 2
            continue
        if end - p < 3 or not _follows(p[2]):
            return False
        if lead < 0xF0:
            if lead == 0xE0 and second < 0xA0 or lead == 0xED and second > 0x9F:
                return False
            p += 3
            continue
        if end - p < 4 or not _follows(p[3]):
            return False
        if lead == 0xF0 and second < 0x90 or lead == 0xF4 and second > 0x8F:
            return False
        p += 4
    return True


cdef int64_t count_varints(
    const uint8_t *p, const uint8_t *end, Fail *fail
) noexcept nogil:
    """How many varints exactly fill the span; -1 if they do not."""
    cdef int64_t count = 0
    cdef int run = 0
    while p < end:
        if run == 0 and end - p >= 8 and (load64(p) & 0x8080808080808080ULL) == 0:
            count += 8
            p += 8
            continue
        if p[0] < 0x80:
            count += 1
            run = 0
        else:
            run += 1
            if run == VARINT_BYTES:
                fail_at(fail, LONG_VARINT, b"packed varint")
                return -1
        p += 1
    if run:
        fail_at(fail, TRUNCATED, b"packed varint")
        return -1
    return count


cdef str fault_text(const Fail *fail):
    """The fault in words, for an error message."""
    what = fail.what.decode("ascii")
    if fail.fault == TRUNCATED:
        return f"truncated {what}"
    if fail.fault == LONG_VARINT:
        return f"{what} of more than {VARINT_BYTES} bytes"
    if fail.fault == BAD_TAG:
        return "no valid field number or wire type"
    if fail.fault == BAD_GROUP:
        return "group that does not end as it began"
    if fail.fault == TOO_DEEP:
        return f"{what} nested deeper than {MAX_DEPTH} levels"
    if fail.fault == BAD_UTF8:
        return f"{what} that is not UTF-8"
    if fail.fault == TOO_LONG:
        return f"{what} of more than 2 GiB"
    return f"packed {what} values of a broken length"
