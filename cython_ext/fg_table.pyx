# cython: language_level=3, boundscheck=False
"""Hash tables of ``key:value`` pairs, built once per cell and read many times."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from cython_ext.arena cimport Block, block_alloc
from cython_ext.column cimport STRING, Values, string_at, value_is_null
from cython_ext.fg_cells cimport (
    PIECE_EMPTY, PIECE_TEXT, Piece, next_token, value_as_double)
from cython_ext.fg_hash cimport std_hash
from cython_ext.fg_node cimport number_text
from cython_ext.fg_text cimport NUMBER_CHARS

from procserver.errors import BadFeature

cdef enum:
    FIRST_PAIRS = 32


cdef int _too_many() except -1 nogil:
    with gil:
        raise BadFeature("a map has too many pairs")


cdef int start_table(Table *t, Block **head) except -1 nogil:
    """An empty table whose memory comes from ``head``."""
    memset(t, 0, sizeof(Table))
    t.head = head
    return _grow(t)


cdef int _grow(Table *t) except -1 nogil:
    """Doubles the room for pairs; there are always twice as many slots."""
    cdef int64_t capacity = t.capacity * 2 if t.capacity else FIRST_PAIRS
    cdef Pair *pairs
    cdef uint64_t at
    cdef int64_t i
    if capacity > INT32_MAX // 2:
        _too_many()
    pairs = <Pair *>block_alloc(t.head, capacity * sizeof(Pair))
    if t.count:
        memcpy(pairs, t.pairs, t.count * sizeof(Pair))
    t.pairs = pairs
    t.capacity = capacity
    t.mask = 2 * capacity - 1
    t.slots = <int32_t *>block_alloc(t.head, 2 * capacity * 4)
    memset(t.slots, 0, 2 * capacity * 4)
    for i in range(t.count):
        at = pairs[i].hash & t.mask
        while t.slots[at]:
            at = (at + 1) & t.mask
        t.slots[at] = <int32_t>(i + 1)
        pairs[i].slot = <int32_t>at
    return 0


cdef void clear_table(Table *t) noexcept nogil:
    """Takes all pairs out.

    PERF: in time of the pairs, not of the room that an earlier row needed.
    """
    cdef int64_t i
    for i in range(t.count):
        t.slots[t.pairs[i].slot] = 0
    t.count = 0


cdef inline uint64_t _find_slot(
    const Table *t, uint64_t hash_, const char *key, int64_t length
) noexcept nogil:
    """The key's slot, or the free slot where it would go."""
    cdef uint64_t at = hash_ & t.mask
    cdef Pair *p
    while t.slots[at]:
        p = &t.pairs[t.slots[at] - 1]
        if p.hash == hash_ and p.key_length == length and (
            memcmp(p.key, key, length) == 0
        ):
            return at
        at = (at + 1) & t.mask
    return at


cdef Pair *put_pair(Table *t, const char *key, int64_t length) except NULL nogil:
    """The pair of a key, new if need be; its value is the caller's to fill.

    ``key`` is not copied. The pair may move when another one is put.
    """
    cdef uint64_t hash_ = std_hash(key, length)
    cdef uint64_t at = _find_slot(t, hash_, key, length)
    cdef Pair *p
    if t.slots[at]:
        return &t.pairs[t.slots[at] - 1]
    if t.count == t.capacity:
        _grow(t)
        at = _find_slot(t, hash_, key, length)
    p = &t.pairs[t.count]
    t.count += 1
    t.slots[at] = <int32_t>t.count
    p.hash = hash_
    p.key = key
    p.key_length = length
    p.slot = <int32_t>at
    return p


cdef Pair *find_pair(
    const Table *t, const char *key, int64_t length
) noexcept nogil:
    """The pair of a key; NULL if there is none."""
    cdef uint64_t at = _find_slot(t, std_hash(key, length), key, length)
    return &t.pairs[t.slots[at] - 1] if t.slots[at] else NULL


# ------------------------------------------------------------ cells to tables

cdef inline int _put_text(
    Table *t, const char *text, int64_t length, char mark, bint bare
) except -1 nogil:
    """Puts one ``key:value``; ``bare``: a key alone has the value 1."""
    # NOTE(14.14): the first mark splits; of repeated keys the last one counts.
    cdef const char *found = <const char *>memchr(text, mark, length)
    cdef int64_t key = length if found == NULL else found - text
    cdef Pair *p
    if key == 0 or (found == NULL and not bare):
        return 0
    p = put_pair(t, text, key)
    p.values = NULL
    if found == NULL:
        p.text = text + length
        p.length = 0
        p.number = 1
        p.state = PAIR_NUMBER
    else:
        p.text = found + 1
        p.length = length - key - 1
        p.state = PAIR_TEXT
    return 0


cdef int _put_value(
    Table *t, const Piece *piece, int64_t i
) except -1 nogil:
    """Puts one entry of a map cell."""
    cdef const char *key
    cdef char *digits
    cdef int64_t length
    cdef const Values *v = piece.values
    cdef Pair *p
    if piece.keys.scalar == STRING:
        key = string_at(piece.keys, i, &length)
    else:
        digits = <char *>block_alloc(t.head, NUMBER_CHARS)
        length = number_text(piece.keys, i, digits)
        key = digits
    if length == 0:
        return 0
    p = put_pair(t, key, length)
    p.values = v
    p.at = i
    if v.scalar == STRING:
        p.text = string_at(v, i, &p.length)
        p.state = PAIR_TEXT
    else:
        p.text = NULL
        p.length = 0
        p.number = value_as_double(v, i)
        p.state = PAIR_NUMBER
    return 0


cdef int _put_number(Table *t, const Values *v, int64_t i) except -1 nogil:
    """Puts a number of a list as a key of value 1."""
    cdef char *digits = <char *>block_alloc(t.head, NUMBER_CHARS)
    cdef Pair *p = put_pair(t, digits, number_text(v, i, digits))
    p.values = NULL
    p.text = digits
    p.length = 0
    p.number = 1
    p.state = PAIR_NUMBER
    return 0


cdef int read_pairs(
    Table *t, const Piece *piece, char separator, char mark, bint bare
) except -1 nogil:
    """Replaces the table's pairs with those of a cell.

    A text is cut by ``separator`` and each part at its first ``mark``; of a list
    each value is such a part; a map is taken as it is. Null keys and values, empty
    keys, and without ``bare`` keys without value, are left out.
    """
    cdef const char *rest
    cdef const char *end
    cdef const char *token
    cdef int64_t length, i
    clear_table(t)
    if piece.kind == PIECE_EMPTY:
        return 0
    if piece.kind == PIECE_TEXT:
        rest = piece.text
        end = rest + piece.length
        while next_token(&rest, end, separator, &token, &length):
            if length:
                _put_text(t, token, length, mark, bare)
        return 0
    for i in range(piece.start, piece.stop):
        if value_is_null(piece.values, i):
            continue
        if piece.keys != NULL:
            if not value_is_null(piece.keys, i):
                _put_value(t, piece, i)
        elif piece.values.scalar == STRING:
            token = string_at(piece.values, i, &length)
            if length:
                _put_text(t, token, length, mark, bare)
        elif bare:
            _put_number(t, piece.values, i)
    return 0
