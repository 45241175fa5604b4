# cython: language_level=3, boundscheck=False
"""match_feature: values of a nested map by category and item (spec section 8.7)."""

from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp, memcpy

from cython_ext.arena cimport Block, block_alloc
from cython_ext.column cimport STRING, string_at, value_is_null
from cython_ext.fg_cells cimport PIECE_EMPTY, PIECE_TEXT, Output, Piece, next_token
from cython_ext.fg_node cimport (
    Call, Node, append_normalised, append_token, number_text, register_operator,
    source_view, steps_in_double)
from cython_ext.fg_table cimport (
    PAIR_TEXT, Pair, Table, clear_table, find_pair, pair_number, put_pair,
    start_table)
from cython_ext.fg_text cimport NUMBER_CHARS
from cython_ext.fg_walk cimport (
    Scratch, Texts, Walk, next_text, open_texts, scratch_room, square_row, walk)

cdef enum:
    CATEGORY_SEPARATOR = 124     # "|"
    CATEGORY_MARK = 94           # "^"
    ITEM_SEPARATOR = 44          # ","
    OLD_ITEM_SEPARATOR = 0x1d
    VALUE_MARK = 58              # ":"
    JOINER = 95                  # "_"
    SOURCE_USER = 0
    SOURCE_CATEGORY = 1
    SOURCE_ITEM = 2
    LENGTH_BYTES = 8             # of a category, in front of a joined key


ctypedef struct Extra:
    bint many                # multihit: every match, else the first
    bint any_category        # multihit with ALL
    bint any_item
    bint numeric             # values are numbers, else text
    bint named               # text is <feature_name>..._<value>
    bint shows_category
    bint shows_item
    int64_t name_length
    const char *name


ctypedef struct State:
    # Keys of the table: length of the category, category, item.
    Table table
    Texts categories
    Texts items
    Scratch key
    Scratch joined
    bint in_double
    bint found


# -------------------------------------------------------------------- reading

cdef inline int64_t _write_key(
    char *out, const char *category, int64_t category_length,
    const char *item, int64_t item_length
) noexcept nogil:
    memcpy(out, &category_length, LENGTH_BYTES)
    memcpy(out + LENGTH_BYTES, category, category_length)
    memcpy(out + LENGTH_BYTES + category_length, item, item_length)
    return LENGTH_BYTES + category_length + item_length


cdef int _read_item(
    Table *t, const char *category, int64_t category_length,
    const char *text, int64_t length
) except -1 nogil:
    """Puts one ``item:value``; without a value it is left out."""
    cdef const char *mark = <const char *>memchr(text, VALUE_MARK, length)
    cdef int64_t item
    cdef char *key
    cdef Pair *p
    if mark == NULL or mark == text:
        return 0
    item = mark - text
    # NOTE(8.7): an empty value is none.
    if item + 1 == length:
        return 0
    key = <char *>block_alloc(t.head, LENGTH_BYTES + category_length + item)
    # NOTE(14.14): the first mark splits; of repeated keys the last one counts.
    p = put_pair(t, key, _write_key(key, category, category_length, text, item))
    p.values = NULL
    p.text = mark + 1
    p.length = length - item - 1
    p.state = PAIR_TEXT
    return 0


cdef int _read_items(
    Table *t, const char *category, int64_t category_length,
    const char *text, int64_t length
) except -1 nogil:
    """Puts the items of one category: ``item:value`` cut by "," or 0x1d."""
    cdef const char *end = text + length
    cdef const char *at = text
    while at <= end:
        if at == end or at[0] == ITEM_SEPARATOR or at[0] == OLD_ITEM_SEPARATOR:
            _read_item(t, category, category_length, text, at - text)
            text = at + 1
        at += 1
    return 0


cdef int _read_text(Table *t, const char *text, int64_t length) except -1 nogil:
    """Puts ``category^items`` parts cut by "|"; parts without "^" are left out."""
    cdef const char *rest = text
    cdef const char *end = text + length
    cdef const char *part
    cdef const char *mark
    while next_token(&rest, end, CATEGORY_SEPARATOR, &part, &length):
        mark = <const char *>memchr(part, CATEGORY_MARK, length)
        if mark != NULL:
            _read_items(t, part, mark - part, mark + 1, length - (mark - part) - 1)
    return 0


cdef int _read_user(Table *t, const Piece *piece) except -1 nogil:
    """Replaces the table by the user's nested map: a text, texts, or a map."""
    cdef const char *text
    cdef const char *category
    cdef int64_t length, category_length, i
    cdef char[NUMBER_CHARS] digits
    clear_table(t)
    if piece.kind == PIECE_EMPTY:
        return 0
    if piece.kind == PIECE_TEXT:
        return _read_text(t, piece.text, piece.length)
    if piece.values.scalar != STRING:
        return 0
    for i in range(piece.start, piece.stop):
        if value_is_null(piece.values, i):
            continue
        text = string_at(piece.values, i, &length)
        if piece.keys == NULL:
            _read_text(t, text, length)
            continue
        if value_is_null(piece.keys, i):
            continue
        if piece.keys.scalar == STRING:
            category = string_at(piece.keys, i, &category_length)
        else:
            category = digits
            category_length = number_text(piece.keys, i, digits)
        _read_items(t, category, category_length, text, length)
    return 0


# ------------------------------------------------------------------- emitting

cdef inline bint _same(
    const char *a, int64_t a_length, const char *b, int64_t b_length
) noexcept nogil:
    return a_length == b_length and memcmp(a, b, b_length) == 0


