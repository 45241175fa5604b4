# cython: language_level=3, boundscheck=False
"""lookup_feature: values of a map by the keys of a cell (spec section 8.6)."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from cython_ext.arena cimport Block, block_alloc
from cython_ext.fg_cells cimport Output
from cython_ext.fg_combine cimport (
    COMBINE_NONE, Combined, combine_number, combined, combiner_of, start_combined)
from cython_ext.fg_node cimport (
    Call, Node, append_normalised, append_token, append_value, number_text,
    register_operator, source_view, steps_in_double)
from cython_ext.fg_table cimport (
    Pair, Table, find_pair, pair_number, read_pairs, start_table)
from cython_ext.fg_text cimport NUMBER_CHARS
from cython_ext.fg_walk cimport (
    Scratch, Texts, Walk, emit_default, next_text, open_texts, square_row,
    scratch_room, walk)

cdef enum:
    PAIRS_SEPARATOR = 0x1d   # of the map's text, whatever ``separator`` says
    PAIR_MARK = 58           # ":"
    JOINER = 95              # "_"
    SOURCE_MAP = 0
    SOURCE_KEY = 1


ctypedef struct Extra:
    int32_t combiner         # COMBINE_NONE: one value per key
    bint numeric             # values are numbers, else text
    bint named               # text is <key>_<value>


ctypedef struct State:
    Table table
    Combined combined
    Texts texts
    Scratch scratch
    bint in_double


cdef int _append_named(
    Walk *w, const char *key, int64_t key_length, Pair *p
) except -1 nogil:
    """Appends ``<key>_<value>``."""
    cdef State *state = <State *>w.state
    cdef char[NUMBER_CHARS] digits
    cdef const char *text = p.text
    cdef int64_t length = p.length
    cdef char *joined
    if text == NULL:
        text = digits
        length = number_text(p.values, p.at, digits)
    joined = scratch_room(&state.scratch, key_length + 1 + length)
    memcpy(joined, key, key_length)
    joined[key_length] = JOINER
    memcpy(joined + key_length + 1, text, length)
    return append_token(w.node, w.out, joined, key_length + 1 + length)


cdef int _append_found(
    Walk *w, const char *key, int64_t key_length, Pair *p
) except -1 nogil:
    """Appends the value of one key that the map has."""
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef double x = 0
    if extra.numeric:
        if pair_number(p, &x):
            append_normalised(w.node, w.out, x, state.in_double)
    # NOTE(8.6): an empty value is none.
    elif p.text != NULL and p.length == 0:
        return 0
    elif extra.named:
        _append_named(w, key, key_length, p)
    elif p.text == NULL:
        append_value(w.node, w.out, p.values, p.at)
    else:
        append_token(w.node, w.out, p.text, p.length)
    return 0


cdef int _emit_lookup(Walk *w) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef Output *o = w.out
    cdef Combined *c = &state.combined
    cdef int64_t first = o.count
    cdef int64_t length
    cdef const char *text
    cdef Pair *p
    cdef double x = 0
    # PERF: a map that stays the same from row to row is read once.
    if w.fresh[SOURCE_MAP]:
        read_pairs(
            &state.table, &w.pieces[SOURCE_MAP], PAIRS_SEPARATOR, PAIR_MARK, False)
    c.count = 0
    open_texts(&state.texts, &w.pieces[SOURCE_KEY], w.node.separator)
    while next_text(&state.texts, &text, &length):
        p = find_pair(&state.table, text, length) if length else NULL
        if p == NULL:
            continue
        if extra.combiner == COMBINE_NONE:
            _append_found(w, text, length, p)
        elif pair_number(p, &x):
            combine_number(c, x)
    if extra.combiner == COMBINE_NONE:
        # NOTE(8.6, 14.6): value_dim does not truncate.
        return square_row(w, first)
    if c.count == 0:
        return emit_default(w.node, o)
    # NOTE(8.6): the normalizer applies to what was combined.
    return append_normalised(w.node, o, combined(c), state.in_double)


cdef int _run_lookup(Call *call, Node *node, Output *out) except -1 nogil:
    """lookup_feature (spec section 8.6), its sequences included."""
    cdef State state
    cdef Extra *extra = <Extra *>node.extra
    start_table(&state.table, call.head)
    start_combined(&state.combined, extra.combiner, call.head)
    state.scratch.head = call.head
    state.scratch.capacity = 0
    state.in_double = steps_in_double(
        node, source_view(call, &node.sources[SOURCE_MAP]))
    return walk(call, node, out, _emit_lookup, &state)


cdef int _load_lookup(Node *node, Block **head, object payload) except -1:
    """``(combiner, numeric, named)``."""
    cdef Extra *extra = <Extra *>block_alloc(head, sizeof(Extra))
    if node.source_count != 2:
        raise ValueError("a lookup has two sources")
    combiner, numeric, named = payload
    extra.combiner = combiner_of(combiner)
    extra.numeric = numeric
    extra.named = named
    if (node.default_count > 0) != (numeric or extra.combiner != COMBINE_NONE):
        raise ValueError("numbers have a numeric default")
    node.extra = extra
    return 0


register_operator("lookup", _run_lookup, _load_lookup)
