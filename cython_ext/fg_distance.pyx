# cython: language_level=3, boundscheck=False, cdivision=True
"""Edit distance of two texts: insertions, deletions and substitutions cost 1.

Also the operator EditDistance of custom_feature (spec section 8.16).

The columns of the distance matrix are computed 64 cells at a time, as bit vectors
of differences between neighbouring cells (Myers 1999, with Hyyrö's carries between
blocks of rows).
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from cython_ext.arena cimport Arena, Block, block_alloc
from cython_ext.column cimport STRING, string_at, value_is_null
from cython_ext.fg_bucket cimport normalize_single
from cython_ext.fg_cells cimport PIECE_EMPTY, PIECE_TEXT, Output, Piece
from cython_ext.fg_node cimport (
    Call, Node, append_real, append_token, number_text, register_operator)
from cython_ext.fg_text cimport NUMBER_CHARS, format_int64
from cython_ext.fg_walk cimport Walk, emit_default, walk

from procserver.errors import BadFeature

cdef enum:
    ROWS = 64                # rows of the matrix in one block
    SLOTS = 128              # hash slots for the characters of one block
    # SAFETY: steps of one comparison; beyond it, texts are too long to compare.
    MAX_STEPS = 1 << 22


ctypedef struct Slot:
    # One character of a block, and the rows where it stands; no rows: free.
    uint64_t rows
    uint32_t point


cdef inline Slot *_slot(Slot *slots, uint32_t point) noexcept nogil:
    """The character's slot, or the free one where it would go."""
    cdef uint32_t at = (point * <uint32_t>2654435761u) >> 25
    while slots[at].rows and slots[at].point != point:
        at = (at + 1) & (SLOTS - 1)
    return &slots[at]


cdef int64_t _decode(
    const unsigned char *p, int64_t length, uint32_t *out
) noexcept nogil:
    """Code points of UTF-8; a byte that is none becomes a character of its own."""
    cdef int64_t i = 0
    cdef int64_t n = 0
    cdef int64_t k, more
    cdef uint32_t point
    while i < length:
        point = p[i]
        more = 0
        if point >= 0xf0 and point < 0xf8:
            more = 3
            point &= 0x07
        elif point >= 0xe0 and point < 0xf0:
            more = 2
            point &= 0x0f
        elif point >= 0xc0 and point < 0xe0:
            more = 1
            point &= 0x1f
        k = 1
        if i + more < length:
            while k <= more and (p[i + k] & 0xc0) == 0x80:
                point = (point << 6) | (p[i + k] & 0x3f)
                k += 1
        if k != more + 1 or (more == 0 and point >= 0x80):
            point = 0x110000u + p[i]
            k = 1
        out[n] = point
        n += 1
        i += k
    return n


cdef int take_points(
    Block **head, Points *points, const char *text, int64_t length, bint utf8
) except -1 nogil:
    """Replaces ``points`` with the code points (or bytes) of a text."""
    cdef int64_t i
    if points.items == NULL or length > points.capacity:
        points.capacity = 2 * length if length > 32 else 64
        points.items = <uint32_t *>block_alloc(head, points.capacity * 4)
    if utf8:
        points.count = _decode(<const unsigned char *>text, length, points.items)
        return 0
    for i in range(length):
        points.items[i] = <unsigned char>text[i]
    points.count = length
    return 0


cdef void _one_block(
    const uint32_t *pattern, int64_t rows, const uint32_t *text, int64_t columns,
    int8_t *steps
) noexcept nogil:
    """Passes ``steps``, the differences along the row above, through one block.

    Afterwards they are the differences along the block's last row.
    """
    cdef Slot[SLOTS] slots
    cdef Slot *slot
    cdef uint64_t last = (<uint64_t>1) << (rows - 1)
    cdef uint64_t up = ~<uint64_t>0       # rows where the cell above is 1 less
    cdef uint64_t down = 0                # ... 1 more
    cdef uint64_t equal, vertical, horizontal, plus, minus
    cdef int64_t i
    cdef int8_t step
    memset(slots, 0, sizeof(slots))
    for i in range(rows):
        slot = _slot(slots, pattern[i])
        slot.point = pattern[i]
        slot.rows |= (<uint64_t>1) << i
    for i in range(columns):
        step = steps[i]
        equal = _slot(slots, text[i]).rows
        vertical = equal | down
        if step < 0:
            equal |= 1
        horizontal = (((equal & up) + up) ^ up) | equal
        plus = down | ~(horizontal | up)
        minus = up & horizontal
        steps[i] = 1 if plus & last else -1 if minus & last else 0
        plus = (plus << 1) | <uint64_t>(step > 0)
        minus = (minus << 1) | <uint64_t>(step < 0)
        up = minus | ~(vertical | plus)
        down = plus & vertical


