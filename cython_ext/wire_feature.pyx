# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""``PBFeature`` messages to cells of a column.

Two passes. The first checks every byte and notes one ``Cell`` per row: its
kind, the span of its values, how many there are and how much text they hold.
Then the kind of the whole column is known, its buffers are allocated exactly,
and the second pass fills them. Columns whose rows are all one plain scalar,
which is what engines send, are read in a single pass instead.

SAFETY: both passes check ``(ptr, end)``, but the buffers are sized by the
first one: the body must not change while it is decoded.
"""

from libc.stdint cimport (
    INT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t)
from libc.string cimport memcmp, memcpy, memset

import os

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    FLOAT32, FLOAT64, INT32, INT64, LIST, LISTS, MAP, SCALAR, STRING,
    ColumnView, Values, kind_key, kind_shape, kind_value, scalar_width)
from cython_ext.wire_reader cimport (
    BAD_PACKED, FIXED32, FIXED64, LEN, TOO_LONG, TRUNCATED, VARINT, Fail,
    count_varints, fail_at, is_ascii, load32, load64, read_span, read_tag,
    read_text, read_varint, skip_field, valid_utf8)

cdef enum:
    FIRST_MAP = 6
    LAST_KIND = 30
    LIST_BASE = 20       # LIST_INT32 - INT32
    LISTS_BASE = 25
    LINEAR_MAP = 8       # entries up to which duplicates are looked for in order
    COPY_SLACK = 16

cdef int32_t[6] WIRE
WIRE[:] = [-1, VARINT, VARINT, LEN, FIXED32, FIXED64]
# Place of a scalar among the key types and the value types of the maps.
cdef int32_t[6] KEY_RANK
KEY_RANK[:] = [0, 2, 0, 1, 0, 0]
cdef int32_t[6] VALUE_RANK
VALUE_RANK[:] = [0, 1, 2, 0, 3, 4]
ctypedef const char *static_text
cdef static_text[6] WHAT
WHAT[:] = [b"value", b"int32", b"int64", b"string", b"float", b"double"]

ALTERNATIVES = (
    "nothing", "int_feature", "long_feature", "string_feature", "float_feature",
    "double_feature", "long_string_map", "long_int_map", "long_long_map",
    "long_float_map", "long_double_map", "string_string_map", "string_int_map",
    "string_long_map", "string_float_map", "string_double_map", "int_string_map",
    "int_int_map", "int_long_map", "int_float_map", "int_double_map", "int_list",
    "long_list", "string_list", "float_list", "double_list", "int_lists",
    "long_lists", "string_lists", "float_lists", "double_lists",
)

# SAFETY: map keys are hashed with a secret of this process, so that a client
# cannot send keys that all collide.
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little") | 1


cdef str alternative_name(int32_t kind):
    """What ``PBFeature`` calls the alternative of this kind."""
    return ALTERNATIVES[kind]


# ------------------------------------------------------------- one scalar

ctypedef struct Item:
    int64_t bits             # integers sign-extended; raw bits of floats
    const uint8_t *data      # strings
    const uint8_t *end


cdef uint8_t EMPTY = 0


cdef void clear_item(Item *item) noexcept nogil:
    item.bits = 0
    item.data = &EMPTY
    item.end = &EMPTY


cdef inline const uint8_t *read_item(
    int32_t scalar, const uint8_t *p, const uint8_t *end, Item *item, Fail *fail
) noexcept nogil:
    """One value of a scalar type, whose tag has been read."""
    cdef uint64_t value
    cdef const uint8_t *stop
    if scalar == INT32 or scalar == INT64:
        p = read_varint(p, end, &value, fail)
        if p == NULL:
            fail.what = WHAT[scalar]
            return NULL
        item.bits = (
            <int64_t><int32_t><uint32_t>value if scalar == INT32
            else <int64_t>value)
        return p
    if scalar == FLOAT32:
        if end - p < 4:
            return fail_at(fail, TRUNCATED, WHAT[scalar])
        item.bits = load32(p)
        return p + 4
    if scalar == FLOAT64:
        if end - p < 8:
            return fail_at(fail, TRUNCATED, WHAT[scalar])
        item.bits = <int64_t>load64(p)
        return p + 8
    p = read_text(p, end, &stop, fail)
    if p == NULL:
        fail.what = WHAT[scalar]
        return NULL
    item.data = p
    item.end = stop
    return stop


# ------------------------------------------------------------- first pass

ctypedef struct Cell:
    int32_t kind             # 0: no alternative is set
    int64_t inner            # lists in a list of lists
    int64_t count            # values in a list, list of lists or map
    int64_t text             # bytes of the values that are strings
    int64_t key_text
    Item item                # the scalar, or the span of the message


ctypedef struct MapEntry:
    Item key
    Item value
    bint dropped


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
        if tag == (1 << 3 | <uint32_t>WIRE[scalar]):
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
                    return fail_at(fail, BAD_PACKED, WHAT[scalar])
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
        if tag == (1 << 3 | <uint32_t>WIRE[key]):
            p = read_item(key, p, end, &entry.key, fail)
        elif tag == (2 << 3 | <uint32_t>WIRE[value]):
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
        if kind < FIRST_MAP and (tag & 7) == <uint32_t>WIRE[kind]:
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


# ------------------------------------------------------------ second pass

ctypedef struct Sink:
    int32_t scalar
    int64_t n
    int64_t used             # bytes of text
    char *data
    int32_t *offsets


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
        if tag == (1 << 3 | <uint32_t>WIRE[scalar]):
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


# ----------------------------------------------------- the kind of a column

cdef int32_t join_scalars(int32_t a, int32_t b) noexcept nogil:
    """The scalar type that holds both; 0 if there is none."""
    cdef int32_t low = a if a < b else b
    cdef int32_t high = b if a < b else a
    if low == high:
        return low
    if high <= INT64:
        return INT64
    if high == STRING:
        return STRING            # integers as decimal text
    if low == STRING:
        return 0
    return FLOAT64


cdef int32_t join_kinds(int32_t a, int32_t b) noexcept nogil:
    """The kind that holds cells of both kinds; -1 if there is none.

    It does not depend on the order of the rows.
    """
    cdef int32_t shape = kind_shape(a), other = kind_shape(b)
    cdef int32_t value = join_scalars(kind_value(a), kind_value(b))
    cdef int32_t key
    if a == b:
        return a
    if value == 0:
        return -1
    if shape == MAP and other == MAP:
        key = join_scalars(kind_key(a), kind_key(b))
        return FIRST_MAP + 5 * KEY_RANK[key] + VALUE_RANK[value]
    if shape == MAP or other == MAP:
        return -1
    if shape == LISTS and other == LISTS:
        return LISTS_BASE + value
    if shape == LISTS or other == LISTS:
        return -1
    return LIST_BASE + value if shape == LIST or other == LIST else value


cdef bint is_blank(const Cell *cell) noexcept nogil:
    """Nothing, or the ``""`` that clients send in place of nothing."""
    return cell.kind == 0 or (
        cell.kind == STRING and cell.item.data == cell.item.end)


cdef int32_t column_kind(
    const Cell *cells, int64_t rows, Problem *problem
) noexcept nogil:
    """The kind of the column; -1 with ``problem`` filled if rows conflict."""
    cdef int32_t kind = 0, joined
    cdef bint blank_text = False
    cdef int64_t i
    for i in range(rows):
        if is_blank(&cells[i]):
            blank_text |= cells[i].kind == STRING
            continue
        joined = cells[i].kind if kind == 0 else join_kinds(kind, cells[i].kind)
        if joined < 0:
            problem.row = i
            problem.have = kind
            problem.found = cells[i].kind
            return -1
        kind = joined
    return STRING if kind == 0 and blank_text else kind


# ---------------------------------------------------------------- columns

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


cdef int build_cells(
    const Cell *cells, int64_t rows, int depth,
    Arena arena, Arena scratch, ColumnView *out, Problem *problem
) except -1 nogil:
    """Fills ``out`` from checked cells; 1 with ``problem`` filled on conflict."""
    cdef int32_t kind = column_kind(cells, rows, problem)
    cdef int32_t shape, scalar, key
    cdef int64_t i, count = 0, inner = 0, text = 0, key_text = 0, lists = 0
    cdef bint nulls = False
    cdef uint8_t *valid = NULL
    cdef int32_t *offsets = NULL
    cdef int32_t *inner_offsets = NULL
    cdef Sink values, keys
    cdef const Cell *cell
    cdef int lossy
    if kind < 0:
        return 1
    out.kind = kind
    out.rows = rows
    if kind == 0:
        return 0
    shape = out.shape = kind_shape(kind)
    scalar = kind_value(kind)
    key = kind_key(kind)
    for i in range(rows):
        cell = &cells[i]
        if cell.kind == 0 or (kind != STRING and is_blank(cell)):
            nulls = True
            count += shape == SCALAR
            continue
        if kind_shape(cell.kind) == SCALAR:
            count += 1
            text += text_bytes(cell.kind, 1, cell.text)
            continue
        count += cell.count
        inner += cell.inner
        text += text_bytes(kind_value(cell.kind), cell.count, cell.text)
        key_text += text_bytes(kind_key(cell.kind), cell.count, cell.key_text)
    if text > INT32_MAX or key_text > INT32_MAX:
        fail_at(&problem.fail, TOO_LONG, b"text")
        return 1
    if nulls:
        valid = <uint8_t *>arena.alloc((rows + 7) >> 3)
        memset(valid, 0, (rows + 7) >> 3)
        out.valid = valid
    open_sink(&values, scalar, count, text, arena)
    if shape == MAP:
        open_sink(&keys, key, count, key_text, arena)
    if shape != SCALAR:
        offsets = <int32_t *>arena.alloc((rows + 1) * sizeof(int32_t))
        offsets[0] = 0
        out.offsets = offsets
    if shape == LISTS:
        inner_offsets = <int32_t *>arena.alloc((inner + 1) * sizeof(int32_t))
        inner_offsets[0] = 0
        out.inner = inner_offsets
    for i in range(rows):
        cell = &cells[i]
        lossy = 0
        if cell.kind == 0 or (kind != STRING and is_blank(cell)):
            if shape == SCALAR:
                put_null(&values)
        else:
            if valid != NULL:
                valid[i >> 3] |= <uint8_t>(1 << (i & 7))
            if kind_shape(cell.kind) == SCALAR:
                lossy = put(&values, cell.kind, &cell.item)
            elif shape == LIST:
                lossy = fill_list(
                    kind_value(cell.kind), cell.item.data, cell.item.end, depth,
                    &values)
            elif shape == LISTS:
                lossy = fill_lists(cell, depth, inner_offsets, &lists, &values)
            else:
                lossy = fill_map(cell, depth, scratch, &keys, &values)
        if lossy:
            problem.row = i
            problem.have = kind
            problem.found = cell.kind
            problem.lossy = True
            return 1
        if shape == LISTS:
            offsets[i + 1] = <int32_t>lists
        elif shape != SCALAR:
            offsets[i + 1] = <int32_t>values.n
    close_sink(&values, &out.values)
    if shape == MAP:
        close_sink(&keys, &out.keys)
    return 0


cdef void put_null(Sink *sink) noexcept nogil:
    """Keeps the place of a null scalar: zero or the empty string."""
    cdef Item item
    clear_item(&item)
    put(sink, sink.scalar, &item)


cdef int build_feature(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena arena, Arena scratch, ColumnView *out, Problem *problem
) except -1 nogil:
    """A ``PBFeature`` as a column of one row.

    ``depth`` levels may still be opened inside it. Returns 1 with ``problem``
    filled if that cannot be done.
    """
    cdef Cell cell
    if scan_feature(p, end, depth, scratch, &cell, &problem.fail):
        return 1
    return build_cells(&cell, 1, depth - 1, arena, scratch, out, problem)


cdef int build_rows(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena arena, Arena scratch, ColumnView *out, Problem *problem
) except -1 nogil:
    """A ``ContextFeatures`` as a column with a row for each feature in it."""
    cdef uint32_t tag
    cdef const uint8_t *start = p
    cdef const uint8_t *stop
    cdef Cell *cells
    cdef int64_t rows = 0, row = 0
    cdef Fail *fail = &problem.fail
    if fast_rows(p, end, arena, out):
        return 0
    problem.row = -1
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag == (1 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            p = stop
            rows += 1
        else:
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return 1
    cells = <Cell *>scratch.alloc(rows * sizeof(Cell))
    p = start
    while p < end and row < rows:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag == (1 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            problem.row = row
            if scan_feature(p, stop, depth - 1, scratch, &cells[row], fail):
                return 1
            p = stop
            row += 1
        else:
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return 1
    return build_cells(cells, row, depth - 2, arena, scratch, out, problem)


# ------------------------------------------------------ the common columns

cdef int fast_rows(
    const uint8_t *p, const uint8_t *end, Arena arena, ColumnView *out
) except -1 nogil:
    """Reads rows that are all the same plain scalar; 0 if they are not.

    PERF: one pass and no cells. Whatever is unusual (another type, an unknown
    field, broken bytes) is left to the general way, errors included.
    """
    cdef int32_t kind
    if end - p < 4 or p[0] != 0x0A:
        return 0
    kind = p[2] >> 3
    if kind == 0 or kind > FLOAT64 or (p[2] & 7) != WIRE[kind]:
        return 0
    out.values.scalar = kind
    if kind <= INT64:
        out.rows = fast_ints(p, end, kind, arena, &out.values)
    elif kind == STRING:
        out.rows = fast_texts(p, end, arena, &out.values)
    else:
        out.rows = fast_floats(p, end, kind, arena, &out.values)
    if out.rows == 0:
        memset(out, 0, sizeof(ColumnView))
        return 0
    out.kind = kind
    out.shape = SCALAR
    out.values.length = out.rows
    return 1


cdef inline bint short_varint(
    uint64_t word, int n, uint64_t *out
) noexcept nogil:
    """Decodes a varint of one to eight bytes; False if it is not n bytes long.

    PERF: all bytes at once: check the continuation bits, then close the gaps
    between the 7-bit groups, pair by pair.
    """
    cdef uint64_t last = <uint64_t>0x80 << (8 * n - 8)
    # Continuation bits: set in all bytes below the last, clear in the last.
    if (word & (last | (last - 1)) & 0x8080808080808080ULL) != (
        (last - 1) & 0x8080808080808080ULL
    ):
        return False
    word &= (last - 1) & 0x7F7F7F7F7F7F7F7FULL
    word = (word & 0x007F007F007F007FULL) | ((word & 0x7F007F007F007F00ULL) >> 1)
    word = (word & 0x00003FFF00003FFFULL) | ((word & 0x3FFF00003FFF0000ULL) >> 2)
    word = (word & 0x000000000FFFFFFFULL) | ((word & 0x0FFFFFFF00000000ULL) >> 4)
    out[0] = word
    return True


cdef int64_t fast_ints(
    const uint8_t *p, const uint8_t *end, int32_t kind, Arena arena, Values *values
) except -1 nogil:
    cdef int64_t rows = 0
    cdef int64_t width = scalar_width(kind)
    cdef uint8_t tag = <uint8_t>(kind << 3)
    cdef const uint8_t *stop
    cdef uint64_t value
    cdef Fail fail
    # A row takes four bytes at least.
    cdef char *data = <char *>arena.alloc(((end - p) // 4) * width)
    while p < end:
        if end - p < 4 or p[0] != 0x0A or p[2] != tag or p[1] < 2 or p[1] > 11:
            return 0
        if end - p < 2 + p[1]:
            return 0
        stop = p + 2 + p[1]
        p += 3
        if stop - p <= 8 and end - p >= 8:
            if not short_varint(load64(p), <int>(stop - p), &value):
                return 0
            p = stop
        else:
            p = read_varint(p, stop, &value, &fail)
            if p != stop:
                return 0
        if kind == INT32:
            (<int32_t *>data)[rows] = <int32_t><uint32_t>value
        else:
            (<int64_t *>data)[rows] = <int64_t>value
        rows += 1
    values.data = data
    return rows


cdef int64_t fast_floats(
    const uint8_t *p, const uint8_t *end, int32_t kind, Arena arena, Values *values
) except -1 nogil:
    cdef int64_t rows = 0
    cdef int64_t width = scalar_width(kind)
    cdef int64_t stride = width + 3
    cdef uint8_t tag = <uint8_t>(kind << 3 | WIRE[kind])
    cdef char *data
    if (end - p) % stride:
        return 0
    data = <char *>arena.alloc((end - p) // stride * width)
    while p < end:
        if p[0] != 0x0A or p[1] != width + 1 or p[2] != tag:
            return 0
        if kind == FLOAT32:
            memcpy(data + rows * 4, p + 3, 4)
        else:
            memcpy(data + rows * 8, p + 3, 8)
        p += stride
        rows += 1
    values.data = data
    return rows


cdef int64_t fast_texts(
    const uint8_t *p, const uint8_t *end, Arena arena, Values *values
) except -1 nogil:
    cdef int64_t rows = 0, used = 0, n, i
    cdef const uint8_t *row_end
    cdef const uint8_t *stop
    cdef Fail fail
    cdef int32_t *offsets = <int32_t *>arena.alloc(
        ((end - p) // 4 + 1) * sizeof(int32_t))
    cdef char *data = <char *>arena.alloc(end - p + COPY_SLACK)
    offsets[0] = 0
    while p < end:
        if p[0] != 0x0A:
            return 0
        p = read_span(p + 1, end, &row_end, &fail)
        if p == NULL or row_end - p < 2 or p[0] != 0x1A:
            return 0
        p = read_span(p + 1, row_end, &stop, &fail)
        if p == NULL or stop != row_end:
            return 0
        n = stop - p
        if n <= COPY_SLACK and end - p >= COPY_SLACK:
            # PERF: two fixed copies; what is too much is overwritten next.
            memcpy(data + used, p, 8)
            memcpy(data + used + 8, p + 8, 8)
        else:
            memcpy(data + used, p, n)
        used += n
        rows += 1
        offsets[rows] = <int32_t>used
        p = stop
    if not is_ascii(<const uint8_t *>data, used):
        for i in range(rows):
            if not valid_utf8(
                <const uint8_t *>data + offsets[i],
                <const uint8_t *>data + offsets[i + 1]
            ):
                return 0
    values.data = data
    values.offsets = offsets
    return rows
