# cython: language_level=3, boundscheck=False, cdivision=True
"""Feature operators: what one compiled feature does to its input columns.

An operator runs once per plan run, over whole columns. It reads pieces (cells,
or elements of sequence cells) and appends values to its output.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memchr, memcpy

from cython_ext.arena cimport block_alloc
from cython_ext.column cimport (
    FLOAT32, INT32, INT64, STRING, ColumnView, Values, cell_is_null, string_at,
    value_is_null)
from cython_ext.fg_bucket cimport (
    BUCKET_BOUNDARIES, bucket_float, bucket_integer, bucket_number,
    bucket_text, bucket_truncated, normalize_double, normalize_single)
from cython_ext.fg_cells cimport (
    FORM_NUMBERS, FORM_TEXT, PIECE_EMPTY, PIECE_TEXT, Elements, Output, Piece,
    append_id, append_key, append_number, cell_piece, grow_text, grow_values,
    next_element, next_token, open_elements, start_output, value_as_double,
    value_as_float, value_as_integer)
from cython_ext.fg_text cimport (
    NUMBER_CHARS, PARSED, format_double, format_float, format_int64, parse_double)

from procserver.errors import BadFeature

cdef enum:
    JOINER = 95              # "_"
    WEIGHT_MARK = 58         # ":"


ctypedef struct Token:
    # A text, or a number written out in ``digits`` (text NULL).
    const char *text
    int64_t length
    char[NUMBER_CHARS] digits


ctypedef struct Tokens:
    Token *items
    int64_t count
    int64_t capacity


# ------------------------------------------------------------------- sources

cdef const ColumnView *source_view(Call *call, Source *source) noexcept nogil:
    """The column that a source reads in this run."""
    cdef Output *made
    if source.origin == ORIGIN_SLOT:
        return &call.slots[source.index]
    if source.origin == ORIGIN_CONST:
        return &call.consts[source.index]
    made = &call.outputs[source.index]
    if source.sequence and made.sequence:
        return &made.nested
    return &made.flat


cdef int _check_shapes(Call *call, Node *node) except -1 nogil:
    cdef int32_t i
    cdef const ColumnView *view
    for i in range(node.source_count):
        view = source_view(call, &node.sources[i])
        if view.kind and not (1 << view.shape) & node.sources[i].accepts:
            _bad_shape(node, &node.sources[i], view.shape)
    return 0


cdef int _bad_shape(Node *node, Source *source, int32_t shape) except -1 nogil:
    with gil:
        what = ("a scalar", "a list", "a list of lists", "a map")[shape]
        name = (<bytes>node.name).decode()
        label = (<bytes>source.label).decode()
        raise BadFeature(f"feature {name!r}: input {label!r} may not be {what}")


cdef int _bad_count(Node *node, int64_t row, int64_t found) except -1 nogil:
    with gil:
        name = (<bytes>node.name).decode()
        label = (<bytes>node.sources[0].label).decode()
        raise BadFeature(
            f"feature {name!r}: input {label!r} has {found} values in row {row}, "
            f"not {node.value_dim}")


cdef int64_t _rows_of(Call *call, Node *node) noexcept nogil:
    """1 if every source has one row, else the run's number of rows."""
    cdef int32_t i
    for i in range(node.source_count):
        if source_view(call, &node.sources[i]).rows != 1:
            return call.rows
    return 1


# ------------------------------------------------------- writing text values

cdef int _append_text(
    Output *o, const char *prefix, int64_t prefix_length,
    const char *text, int64_t length
) except -1 nogil:
    """Appends an un-bucketized value."""
    cdef int64_t total = prefix_length + length
    if o.count == o.capacity:
        grow_values(o, 1)
    if o.text_used + total > o.text_capacity or o.text == NULL:
        grow_text(o, total)
    memcpy(o.text + o.text_used, prefix, prefix_length)
    memcpy(o.text + o.text_used + prefix_length, text, length)
    o.text_used += total
    o.count += 1
    o.text_ends[o.count] = <int32_t>o.text_used
    return 0


