# cython: language_level=3
"""Protobuf primitives over ``(ptr, end)``; nothing here reads past ``end``.

Every reader returns the address behind what it read, or NULL after filling
``Fail``. What is accepted and refused is what upb accepts and refuses.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef enum:
    MAX_DEPTH = 100      # messages and groups inside each other, as upb


cdef enum WireType:
    VARINT = 0
    FIXED64 = 1
    LEN = 2
    GROUP = 3
    END_GROUP = 4
    FIXED32 = 5


cdef enum Fault:
    NO_FAULT = 0
    TRUNCATED
    LONG_VARINT
    BAD_TAG
    BAD_GROUP
    TOO_DEEP
    BAD_UTF8
    BAD_PACKED
    TOO_LONG


ctypedef struct Fail:
    int fault
    const char *what     # static ASCII text: what was being read


cdef const uint8_t *fail_at(
    Fail *fail, int fault, const char *what) noexcept nogil
cdef const uint8_t *read_long_varint(
    const uint8_t *p, const uint8_t *end, uint64_t *out, Fail *fail
) noexcept nogil
cdef const uint8_t *read_long_tag(
    const uint8_t *p, const uint8_t *end, uint32_t *tag, Fail *fail
) noexcept nogil
cdef const uint8_t *skip_field(
    const uint8_t *p, const uint8_t *end, uint32_t tag, int depth, Fail *fail
) noexcept nogil
cdef bint valid_utf8(const uint8_t *p, const uint8_t *end) noexcept nogil
cdef bint is_ascii(const uint8_t *p, int64_t n) noexcept nogil
cdef int64_t count_varints(
    const uint8_t *p, const uint8_t *end, Fail *fail) noexcept nogil
cdef str fault_text(const Fail *fail)


cdef inline const uint8_t *read_varint(
    const uint8_t *p, const uint8_t *end, uint64_t *out, Fail *fail
) noexcept nogil:
    if p < end and p[0] < 0x80:
        out[0] = p[0]
        return p + 1
    return read_long_varint(p, end, out, fail)


cdef inline const uint8_t *read_tag(
    const uint8_t *p, const uint8_t *end, uint32_t *tag, Fail *fail
) noexcept nogil:
    """A tag that may stand in a message: no end of a group, no field 0."""
    # Field numbers 1 to 15 with wire types 0, 1, 2, 3 and 5.
    if p < end and 8 <= p[0] < 0x80 and ((0x2F >> (p[0] & 7)) & 1):
        tag[0] = p[0]
        return p + 1
    return read_long_tag(p, end, tag, fail)


cdef inline const uint8_t *read_span(
    const uint8_t *p, const uint8_t *end, const uint8_t **stop, Fail *fail
) noexcept nogil:
    """A length and the span it announces: ``[returned, stop)``."""
    cdef uint64_t n
    stop[0] = end
    p = read_varint(p, end, &n, fail)
    if p == NULL:
        return NULL
    if n > <uint64_t>(end - p):
        return fail_at(fail, TRUNCATED, b"length-delimited field")
    stop[0] = p + n
    return p


cdef inline const uint8_t *read_text(
    const uint8_t *p, const uint8_t *end, const uint8_t **stop, Fail *fail
) noexcept nogil:
    """A span that is checked to be UTF-8."""
    p = read_span(p, end, stop, fail)
    if p != NULL and not valid_utf8(p, stop[0]):
        return fail_at(fail, BAD_UTF8, b"string")
    return p


cdef inline uint32_t load32(const uint8_t *p) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, p, 4)
    return bits


cdef inline uint64_t load64(const uint8_t *p) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, p, 8)
    return bits
