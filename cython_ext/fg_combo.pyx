# cython: language_level=3, boundscheck=False, cdivision=True
"""combo_feature: crosses of the tokens of several inputs (spec section 8.3)."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from cython_ext.arena cimport block_alloc
from cython_ext.column cimport (
    STRING, ColumnView, Values, cell_is_null, string_at, value_is_null)
from cython_ext.fg_bucket cimport bucket_text
from cython_ext.fg_cells cimport (
    FORM_TEXT, PIECE_EMPTY, PIECE_TEXT, Elements, Output, Piece, append_id,
    append_key, cell_piece, holds_byte, next_element, next_token, open_elements,
    start_output)
from cython_ext.fg_node cimport (
    ORIGIN_NODE, Call, Node, Source, append_default, append_text, check_shapes,
    number_text, register_operator, rows_of, source_view)
from cython_ext.fg_text cimport NUMBER_CHARS

from procserver.errors import BadFeature

cdef enum:
    JOINER = 95              # "_"
    # SAFETY: crosses of one row; see MAX_VALUES of fg_cells.
    MAX_CROSSES = 1 << 26


ctypedef struct Token:
    # A text, or a number written out in ``digits`` (text NULL).
    const char *text
    int64_t length
    char[NUMBER_CHARS] digits


ctypedef struct Tokens:
    Token *items
    int64_t count
    int64_t capacity


cdef int _too_many_crosses(Node *node) except -1 nogil:
    with gil:
        name = (<bytes>node.name).decode()
        raise BadFeature(f"feature {name!r}: too many crossed values")


cdef Token *_next_slot(Call *call, Tokens *t) except NULL nogil:
    """Room for one more token."""
    cdef int64_t capacity
    cdef Token *fresh
    if t.count == t.capacity:
        capacity = t.capacity * 2 if t.capacity else 8
        fresh = <Token *>block_alloc(call.head, capacity * sizeof(Token))
        if t.count:
            memcpy(fresh, t.items, t.count * sizeof(Token))
        t.items = fresh
        t.capacity = capacity
    t.count += 1
    return &t.items[t.count - 1]


cdef int _collect(Call *call, Node *node, Tokens *t, Piece *piece) except -1 nogil:
    """Replaces ``t`` with the non-empty tokens of a piece."""
    cdef const char *rest
    cdef const char *end
    cdef const char *text
    cdef int64_t length, i
    cdef const Values *v
    cdef Token *token
    t.count = 0
    if piece.kind == PIECE_EMPTY:
        return 0
    if piece.kind == PIECE_TEXT:
        rest = piece.text
        end = rest + piece.length
        while next_token(&rest, end, node.separator, &text, &length):
            if length:
                token = _next_slot(call, t)
                token.text = text
                token.length = length
        return 0
    v = piece.values
    for i in range(piece.start, piece.stop):
        if value_is_null(v, i):
            continue
        if v.scalar == STRING:
            text = string_at(v, i, &length)
            if length:
                token = _next_slot(call, t)
                token.text = text
                token.length = length
        else:
            token = _next_slot(call, t)
            token.text = NULL
            token.length = number_text(v, i, token.digits)
    return 0


ctypedef struct Cross:
    # Working memory of one combo feature during one run.
    Tokens *operands
    int64_t *chosen          # per operand: which of its tokens
    int64_t *ends            # per operand: where its part of the joined text ends
    Elements *elements
    const ColumnView **views
    char *joined
    int64_t capacity
    int32_t fixed            # leading operands that are one token in every row


cdef inline void _copy_token(char *out, const Token *token) noexcept nogil:
    """PERF: short tokens are copied as two words that may overlap."""
    cdef const char *p = token.text
    cdef int64_t n = token.length
    cdef int64_t i
    if p == NULL:
        p = &token.digits[0]
    if n > 16:
        memcpy(out, p, n)
    elif n >= 8:
        memcpy(out, p, 8)
        memcpy(out + n - 8, p + n - 8, 8)
    elif n >= 4:
        memcpy(out, p, 4)
        memcpy(out + n - 4, p + n - 4, 4)
    else:
        for i in range(n):
            out[i] = p[i]


cdef int _join(
    Call *call, Node *node, Cross *x, int32_t first, int32_t stop
) except -1 nogil:
    """Writes the operands ``first`` to ``stop`` behind those already joined."""
    cdef int64_t at = x.ends[first - 1] if first else node.prefix_length
    cdef Token *token
    cdef char *larger
    cdef int32_t k
    for k in range(first, stop):
        token = &x.operands[k].items[x.chosen[k]]
        if at + token.length + 1 > x.capacity:
            larger = <char *>block_alloc(call.head, 2 * (at + token.length + 1))
            memcpy(larger, x.joined, at)
            x.joined = larger
            x.capacity = 2 * (at + token.length + 1)
        if k:
            x.joined[at] = JOINER
            at += 1
        _copy_token(x.joined + at, token)
        at += token.length
        x.ends[k] = at
    return 0


cdef int64_t _emit_crosses(
    Call *call, Node *node, Output *o, Cross *x
) except -1 nogil:
    """Appends every combination, first operand outermost; returns how many."""
    cdef int64_t crosses = 1
    cdef int64_t made = 0
    cdef int32_t last = node.source_count - 1
    cdef int32_t k
    for k in range(node.source_count):
        x.chosen[k] = 0
        if x.operands[k].count == 1:
            continue
        if x.operands[k].count and crosses > MAX_CROSSES // x.operands[k].count:
            crosses = MAX_CROSSES
        else:
            crosses *= x.operands[k].count
    # NOTE(14.7): an operand of separators only counts as empty.
    if crosses == 0:
        append_default(node, o)
        return node.has_default
    if node.value_dim and crosses > node.value_dim:
        crosses = node.value_dim
    elif crosses >= MAX_CROSSES:
        _too_many_crosses(node)
    # PERF: what the row has in common with the one before stays joined.
    k = x.fixed if x.fixed < node.source_count else 0
    while True:
        _join(call, node, x, k, node.source_count)
        if node.form == FORM_TEXT:
            append_text(o, node.prefix, 0, x.joined, x.ends[last])
        else:
            append_id(o, bucket_text(&node.bucketizer, x.joined, x.ends[last]))
        made += 1
        if made == crosses:
            return made
        k = last
        while x.chosen[k] + 1 == x.operands[k].count:
            x.chosen[k] = 0
            k -= 1
        x.chosen[k] += 1


cdef int _start_cross(Call *call, Node *node, Cross *x) except -1 nogil:
    cdef int64_t n = node.source_count
    cdef int64_t i
    x.operands = <Tokens *>block_alloc(call.head, n * sizeof(Tokens))
    x.chosen = <int64_t *>block_alloc(call.head, n * 8)
    x.ends = <int64_t *>block_alloc(call.head, n * 8)
    x.elements = <Elements *>block_alloc(call.head, n * sizeof(Elements))
    x.views = <const ColumnView **>block_alloc(call.head, n * sizeof(ColumnView *))
    x.capacity = node.prefix_length + 64
    x.joined = <char *>block_alloc(call.head, x.capacity)
    memcpy(x.joined, node.prefix, node.prefix_length)
    x.fixed = 0
    for i in range(n):
        x.views[i] = source_view(call, &node.sources[i])
        x.operands[i].items = NULL
        x.operands[i].count = 0
        x.operands[i].capacity = 0
    return 0


cdef int _read_operand(
    Call *call, Node *node, Cross *x, int32_t k, int64_t row
) except -1 nogil:
    """Takes operand ``k`` of a row: its tokens, or its elements to walk."""
    cdef Source *source = &node.sources[k]
    cdef const ColumnView *v = x.views[k]
    cdef Tokens *t = &x.operands[k]
    cdef const char *text
    cdef int64_t length
    cdef bint fresh = row == 0 or v.rows != 1
    cdef Piece piece
    if v.rows == 1:
        row = 0
    if source.sequence:
        open_elements(&x.elements[k], v, row, node.delim, source.origin == ORIGIN_NODE)
    elif fresh:
        if v.kind == STRING and t.count == 1 and not cell_is_null(v, row):
            # PERF: the usual text cell is one token.
            text = string_at(&v.values, row, &length)
            if length and not holds_byte(text, length, node.separator):
                t.items[0].text = text
                t.items[0].length = length
                return 0
        cell_piece(v, row, source.origin == ORIGIN_NODE, &piece)
        _collect(call, node, t, &piece)
    return 0


cdef int _fix_leading(Call *call, Node *node, Cross *x) except -1 nogil:
    """After the first row: counts the leading operands that never change."""
    cdef int32_t k
    for k in range(node.source_count):
        if x.views[k].rows != 1 or x.operands[k].count != 1:
            break
        x.fixed = k + 1
    # The first row may have had an empty operand, and so have joined nothing.
    return _join(call, node, x, 0, x.fixed)


cdef int64_t _cross_elements(
    Call *call, Node *node, Output *o, Cross *x
) except -1 nogil:
    """Crosses element by element; returns how many elements there were."""
    cdef int64_t made = 0
    cdef bint found
    cdef int32_t k
    cdef Piece piece
    while not node.limit or made < node.limit:
        found = False
        for k in range(node.source_count):
            if node.sources[k].sequence:
                if next_element(&x.elements[k], &piece):
                    found = True
                else:
                    piece.kind = PIECE_EMPTY
                _collect(call, node, &x.operands[k], &piece)
        if not found:
            break
        append_key(o, _emit_crosses(call, node, o, x))
        made += 1
    if made == 0:
        append_default(node, o)
        append_key(o, 1)
        made = 1
    return made


cdef int run_combo(Call *call, Node *node, Output *out) except -1 nogil:
    """combo_feature (spec sections 4.3 and 8.3), its sequences included."""
    cdef int64_t rows, row
    cdef int32_t k
    cdef Cross x
    check_shapes(call, node)
    rows = rows_of(call, node)
    start_output(out, rows, rows)
    _start_cross(call, node, &x)
    for row in range(rows):
        for k in range(x.fixed, node.source_count):
            _read_operand(call, node, &x, k, row)
        if node.sequence:
            out.lengths[row] = <int32_t>_cross_elements(call, node, out, &x)
        else:
            out.lengths[row] = <int32_t>_emit_crosses(call, node, out, &x)
            if row == 0:
                _fix_leading(call, node, &x)
    return 0


register_operator("combo", run_combo, NULL)