cdef int _append_named(Walk *w, Pair *p) except -1 nogil:
    """Appends ``<feature_name>[_<category>][_<item>]_<value>``."""
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef int64_t category
    cdef char *out
    cdef char *at
    out = scratch_room(
        &state.joined, extra.name_length + p.key_length + p.length + 3)
    memcpy(&category, p.key, LENGTH_BYTES)
    memcpy(out, extra.name, extra.name_length)
    at = out + extra.name_length
    if extra.shows_category:
        at[0] = JOINER
        memcpy(at + 1, p.key + LENGTH_BYTES, category)
        at += 1 + category
    if extra.shows_item:
        at[0] = JOINER
        memcpy(
            at + 1, p.key + LENGTH_BYTES + category,
            p.key_length - LENGTH_BYTES - category)
        at += 1 + p.key_length - LENGTH_BYTES - category
    at[0] = JOINER
    memcpy(at + 1, p.text, p.length)
    return append_token(w.node, w.out, out, at + 1 + p.length - out)


cdef int _append_match(Walk *w, Pair *p) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef double x = 0
    if extra.numeric:
        if not pair_number(p, &x):
            return 0
        append_normalised(w.node, w.out, x, state.in_double)
    elif extra.named:
        _append_named(w, p)
    else:
        append_token(w.node, w.out, p.text, p.length)
    state.found = True
    return 0


cdef int _match_exactly(
    Walk *w, const char *category, int64_t category_length,
    const char *item, int64_t item_length
) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef char *key = scratch_room(
        &state.key, LENGTH_BYTES + category_length + item_length)
    cdef Pair *p = find_pair(
        &state.table, key,
        _write_key(key, category, category_length, item, item_length))
    if p != NULL:
        _append_match(w, p)
    return 0


cdef int _match_all(
    Walk *w, const char *category, int64_t category_length,
    const char *item, int64_t item_length
) except -1 nogil:
    """Appends all pairs of a category or an item; a length of -1 means any."""
    cdef State *state = <State *>w.state
    cdef int64_t own, rest, i
    cdef Pair *p
    for i in range(state.table.count):
        p = &state.table.pairs[i]
        memcpy(&own, p.key, LENGTH_BYTES)
        rest = p.key_length - LENGTH_BYTES - own
        if category_length >= 0 and not _same(
            p.key + LENGTH_BYTES, own, category, category_length
        ):
            continue
        if item_length >= 0 and not _same(
            p.key + LENGTH_BYTES + own, rest, item, item_length
        ):
            continue
        _append_match(w, p)
    return 0


cdef int _match_items(
    Walk *w, const char *category, int64_t category_length
) except -1 nogil:
    """Matches every token of the item's cell within a category (-1: any)."""
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef const char *item
    cdef int64_t length
    if extra.any_item:
        return _match_all(w, category, category_length, NULL, -1)
    open_texts(&state.items, &w.pieces[SOURCE_ITEM], w.node.separator)
    while next_text(&state.items, &item, &length):
        if length == 0:
            continue
        if category_length < 0:
            _match_all(w, NULL, -1, item, length)
        else:
            _match_exactly(w, category, category_length, item, length)
        if state.found and not extra.many:
            break
    return 0


cdef int _emit_match(Walk *w) except -1 nogil:
    cdef State *state = <State *>w.state
    cdef Extra *extra = <Extra *>w.node.extra
    cdef int64_t first = w.out.count
    cdef const char *category
    cdef int64_t length
    # PERF: a map that stays the same from row to row is read once.
    if w.fresh[SOURCE_USER]:
        _read_user(&state.table, &w.pieces[SOURCE_USER])
    state.found = False
    if extra.any_category:
        _match_items(w, NULL, -1)
    else:
        open_texts(
            &state.categories, &w.pieces[SOURCE_CATEGORY], w.node.separator)
        # NOTE(8.7): cells of several values are tried in order, categories
        # outermost; hit ends with the first match.
        while next_text(&state.categories, &category, &length):
            if length:
                _match_items(w, category, length)
            if state.found and not extra.many:
                break
    return square_row(w, first)


cdef int _run_match(Call *call, Node *node, Output *out) except -1 nogil:
    """match_feature (spec section 8.7), its sequences included."""
    cdef State state
    start_table(&state.table, call.head)
    state.key.head = call.head
    state.key.capacity = 0
    state.joined.head = call.head
    state.joined.capacity = 0
    state.in_double = steps_in_double(
        node, source_view(call, &node.sources[SOURCE_USER]))
    return walk(call, node, out, _emit_match, &state)


cdef int _load_match(Node *node, Block **head, object payload) except -1:
    """``(many, any_category, any_item, numeric, name, category, item)``.

    ``name``: of the feature, to stand before the value; None: the value alone.
    """
    cdef Extra *extra = <Extra *>block_alloc(head, sizeof(Extra))
    cdef bytes name
    cdef bytes shown
    cdef char *copy
    many, any_category, any_item, numeric, name, shows_category, shows_item = payload
    if node.source_count != 3 or (node.default_count > 0) != numeric:
        raise ValueError("a match has three sources, numbers a numeric default")
    extra.many = many
    extra.any_category = any_category
    extra.any_item = any_item
    extra.numeric = numeric
    extra.named = name is not None
    extra.shows_category = shows_category
    extra.shows_item = shows_item
    shown = name or b""
    extra.name_length = len(shown)
    copy = <char *>block_alloc(head, extra.name_length + 1)
    memcpy(copy, <const char *>shown, extra.name_length)
    extra.name = copy
    node.extra = extra
    return 0


register_operator("match", _run_match, _load_match)
