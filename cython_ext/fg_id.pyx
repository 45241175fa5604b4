# cython: language_level=3, boundscheck=False, cdivision=True
"""id_feature: tokens, numbers and weighted keys to ids (spec section 8.1)."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memchr

from cython_ext.column cimport (
    INT32, INT64, STRING, ColumnView, Values, cell_is_null, string_at,
    value_is_null)
from cython_ext.fg_bucket cimport bucket_integer, bucket_text
from cython_ext.fg_cells cimport (
    FORM_TEXT, PIECE_EMPTY, PIECE_TEXT, Elements, Output, Piece,
    append_key, cell_piece, holds_byte, next_element, next_token, open_elements,
    start_output,
    value_as_float, value_as_integer)
from cython_ext.fg_node cimport (
    ORIGIN_NODE, Call, Node, append_default, append_token, append_value,
    check_shapes, register_operator, rows_of, source_view)
from cython_ext.fg_text cimport PARSED, parse_double

cdef enum:
    WEIGHT_MARK = 58         # ":"


cdef float _weight_of_text(const char *text, int64_t length) noexcept nogil:
    """The weight after the mark; 1 if there is none or it is no number."""
    cdef double weight = 1
    if parse_double(text, length, &weight) != PARSED:
        return 1
    return <float>weight


cdef float _weight_of_value(const Values *v, int64_t i) noexcept nogil:
    cdef const char *text
    cdef int64_t length
    if value_is_null(v, i):
        return 1
    if v.scalar == STRING:
        text = string_at(v, i, &length)
        return _weight_of_text(text, length)
    return value_as_float(v, i)


cdef inline int _append_weighted(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    """Appends ``key:weight``; a token without a key is left out."""
    # NOTE(14.14): the first mark splits, further ones belong to the weight.
    cdef const char *mark = <const char *>memchr(text, WEIGHT_MARK, length)
    cdef int64_t key = length if mark == NULL else mark - text
    cdef float weight = 1
    if key == 0:
        return 0
    if mark != NULL:
        weight = _weight_of_text(mark + 1, length - key - 1)
    append_token(node, o, text, key)
    o.weights[o.count - 1] = weight
    return 0


cdef int _emit_id_text(Node *node, Output *o, Piece *piece) except -1 nogil:
    """Appends the tokens of a text."""
    cdef const char *rest = piece.text
    cdef const char *end = rest + piece.length
    cdef const char *token
    cdef int64_t length
    cdef int64_t first = o.count
    while next_token(&rest, end, node.separator, &token, &length):
        # NOTE(14.7): empty tokens inside a value are dropped.
        if length == 0:
            continue
        if o.weighted:
            _append_weighted(node, o, token, length)
        else:
            append_token(node, o, token, length)
        # NOTE(14.6): value_dim n keeps the first n values.
        if node.value_dim and o.count - first == node.value_dim:
            break
    return 0


cdef int _emit_id_range(Node *node, Output *o, Piece *piece) except -1 nogil:
    """Appends the values of a list, a map or a number."""
    cdef const Values *v = piece.keys if piece.keys != NULL else piece.values
    cdef int64_t first = o.count
    cdef int64_t i
    cdef const char *text
    cdef int64_t length
    for i in range(piece.start, piece.stop):
        if value_is_null(v, i):
            continue
        if v.scalar == STRING:
            text = string_at(v, i, &length)
            if length == 0:
                continue
            if o.weighted and piece.keys == NULL:
                _append_weighted(node, o, text, length)
            else:
                append_token(node, o, text, length)
        else:
            append_value(node, o, v, i)
            if o.weighted:
                o.weights[o.count - 1] = 1
        # NOTE(14.15): weighted ids keep the order of the input.
        if piece.keys != NULL and o.count > first:
            o.weights[o.count - 1] = _weight_of_value(piece.values, i)
        if node.value_dim and o.count - first == node.value_dim:
            break
    return 0


cdef int64_t _emit_id(Node *node, Output *o, Piece *piece) except -1 nogil:
    """Appends one cell or element; returns how many values it became."""
    cdef int64_t first = o.count
    if piece.kind == PIECE_TEXT:
        _emit_id_text(node, o, piece)
    elif piece.kind != PIECE_EMPTY:
        _emit_id_range(node, o, piece)
    if o.count == first:
        append_default(node, o)
    return o.count - first


cdef int _run_id_strings(
    Node *node, Output *o, const ColumnView *v, int64_t rows
) except -1 nogil:
    """Text cells, nearly always one token each.

    PERF: the output's count and addresses stay in locals, which stores of ids
    could otherwise change for all that the compiler knows.
    """
    cdef int64_t row, length
    cdef int64_t count = o.count
    cdef int64_t capacity = o.capacity
    cdef int64_t *ids = o.ids
    cdef int32_t *lengths = o.lengths
    cdef const int32_t *offsets = v.values.offsets
    cdef const char *data = <const char *>v.values.data
    cdef const char *text
    cdef Piece piece
    piece.kind = PIECE_TEXT
    for row in range(rows):
        text = data + offsets[row]
        length = offsets[row + 1] - offsets[row]
        if length and count < capacity and (
            v.valid == NULL or not cell_is_null(v, row)
        ) and not holds_byte(text, length, node.separator):
            ids[count] = bucket_text(&node.bucketizer, text, length)
            count += 1
            lengths[row] = 1
            continue
        o.count = count
        if length == 0 or cell_is_null(v, row):
            append_default(node, o)
            lengths[row] = node.has_default
        else:
            piece.text = text
            piece.length = length
            lengths[row] = <int32_t>_emit_id(node, o, &piece)
        count = o.count
        capacity = o.capacity
        ids = o.ids
    o.count = count
    return 0


cdef int _run_id_integers(
    Node *node, Output *o, const ColumnView *v, int64_t rows
) except -1 nogil:
    """PERF: integer cells: at most one value each, so there is room for all."""
    cdef int64_t row
    cdef int64_t count = o.count
    cdef int64_t *ids = o.ids
    cdef int32_t *lengths = o.lengths
    for row in range(rows):
        if v.valid == NULL or not cell_is_null(v, row):
            ids[count] = bucket_integer(
                &node.bucketizer, value_as_integer(&v.values, row))
        elif node.has_default:
            ids[count] = node.default_id
        else:
            lengths[row] = 0
            continue
        count += 1
        lengths[row] = 1
    o.count = count
    return 0


cdef int run_id(Call *call, Node *node, Output *out) except -1 nogil:
    """id_feature (spec section 8.1), its sequences included."""
    cdef const ColumnView *v
    cdef int64_t rows, row, elements
    cdef bint split_single = node.sources[0].origin == ORIGIN_NODE
    cdef Piece piece
    cdef Elements e
    check_shapes(call, node)
    v = source_view(call, &node.sources[0])
    rows = rows_of(call, node)
    # SAFETY: the loops over plain cells rely on this room for a value per row.
    start_output(out, rows, rows)
    if node.sequence:
        for row in range(rows):
            open_elements(&e, v, row, node.delim, split_single)
            elements = 0
            # NOTE(14.5): truncation keeps the first elements.
            while (not node.limit or elements < node.limit) and (
                next_element(&e, &piece)
            ):
                append_key(out, _emit_id(node, out, &piece))
                elements += 1
            if elements == 0:
                piece.kind = PIECE_EMPTY
                append_key(out, _emit_id(node, out, &piece))
                elements = 1
            out.lengths[row] = <int32_t>elements
        return 0
    if v.shape == 0 and not node.weighted and not node.prefix_length and (
        node.form != FORM_TEXT
    ):
        if v.kind == STRING:
            return _run_id_strings(node, out, v, rows)
        if v.kind == INT32 or v.kind == INT64:
            return _run_id_integers(node, out, v, rows)
    for row in range(rows):
        cell_piece(v, row, split_single, &piece)
        out.lengths[row] = <int32_t>_emit_id(node, out, &piece)
    return 0


register_operator("id", run_id, NULL)