cdef int _prefixed_id(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    """Appends the id of prefix + text, joined in the output's text scratch."""
    cdef int64_t total = node.prefix_length + length
    if total > o.text_capacity:
        grow_text(o, total)
    memcpy(o.text, node.prefix, node.prefix_length)
    memcpy(o.text + node.prefix_length, text, length)
    return append_id(o, bucket_text(&node.bucketizer, o.text, total))


cdef inline int _append_token(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    if node.form == FORM_TEXT:
        return _append_text(o, node.prefix, node.prefix_length, text, length)
    if node.prefix_length:
        return _prefixed_id(node, o, text, length)
    return append_id(o, bucket_text(&node.bucketizer, text, length))


cdef inline int _append_default(Node *node, Output *o) except -1 nogil:
    """Appends the default of a text-like feature, if it has one."""
    if not node.has_default:
        return 0
    if node.form == FORM_TEXT:
        _append_text(o, node.prefix, 0, node.default_text, node.default_length)
    else:
        append_id(o, node.default_id)
    if o.weighted:
        o.weights[o.count - 1] = 1
    return 0


cdef int _number_text(const Values *v, int64_t i, char *out) noexcept nogil:
    """The text of a numeric value; its length."""
    if v.scalar == INT32 or v.scalar == INT64:
        return format_int64(value_as_integer(v, i), out)
    if v.scalar == FLOAT32:
        return format_float(value_as_float(v, i), out)
    return format_double(value_as_double(v, i), out)


# ---------------------------------------------------------------- id_feature

cdef int _append_value(
    Node *node, Output *o, const Values *v, int64_t i
) except -1 nogil:
    """Appends one value of a list, map or numeric column."""
    cdef const char *text
    cdef int64_t length
    cdef char[NUMBER_CHARS] digits
    if v.scalar == STRING:
        text = string_at(v, i, &length)
        return _append_token(node, o, text, length)
    if node.form == FORM_TEXT or node.prefix_length:
        return _append_token(node, o, digits, _number_text(v, i, digits))
    if v.scalar == INT32 or v.scalar == INT64:
        return append_id(
            o, bucket_integer(&node.bucketizer, value_as_integer(v, i)))
    return append_id(o, bucket_number(
        &node.bucketizer, value_as_double(v, i), v.scalar == FLOAT32))


cdef float _weight_of_text(const char *text, int64_t length) noexcept nogil:
    """The weight after the mark; 1 if there is none or it is no number."""
    cdef double weight = 1
    if parse_double(text, length, &weight) != PARSED:
        return 1
    return <float>weight


cdef float _weight_of_value(const Values *v, int64_t i) noexcept nogil:
    cdef const char *text
    cdef int64_t length
    if value_is_null(v, i):
        return 1
    if v.scalar == STRING:
        text = string_at(v, i, &length)
        return _weight_of_text(text, length)
    return value_as_float(v, i)


cdef inline int _append_weighted(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    """Appends ``key:weight``; a token without a key is left out."""
    # NOTE(14.14): the first mark splits, further ones belong to the weight.
    cdef const char *mark = <const char *>memchr(text, WEIGHT_MARK, length)
    cdef int64_t key = length if mark == NULL else mark - text
    cdef float weight = 1
    if key == 0:
        return 0
    if mark != NULL:
        weight = _weight_of_text(mark + 1, length - key - 1)
    _append_token(node, o, text, key)
    o.weights[o.count - 1] = weight
    return 0


cdef int _emit_id_text(Node *node, Output *o, Piece *piece) except -1 nogil:
    """Appends the tokens of a text."""
    cdef const char *rest = piece.text
    cdef const char *end = rest + piece.length
    cdef const char *token
    cdef int64_t length
    cdef int64_t first = o.count
    while next_token(&rest, end, node.separator, &token, &length):
        # NOTE(14.7): empty tokens inside a value are dropped.
        if length == 0:
            continue
        if o.weighted:
            _append_weighted(node, o, token, length)
        else:
            _append_token(node, o, token, length)
        # NOTE(14.6): value_dim n keeps the first n values.
        if node.value_dim and o.count - first == node.value_dim:
            break
    return 0


cdef int _emit_id_range(Node *node, Output *o, Piece *piece) except -1 nogil:
    """Appends the values of a list, a map or a number."""
    cdef const Values *v = piece.keys if piece.keys != NULL else piece.values
    cdef int64_t first = o.count
    cdef int64_t i
    cdef const char *text
    cdef int64_t length
    for i in range(piece.start, piece.stop):
        if value_is_null(v, i):
            continue
        if v.scalar == STRING:
            text = string_at(v, i, &length)
            if length == 0:
                continue
            if o.weighted and piece.keys == NULL:
                _append_weighted(node, o, text, length)
            else:
                _append_token(node, o, text, length)
        else:
            _append_value(node, o, v, i)
            if o.weighted:
                o.weights[o.count - 1] = 1
        # NOTE(14.15): weighted ids keep the order of the input.
        if piece.keys != NULL and o.count > first:
            o.weights[o.count - 1] = _weight_of_value(piece.values, i)
        if node.value_dim and o.count - first == node.value_dim:
            break
    return 0


cdef int64_t _emit_id(Node *node, Output *o, Piece *piece) except -1 nogil:
    """Appends one cell or element; returns how many values it became."""
    cdef int64_t first = o.count
    if piece.kind == PIECE_TEXT:
        _emit_id_text(node, o, piece)
    elif piece.kind != PIECE_EMPTY:
        _emit_id_range(node, o, piece)
    if o.count == first:
        _append_default(node, o)
    return o.count - first


cdef int _run_id_strings(
    Node *node, Output *o, const ColumnView *v, int64_t rows
) except -1 nogil:
    """PERF: plain text cells, nearly always one token each."""
    cdef int64_t row, length
    cdef const char *text
    cdef Piece piece
    piece.kind = PIECE_TEXT
    for row in range(rows):
        text = string_at(&v.values, row, &length)
        if length == 0 or cell_is_null(v, row):
            _append_default(node, o)
            o.lengths[row] = node.has_default
        elif memchr(text, node.separator, length) == NULL:
            append_id(o, bucket_text(&node.bucketizer, text, length))
            o.lengths[row] = 1
        else:
            piece.text = text
            piece.length = length
            o.lengths[row] = <int32_t>_emit_id(node, o, &piece)
    return 0


cdef int _run_id_integers(
    Node *node, Output *o, const ColumnView *v, int64_t rows
) except -1 nogil:
    """PERF: integer cells: exactly one value each."""
    cdef int64_t row
    for row in range(rows):
        if v.valid != NULL and cell_is_null(v, row):
            _append_default(node, o)
            o.lengths[row] = node.has_default
        else:
            append_id(o, bucket_integer(
                &node.bucketizer, value_as_integer(&v.values, row)))
            o.lengths[row] = 1
    return 0


cdef int run_id(Call *call, Node *node, Output *out) except -1 nogil:
    """id_feature (spec section 8.1), its sequences included."""
    cdef const ColumnView *v
    cdef int64_t rows, row, elements
    cdef bint split_single = node.sources[0].origin == ORIGIN_NODE
    cdef Piece piece
    cdef Elements e
    _check_shapes(call, node)
    v = source_view(call, &node.sources[0])
    rows = _rows_of(call, node)
    start_output(out, rows, rows)
    if node.sequence:
        for row in range(rows):
            open_elements(&e, v, row, node.delim, split_single)
            elements = 0
            # NOTE(14.5): truncation keeps the first elements.
            while (not node.limit or elements < node.limit) and (
                next_element(&e, &piece)
            ):
                append_key(out, _emit_id(node, out, &piece))
                elements += 1
            if elements == 0:
                piece.kind = PIECE_EMPTY
                append_key(out, _emit_id(node, out, &piece))
                elements = 1
            out.lengths[row] = <int32_t>elements
        return 0
    if v.shape == 0 and not node.weighted and not node.prefix_length and (
        node.form != FORM_TEXT
    ):
        if v.kind == STRING:
            return _run_id_strings(node, out, v, rows)
        if v.kind == INT32 or v.kind == INT64:
            return _run_id_integers(node, out, v, rows)
    for row in range(rows):
        cell_piece(v, row, split_single, &piece)
        out.lengths[row] = <int32_t>_emit_id(node, out, &piece)
    return 0


# --------------------------------------------------------------- raw_feature

cdef inline int _append_raw(Node *node, Output *o, float x) except -1 nogil:
    """Appends a normalised number, bucketized if the feature is."""
    if node.form == FORM_NUMBERS:
        return append_number(o, x)
    if node.bucketizer.kind == BUCKET_BOUNDARIES:
        return append_id(o, bucket_float(&node.bucketizer, x))
    return append_id(o, bucket_truncated(&node.bucketizer, x))


cdef int64_t _append_raw_default(Node *node, Output *o) except -1 nogil:
    """The default numbers, never normalised; none: 0.0 if dense, else nothing."""
    cdef int64_t i
    if not node.has_default and node.form != FORM_NUMBERS:
        return 0
    for i in range(node.value_dim):
        _append_raw(node, o, node.default_numbers[i])
    return node.value_dim


cdef inline float _normal_text(
    Node *node, double x, bint in_double
) noexcept nogil:
    if in_double:
        return normalize_double(&node.normalizer, x)
    return normalize_single(&node.normalizer, <float>x)


cdef int64_t _emit_raw(
    Node *node, Output *o, Piece *piece, bint in_double, int64_t row
) except -1 nogil:
    """Appends one cell or element; returns how many values it became.

    NOTE: a value that is no number (or null) leaves the whole cell to the
    default; a wrong number of values is an error (8.2).
    """
    cdef int64_t first = o.count
    cdef int64_t i, found, length
    cdef const char *rest
    cdef const char *end
    cdef const char *token
    cdef const Values *v
    cdef double x = 0
    cdef bint numeric = True
    if piece.kind == PIECE_EMPTY:
        return _append_raw_default(node, o)
    found = 0
    if piece.kind == PIECE_TEXT:
        rest = piece.text
        end = rest + piece.length
        while next_token(&rest, end, node.separator, &token, &length):
            found += 1
            if not numeric or found > node.value_dim:
                continue
            if parse_double(token, length, &x) == PARSED:
                _append_raw(node, o, _normal_text(node, x, in_double))
            else:
                numeric = False
    else:
        v = piece.values
        for i in range(piece.start, piece.stop):
            found += 1
            if not numeric or found > node.value_dim:
                continue
            if value_is_null(v, i):
                numeric = False
            elif v.scalar != STRING:
                _append_raw(node, o, normalize_single(
                    &node.normalizer, value_as_float(v, i)))
            else:
                token = string_at(v, i, &length)
                if parse_double(token, length, &x) == PARSED:
                    _append_raw(node, o, _normal_text(node, x, in_double))
                else:
                    numeric = False
    if found != node.value_dim:
        _bad_count(node, row, found)
    if not numeric:
        o.count = first
        return _append_raw_default(node, o)
    return found


cdef bint _in_double(Node *node, const ColumnView *v) noexcept nogil:
    """Whether texts of this column are normalised in double (section 6)."""
    if v.values.scalar != STRING:
        return False
    return v.shape == 0 or node.form != FORM_NUMBERS


cdef int _run_raw_numbers(
    Node *node, Output *o, const ColumnView *v, int64_t rows
) except -1 nogil:
    """Numeric scalar cells of a feature of one value."""
    cdef int64_t row
    for row in range(rows):
        if v.valid == NULL or not cell_is_null(v, row):
            _append_raw(node, o, normalize_single(
                &node.normalizer, value_as_float(&v.values, row)))
            o.lengths[row] = 1
        elif node.has_default:
            o.lengths[row] = <int32_t>_append_raw_default(node, o)
        else:
            # NOTE(14.4): a null number without a default is an un-normalised
            # 0.0, bucketized as such; a null text stays missing.
            _append_raw(node, o, 0)
            o.lengths[row] = 1
    return 0


cdef int run_raw(Call *call, Node *node, Output *out) except -1 nogil:
    """raw_feature (spec section 8.2), its sequences included."""
    cdef const ColumnView *v
    cdef int64_t rows, row, elements
    cdef bint split_single = node.sources[0].origin == ORIGIN_NODE
    cdef bint in_double
    cdef Piece piece
    cdef Elements e
    _check_shapes(call, node)
    v = source_view(call, &node.sources[0])
    rows = _rows_of(call, node)
    start_output(out, rows, rows * (node.value_dim if node.value_dim < 64 else 64))
    in_double = _in_double(node, v)
    if node.sequence:
        for row in range(rows):
            open_elements(&e, v, row, node.delim, split_single)
            elements = 0
            while (not node.limit or elements < node.limit) and (
                next_element(&e, &piece)
            ):
                append_key(out, _emit_raw(node, out, &piece, in_double, row))
                elements += 1
            if elements == 0:
                append_key(out, _append_raw_default(node, out))
                elements = 1
            out.lengths[row] = <int32_t>elements
        return 0
    if node.value_dim == 1 and v.kind != 0 and v.shape == 0 and v.kind != STRING:
        return _run_raw_numbers(node, out, v, rows)
    for row in range(rows):
        cell_piece(v, row, split_single, &piece)
        out.lengths[row] = <int32_t>_emit_raw(node, out, &piece, in_double, row)
    return 0


# ------------------------------------------------------------- combo_feature

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
            token.length = _number_text(v, i, token.digits)
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
        if x.operands[k].count and crosses > (1 << 26) // x.operands[k].count:
            crosses = 1 << 26
        else:
            crosses *= x.operands[k].count
    # NOTE(14.7): an operand of separators only counts as empty.
    if crosses == 0:
        _append_default(node, o)
        return node.has_default
    if node.value_dim and crosses > node.value_dim:
        crosses = node.value_dim
    elif crosses >= (1 << 26):
        _too_many_crosses(node)
    # PERF: what the row has in common with the one before stays joined.
    k = x.fixed if x.fixed < node.source_count else 0
    while True:
        _join(call, node, x, k, node.source_count)
        if node.form == FORM_TEXT:
            _append_text(o, node.prefix, 0, x.joined, x.ends[last])
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
            if length and memchr(text, node.separator, length) == NULL:
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
        _append_default(node, o)
        append_key(o, 1)
        made = 1
    return made


cdef int run_combo(Call *call, Node *node, Output *out) except -1 nogil:
    """combo_feature (spec sections 4.3 and 8.3), its sequences included."""
    cdef int64_t rows, row
    cdef int32_t k
    cdef Cross x
    _check_shapes(call, node)
    rows = _rows_of(call, node)
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
