# cython: language_level=3, boundscheck=False, cdivision=True
"""combine_feature: several numbers to one (spec sections 8.4 and 8.5)."""

from libc.math cimport INFINITY, isnan
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from cython_ext.arena cimport Block, block_alloc
from cython_ext.column cimport STRING, Values, value_is_null
from cython_ext.fg_cells cimport (
    PIECE_RANGE, Output, Piece, value_as_double)
from cython_ext.fg_node cimport (
    Call, Node, append_normalised, register_operator, source_view,
    steps_in_double)
from cython_ext.fg_table cimport Pair, Table, find_pair, put_pair, start_table
from cython_ext.fg_text cimport PARSED, parse_double
from cython_ext.fg_walk cimport (
    Texts, Walk, emit_default, next_text, open_texts, walk)

COMBINERS = {
    "": COMBINE_NONE, "sum": COMBINE_SUM, "mean": COMBINE_MEAN, "min": COMBINE_MIN,
    "max": COMBINE_MAX, "count": COMBINE_COUNT, "gap_min": COMBINE_GAP_MIN,
    "gap_max": COMBINE_GAP_MAX,
}


ctypedef struct Extra:
    int32_t combiner
    bint mapped              # tokens are keys of ``numbers``
    Table numbers


ctypedef struct State:
    Combined combined
    Texts texts
    bint in_double


cdef int32_t combiner_of(str name) except -1:
    return COMBINERS[name]


# ----------------------------------------------------------------- combining

cdef int keep_item(Combined *c, double x) except -1 nogil:
    """Keeps a number for its gaps."""
    cdef int64_t capacity
    cdef double *items
    if c.count == c.capacity:
        capacity = c.capacity * 2 if c.capacity else 16
        items = <double *>block_alloc(c.head, capacity * 8)
        if c.count:
            memcpy(items, c.items, c.count * 8)
        c.items = items
        c.capacity = capacity
    c.items[c.count] = x
    c.count += 1
    return 0


cdef int _compare(const void *a, const void *b) noexcept nogil:
    """Ascending, NaN last."""
    cdef double x = (<const double *>a)[0]
    cdef double y = (<const double *>b)[0]
    if isnan(x) or isnan(y):
        return isnan(x) - isnan(y)
    return (x > y) - (x < y)


cdef double _gap(Combined *c) noexcept nogil:
    """NOTE(14.10): the numbers ascend; one number alone has the gap 0."""
    cdef double least = INFINITY
    cdef double most = -1
    cdef double gap
    cdef int64_t i
    qsort(c.items, c.count, sizeof(double), _compare)
    for i in range(1, c.count):
        gap = c.items[i] - c.items[i - 1]
        if gap < least:
            least = gap
        if gap > most:
            most = gap
    if most < 0:
        return 0
    return least if c.combiner == COMBINE_GAP_MIN else most


cdef double combined(Combined *c) noexcept nogil:
    """What became of the numbers, of which there is at least one."""
    if c.combiner == COMBINE_SUM:
        return c.sum
    if c.combiner == COMBINE_MEAN:
        return c.sum / <double>c.count
    if c.combiner == COMBINE_MIN:
        return c.least
    if c.combiner == COMBINE_MAX:
        return c.most
    if c.combiner == COMBINE_COUNT:
        return <double>c.count
    return _gap(c)


# ----------------------------------------------------------- combine_feature

cdef int _emit_combine(Walk *w) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef Combined *c = &state.combined
    cdef Piece *piece = &w.pieces[0]
    cdef const Values *v = piece.values
    cdef const char *text
    cdef int64_t length, i
    cdef double x = 0
    cdef Pair *pair
    c.count = 0
    if piece.kind == PIECE_RANGE and v.scalar != STRING and not extra.mapped:
        for i in range(piece.start, piece.stop):
            if not value_is_null(v, i):
                combine_number(c, value_as_double(v, i))
    else:
        # NOTE(8.4): what is no number, or not in value_map, does not count.
        open_texts(&state.texts, piece, w.node.separator)
        while next_text(&state.texts, &text, &length):
            if length == 0:
                continue
            if extra.mapped:
                pair = find_pair(&extra.numbers, text, length)
                if pair != NULL:
                    combine_number(c, pair.number)
            elif parse_double(text, length, &x) == PARSED:
                combine_number(c, x)
    # NOTE(14.10): nothing to combine is the default, also for count.
    if c.count == 0:
        return emit_default(w.node, w.out)
    return append_normalised(w.node, w.out, combined(c), state.in_double)


cdef int _run_combine(Call *call, Node *node, Output *out) except -1 nogil:
    """combine_feature (spec section 8.4), its sequences included."""
    cdef State state
    state.in_double = steps_in_double(node, source_view(call, &node.sources[0]))
    start_combined(&state.combined, (<Extra *>node.extra).combiner, call.head)
    return walk(call, node, out, _emit_combine, &state)


cdef int _load_combine(Node *node, Block **head, object payload) except -1:
    """``(combiner, value_map or None)``; the map from bytes to float."""
    cdef Extra *extra = <Extra *>block_alloc(head, sizeof(Extra))
    cdef bytes token
    cdef char *copy
    cdef Pair *pair
    name, numbers = payload
    extra.combiner = combiner_of(name)
    extra.mapped = numbers is not None
    if numbers is not None:
        start_table(&extra.numbers, head)
        for token, number in numbers.items():
            copy = <char *>block_alloc(head, len(token))
            memcpy(copy, <const char *>token, len(token))
            pair = put_pair(&extra.numbers, copy, len(token))
            pair.number = number
    node.extra = extra
    return 0


register_operator("combine", _run_combine, _load_combine)
