# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Checked features copied into the buffers of a column: the second pass.

A ``Sink`` is a growing run of values of the column's type; what is appended
may be of another type that it holds (see ``join_kinds`` in ``wire_feature``).

SAFETY: the buffers have the size that the first pass measured; the body must
not have changed since.
"""

import os

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    FLOAT32, FLOAT64, INT32, INT64, STRING, Values, kind_key, kind_value,
    scalar_width)
from cython_ext.wire_cells cimport (
    Cell, Item, MapEntry, clear_item, read_entry, read_item, scalar_tag)
from cython_ext.wire_reader cimport (
    LEN, Fail, load64, read_span, read_tag, skip_field)

cdef enum:
    LINEAR_MAP = 8       # entries up to which duplicates are looked for in order

# SAFETY: map keys are hashed with a secret of this process, so that a client
# cannot send keys that all collide.
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little") | 1


cdef int64_t text_bytes(int32_t scalar, int64_t count, int64_t text) noexcept nogil:
    """Room for values of type ``scalar`` as text."""
    if scalar == STRING:
        return text
    return count * (11 if scalar == INT32 else 20)


cdef int open_sink(
    Sink *sink, int32_t scalar, int64_t count, int64_t text, Arena arena
) except -1 nogil:
    sink.scalar = scalar
    sink.n = sink.used = 0
    sink.offsets = NULL
    if scalar == STRING:
        sink.offsets = <int32_t *>arena.alloc((count + 1) * sizeof(int32_t))
        sink.offsets[0] = 0
        sink.data = <char *>arena.alloc(text)
    else:
        sink.data = <char *>arena.alloc(count * scalar_width(scalar))
    return 0


cdef void close_sink(const Sink *sink, Values *values) noexcept nogil:
    values.scalar = sink.scalar
    values.length = sink.n
    values.data = sink.data
    values.offsets = sink.offsets


cdef int64_t put_decimal(char *out, int64_t value) noexcept nogil:
    cdef char[20] digits
    cdef uint64_t rest = (
        <uint64_t>0 - <uint64_t>value if value < 0 else <uint64_t>value)
    cdef int64_t n = 0, length
    while True:
        digits[n] = <char>(48 + rest % 10)
        n += 1
        rest //= 10
        if rest == 0:
            break
    length = n
    if value < 0:
        out[0] = 45
        out += 1
        length += 1
    while n:
        n -= 1
        out[0] = digits[n]
        out += 1
    return length


cdef double as_double(int32_t scalar, int64_t bits) noexcept nogil:
    cdef float single
    cdef double value
    if scalar == FLOAT32:
        memcpy(&single, &bits, 4)
        return single
    if scalar == FLOAT64:
        memcpy(&value, &bits, 8)
        return value
    return <double>bits


cdef int put(Sink *sink, int32_t scalar, const Item *item) noexcept nogil:
    """Appends a value of type ``scalar`` as one of the sink's type.

    Returns 1 if the value is not the same afterwards.
    """
    cdef int64_t n = sink.n
    cdef double value
    sink.n = n + 1
    if sink.scalar == STRING:
        if scalar == STRING:
            memcpy(sink.data + sink.used, item.data, item.end - item.data)
            sink.used += item.end - item.data
        else:
            sink.used += put_decimal(sink.data + sink.used, item.bits)
        sink.offsets[n + 1] = <int32_t>sink.used
    elif sink.scalar == INT32:
        (<int32_t *>sink.data)[n] = <int32_t>item.bits
    elif sink.scalar == FLOAT32:
        (<uint32_t *>sink.data)[n] = <uint32_t>item.bits
    elif sink.scalar == scalar or sink.scalar == INT64:
        (<int64_t *>sink.data)[n] = item.bits
    else:
        value = as_double(scalar, item.bits)
        (<double *>sink.data)[n] = value
        # Only an int64 can change; 2**63 itself is out of its range.
        if scalar == INT64 and (
            value >= 9223372036854775808.0 or <int64_t>value != item.bits
        ):
            return 1
    return 0


cdef int fill_list(
    int32_t scalar, const uint8_t *p, const uint8_t *end, int depth, Sink *sink
) noexcept nogil:
    """Appends the values of a checked list message; 1 if one is changed."""
    cdef uint32_t tag
    cdef const uint8_t *stop
    cdef int64_t width
    cdef Item item
    cdef Fail fail
    cdef int lossy = 0
    clear_item(&item)
    while p < end:
        p = read_tag(p, end, &tag, &fail)
        if p == NULL:
            break
        if tag == scalar_tag(1, scalar):
            p = read_item(scalar, p, end, &item, &fail)
            if p == NULL:
                break
            lossy |= put(sink, scalar, &item)
        elif tag == (1 << 3 | LEN):
            p = read_span(p, end, &stop, &fail)
            if p == NULL:
                break
            if scalar >= FLOAT32 and scalar == sink.scalar:
                width = scalar_width(scalar)
                memcpy(sink.data + sink.n * width, p, stop - p)
                sink.n += (stop - p) // width
                p = stop
            while p != NULL and p < stop:
                p = read_item(scalar, p, stop, &item, &fail)
                if p != NULL:
                    lossy |= put(sink, scalar, &item)
        else:
            p = skip_field(p, end, tag, depth, &fail)
        if p == NULL:
            break
    return lossy


cdef uint64_t mix(uint64_t h) noexcept nogil:
    h ^= h >> 32
    h *= 0x9E3779B97F4A7C15ULL
    h ^= h >> 29
    h *= SEED
    return h ^ (h >> 32)


cdef uint64_t hash_key(int32_t scalar, const Item *key) noexcept nogil:
    cdef uint64_t h = SEED
    cdef uint64_t tail = 0
    cdef const uint8_t *p = key.data
    if scalar != STRING:
        return mix(h ^ <uint64_t>key.bits)
    while key.end - p >= 8:
        h = mix(h ^ load64(p))
        p += 8
    memcpy(&tail, p, key.end - p)
    return mix(mix(h ^ tail) ^ <uint64_t>(key.end - key.data))


cdef bint same_key(int32_t scalar, const Item *a, const Item *b) noexcept nogil:
    if scalar != STRING:
        return a.bits == b.bits
    return a.end - a.data == b.end - b.data and (
        memcmp(a.data, b.data, a.end - a.data) == 0)


cdef int64_t unique_entries(
    int32_t scalar, MapEntry *entries, int64_t n, Arena scratch
) except -1 nogil:
    """Keeps one entry for each key: in the first's place, the last's value."""
    cdef int64_t kept = 0, i, j, slots = 16
    cdef uint64_t slot
    cdef int32_t *table
    if n <= LINEAR_MAP:
        for i in range(n):
            for j in range(kept):
                if same_key(scalar, &entries[j].key, &entries[i].key):
                    entries[j].value = entries[i].value
                    break
            else:
                entries[kept] = entries[i]
                kept += 1
        return kept
    while slots < 2 * n:
        slots *= 2
    table = <int32_t *>scratch.alloc(slots * sizeof(int32_t))
    memset(table, 0xFF, slots * sizeof(int32_t))
    for i in range(n):
        slot = hash_key(scalar, &entries[i].key) & <uint64_t>(slots - 1)
        while table[slot] >= 0:
            j = table[slot]
            if same_key(scalar, &entries[j].key, &entries[i].key):
                entries[j].value = entries[i].value
                break
            slot = (slot + 1) & <uint64_t>(slots - 1)
        else:
            table[slot] = <int32_t>kept
            entries[kept] = entries[i]
            kept += 1
    return kept


cdef int fill_map(
    const Cell *cell, int depth, Arena scratch, Sink *keys, Sink *values
) except -1 nogil:
    """Appends the entries of a checked map message; 1 if a value is changed."""
    cdef int32_t key = kind_key(cell.kind), value = kind_value(cell.kind)
    cdef const uint8_t *p = cell.item.data
    cdef const uint8_t *end = cell.item.end
    cdef const uint8_t *stop
    cdef uint32_t tag
    cdef Fail fail
    cdef int64_t n = 0, i
    cdef int lossy = 0
    cdef MapEntry *entries = <MapEntry *>scratch.alloc(
        (cell.count + 1) * sizeof(MapEntry))
    while p < end and n < cell.count:
        p = read_tag(p, end, &tag, &fail)
        if p == NULL:
            break
        if tag != (1 << 3 | LEN):
            p = skip_field(p, end, tag, depth, &fail)
            if p == NULL:
                break
            continue
        p = read_span(p, end, &stop, &fail)
        if p == NULL:
            break
        p = read_entry(key, value, p, stop, depth - 1, &entries[n], &fail)
        if p == NULL:
            break
        if not entries[n].dropped:
            n += 1
    n = unique_entries(key, entries, n, scratch)
    for i in range(n):
        lossy |= put(keys, key, &entries[i].key)
        lossy |= put(values, value, &entries[i].value)
    return lossy


cdef int fill_lists(
    const Cell *cell, int depth, int32_t *inner, int64_t *lists, Sink *values
) noexcept nogil:
    """Appends the lists of a checked list of lists; 1 if a value is changed."""
    cdef const uint8_t *p = cell.item.data
    cdef const uint8_t *end = cell.item.end
    cdef const uint8_t *stop
    cdef uint32_t tag
    cdef Fail fail
    cdef int lossy = 0
    while p < end:
        p = read_tag(p, end, &tag, &fail)
        if p == NULL:
            break
        if tag != (1 << 3 | LEN):
            p = skip_field(p, end, tag, depth, &fail)
            if p == NULL:
                break
            continue
        p = read_span(p, end, &stop, &fail)
        if p == NULL:
            break
        lossy |= fill_list(kind_value(cell.kind), p, stop, depth - 1, values)
        lists[0] += 1
        inner[lists[0]] = <int32_t>values.n
        p = stop
    return lossy


cdef void put_null(Sink *sink) noexcept nogil:
    """Keeps the place of a null scalar: zero or the empty string."""
    cdef Item item
    clear_item(&item)
    put(sink, sink.scalar, &item)
