# cython: language_level=3, boundscheck=False, wraparound=False
"""``PBRequest`` bytes straight to columns."""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer)
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport (
    INT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t)
from libc.string cimport memcpy, memset

from procserver.errors import BadFeature, TooLarge, Undecodable

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    SCALAR, STRING, Column, ColumnView, wrap_column)
from cython_ext.wire_feature cimport (
    Problem, alternative_name, build_feature, build_rows, check_value)
from cython_ext.wire_reader cimport (
    LEN, MAX_DEPTH, NO_FAULT, VARINT, Fail, fault_text, is_ascii, read_span,
    read_tag, read_text, read_varint, skip_field, valid_utf8)

cdef enum:
    MAX_ENTRIES = 1 << 16    # features and meta data of one request

cdef enum Section:
    USER = 2
    CONTEXT = 4
    ITEM = 6
    META = 7

cdef dict FIELDS = {
    USER: "user_features", CONTEXT: "context_features", ITEM: "item_features",
    META: "meta_data",
}


ctypedef struct Entry:
    int32_t section
    bint dropped             # has an unknown field: as upb, not in the map
    bint bad
    const uint8_t *name
    const uint8_t *name_end
    const uint8_t *value
    const uint8_t *value_end
    Problem problem
    ColumnView view


ctypedef struct Walk:
    int32_t debug_level
    int32_t faiss_neigh_num
    int64_t ids
    int64_t id_bytes
    int64_t entries
    bint in_ids
    Fail fail


cdef uint8_t NOTHING = 0


