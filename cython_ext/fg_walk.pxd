# cython: language_level=3
"""How operators of several inputs go through rows, elements and tokens."""

from libc.stdint cimport int64_t

from cython_ext.arena cimport Block, block_alloc
from cython_ext.column cimport STRING, ColumnView, Values, string_at, value_is_null
from cython_ext.fg_cells cimport (
    PIECE_EMPTY, PIECE_TEXT, Elements, Output, Piece, next_token)
from cython_ext.fg_node cimport (
    Call, Node, append_default, append_real_default, number_text)
from cython_ext.fg_text cimport NUMBER_CHARS


ctypedef struct Walk:
    # What an operator sees of one row, or of one element of a sequence row.
    Call *call
    Node *node
    Output *out
    int64_t row
    const ColumnView **views     # per source
    Piece *pieces                # per source
    bint *fresh                  # per source: not the piece of the last emit
    Elements *elements
    void *state                  # the operator's own, for this run


# Appends the values of one row or element, the default included if need be.
ctypedef int (*Emit)(Walk *w) except -1 nogil


ctypedef struct Texts:
    # The tokens of a piece, as texts; nulls and empty tokens have length 0.
    const char *rest
    const char *end
    char separator
    const Values *values
    int64_t at
    int64_t stop
    char[NUMBER_CHARS] digits


ctypedef struct Scratch:
    # A buffer that is written anew for each value.
    Block **head
    char *data
    int64_t capacity


cdef int walk(
    Call *call, Node *node, Output *out, Emit emit, void *state) except -1 nogil


cdef inline int emit_default(Node *node, Output *o) except -1 nogil:
    """Appends the default of any feature; nothing if it has none and is sparse."""
    if node.default_count:
        append_real_default(node, o)
    else:
        append_default(node, o)
    return 0


cdef inline int square_row(Walk *w, int64_t first) except -1 nogil:
    """Ends a row of any number of values, appended from ``first`` on.

    No value is the default. NOTE(8.6): a row of a matrix must have ``width``
    values: fewer are the default too, further ones are left out.
    """
    cdef Output *o = w.out
    if w.node.dense:
        if o.count - first > w.node.width:
            o.count = first + w.node.width
        elif o.count - first < w.node.width:
            o.count = first
    if o.count == first:
        return emit_default(w.node, o)
    return 0


cdef inline char *scratch_room(Scratch *s, int64_t size) except NULL nogil:
    """The buffer, large enough for ``size`` bytes; its content is lost."""
    if size > s.capacity or s.capacity == 0:
        s.capacity = 2 * size + 64
        s.data = <char *>block_alloc(s.head, s.capacity)
    return s.data


cdef inline void open_texts(
    Texts *t, const Piece *piece, char separator
) noexcept nogil:
    """Tokens of a text, or values of a list (of a map: the values)."""
    t.rest = NULL
    t.separator = separator
    t.at = 0
    t.stop = 0
    if piece.kind == PIECE_TEXT:
        t.rest = piece.text
        t.end = piece.text + piece.length
    elif piece.kind != PIECE_EMPTY:
        t.values = piece.values
        t.at = piece.start
        t.stop = piece.stop


cdef inline bint next_text(
    Texts *t, const char **text, int64_t *length
) noexcept nogil:
    """Takes the next token; False when there is none.

    A number is written into the cursor, where the next one overwrites it.
    """
    if t.rest != NULL:
        return next_token(&t.rest, t.end, t.separator, text, length)
    if t.at >= t.stop:
        return False
    if value_is_null(t.values, t.at):
        length[0] = 0
        text[0] = &t.digits[0]
    elif t.values.scalar == STRING:
        text[0] = string_at(t.values, t.at, length)
    else:
        text[0] = &t.digits[0]
        length[0] = number_text(t.values, t.at, &t.digits[0])
    t.at += 1
    return True
