# cython: language_level=3, boundscheck=False, cdivision=True
"""Pre-generated features: tensors to columns of the item cache, and back.

A feature is stored in one of these forms, a column per tensor::

    ids      INT64, where every row has one value or none (a null cell), or
             LIST_INT64; INT32 and LIST_INT32, where no id needs more
    weights  FLOAT32 or LIST_FLOAT32, cell by cell as many as ids
    dense    FLOAT32 for one column, LIST_FLOAT32 for more

What a row that is in no item table gives is not stored: it is passed in.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

cimport numpy as cnp

from cython_ext.arena cimport Arena
from cython_ext.column cimport (
    FLOAT32,
    INT32,
    INT64,
    LIST,
    LIST_FLOAT32,
    LIST_INT32,
    LIST_INT64,
    SCALAR,
    Column,
    ColumnView,
    cell_is_null,
    kind_shape,
    kind_value,
    scalar_width,
    wrap_column,
)

cnp.import_array()

cdef int64_t MOST_VALUES = (<int64_t>1 << 31) - 1


cdef int _damaged() except -1 nogil:
    with gil:
        raise ValueError("a record of pre-generated features is damaged")


# ------------------------------------------------------------ tensors to columns

cdef const char *_narrowed(
    Arena arena, const int64_t *values, int64_t count
) except? NULL nogil:
    """A copy as int32; NULL if some value needs more."""
    cdef int64_t i
    cdef int64_t lost = 0
    cdef int32_t *out = <int32_t *>arena.alloc(count * 4)
    for i in range(count):
        out[i] = <int32_t>values[i]
        lost |= values[i] ^ out[i]
    return NULL if lost else <const char *>out


cdef int _single_cells(
    ColumnView *out, Arena arena, const char *values, int64_t width,
    const int32_t *lengths, int64_t count,
) except -1 nogil:
    """Cells of one value or none; 0 if some row has more, else 1."""
    cdef int64_t row, at = 0
    cdef uint8_t *valid = NULL
    cdef char *data
    for row in range(out.rows):
        if lengths[row] < 0 or lengths[row] > 1:
            return 0
        at += lengths[row]
    if at > count:
        _damaged()
    if at == out.rows:
        out.values.data = values
        return 1
    data = <char *>arena.alloc(out.rows * width)
    valid = <uint8_t *>arena.alloc((out.rows + 7) // 8)
    memset(data, 0, out.rows * width)
    memset(valid, 0, (out.rows + 7) // 8)
    at = 0
    for row in range(out.rows):
        if lengths[row]:
            memcpy(data + row * width, values + at * width, width)
            valid[row >> 3] |= <uint8_t>(1 << (row & 7))
            at += 1
    out.values.data = data
    out.valid = valid
    return 1


cdef int _list_cells(
    ColumnView *out, Arena arena, const char *values, const int32_t *lengths,
    int64_t each, int64_t count,
) except -1 nogil:
    """A list per row: ``lengths`` values, or ``each`` where that is NULL."""
    cdef int64_t row, at = 0
    cdef int32_t *offsets = <int32_t *>arena.alloc((out.rows + 1) * 4)
    offsets[0] = 0
    for row in range(out.rows):
        at += each if lengths == NULL else lengths[row]
        if at < offsets[row] or at > count:
            _damaged()
        offsets[row + 1] = <int32_t>at
    out.offsets = offsets
    out.values.data = values
    out.values.length = at
    return 1


def column_of(cnp.ndarray values not None, cnp.ndarray lengths, int kind) -> Column:
    """A tensor's values as a column of ``kind``, one of the forms drawn above.

    ``values``: contiguous int64 or float32 as the kind says; with ``lengths``
    (contiguous int32, one per row) flat, without it of shape (rows, width).

    :return: None if the kind holds one value but a row has more, or if it holds
        smaller ids
    :raises TypeError: if the arrays are not of these types
    :raises ValueError: if ``lengths`` and ``values`` do not fit each other
    """
    cdef Arena arena = Arena()
    cdef ColumnView view
    cdef const int32_t *counts = NULL
    cdef int64_t size = cnp.PyArray_SIZE(values)
    cdef int64_t each = 1
    cdef int wanted = cnp.NPY_INT64
    cdef int found
    if kind == FLOAT32 or kind == LIST_FLOAT32:
        wanted = cnp.NPY_FLOAT32
    elif kind not in (INT32, INT64, LIST_INT32, LIST_INT64):
        raise TypeError(f"no form of a feature has kind {kind}")
    if cnp.PyArray_TYPE(values) != wanted or not cnp.PyArray_IS_C_CONTIGUOUS(values):
        raise TypeError(f"values are {values.dtype}, not of kind {kind}")
    if size > MOST_VALUES:
        raise ValueError(f"{size} values in one column")
    memset(&view, 0, sizeof(ColumnView))
    if lengths is not None:
        if cnp.PyArray_TYPE(lengths) != cnp.NPY_INT32 or lengths.ndim != 1 or (
            not cnp.PyArray_IS_C_CONTIGUOUS(lengths)
        ):
            raise TypeError(f"lengths are {lengths.dtype}, not int32")
        counts = <const int32_t *>cnp.PyArray_DATA(lengths)
        view.rows = cnp.PyArray_DIM(lengths, 0)
    elif values.ndim != 2:
        raise ValueError("dense values have two dimensions")
    else:
        view.rows = cnp.PyArray_DIM(values, 0)
        each = cnp.PyArray_DIM(values, 1)
    view.kind = kind
    view.values.scalar = kind_value(kind)
    view.values.length = view.rows
    cdef const char *data = <const char *>cnp.PyArray_DATA(values)
    if view.values.scalar == INT32:
        data = _narrowed(arena, <const int64_t *>data, size)
        if data == NULL:
            return None
    if kind_shape(kind) == LIST:
        view.shape = LIST
        found = _list_cells(&view, arena, data, counts, each, size)
    elif counts != NULL:
        view.shape = SCALAR
        found = _single_cells(
            &view, arena, data, scalar_width(view.values.scalar), counts, size)
    else:
        view.shape = SCALAR
        view.values.data = data
        found = each == 1
    return wrap_column(&view, (arena, values)) if found else None


# ------------------------------------------------------------ columns to tensors

ctypedef struct Tensor:
    # Values behind each other, and how many each row has.
    bint copied              # values are in the call's arena, not in the column's
    char *values
    int32_t *lengths
    int64_t count


cdef inline int64_t _put(
    char *out, const ColumnView *view, int64_t start, int64_t count
) noexcept nogil:
    """Copies values of a column, ids as int64; how many bytes they are."""
    cdef int64_t i
    cdef const int32_t *narrow = <const int32_t *>view.values.data + start
    if view.values.scalar == INT32:
        for i in range(count):
            (<int64_t *>out)[i] = narrow[i]
        return count * 8
    i = scalar_width(view.values.scalar)
    memcpy(out, <const char *>view.values.data + start * i, count * i)
    return count * i


cdef int _take_whole(
    Tensor *out, Arena arena, const ColumnView *view
) except -1 nogil:
    """Cells none of which is null: what was gathered is the tensor.

    Ids that are stored as int32 are widened.
    """
    cdef int64_t row
    cdef int64_t width = scalar_width(view.values.scalar)
    cdef int64_t first = 0
    out.lengths = <int32_t *>arena.alloc(view.rows * 4)
    if view.shape == SCALAR:
        for row in range(view.rows):
            out.lengths[row] = 1
        out.count = view.rows
    else:
        for row in range(view.rows):
            out.lengths[row] = view.offsets[row + 1] - view.offsets[row]
        first = view.offsets[0]
        out.count = view.offsets[view.rows] - first
    out.copied = view.values.scalar == INT32
    if not out.copied:
        out.values = <char *>view.values.data + first * width
        return 0
    out.values = <char *>arena.alloc(out.count * 8)
    _put(out.values, view, first, out.count)
    return 0


cdef int64_t _cell_count(
    const ColumnView *view, int64_t row, int64_t number, int64_t missing
) except -1 nogil:
    """Values of a row; ``number`` is its number in the table, -1: none."""
    if number < 0:
        return missing
    if view.shape == SCALAR:
        return not cell_is_null(view, row)
    if cell_is_null(view, row):
        _damaged()
    return view.offsets[row + 1] - view.offsets[row]


cdef int _take_cells(
    Tensor *out, Arena arena, const ColumnView *view, const int64_t *rows,
    const char *missing, int64_t missing_count,
) except -1 nogil:
    """Cells some of which are null: copied one by one."""
    cdef int64_t row, count
    cdef int64_t width = 4 if view.values.scalar == FLOAT32 else 8
    cdef char *to
    out.lengths = <int32_t *>arena.alloc(view.rows * 4)
    out.count = 0
    for row in range(view.rows):
        count = _cell_count(view, row, rows[row], missing_count)
        out.lengths[row] = <int32_t>count
        out.count += count
    out.values = <char *>arena.alloc(out.count * width)
    out.copied = True
    to = out.values
    for row in range(view.rows):
        count = out.lengths[row]
        if rows[row] < 0:
            memcpy(to, missing, count * width)
            to += count * width
        elif view.shape == SCALAR:
            to += _put(to, view, row, count)
        else:
            to += _put(to, view, view.offsets[row], count)
    return 0


cdef int _take(
    Tensor *out, Arena arena, Column column, const int64_t[::1] rows,
    cnp.ndarray missing, int kind,
) except -1:
    """The values of one column; its type has been checked by nobody yet."""
    cdef const ColumnView *view = &column.view
    cdef const char *absent = <const char *>cnp.PyArray_DATA(missing)
    cdef int64_t count = cnp.PyArray_SIZE(missing)
    cdef int wanted = cnp.NPY_INT64 if kind == INT64 else cnp.NPY_FLOAT32
    if view.shape not in (SCALAR, LIST) or view.values.scalar != kind and (
        kind != INT64 or view.values.scalar != INT32
    ):
        raise TypeError(f"a column of kind {view.kind} holds no values of {kind}")
    if cnp.PyArray_TYPE(missing) != wanted or (
        not cnp.PyArray_IS_C_CONTIGUOUS(missing)
    ):
        raise TypeError(f"values of missing rows are {missing.dtype}")
    if view.rows != rows.shape[0]:
        raise ValueError(f"{view.rows} cells for {rows.shape[0]} rows")
    # PERF: this is too short to give the GIL away and come back for it.
    if view.valid == NULL:
        _take_whole(out, arena, view)
    else:
        _take_cells(out, arena, view, &rows[0], absent, count)
    return 0


cdef cnp.ndarray _array(
    object owner, void *data, int kind, int64_t rows, int64_t width
):
    """A writable array over memory of ``owner``; two-dimensional if ``width``."""
    cdef cnp.npy_intp[2] shape
    cdef cnp.ndarray array
    shape[0] = rows
    shape[1] = width
    array = cnp.PyArray_SimpleNewFromData(2 if width else 1, shape, kind, data)
    cnp.set_array_base(array, owner)
    return array


cdef _restore_dense(
    dict out, Arena arena, const int64_t[::1] rows, str name, Column column,
    cnp.ndarray missing,
):
    cdef Tensor tensor
    cdef int64_t row
    cdef int64_t width = cnp.PyArray_SIZE(missing)
    _take(&tensor, arena, column, rows, missing, FLOAT32)
    for row in range(rows.shape[0]):
        if tensor.lengths[row] != width:
            _damaged()
    out[name] = _array(
        arena if tensor.copied else column.owner, tensor.values, cnp.NPY_FLOAT32,
        rows.shape[0], width)


cdef _restore_sparse(
    dict out, Arena arena, const int64_t[::1] rows, tuple names, Column column,
    Column weights, cnp.ndarray missing, cnp.ndarray missing_weights,
):
    cdef Tensor ids
    cdef Tensor numbers
    _take(&ids, arena, column, rows, missing, INT64)
    out[names[0]] = _array(
        arena if ids.copied else column.owner, ids.values, cnp.NPY_INT64, ids.count, 0)
    out[names[1]] = _array(arena, ids.lengths, cnp.NPY_INT32, rows.shape[0], 0)
    if weights is None:
        return
    _take(&numbers, arena, weights, rows, missing_weights, FLOAT32)
    if memcmp(ids.lengths, numbers.lengths, rows.shape[0] * 4):
        _damaged()
    out[names[2]] = _array(
        arena if numbers.copied else weights.owner, numbers.values, cnp.NPY_FLOAT32,
        numbers.count, 0)


def restore(const int64_t[::1] rows not None, list features, dict columns) -> dict:
    """The tensors of gathered cells, by name.

    ``rows``: numbers of the rows that were gathered, -1 where there was none.
    ``features``: a tuple (tensor names, missing values, missing weights or None)
    each; names are ``.values`` alone for dense features, ``.values`` and
    ``.lengths`` for ids, ``.weights`` after them. ``columns``: what was gathered,
    by the names of values and weights. It is given up: tensors share its memory.

    :raises TypeError: if a column has no form of its feature
    :raises ValueError: if cells contradict each other
    """
    cdef Arena arena = Arena()
    cdef tuple names
    out = {}
    for names, missing, missing_weights in features:
        column = <Column?>columns[names[0]]
        if len(names) == 1:
            _restore_dense(out, arena, rows, names[0], column, missing)
            continue
        weights = <Column?>columns[names[2]] if len(names) > 2 else None
        _restore_sparse(
            out, arena, rows, names, column, weights, missing, missing_weights)
    return out
