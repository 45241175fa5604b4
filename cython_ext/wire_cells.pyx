# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""``PBFeature`` messages checked and measured: the first pass.

Every byte is checked here; what comes out is one ``Cell`` per feature: its
kind, the span of its values, how many there are and how much text they hold.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    INT32, INT64, LIST, LISTS, STRING, kind_key, kind_shape, kind_value,
    scalar_width)
from cython_ext.wire_reader cimport (
    BAD_PACKED, LEN, Fail, count_varints, fail_at, read_span, read_tag, skip_field)

ctypedef const char *static_text
cdef static_text[6] TEXTS
TEXTS[:] = [b"value", b"int32", b"int64", b"string", b"float", b"double"]

cdef uint8_t EMPTY = 0


cdef const char *scalar_text(int32_t scalar) noexcept nogil:
    """What protobuf calls the scalar, for messages."""
    return TEXTS[scalar]


cdef void clear_item(Item *item) noexcept nogil:
    item.bits = 0
    item.data = &EMPTY
    item.end = &EMPTY


cdef const uint8_t *scan_list(
    int32_t scalar, const uint8_t *p, const uint8_t *end, int depth,
    Cell *cell, Fail *fail
) noexcept nogil:
    """Checks an ``IntList`` to ``StringList`` and adds its values up."""
    cdef uint32_t tag
    cdef const uint8_t *stop
    cdef int64_t count
    cdef Item item
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return NULL
        if tag == scalar_tag(1, scalar):
            p = read_item(scalar, p, end, &item, fail)
            if p == NULL:
                return NULL
            cell.count += 1
            if scalar == STRING:
                cell.text += item.end - item.data
        elif tag == (1 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return NULL
            if scalar == INT32 or scalar == INT64:
                count = count_varints(p, stop, fail)
                if count < 0:
                    return NULL
                cell.count += count
            else:
                if (stop - p) % scalar_width(scalar):
                    return fail_at(fail, BAD_PACKED, scalar_text(scalar))
                cell.count += (stop - p) // scalar_width(scalar)
            p = stop
        else:
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return NULL
    return p


cdef const uint8_t *read_entry(
    int32_t key, int32_t value, const uint8_t *p, const uint8_t *end, int depth,
    MapEntry *entry, Fail *fail
) noexcept nogil:
    """A map entry with scalar value; what is missing is zero or ``""``.

    NOTE: an entry with an unknown field in it is dropped as a whole, as upb
    does (it is kept among the unknown fields of the map).
    """
    cdef uint32_t tag
    clear_item(&entry.key)
    clear_item(&entry.value)
    entry.dropped = False
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return NULL
        if tag == scalar_tag(1, key):
            p = read_item(key, p, end, &entry.key, fail)
        elif tag == scalar_tag(2, value):
            p = read_item(value, p, end, &entry.value, fail)
        else:
            entry.dropped = True
            p = skip_field(p, end, tag, depth, fail)
        if p == NULL:
            return NULL
    return p


cdef const uint8_t *scan_payload(
    int32_t kind, const uint8_t *p, const uint8_t *end, int depth,
    Cell *cell, Fail *fail
) noexcept nogil:
    """Checks the message of a list, list of lists or map, and adds it up."""
    cdef int32_t shape = kind_shape(kind), scalar = kind_value(kind)
    cdef uint32_t tag
    cdef const uint8_t *stop
    cdef MapEntry entry
    if shape == LIST:
        return scan_list(scalar, p, end, depth, cell, fail)
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return NULL
        if tag != (1 << 3 | LEN):
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return NULL
            continue
        p = read_span(p, end, &stop, fail)
        if p == NULL:
            return NULL
        if shape == LISTS:
            cell.inner += 1
            p = scan_list(scalar, p, stop, depth - 1, cell, fail)
        else:
            p = read_entry(
                kind_key(kind), scalar, p, stop, depth - 1, &entry, fail)
            if p != NULL and not entry.dropped:
                cell.count += 1
                cell.text += entry.value.end - entry.value.data
                cell.key_text += entry.key.end - entry.key.data
        if p == NULL:
            return NULL
    return p


cdef int merge_payload(
    const uint8_t *p, const uint8_t *end, uint32_t tag, int64_t total, int depth,
    Arena scratch, Item *span
) except -1 nogil:
    """Points ``span`` at all occurrences of a message field, end to end.

    Serialised messages merge by concatenation. The bytes have been checked.
    """
    cdef uint32_t found
    cdef const uint8_t *stop
    cdef Fail fail
    cdef uint8_t *copy = <uint8_t *>scratch.alloc(total)
    span.data = copy
    while p < end:
        p = read_tag(p, end, &found, &fail)
        if p == NULL:
            break
        if found != tag:
            p = skip_field(p, end, found, depth, &fail)
            if p == NULL:
                break
            continue
        p = read_span(p, end, &stop, &fail)
        if p == NULL or stop - p > total:
            break
        memcpy(copy, p, stop - p)
        copy += stop - p
        total -= stop - p
        p = stop
    span.end = copy
    return 0


cdef int scan_feature(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena scratch, Cell *cell, Fail *fail
) except -1 nogil:
    """Checks one ``PBFeature``; the last alternative wins, messages merge.

    Returns 1 with ``fail`` filled if the bytes are wrong.
    """
    cdef const uint8_t *start
    cdef const uint8_t *first = p
    cdef const uint8_t *stop
    cdef uint32_t tag, kind, last = 0
    cdef int64_t spans = 0, total = 0
    memset(cell, 0, sizeof(Cell))
    clear_item(&cell.item)
    while p < end:
        start = p
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        kind = tag >> 3
        if kind < FIRST_MAP and tag == scalar_tag(kind, kind):
            p = read_item(kind, p, end, &cell.item, fail)
            if p == NULL:
                return 1
            cell.kind = kind
            spans = 0
        elif FIRST_MAP <= kind <= LAST_KIND and (tag & 7) == LEN:
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            if spans == 0 or cell.kind != <int32_t>kind:
                memset(cell, 0, sizeof(Cell))
                cell.kind = kind
                cell.item.data = p
                cell.item.end = stop
                first = start
                spans = total = 0
            spans += 1
            total += stop - p
            last = tag
            p = scan_payload(kind, p, stop, depth - 1, cell, fail)
            if p == NULL:
                return 1
        else:
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return 1
    if spans > 1:
        merge_payload(first, end, last, total, depth, scratch, &cell.item)
    if cell.kind == STRING:
        cell.text = cell.item.end - cell.item.data
    return 0
