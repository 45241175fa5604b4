# cython: language_level=3
"""Hash tables of ``key:value`` pairs, built once per cell and read many times."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from cython_ext.arena cimport Block
from cython_ext.column cimport Values
from cython_ext.fg_cells cimport Piece
from cython_ext.fg_text cimport PARSED, parse_double


cdef enum PairState:
    PAIR_TEXT = 0            # a text that was not read as a number yet
    PAIR_NUMBER = 1          # ``number`` is known
    PAIR_NO_NUMBER = 2       # a text that is no number


ctypedef struct Pair:
    uint64_t hash
    const char *key
    int64_t key_length
    const char *text         # the value as text; NULL: value ``at`` of ``values``
    int64_t length
    const Values *values
    int64_t at
    double number
    int32_t state
    int32_t slot


ctypedef struct Table:
    # Pairs in the order in which their keys came first; grows in an arena.
    Block **head
    Pair *pairs
    int64_t count
    int64_t capacity
    int32_t *slots           # number of a pair + 1; 0: free
    uint64_t mask            # slots - 1


cdef int start_table(Table *t, Block **head) except -1 nogil
cdef void clear_table(Table *t) noexcept nogil
cdef Pair *put_pair(Table *t, const char *key, int64_t length) except NULL nogil
cdef Pair *find_pair(const Table *t, const char *key, int64_t length) noexcept nogil
cdef int read_pairs(
    Table *t, const Piece *piece, char separator, char mark, bint bare
) except -1 nogil


cdef inline bint pair_number(Pair *p, double *x) noexcept nogil:
    """The value as a number; False if it is none."""
    if p.state == PAIR_TEXT:
        p.state = PAIR_NO_NUMBER
        if parse_double(p.text, p.length, &p.number) == PARSED:
            p.state = PAIR_NUMBER
    x[0] = p.number
    return p.state == PAIR_NUMBER
