# cython: language_level=3
"""What feature operators read (pieces of cells) and write (growing outputs)."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memchr

from cython_ext.arena cimport Block
from cython_ext.column cimport (
    ColumnView, Values, cell_is_null, inner_is_null, string_at, value_is_null)
from cython_ext.fg_hash cimport load32, load64


cdef enum Form:
    # What the values of a feature are.
    FORM_IDS = 0
    FORM_TEXT = 1
    FORM_NUMBERS = 2


cdef enum PieceKind:
    PIECE_EMPTY = 0
    PIECE_TEXT = 1
    PIECE_RANGE = 2


ctypedef struct Piece:
    # One cell, or one element of a sequence cell. A text is split into tokens
    # by the operator; a range of values is not.
    int32_t kind
    const char *text
    int64_t length
    const Values *values
    const Values *keys       # map cells: parallel to values
    int64_t start
    int64_t stop


ctypedef struct Elements:
    # Walks the elements of one sequence cell.
    const ColumnView *view
    bint split_single
    char delim
    const char *text         # rest of a text cell; NULL: none
    const char *end
    int64_t at               # rest of a list cell
    int64_t stop


ctypedef struct Output:
    # A feature's values during one run; grows in the run's arena.
    Block **head
    const char *name         # of the feature, for error messages
    int64_t rows
    int32_t form
    bint sequence
    bint weighted
    int64_t width            # NUMBERS: columns of a dense row
    int64_t count
    int64_t capacity
    int64_t *ids
    float *numbers
    float *weights
    int32_t *text_ends       # TEXT: offsets, count + 1
    char *text
    int64_t text_used
    int64_t text_capacity
    int32_t *lengths         # per row: values, or elements of a sequence
    int32_t *key_lengths     # per element: values
    int64_t keys
    int64_t key_capacity
    ColumnView flat          # what consumers of this feature read
    ColumnView nested


cdef int start_output(Output *o, int64_t rows, int64_t values) except -1 nogil
cdef int grow_values(Output *o, int64_t more) except -1 nogil
cdef int grow_text(Output *o, int64_t more) except -1 nogil
cdef int grow_keys(Output *o) except -1 nogil
cdef int finish_views(Output *o) except -1 nogil
cdef int tile_output(Output *o, int64_t rows) except -1 nogil


cdef inline int append_id(Output *o, int64_t value) except -1 nogil:
    if o.count == o.capacity:
        grow_values(o, 1)
    o.ids[o.count] = value
    o.count += 1
    return 0


cdef inline int append_number(Output *o, float value) except -1 nogil:
    if o.count == o.capacity:
        grow_values(o, 1)
    o.numbers[o.count] = value
    o.count += 1
    return 0


cdef inline int append_key(Output *o, int64_t values) except -1 nogil:
    if o.keys == o.key_capacity:
        grow_keys(o)
    o.key_lengths[o.keys] = <int32_t>values
    o.keys += 1
    return 0


cdef inline void text_piece(
    Piece *piece, const char *text, int64_t length
) noexcept nogil:
    piece.kind = PIECE_TEXT if length else PIECE_EMPTY
    piece.text = text
    piece.length = length


cdef inline void range_piece(
    Piece *piece, const Values *values, int64_t start, int64_t stop
) noexcept nogil:
    piece.kind = PIECE_RANGE if stop > start else PIECE_EMPTY
    piece.values = values
    piece.keys = NULL
    piece.start = start
    piece.stop = stop


cdef inline void cell_piece(
    const ColumnView *v, int64_t row, bint split_single, Piece *piece
) noexcept nogil:
    """The whole cell. ``split_single``: a list of one text counts as the text."""
    cdef int64_t length
    cdef const char *text
    cdef int64_t start
    if cell_is_null(v, row):
        piece.kind = PIECE_EMPTY
        return
    if v.shape == 0:
        if v.values.scalar == 3:
            text = string_at(&v.values, row, &length)
            text_piece(piece, text, length)
        else:
            range_piece(piece, &v.values, row, row + 1)
        return
    start = v.offsets[row]
    if split_single and v.values.scalar == 3 and v.offsets[row + 1] == start + 1:
        text = string_at(&v.values, start, &length)
        text_piece(piece, text, length)
        return
    range_piece(piece, &v.values, start, v.offsets[row + 1])
    if v.shape == 3:
        piece.keys = &v.keys


cdef inline void open_elements(
    Elements *e, const ColumnView *v, int64_t row, char delim, bint split_single
) noexcept nogil:
    cdef int64_t length
    e.view = v
    e.delim = delim
    e.split_single = split_single
    e.text = NULL
    e.at = 0
    e.stop = 0
    if cell_is_null(v, row):
        return
    if v.shape == 0:
        if v.values.scalar == 3:
            e.text = string_at(&v.values, row, &length)
            e.end = e.text + length
            if length == 0:
                e.text = NULL
        else:
            e.at = row
            e.stop = row + 1
        return
    e.at = v.offsets[row]
    e.stop = v.offsets[row + 1]
    # NOTE: a list that holds one empty list has no elements (section 9).
    if v.shape == 2 and e.stop == e.at + 1 and v.inner[e.at] == v.inner[e.at + 1]:
        e.at = e.stop


cdef inline bint next_element(Elements *e, Piece *piece) noexcept nogil:
    """Takes the next element; False when there is none."""
    cdef const ColumnView *v = e.view
    cdef const char *found
    cdef const char *text
    cdef int64_t length
    cdef int64_t i
    if e.text != NULL:
        found = <const char *>memchr(e.text, e.delim, e.end - e.text)
        if found == NULL:
            text_piece(piece, e.text, e.end - e.text)
            e.text = NULL
        else:
            text_piece(piece, e.text, found - e.text)
            e.text = found + 1
        return True
    if e.at >= e.stop:
        return False
    i = e.at
    e.at += 1
    if v.shape == 2:
        if inner_is_null(v, i):
            piece.kind = PIECE_EMPTY
            return True
        range_piece(piece, &v.values, v.inner[i], v.inner[i + 1])
        if e.split_single and v.values.scalar == 3 and (
            v.inner[i + 1] == v.inner[i] + 1
        ):
            text = string_at(&v.values, v.inner[i], &length)
            text_piece(piece, text, length)
    elif value_is_null(&v.values, i):
        piece.kind = PIECE_EMPTY
    elif v.values.scalar == 3:
        text = string_at(&v.values, i, &length)
        text_piece(piece, text, length)
    else:
        range_piece(piece, &v.values, i, i + 1)
    return True


cdef inline uint64_t _zero_bytes(uint64_t word) noexcept nogil:
    """Not 0 if a byte of ``word`` is 0."""
    return (word - <uint64_t>0x0101010101010101u) & ~word & (
        <uint64_t>0x8080808080808080u)


cdef inline bint holds_byte(const char *p, int64_t length, char c) noexcept nogil:
    """Whether ``c`` occurs.

    PERF: short texts are tested eight bytes at a time, without a call; the last
    word overlaps the one before it.
    """
    cdef uint64_t pattern = <uint64_t>0x0101010101010101u * <unsigned char>c
    cdef const char *last
    cdef int64_t i
    if length > 32:
        return memchr(p, c, length) != NULL
    if length >= 8:
        last = p + length - 8
        while p < last:
            if _zero_bytes(load64(p) ^ pattern):
                return True
            p += 8
        return _zero_bytes(load64(last) ^ pattern) != 0
    if length >= 4:
        return _zero_bytes(
            (load32(p) | (load32(p + length - 4) << 32)) ^ pattern) != 0
    for i in range(length):
        if p[i] == c:
            return True
    return False


cdef inline bint next_token(
    const char **rest, const char *end, char separator,
    const char **token, int64_t *length
) noexcept nogil:
    """Cuts the next token, empty ones included; False when there is none.

    ``rest`` is NULL once the last token was taken.
    """
    cdef const char *found
    if rest[0] == NULL:
        return False
    token[0] = rest[0]
    found = <const char *>memchr(rest[0], separator, end - rest[0])
    if found == NULL:
        length[0] = end - rest[0]
        rest[0] = NULL
    else:
        length[0] = found - rest[0]
        rest[0] = found + 1
    return True


cdef inline double value_as_double(const Values *v, int64_t i) noexcept nogil:
    """A numeric value; not for strings."""
    if v.scalar == 1:
        return (<const int32_t *>v.data)[i]
    if v.scalar == 2:
        return <double>(<const int64_t *>v.data)[i]
    if v.scalar == 4:
        return (<const float *>v.data)[i]
    return (<const double *>v.data)[i]


cdef inline float value_as_float(const Values *v, int64_t i) noexcept nogil:
    """A numeric value cast once to float32; not for strings."""
    if v.scalar == 1:
        return <float>(<const int32_t *>v.data)[i]
    if v.scalar == 2:
        return <float>(<const int64_t *>v.data)[i]
    if v.scalar == 4:
        return (<const float *>v.data)[i]
    return <float>(<const double *>v.data)[i]


cdef inline int64_t value_as_integer(const Values *v, int64_t i) noexcept nogil:
    """An int32 or int64 value."""
    if v.scalar == 1:
        return (<const int32_t *>v.data)[i]
    return (<const int64_t *>v.data)[i]
