# cython: language_level=3, boundscheck=False
"""How operators of several inputs go through rows, elements and tokens."""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport block_alloc
from cython_ext.column cimport ColumnView
from cython_ext.fg_cells cimport (
    PIECE_EMPTY, Elements, Output, Piece, append_key, cell_piece, next_element,
    open_elements, start_output)
from cython_ext.fg_node cimport (
    ORIGIN_NODE, Call, Node, Source, check_shapes, rows_of, source_view)


cdef int _start(Walk *w, Call *call, Node *node, Output *out) except -1 nogil:
    cdef int64_t n = node.source_count
    cdef int32_t k
    w.call = call
    w.node = node
    w.out = out
    w.views = <const ColumnView **>block_alloc(call.head, n * sizeof(ColumnView *))
    w.pieces = <Piece *>block_alloc(call.head, n * sizeof(Piece))
    w.fresh = <bint *>block_alloc(call.head, n * sizeof(bint))
    w.elements = <Elements *>block_alloc(call.head, n * sizeof(Elements))
    for k in range(node.source_count):
        w.views[k] = source_view(call, &node.sources[k])
        w.pieces[k].kind = PIECE_EMPTY
        w.fresh[k] = True
    return 0


cdef inline void _read_row(Walk *w) noexcept nogil:
    """Takes each source's cell of the row, or opens its elements."""
    cdef Source *source
    cdef const ColumnView *v
    cdef bint split_single
    cdef int64_t row
    cdef int32_t k
    for k in range(w.node.source_count):
        source = &w.node.sources[k]
        v = w.views[k]
        split_single = source.origin == ORIGIN_NODE
        row = 0 if v.rows == 1 else w.row
        if source.sequence:
            open_elements(&w.elements[k], v, row, w.node.delim, split_single)
        elif w.row == 0 or v.rows != 1:
            cell_piece(v, row, split_single, &w.pieces[k])
            w.fresh[k] = True


cdef inline bint _next_elements(Walk *w) noexcept nogil:
    """Takes each sequence's next element; False when all have ended.

    NOTE(9): of sequences of unequal length the longest counts; what the others
    lack is empty.
    """
    cdef bint found = False
    cdef int32_t k
    for k in range(w.node.source_count):
        if not w.node.sources[k].sequence:
            continue
        w.fresh[k] = True
        if next_element(&w.elements[k], &w.pieces[k]):
            found = True
        else:
            w.pieces[k].kind = PIECE_EMPTY
    return found


cdef inline int _emit(Walk *w, Emit emit) except -1 nogil:
    cdef int32_t k
    emit(w)
    for k in range(w.node.source_count):
        w.fresh[k] = False
    return 0


cdef int64_t _walk_elements(Walk *w, Emit emit) except -1 nogil:
    """Emits the elements of a row; returns how many there were."""
    cdef Output *o = w.out
    cdef int64_t limit = w.node.limit
    cdef int64_t made = 0
    cdef int64_t first
    # NOTE(14.5): truncation keeps the first elements.
    while (not limit or made < limit) and _next_elements(w):
        first = o.count
        _emit(w, emit)
        append_key(o, o.count - first)
        made += 1
    if made == 0:
        first = o.count
        emit_default(w.node, o)
        append_key(o, o.count - first)
        made = 1
    return made


cdef int walk(
    Call *call, Node *node, Output *out, Emit emit, void *state
) except -1 nogil:
    """Runs ``emit`` for every row, or for every element of every row.

    It finds the row's (or element's) pieces in the walk; a source that is no
    sequence keeps its piece from element to element, and a source of one row from
    row to row: ``fresh`` says which pieces are others than at the last emit.
    """
    cdef int64_t rows, first
    cdef Walk w
    check_shapes(call, node)
    rows = rows_of(call, node)
    start_output(out, rows, rows)
    _start(&w, call, node, out)
    w.state = state
    for w.row in range(rows):
        _read_row(&w)
        if node.sequence:
            out.lengths[w.row] = <int32_t>_walk_elements(&w, emit)
        else:
            first = out.count
            _emit(&w, emit)
            out.lengths[w.row] = <int32_t>(out.count - first)
    return 0
