# cython: language_level=3, boundscheck=False, cdivision=True
"""overlap_feature: how the terms of a query lie in a title (spec section 8.9).

The terms of the query are numbered once per query; then a title is a row of such
numbers, -1 for a term that the query lacks, and every method works on numbers.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Block, block_alloc
from cython_ext.fg_cells cimport PIECE_RANGE, Output, Piece
from cython_ext.column cimport STRING
from cython_ext.fg_node cimport (
    Call, Node, append_normalised, register_operator)
from cython_ext.fg_table cimport (
    Pair, Table, clear_table, find_pair, put_pair, start_table)
from cython_ext.fg_walk cimport (
    Texts, Walk, emit_default, next_text, open_texts, walk)

from procserver.errors import BadFeature

cdef enum Method:
    QUERY_COMMON_RATIO = 0
    TITLE_COMMON_RATIO = 1
    IS_CONTAIN = 2
    IS_EQUAL = 3
    INDEX_OF = 4
    PROXIMITY_MIN_COVER = 5
    PROXIMITY_MIN_DIST = 6
    PROXIMITY_MAX_DIST = 7
    PROXIMITY_AVG_DIST = 8

cdef enum:
    SOURCE_QUERY = 0
    SOURCE_TITLE = 1
    # SAFETY: distances take time in proportion to query terms times title terms
    # and to pairs of query terms.
    MAX_STEPS = 1 << 24

METHODS = {
    "query_common_ratio": QUERY_COMMON_RATIO,
    "title_common_ratio": TITLE_COMMON_RATIO,
    "is_contain": IS_CONTAIN,
    "is_equal": IS_EQUAL,
    "index_of": INDEX_OF,
    "proximity_min_cover": PROXIMITY_MIN_COVER,
    "proximity_min_dist": PROXIMITY_MIN_DIST,
    "proximity_max_dist": PROXIMITY_MAX_DIST,
    "proximity_avg_dist": PROXIMITY_AVG_DIST,
}


ctypedef struct Extra:
    int32_t method


ctypedef struct Numbers:
    Block **head
    int32_t *items
    int64_t count
    int64_t capacity


ctypedef struct State:
    Texts texts
    Table terms              # of the query; ``at`` is the term's number
    Numbers query
    Numbers title
    Numbers failure          # of the query, as Knuth, Morris and Pratt define it
    Numbers seen             # per term: a count or a position


cdef int _add(Numbers *n, int32_t value) except -1 nogil:
    cdef int64_t capacity
    cdef int32_t *items
    if n.count == n.capacity:
        capacity = n.capacity * 2 if n.capacity else 32
        items = <int32_t *>block_alloc(n.head, capacity * 4)
        if n.count:
            memcpy(items, n.items, n.count * 4)
        n.items = items
        n.capacity = capacity
    n.items[n.count] = value
    n.count += 1
    return 0


cdef int _fill(Numbers *n, int64_t count, int32_t value) except -1 nogil:
    """``count`` times ``value``."""
    cdef int64_t i
    if count > n.capacity:
        n.items = <int32_t *>block_alloc(n.head, 2 * count * 4)
        n.capacity = 2 * count
    n.count = count
    for i in range(count):
        n.items[i] = value
    return 0


# -------------------------------------------------------------------- reading

cdef int _read_query(Walk *w, State *s) except -1 nogil:
    """Numbers the terms of the query. NOTE(14.7): empty tokens are dropped."""
    cdef const char *text
    cdef char *copy
    cdef int64_t length
    cdef bint numbers
    cdef int64_t known
    cdef Pair *p
    cdef Piece *piece = &w.pieces[SOURCE_QUERY]
    clear_table(&s.terms)
    s.query.count = 0
    s.failure.count = 0
    numbers = piece.kind == PIECE_RANGE and piece.values.scalar != STRING
    open_texts(&s.texts, piece, w.node.separator)
    while next_text(&s.texts, &text, &length):
        if length == 0:
            continue
        if numbers:
            # The text stands in the cursor, which goes on.
            copy = <char *>block_alloc(s.terms.head, length)
            memcpy(copy, text, length)
            text = copy
        known = s.terms.count
        p = put_pair(&s.terms, text, length)
        if s.terms.count != known:
            p.at = known
        _add(&s.query, <int32_t>p.at)
    return 0


cdef int _read_title(Walk *w, State *s) except -1 nogil:
    cdef const char *text
    cdef int64_t length
    cdef Pair *p
    s.title.count = 0
    open_texts(&s.texts, &w.pieces[SOURCE_TITLE], w.node.separator)
    while next_text(&s.texts, &text, &length):
        if length:
            p = find_pair(&s.terms, text, length)
            _add(&s.title, <int32_t>p.at if p != NULL else -1)
    return 0


# -------------------------------------------------------------------- methods

cdef double _query_common_ratio(State *s) except? -1 nogil:
    """NOTE(14.12): repeated terms of the query count each time."""
    cdef int64_t i
    cdef int64_t common = 0
    _fill(&s.seen, s.terms.count, 0)
    for i in range(s.title.count):
        if s.title.items[i] >= 0:
            s.seen.items[s.title.items[i]] = 1
    for i in range(s.query.count):
        common += s.seen.items[s.query.items[i]]
    return <double>common / <double>s.query.count


cdef double _title_common_ratio(State *s) noexcept nogil:
    cdef int64_t i
    cdef int64_t common = 0
    for i in range(s.title.count):
        common += s.title.items[i] >= 0
    return <double>common / <double>s.title.count


cdef double _is_equal(State *s) noexcept nogil:
    cdef int64_t i
    if s.query.count != s.title.count:
        return 0
    for i in range(s.query.count):
        if s.query.items[i] != s.title.items[i]:
            return 0
    return 1


cdef int _find_failures(State *s) except -1 nogil:
    """Fills ``failure``, once per query."""
    cdef int32_t *query = s.query.items
    cdef int64_t i
    cdef int64_t matched = 0
    _fill(&s.failure, s.query.count, 0)
    for i in range(1, s.query.count):
        while matched and query[i] != query[matched]:
            matched = s.failure.items[matched - 1]
        if query[i] == query[matched]:
            matched += 1
        s.failure.items[i] = <int32_t>matched
    return 0


cdef int64_t _index_of(State *s) except? -2 nogil:
    """Where the query stands in the title as a whole; -1: nowhere."""
    cdef int32_t *query = s.query.items
    cdef int64_t i
    cdef int64_t matched = 0
    if s.failure.count == 0:
        _find_failures(s)
    for i in range(s.title.count):
        while matched and s.title.items[i] != query[matched]:
            matched = s.failure.items[matched - 1]
        if s.title.items[i] == query[matched]:
            matched += 1
        if matched == s.query.count:
            return i + 1 - matched
    return -1


cdef double _min_cover(State *s) except? -1 nogil:
    """The shortest part of the title with every term of the query; else 0."""
    cdef int64_t terms = s.terms.count
    cdef int64_t covered = 0
    cdef int64_t start = 0
    cdef int64_t best = 0
    cdef int64_t i
    cdef int32_t term
    _fill(&s.seen, terms, 0)
    for i in range(s.title.count):
        term = s.title.items[i]
        if term < 0:
            continue
        covered += s.seen.items[term] == 0
        s.seen.items[term] += 1
        while covered == terms:
            if best == 0 or i + 1 - start < best:
                best = i + 1 - start
            term = s.title.items[start]
            start += 1
            if term >= 0:
                s.seen.items[term] -= 1
                covered -= s.seen.items[term] == 0
    return <double>best


cdef int64_t _distance(State *s, int32_t a) except -1 nogil:
    """Least distances of term ``a`` to all terms, into ``seen``; 0: not both.

    One way through the title for each direction: the last place of ``a`` is what
    is nearest.
    """
    cdef int64_t i, gap
    cdef int64_t last = -1
    cdef int32_t term
    cdef int32_t *least
    _fill(&s.seen, s.terms.count, 0)
    least = s.seen.items
    for i in range(s.title.count):
        term = s.title.items[i]
        if term == a:
            last = i
        elif term >= 0 and last >= 0:
            gap = i - last
            if least[term] == 0 or gap < least[term]:
                least[term] = <int32_t>gap
    last = -1
    for i in range(s.title.count - 1, -1, -1):
        term = s.title.items[i]
        if term == a:
            last = i
        elif term >= 0 and last >= 0:
            gap = last - i
            if least[term] == 0 or gap < least[term]:
                least[term] = <int32_t>gap
    return 0


cdef double _proximity(Walk *w, State *s, int32_t method) except? -1 nogil:
    """Least, greatest or mean distance of two different terms of the query.

    NOTE(14.12): pairs are of different terms, each with its least distance; a pair
    that the title lacks, and a query of one term, have ``|title| + 1``.
    """
    cdef int64_t terms = s.terms.count
    cdef int64_t missing = s.title.count + 1
    cdef int64_t least = missing
    cdef int64_t most = 0
    cdef int64_t total = 0
    cdef int64_t pairs = 0
    cdef int64_t gap
    cdef int32_t a, b
    if terms * (terms + s.title.count) > MAX_STEPS:
        _too_long(w.node)
    for a in range(<int32_t>terms - 1):
        _distance(s, a)
        for b in range(a + 1, <int32_t>terms):
            gap = s.seen.items[b] or missing
            least = min(least, gap)
            most = max(most, gap)
            total += gap
            pairs += 1
    if pairs == 0:
        return <double>missing
    if method == PROXIMITY_MIN_DIST:
        return <double>least
    if method == PROXIMITY_MAX_DIST:
        return <double>most
    return <double>total / <double>pairs


cdef int _too_long(Node *node) except -1 nogil:
    with gil:
        name = (<bytes>node.name).decode()
        raise BadFeature(f"feature {name!r}: query and title have too many terms")


cdef double _measure(Walk *w, State *s, int32_t method) except? -1 nogil:
    if method == QUERY_COMMON_RATIO:
        return _query_common_ratio(s)
    if method == TITLE_COMMON_RATIO:
        return _title_common_ratio(s)
    if method == IS_EQUAL:
        return _is_equal(s)
    if method == INDEX_OF:
        return <double>_index_of(s)
    if method == IS_CONTAIN:
        return 1 if _index_of(s) >= 0 else 0
    if method == PROXIMITY_MIN_COVER:
        return _min_cover(s)
    return _proximity(w, s, method)


cdef int _emit_overlap(Walk *w) except -1 nogil:
    cdef State *s = <State *>w.state
    cdef double measure
    if w.fresh[SOURCE_QUERY]:
        _read_query(w, s)
    if w.fresh[SOURCE_QUERY] or w.fresh[SOURCE_TITLE]:
        _read_title(w, s)
    # NOTE(6): a measure is normalised as a numeric column is, in float32.
    # NOTE(14.11): with nothing on one side every method gives the default.
    if s.query.count == 0 or s.title.count == 0:
        return emit_default(w.node, w.out)
    measure = _measure(w, s, (<Extra *>w.node.extra).method)
    return append_normalised(w.node, w.out, measure, False)


cdef int _run_overlap(Call *call, Node *node, Output *out) except -1 nogil:
    """overlap_feature (spec section 8.9), its sequences included."""
    cdef State state
    memset(&state, 0, sizeof(State))
    start_table(&state.terms, call.head)
    state.query.head = call.head
    state.title.head = call.head
    state.failure.head = call.head
    state.seen.head = call.head
    return walk(call, node, out, _emit_overlap, &state)


cdef int _load_overlap(Node *node, Block **head, object payload) except -1:
    """The method's name."""
    cdef Extra *extra = <Extra *>block_alloc(head, sizeof(Extra))
    if node.source_count != 2 or node.default_count != 1:
        raise ValueError("an overlap has two sources and a default")
    extra.method = METHODS[payload]
    node.extra = extra
    return 0


register_operator("overlap", _run_overlap, _load_overlap)
