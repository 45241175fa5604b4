# cython: language_level=3, boundscheck=False
"""bool_mask_feature: the values that a mask lets through (spec section 8.11)."""

from libc.stdint cimport int64_t

from cython_ext.column cimport STRING
from cython_ext.fg_cells cimport PIECE_RANGE, Output, Piece
from cython_ext.fg_node cimport (
    Call, Node, append_default, append_token, append_value, register_operator)
from cython_ext.fg_text cimport PARSED, parse_double
from cython_ext.fg_walk cimport Texts, Walk, next_text, open_texts, walk

cdef enum:
    SOURCE_VALUES = 0
    SOURCE_MASK = 1


ctypedef struct State:
    Texts values
    Texts mask


cdef bint _is_true(const char *text, int64_t length) noexcept nogil:
    """``true`` in any case, or a number that is not 0.

    NOTE(8.11): everything else, nulls and NaN among it, is false.
    """
    cdef double x = 0
    if length == 4 and (
        (text[0] | 32) == 116 and (text[1] | 32) == 114
        and (text[2] | 32) == 117 and (text[3] | 32) == 101
    ):
        return True
    return parse_double(text, length, &x) == PARSED and (x < 0 or x > 0)


cdef int _emit_mask(Walk *w) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef Node *node = w.node
    cdef Output *o = w.out
    cdef Piece *piece = &w.pieces[SOURCE_VALUES]
    cdef bint numbers = piece.kind == PIECE_RANGE and piece.values.scalar != STRING
    cdef int64_t first = o.count
    cdef int64_t length, mask_length
    cdef const char *text
    cdef const char *mask
    open_texts(&state.values, piece, node.separator)
    open_texts(&state.mask, &w.pieces[SOURCE_MASK], node.separator)
    # NOTE(8.11): of unequal lengths the shorter one counts.
    while next_text(&state.values, &text, &length) and (
        next_text(&state.mask, &mask, &mask_length)
    ):
        if length == 0 or not _is_true(mask, mask_length):
            continue
        if numbers:
            append_value(node, o, piece.values, state.values.at - 1)
        else:
            append_token(node, o, text, length)
        if node.value_dim and o.count - first == node.value_dim:
            break
    # NOTE(8.11): no value that is let through is the default.
    if o.count == first:
        return append_default(node, o)
    return 0


cdef int _run_mask(Call *call, Node *node, Output *out) except -1 nogil:
    """bool_mask_feature (spec section 8.11), its sequences included."""
    cdef State state
    return walk(call, node, out, _emit_mask, &state)


register_operator("bool_mask", _run_mask, NULL)
