# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""``PBFeature`` messages to a column: its kind, its buffers, its rows.

Two passes (``wire_cells``, ``wire_fill``): the kind of a column is known only
after its last row. Columns of plain scalars take one (``wire_rows``).
"""

from libc.stdint cimport INT32_MAX, INT64_MAX, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    INT64, LIST, LISTS, MAP, SCALAR, STRING, FLOAT64, ColumnView, kind_key,
    kind_shape, kind_value)
from cython_ext.wire_cells cimport FIRST_MAP, Cell, scan_feature
from cython_ext.wire_fill cimport (
    Sink, close_sink, fill_list, fill_lists, fill_map, open_sink, put, put_null,
    text_bytes)
from cython_ext.wire_reader cimport (
    LEN, TOO_LONG, Fail, fail_at, read_span, read_tag, skip_field)
from cython_ext.wire_rows cimport fast_rows

cdef enum:
    LIST_BASE = 20       # LIST_INT32 - INT32
    LISTS_BASE = 25

# Place of a scalar among the key types and the value types of the maps.
cdef int32_t[6] KEY_RANK
KEY_RANK[:] = [0, 2, 0, 1, 0, 0]
cdef int32_t[6] VALUE_RANK
VALUE_RANK[:] = [0, 1, 2, 0, 3, 4]

ALTERNATIVES = (
    "nothing", "int_feature", "long_feature", "string_feature", "float_feature",
    "double_feature", "long_string_map", "long_int_map", "long_long_map",
    "long_float_map", "long_double_map", "string_string_map", "string_int_map",
    "string_long_map", "string_float_map", "string_double_map", "int_string_map",
    "int_int_map", "int_long_map", "int_float_map", "int_double_map", "int_list",
    "long_list", "string_list", "float_list", "double_list", "int_lists",
    "long_lists", "string_lists", "float_lists", "double_lists",
)


cdef str alternative_name(int32_t kind):
    """What ``PBFeature`` calls the alternative of this kind."""
    return ALTERNATIVES[kind]


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


cdef int scan_rows(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena scratch, Cell *cells, int64_t step, int64_t rows, Problem *problem
) except -1 nogil:
    """Checks a ``ContextFeatures`` of so many rows; 1 with ``problem`` filled.

    ``cells`` takes one for each row, or with a ``step`` of 0 the last one only.
    """
    cdef uint32_t tag
    cdef const uint8_t *stop
    cdef int64_t row = 0
    cdef Fail *fail = &problem.fail
    while p < end:
        p = read_tag(p, end, &tag, fail)
        if p == NULL:
            return 1
        if tag == (1 << 3 | LEN):
            p = read_span(p, end, &stop, fail)
            if p == NULL:
                return 1
            problem.row = row
            if row == rows or scan_feature(
                p, stop, depth - 1, scratch, &cells[row * step], fail
            ):
                return 1
            p = stop
            row += 1
        else:
            p = skip_field(p, end, tag, depth, fail)
            if p == NULL:
                return 1
    return 0


cdef int check_value(
    const uint8_t *p, const uint8_t *end, bint in_rows, int depth,
    Arena scratch, Problem *problem
) except -1 nogil:
    """Only checks the bytes of a ``PBFeature`` or a ``ContextFeatures``.

    PERF: a value may be sent in any number of parts; nothing is kept of one.
    """
    cdef Cell cell
    problem.row = -1
    if in_rows:
        return scan_rows(p, end, depth, scratch, &cell, 0, INT64_MAX, problem)
    return scan_feature(p, end, depth, scratch, &cell, &problem.fail)


cdef int build_rows(
    const uint8_t *p, const uint8_t *end, int depth,
    Arena arena, Arena scratch, ColumnView *out, Problem *problem
) except -1 nogil:
    """A ``ContextFeatures`` as a column with a row for each feature in it."""
    cdef uint32_t tag
    cdef const uint8_t *start = p
    cdef const uint8_t *stop
    cdef Cell *cells
    cdef int64_t rows = 0
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
    if scan_rows(start, end, depth, scratch, cells, 1, rows, problem):
        return 1
    return build_cells(cells, rows, depth - 2, arena, scratch, out, problem)