cdef int walk_request(
    const uint8_t *p, const uint8_t *end, Walk *walk,
    Entry *entries, int32_t *id_offsets, uint8_t *id_data
) noexcept nogil:
    """The top level of the message, counting or, with room given, noting.

    Returns 1 with ``walk.fail`` filled if the bytes are wrong.
    """
    cdef uint32_t tag, number
    cdef uint64_t value
    cdef const uint8_t *stop
    cdef Fail *fail = &walk.fail
    walk.ids = walk.id_bytes = walk.entries = 0
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        number = tag >> 3
        if tag == (3 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                walk.in_ids = True
                return 1
            if id_data != NULL:
                memcpy(id_data + walk.id_bytes, p, stop - p)
                id_offsets[walk.ids + 1] = <int32_t>(walk.id_bytes + (stop - p))
            walk.ids += 1
            walk.id_bytes += stop - p
            p = stop
        elif (tag & 7) == LEN and (
            number == USER or number == CONTEXT or number == ITEM
            or number == META
        ):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            if entries != NULL:
                memset(&entries[walk.entries], 0, sizeof(Entry))
                entries[walk.entries].section = <int32_t>number
                entries[walk.entries].value = p
                entries[walk.entries].value_end = stop
            walk.entries += 1
            p = stop
        elif tag == (1 << 3 | VARINT) or tag == (5 << 3 | VARINT):
            p = read_varint(p, end, &value, fail)
            if p == NULL:
                return 1
            if number == 1:
                walk.debug_level = <int32_t><uint32_t>value
            else:
                walk.faiss_neigh_num = <int32_t><uint32_t>value
        else:
            p = skip_field(p, end, tag, MAX_DEPTH, fail)
            if p == NULL:
                return 1
    return 0


cdef int build_entry(Entry *e, Arena arena, Arena scratch) except -1 nogil:
    """Reads one map entry; 1 with ``e.problem`` filled if that fails."""
    cdef const uint8_t *p = e.value
    cdef const uint8_t *end = e.value_end
    cdef const uint8_t *start = p
    cdef const uint8_t *stop
    cdef uint32_t tag
    cdef int64_t spans = 0, total = 0
    cdef uint8_t *merged
    cdef Fail *fail = &e.problem.fail
    e.problem.row = -1
    e.name = e.name_end = e.value = e.value_end = &NOTHING
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag == (1 << 3 | LEN):
            p = read_text(p, end, &stop, fail)
            if p == NULL:
                return 1
            e.name = p
            e.name_end = stop
            p = stop
        elif tag == (2 << 3 | LEN):
            if e.section == META:
                p = read_text(p, end, &stop, fail)
            else:
                p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            e.value = p
            e.value_end = stop
            spans += 1
            total += stop - p
            p = stop
        else:
            e.dropped = True
            p = skip_field(p, end, tag, MAX_DEPTH - 1, fail)
            if p == NULL:
                return 1
    if e.section == META:
        return 0
    if spans > 1:
        # Values merge by concatenation, but each must be a message by itself.
        merged = <uint8_t *>scratch.alloc(total)
        e.value = merged
        p = start
        while p < end:
            p = read_tag(p, end, &tag, fail)
            if p != NULL and tag == (2 << 3 | LEN):
                p = read_span(p, end, &stop, fail)
                if p == NULL or stop - p > total:
                    return 1
                if check_value(
                    p, stop, e.section != USER, MAX_DEPTH - 2, scratch, &e.problem
                ):
                    return 1
                memcpy(merged, p, stop - p)
                merged += stop - p
                total -= stop - p
                p = stop
            elif p != NULL:
                p = skip_field(p, end, tag, MAX_DEPTH - 1, fail)
            if p == NULL:
                return 1
        e.value_end = merged
    return build_value(e, e.value, e.value_end, arena, scratch, &e.view)


cdef int build_value(
    Entry *e, const uint8_t *p, const uint8_t *end,
    Arena arena, Arena scratch, ColumnView *view
) except -1 nogil:
    if e.section == USER:
        return build_feature(
            p, end, MAX_DEPTH - 2, arena, scratch, view, &e.problem)
    return build_rows(p, end, MAX_DEPTH - 2, arena, scratch, view, &e.problem)


cdef int decode_body(
    const uint8_t *p, const uint8_t *end, Walk *walk, ColumnView *ids,
    Entry **entries, Arena arena, Arena scratch
) except -1 nogil:
    """All of the request; 1 if ``walk.fail`` says why not.

    Entries carry problems of their own.
    """
    cdef int64_t i
    cdef int32_t *offsets
    cdef uint8_t *data
    if walk_request(p, end, walk, NULL, NULL, NULL):
        return 1
    if walk.entries > MAX_ENTRIES:
        return 1
    entries[0] = <Entry *>scratch.alloc(walk.entries * sizeof(Entry))
    offsets = <int32_t *>arena.alloc((walk.ids + 1) * sizeof(int32_t))
    data = <uint8_t *>arena.alloc(walk.id_bytes)
    offsets[0] = 0
    if walk_request(p, end, walk, entries[0], offsets, data):
        return 1
    ids.kind = STRING
    ids.shape = SCALAR
    ids.rows = walk.ids
    ids.values.scalar = STRING
    ids.values.length = walk.ids
    ids.values.data = data
    ids.values.offsets = offsets
    for i in range(walk.entries):
        entries[0][i].bad = build_entry(&entries[0][i], arena, scratch)
        if entries[0][i].problem.fail.fault != NO_FAULT:
            # Nothing behind broken bytes is of interest.
            walk.entries = i + 1
            break
    return 0


cdef str entry_path(const Entry *e):
    name = e.name[:e.name_end - e.name].decode("utf-8", "replace")
    if len(name) > 100:
        name = name[:100] + "..."
    return f"{FIELDS[e.section]}[{name!r}]"


cdef object entry_error(const Entry *e):
    """The exception for an entry that could not be read."""
    cdef const Problem *problem = &e.problem
    path = entry_path(e)
    if problem.row >= 0 and e.section != USER:
        path += f" row {problem.row}"
    if problem.fail.fault != NO_FAULT:
        return Undecodable(f"{path}: {fault_text(&problem.fail)}")
    found = alternative_name(problem.found)
    have = alternative_name(problem.have)
    if problem.lossy:
        return BadFeature(
            f"{path}: a value of this {found} is not exact as {have}, "
            "which the other rows need")
    return BadFeature(f"{path}: {found} after rows of {have}")


cdef int check_ids(Column ids) except -1:
    """The ids must be UTF-8 one by one."""
    cdef const uint8_t *data = <const uint8_t *>ids.view.values.data
    cdef const int32_t *offsets = ids.view.values.offsets
    cdef int64_t i
    if is_ascii(data, offsets[ids.view.rows]):
        return 0
    for i in range(ids.view.rows):
        if not valid_utf8(data + offsets[i], data + offsets[i + 1]):
            raise Undecodable(f"item_ids[{i}]: string that is not UTF-8")
    return 0


def decode_request(body):
    """Decodes a ``PBRequest``.

    Returns ``(debug_level, item_ids, user, context, item, faiss_neigh_num,
    meta)``. The columns own their memory: the body may be reused afterwards,
    but must not change meanwhile.

    :raises Undecodable: if the bytes are not such a message
    :raises BadFeature: if the rows of a feature are of types that do not mix
    :raises TooLarge: for more than 65,536 features
    """
    cdef Py_buffer buffer
    PyObject_GetBuffer(body, &buffer, PyBUF_SIMPLE)
    try:
        return _decode(<const uint8_t *>buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


cdef tuple _decode(const uint8_t *p, int64_t size):
    cdef Arena arena = Arena.__new__(Arena)
    cdef Arena scratch = Arena.__new__(Arena)
    cdef Walk walk
    cdef ColumnView id_view
    cdef Entry *entries = NULL
    cdef Entry *e
    cdef int64_t i
    cdef int failed
    cdef dict user = {}, context = {}, item = {}, meta = {}
    cdef bint conflicts = False
    if size > INT32_MAX:
        raise TooLarge(f"body of {size} bytes; protobuf ends at {INT32_MAX}")
    memset(&walk, 0, sizeof(Walk))
    memset(&id_view, 0, sizeof(ColumnView))
    with nogil:
        failed = decode_body(
            p, p + size, &walk, &id_view, &entries, arena, scratch)
    if failed:
        if walk.fail.fault == NO_FAULT:
            raise TooLarge(
                f"{walk.entries} features; at most {MAX_ENTRIES} are read")
        where = "item_ids: " if walk.in_ids else "request: "
        raise Undecodable(where + fault_text(&walk.fail))
    for i in range(walk.entries):
        e = &entries[i]
        if e.bad and e.problem.fail.fault != NO_FAULT:
            raise entry_error(e)
        if e.dropped:
            continue
        name = PyUnicode_DecodeUTF8(
            <const char *>e.name, e.name_end - e.name, NULL)
        if e.section == META:
            meta[name] = PyUnicode_DecodeUTF8(
                <const char *>e.value, e.value_end - e.value, NULL)
            continue
        if e.bad:
            column = entry_error(e)
            conflicts = True
        else:
            column = wrap_column(&e.view, arena)
        if e.section == USER:
            user[name] = column
        elif e.section == CONTEXT:
            context[name] = column
        else:
            item[name] = column
    ids = wrap_column(&id_view, arena)
    check_ids(ids)
    if conflicts:
        # Only now: a conflict in an entry that a later one replaces is none.
        for column in [*user.values(), *context.values(), *item.values()]:
            if isinstance(column, BadFeature):
                raise column
    return walk.debug_level, ids, user, context, item, walk.faiss_neigh_num, meta
