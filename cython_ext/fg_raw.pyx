# cython: language_level=3, boundscheck=False, cdivision=True
"""raw_feature: numbers, normalised and perhaps bucketized (spec section 8.2)."""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport Block
from cython_ext.column cimport (
    STRING, ColumnView, Values, cell_is_null, string_at, value_is_null)
from cython_ext.fg_bucket cimport normalize_double, normalize_single
from cython_ext.fg_cells cimport (
    PIECE_EMPTY, PIECE_TEXT, Elements, Output, Piece, append_key, cell_piece,
    next_element, next_token, open_elements, start_output, value_as_float)
from cython_ext.fg_node cimport (
    ORIGIN_NODE, Call, Node, append_real, append_real_default, check_shapes,
    register_operator, rows_of, source_view, steps_in_double)
from cython_ext.fg_text cimport PARSED, parse_double

from procserver.errors import BadFeature


cdef int _bad_count(Node *node, int64_t row, int64_t found) except -1 nogil:
    with gil:
        name = (<bytes>node.name).decode()
        label = (<bytes>node.sources[0].label).decode()
        raise BadFeature(
            f"feature {name!r}: input {label!r} has {found} values in row {row}, "
            f"not {node.value_dim}")


cdef inline float _normal_text(
    Node *node, double x, bint in_double
) noexcept nogil:
    if in_double:
        return normalize_double(&node.normalizer, x)
    return normalize_single(&node.normalizer, <float>x)


cdef int64_t _emit_raw(
    Node *node, Output *o, Piece *piece, bint in_double, int64_t row
) except -1 nogil:
    """Appends one cell or element; returns how many values it became.

    NOTE: a value that is no number (or null) leaves the whole cell to the
    default; a wrong number of values is an error (8.2).
    """
    cdef int64_t first = o.count
    cdef int64_t i, found, length
    cdef const char *rest
    cdef const char *end
    cdef const char *token
    cdef const Values *v
    cdef double x = 0
    cdef bint numeric = True
    if piece.kind == PIECE_EMPTY:
        return append_real_default(node, o)
    found = 0
    if piece.kind == PIECE_TEXT:
        rest = piece.text
        end = rest + piece.length
        while next_token(&rest, end, node.separator, &token, &length):
            found += 1
            if not numeric or found > node.value_dim:
                continue
            if parse_double(token, length, &x) == PARSED:
                append_real(node, o, _normal_text(node, x, in_double))
            else:
                numeric = False
    else:
        v = piece.values
        for i in range(piece.start, piece.stop):
            found += 1
            if not numeric or found > node.value_dim:
                continue
            if value_is_null(v, i):
                numeric = False
            elif v.scalar != STRING:
                append_real(node, o, normalize_single(
                    &node.normalizer, value_as_float(v, i)))
            else:
                token = string_at(v, i, &length)
                if parse_double(token, length, &x) == PARSED:
                    append_real(node, o, _normal_text(node, x, in_double))
                else:
                    numeric = False
    if found != node.value_dim:
        _bad_count(node, row, found)
    if not numeric:
        o.count = first
        return append_real_default(node, o)
    return found


cdef int _run_raw_numbers(
    Node *node, Output *o, const ColumnView *v, int64_t rows
) except -1 nogil:
    """Numeric scalar cells of a feature of one value."""
    cdef int64_t row
    for row in range(rows):
        if v.valid == NULL or not cell_is_null(v, row):
            append_real(node, o, normalize_single(
                &node.normalizer, value_as_float(&v.values, row)))
            o.lengths[row] = 1
        elif node.has_default:
            o.lengths[row] = <int32_t>append_real_default(node, o)
        else:
            # NOTE(14.4): a null number without a default is an un-normalised
            # 0.0, bucketized as such; a null text stays missing.
            append_real(node, o, 0)
            o.lengths[row] = 1
    return 0


cdef int run_raw(Call *call, Node *node, Output *out) except -1 nogil:
    """raw_feature (spec section 8.2), its sequences included."""
    cdef const ColumnView *v
    cdef int64_t rows, row, elements
    cdef bint split_single = node.sources[0].origin == ORIGIN_NODE
    cdef bint in_double
    cdef Piece piece
    cdef Elements e
    check_shapes(call, node)
    v = source_view(call, &node.sources[0])
    rows = rows_of(call, node)
    start_output(out, rows, rows * (node.value_dim if node.value_dim < 64 else 64))
    in_double = steps_in_double(node, v)
    if node.sequence:
        for row in range(rows):
            open_elements(&e, v, row, node.delim, split_single)
            elements = 0
            while (not node.limit or elements < node.limit) and (
                next_element(&e, &piece)
            ):
                append_key(out, _emit_raw(node, out, &piece, in_double, row))
                elements += 1
            if elements == 0:
                append_key(out, append_real_default(node, out))
                elements = 1
            out.lengths[row] = <int32_t>elements
        return 0
    if node.value_dim == 1 and v.kind != 0 and v.shape == 0 and v.kind != STRING:
        return _run_raw_numbers(node, out, v, rows)
    for row in range(rows):
        cell_piece(v, row, split_single, &piece)
        out.lengths[row] = <int32_t>_emit_raw(node, out, &piece, in_double, row)
    return 0


cdef int _load_raw(Node *node, Block **head, object payload) except -1:
    if node.default_count != node.value_dim:
        name = (<bytes>node.name).decode()
        raise ValueError(f"feature {name!r}: {node.default_count} defaults")
    return 0


register_operator("raw", run_raw, _load_raw)
