# cython: language_level=3, boundscheck=False
"""kv_dot_product: the dot product of two sparse vectors (spec section 8.10)."""

from libc.stdint cimport int64_t

from cython_ext.arena cimport Block, block_alloc
from cython_ext.fg_cells cimport Output
from cython_ext.fg_node cimport Call, Node, append_real, register_operator
from cython_ext.fg_table cimport (
    Pair, Table, find_pair, pair_number, read_pairs, start_table)
from cython_ext.fg_walk cimport Walk, emit_default, walk

cdef enum:
    SOURCE_QUERY = 0
    SOURCE_DOCUMENT = 1


ctypedef struct Extra:
    char mark                # between key and weight


ctypedef struct State:
    Table query
    Table document


cdef inline double _weight(Pair *p) noexcept nogil:
    """NOTE(8.10): a weight that is no number is 1, as a missing one is."""
    cdef double x = 1
    return x if pair_number(p, &x) else 1


cdef int _emit_kv(Walk *w) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef char mark = (<Extra *>w.node.extra).mark
    cdef char separator = w.node.separator
    cdef double product = 0
    cdef int64_t i
    cdef Pair *p
    if w.fresh[SOURCE_QUERY]:
        read_pairs(&state.query, &w.pieces[SOURCE_QUERY], separator, mark, True)
    if w.fresh[SOURCE_DOCUMENT]:
        read_pairs(&state.document, &w.pieces[SOURCE_DOCUMENT], separator, mark, True)
    if state.query.count == 0 or state.document.count == 0:
        return emit_default(w.node, w.out)
    # NOTE(8.10): of repeated keys the last one counts, on both sides; the sum goes
    # in the order of the document.
    for i in range(state.document.count):
        p = find_pair(
            &state.query, state.document.pairs[i].key,
            state.document.pairs[i].key_length)
        if p != NULL:
            product += _weight(p) * _weight(&state.document.pairs[i])
    # NOTE(8.10): nothing in common is 0, not the default.
    return append_real(w.node, w.out, product)


cdef int _run_kv(Call *call, Node *node, Output *out) except -1 nogil:
    """kv_dot_product (spec section 8.10), its sequences included."""
    cdef State state
    start_table(&state.query, call.head)
    start_table(&state.document, call.head)
    return walk(call, node, out, _emit_kv, &state)


cdef int _load_kv(Node *node, Block **head, object payload) except -1:
    """The one byte between key and weight."""
    cdef Extra *extra = <Extra *>block_alloc(head, sizeof(Extra))
    cdef bytes mark = payload
    if len(mark) != 1 or node.source_count != 2 or node.default_count != 1:
        raise ValueError("a dot product has two sources, a mark and a default")
    extra.mark = mark[0]
    node.extra = extra
    return 0


register_operator("kv", _run_kv, _load_kv)
