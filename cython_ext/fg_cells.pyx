# cython: language_level=3
"""What feature operators read (pieces of cells) and write (growing outputs)."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport block_alloc
from cython_ext.column cimport (
    FLOAT32, INT64, LIST, LIST_FLOAT32, LIST_INT64, LIST_STRING, LISTS,
    LISTS_FLOAT32, LISTS_INT64, LISTS_STRING, STRING)

from procserver.errors import BadFeature

cdef enum:
    # SAFETY: one feature of one request never holds more values than this, so
    # that crossing or repeating what a client sent cannot exhaust memory.
    MAX_VALUES = 1 << 26
    FIRST_TEXT = 256


cdef int _too_many(Output *o) except -1 nogil:
    with gil:
        name = (<bytes>o.name).decode()
        raise BadFeature(f"feature {name!r} has more than {MAX_VALUES} values")


cdef void *_larger(
    Block **head, void *old, int64_t used, int64_t size
) except NULL nogil:
    cdef void *fresh = block_alloc(head, size)
    if used:
        memcpy(fresh, old, used)
    return fresh


cdef int grow_values(Output *o, int64_t more) except -1 nogil:
    """Makes room for ``more`` values beyond ``count``."""
    cdef int64_t capacity = o.capacity * 2
    cdef int64_t n = o.count
    if n + more > MAX_VALUES:
        _too_many(o)
    if capacity < n + more:
        capacity = n + more
    if capacity < 16:
        capacity = 16
    if o.form == FORM_IDS:
        o.ids = <int64_t *>_larger(o.head, o.ids, n * 8, capacity * 8)
    elif o.form == FORM_NUMBERS:
        o.numbers = <float *>_larger(o.head, o.numbers, n * 4, capacity * 4)
    else:
        o.text_ends = <int32_t *>_larger(
            o.head, o.text_ends, (n + 1) * 4 if o.text_ends != NULL else 0,
            (capacity + 1) * 4)
        if n == 0:
            o.text_ends[0] = 0
    if o.weighted:
        o.weights = <float *>_larger(o.head, o.weights, n * 4, capacity * 4)
    o.capacity = capacity
    return 0


cdef int grow_text(Output *o, int64_t more) except -1 nogil:
    """Makes room for ``more`` bytes of text."""
    cdef int64_t capacity = o.text_capacity * 2
    if o.text_used + more > INT32_MAX:
        _too_many(o)
    if capacity < o.text_used + more:
        capacity = o.text_used + more
    if capacity < FIRST_TEXT:
        capacity = FIRST_TEXT
    o.text = <char *>_larger(o.head, o.text, o.text_used, capacity)
    o.text_capacity = capacity
    return 0


cdef int grow_keys(Output *o) except -1 nogil:
    cdef int64_t capacity = o.key_capacity * 2
    if capacity < 16:
        capacity = 16
    if capacity > 2 * MAX_VALUES:
        _too_many(o)
    o.key_lengths = <int32_t *>_larger(
        o.head, o.key_lengths, o.keys * 4, capacity * 4)
    o.key_capacity = capacity
    return 0


cdef int start_output(Output *o, int64_t rows, int64_t values) except -1 nogil:
    """Allocates for ``rows`` rows and about ``values`` values."""
    if rows > MAX_VALUES:
        _too_many(o)
    o.rows = rows
    o.lengths = <int32_t *>block_alloc(o.head, rows * 4)
    grow_values(o, values if values < MAX_VALUES else MAX_VALUES)
    if o.sequence:
        grow_keys(o)
    return 0


# ------------------------------------------------- what consumers read (DAG)

cdef int finish_views(Output *o) except -1 nogil:
    """Fills ``flat`` (a list per row) and, for sequences, ``nested``."""
    cdef int32_t *row_ends = <int32_t *>block_alloc(o.head, (o.rows + 1) * 4)
    cdef int32_t *key_ends
    cdef int32_t *rows_in_keys
    cdef int64_t row, key = 0, stop, values = 0
    row_ends[0] = 0
    memset(&o.flat, 0, sizeof(ColumnView))
    o.flat.rows = o.rows
    o.flat.shape = LIST
    o.flat.values.length = o.count
    if o.form == FORM_IDS:
        o.flat.kind = LIST_INT64
        o.flat.values.scalar = INT64
        o.flat.values.data = o.ids
    elif o.form == FORM_NUMBERS:
        o.flat.kind = LIST_FLOAT32
        o.flat.values.scalar = FLOAT32
        o.flat.values.data = o.numbers
    else:
        if o.text == NULL:
            grow_text(o, 1)
        o.flat.kind = LIST_STRING
        o.flat.values.scalar = STRING
        o.flat.values.data = o.text
        o.flat.values.offsets = o.text_ends
    o.flat.offsets = row_ends
    if not o.sequence:
        for row in range(o.rows):
            row_ends[row + 1] = row_ends[row] + o.lengths[row]
        return 0
    o.nested = o.flat
    o.nested.shape = LISTS
    o.nested.kind = (
        LISTS_INT64 if o.form == FORM_IDS
        else LISTS_FLOAT32 if o.form == FORM_NUMBERS else LISTS_STRING)
    rows_in_keys = <int32_t *>block_alloc(o.head, (o.rows + 1) * 4)
    key_ends = <int32_t *>block_alloc(o.head, (o.keys + 1) * 4)
    rows_in_keys[0] = 0
    key_ends[0] = 0
    for row in range(o.rows):
        stop = key + o.lengths[row]
        while key < stop:
            values += o.key_lengths[key]
            key_ends[key + 1] = <int32_t>values
            key += 1
        rows_in_keys[row + 1] = <int32_t>key
        row_ends[row + 1] = <int32_t>values
    o.nested.offsets = rows_in_keys
    o.nested.inner = key_ends
    return 0


# -------------------------------------------------------------------- tiling

cdef void *_repeated(
    Block **head, const void *data, int64_t nbytes, int64_t times
) except NULL nogil:
    cdef char *fresh = <char *>block_alloc(head, nbytes * times)
    cdef int64_t i
    for i in range(times if nbytes else 0):
        memcpy(fresh + i * nbytes, data, nbytes)
    return fresh


cdef int tile_output(Output *o, int64_t rows) except -1 nogil:
    """Repeats the one row of an output ``rows`` times."""
    if o.count * rows > MAX_VALUES or o.keys * rows > MAX_VALUES:
        _too_many(o)
    o.lengths = <int32_t *>_repeated(o.head, o.lengths, 4, rows)
    if o.form == FORM_IDS:
        o.ids = <int64_t *>_repeated(o.head, o.ids, o.count * 8, rows)
    elif o.form == FORM_NUMBERS:
        o.numbers = <float *>_repeated(o.head, o.numbers, o.count * 4, rows)
    if o.weighted:
        o.weights = <float *>_repeated(o.head, o.weights, o.count * 4, rows)
    if o.sequence:
        o.key_lengths = <int32_t *>_repeated(
            o.head, o.key_lengths, o.keys * 4, rows)
    o.rows = rows
    o.count *= rows
    o.keys *= rows
    return 0
