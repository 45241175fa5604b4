# cython: language_level=3, boundscheck=False, cdivision=True
"""What every feature operator works with: its node, its sources, the run."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from cython_ext.arena cimport Block
from cython_ext.column cimport (
    FLOAT32, INT32, INT64, STRING, ColumnView, Values, string_at)
from cython_ext.fg_bucket cimport bucket_integer, bucket_number, bucket_text
from cython_ext.fg_cells cimport (
    FORM_NUMBERS, FORM_TEXT, Output, append_id, grow_text, grow_values,
    value_as_double, value_as_float, value_as_integer)
from cython_ext.fg_text cimport (
    NUMBER_CHARS, format_double, format_float, format_int64)

from procserver.errors import BadFeature


# ----------------------------------------------------------------- operators

cdef class _Registered:
    """An operator as its module announces it."""

    cdef Operator run
    cdef Loader load


cdef dict _OPERATORS = {}


cdef int register_operator(str name, Operator run, Loader load) except -1:
    """Makes an operator known by name; ``load`` is NULL if it takes no payload."""
    cdef _Registered registered = _Registered()
    registered.run = run
    registered.load = load
    _OPERATORS[name] = registered
    return 0


cdef int load_operator(
    Node *node, Block **head, str name, object payload
) except -1:
    """Sets ``run`` and ``extra`` of a node that is otherwise filled."""
    cdef _Registered registered = _OPERATORS.get(name)
    if registered is None:
        raise ValueError(f"no operator {name!r}")
    node.run = registered.run
    if registered.load != NULL:
        registered.load(node, head, payload)
    elif payload is not None:
        raise ValueError(f"operator {name!r} takes no details")
    return 0


# ------------------------------------------------------------------- sources

cdef const ColumnView *source_view(Call *call, Source *source) noexcept nogil:
    """The column that a source reads in this run."""
    cdef Output *made
    if source.origin == ORIGIN_SLOT:
        return &call.slots[source.index]
    if source.origin == ORIGIN_CONST:
        return &call.consts[source.index]
    made = &call.outputs[source.index]
    if source.sequence and made.sequence:
        return &made.nested
    return &made.flat


cdef int check_shapes(Call *call, Node *node) except -1 nogil:
    cdef int32_t i
    cdef const ColumnView *view
    for i in range(node.source_count):
        view = source_view(call, &node.sources[i])
        if view.kind and not (1 << view.shape) & node.sources[i].accepts:
            _bad_shape(node, &node.sources[i], view.shape)
    return 0


cdef int _bad_shape(Node *node, Source *source, int32_t shape) except -1 nogil:
    with gil:
        what = ("a scalar", "a list", "a list of lists", "a map")[shape]
        name = (<bytes>node.name).decode()
        label = (<bytes>source.label).decode()
        raise BadFeature(f"feature {name!r}: input {label!r} may not be {what}")


cdef int64_t rows_of(Call *call, Node *node) noexcept nogil:
    """1 if every source has one row, else the run's number of rows."""
    cdef int32_t i
    for i in range(node.source_count):
        if source_view(call, &node.sources[i]).rows != 1:
            return call.rows
    return 1


# ------------------------------------------------------- writing text values

cdef int append_text(
    Output *o, const char *prefix, int64_t prefix_length,
    const char *text, int64_t length
) except -1 nogil:
    """Appends an un-bucketized value."""
    cdef int64_t total = prefix_length + length
    if o.count == o.capacity:
        grow_values(o, 1)
    if o.text_used + total > o.text_capacity or o.text == NULL:
        grow_text(o, total)
    memcpy(o.text + o.text_used, prefix, prefix_length)
    memcpy(o.text + o.text_used + prefix_length, text, length)
    o.text_used += total
    o.count += 1
    o.text_ends[o.count] = <int32_t>o.text_used
    return 0


cdef int append_prefixed(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    """Appends the id of prefix + text, joined in the output's text scratch."""
    cdef int64_t total = node.prefix_length + length
    if total > o.text_capacity:
        grow_text(o, total)
    memcpy(o.text, node.prefix, node.prefix_length)
    memcpy(o.text + node.prefix_length, text, length)
    return append_id(o, bucket_text(&node.bucketizer, o.text, total))


cdef int number_text(const Values *v, int64_t i, char *out) noexcept nogil:
    """The text of a numeric value; its length."""
    if v.scalar == INT32 or v.scalar == INT64:
        return format_int64(value_as_integer(v, i), out)
    if v.scalar == FLOAT32:
        return format_float(value_as_float(v, i), out)
    return format_double(value_as_double(v, i), out)


cdef int append_value(
    Node *node, Output *o, const Values *v, int64_t i
) except -1 nogil:
    """Appends one value of a list, map or numeric column, as id or text."""
    cdef const char *text
    cdef int64_t length
    cdef char[NUMBER_CHARS] digits
    if v.scalar == STRING:
        text = string_at(v, i, &length)
        return append_token(node, o, text, length)
    if node.form == FORM_TEXT or node.prefix_length:
        return append_token(node, o, digits, number_text(v, i, digits))
    if v.scalar == INT32 or v.scalar == INT64:
        return append_id(
            o, bucket_integer(&node.bucketizer, value_as_integer(v, i)))
    return append_id(o, bucket_number(
        &node.bucketizer, value_as_double(v, i), v.scalar == FLOAT32))


cdef bint steps_in_double(Node *node, const ColumnView *v) noexcept nogil:
    """Whether texts of this column are normalised in double (section 6)."""
    if v.values.scalar != STRING:
        return False
    return v.shape == 0 or node.form != FORM_NUMBERS