cdef int64_t edit_distance_of(
    Block **head, const Points *a, const Points *b
) except -2 nogil:
    """The distance; -1 if the texts are too long to compare."""
    cdef const uint32_t *p = a.items
    cdef const uint32_t *q = b.items
    cdef const uint32_t *swap
    cdef int64_t m = a.count
    cdef int64_t n = b.count
    cdef int64_t i, found
    cdef int8_t *steps
    cdef int8_t[256] few
    while m and n and p[0] == q[0]:
        p += 1
        q += 1
        m -= 1
        n -= 1
    while m and n and p[m - 1] == q[n - 1]:
        m -= 1
        n -= 1
    if m > n:
        swap = p
        p = q
        q = swap
        i = m
        m = n
        n = i
    if m == 0:
        return n
    if ((m + ROWS - 1) // ROWS) > MAX_STEPS // n:
        return -1
    steps = few
    if n > 256:
        steps = <int8_t *>block_alloc(head, n)
    memset(steps, 1, n)
    i = 0
    while i < m:
        _one_block(p + i, ROWS if m - i > ROWS else m - i, q, n, steps)
        i += ROWS
    found = m
    for i in range(n):
        found += steps[i]
    return found


# ------------------------------------------------------------- EditDistance

ctypedef struct Sides:
    # The texts of both inputs, as they were read last.
    Points points[2]
    bint present[2]


cdef int _bad_input(Node *node, int32_t k, str what) except -1:
    name = (<bytes>node.name).decode()
    label = (<bytes>node.sources[k].label).decode()
    raise BadFeature(f"feature {name!r}: input {label!r} {what}")


cdef int _read_side(Walk *w, Sides *sides, int32_t k) except -1 nogil:
    """Takes one side's text; an empty or null one is not present."""
    cdef Piece *piece = &w.pieces[k]
    cdef char[NUMBER_CHARS] digits
    cdef const char *text = piece.text
    cdef int64_t length = piece.length
    sides.present[k] = False
    if piece.kind == PIECE_EMPTY:
        return 0
    if piece.kind != PIECE_TEXT:
        if piece.stop != piece.start + 1:
            with gil:
                _bad_input(w.node, k, "may not be a list of several values")
        if value_is_null(piece.values, piece.start):
            return 0
        if piece.values.scalar == STRING:
            text = string_at(piece.values, piece.start, &length)
        else:
            text = digits
            length = number_text(piece.values, piece.start, digits)
    sides.present[k] = length != 0
    return take_points(
        w.call.head, &sides.points[k], text, length, w.node.extra != NULL)


cdef int _emit_distance(Walk *w) except -1 nogil:
    cdef Sides *sides = <Sides *>w.state
    cdef char[NUMBER_CHARS] digits
    cdef int64_t found
    cdef int32_t k
    for k in range(2):
        if w.fresh[k]:
            _read_side(w, sides, k)
    # NOTE(8.16): without a text on both sides there is nothing to compare.
    if not (sides.present[0] and sides.present[1]):
        return emit_default(w.node, w.out)
    found = edit_distance_of(w.call.head, &sides.points[0], &sides.points[1])
    if found < 0:
        with gil:
            _bad_input(w.node, 0, "is too long to compare")
    if w.node.default_count:
        return append_real(
            w.node, w.out, normalize_single(&w.node.normalizer, <float>found))
    return append_token(w.node, w.out, digits, format_int64(found, digits))


cdef int run_edit_distance(Call *call, Node *node, Output *out) except -1 nogil:
    """EditDistance over whole columns, its sequences included."""
    cdef Sides sides
    memset(&sides, 0, sizeof(Sides))
    return walk(call, node, out, _emit_distance, &sides)


cdef int _load_edit_distance(Node *node, Block **head, object payload) except -1:
    """Takes whether code points are compared; bytes otherwise."""
    if node.source_count != 2:
        raise ValueError("a distance is between two inputs")
    # Any pointer stands for yes.
    node.extra = <void *>node if payload else NULL
    return 0


register_operator("edit_distance", run_edit_distance, _load_edit_distance)


# ------------------------------------------------------------- Python's face

def edit_distance(bytes a not None, bytes b not None, *, bint utf8) -> int:
    """Edit distance in code points of UTF-8, or in bytes."""
    cdef Arena arena = Arena()
    cdef Points left, right
    cdef int64_t found
    memset(&left, 0, sizeof(Points))
    memset(&right, 0, sizeof(Points))
    take_points(&arena._head, &left, a, len(a), utf8)
    take_points(&arena._head, &right, b, len(b), utf8)
    found = edit_distance_of(&arena._head, &left, &right)
    if found < 0:
        raise ValueError("texts too long to compare")
    return found
