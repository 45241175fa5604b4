# cython: language_level=3, boundscheck=False
"""The operator that calls back into Python: texts or cells out, values in.

It stands for every type whose work is done by a library (tokenizers, RE2, ...) or
by a plug-in. The interpreter's lock is taken once per feature and run, and the
function is called once, with all the texts of all rows. A feature of one row (user
side) is one call with the texts of that row.
"""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Block, block_alloc
from cython_ext.column cimport (
    FLOAT32, FLOAT64, STRING, ColumnView, Values, string_at, value_is_null)
from cython_ext.fg_bucket cimport (
    BUCKET_BOUNDARIES, BUCKET_NONE, NORMAL_NONE, bucket_integer, normalize_single)
from cython_ext.fg_cells cimport (
    FORM_IDS, PIECE_EMPTY, PIECE_TEXT, Output, Piece, append_id, append_key,
    next_token, value_as_double, value_as_integer)
from cython_ext.fg_node cimport (
    ACCEPTS_LIST, ACCEPTS_SCALAR, ORIGIN_NODE, Call, Node, Source, append_real,
    append_token, number_text, register_operator)
from cython_ext.fg_text cimport NUMBER_CHARS
from cython_ext.fg_walk cimport Walk, emit_default, walk

from procserver.errors import BadFeature, PredictFailed, RequestError

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


ctypedef struct Called:
    # What a node calls, and with what.
    void *function           # a Python object that the plan keeps
    bint cells               # takes whole cells of all inputs, else texts of one
    bint split               # texts are cut at the separator
    bint single              # a cell is one text at most
    void *default_values     # what an empty input becomes; NULL: the default


ctypedef struct Gathered:
    # The cells (or elements) of one run, kept for the function.
    Node *node
    const ColumnView **views
    int64_t cells
    int64_t capacity
    Piece *pieces            # per cell and source
    int64_t *rows            # per cell: its row
    int32_t *counts          # per cell: texts


cdef int _more_cells(Walk *w, Gathered *g) except -1 nogil:
    cdef int64_t n = w.node.source_count
    cdef int64_t capacity = g.capacity * 2 if g.capacity else 64
    cdef Piece *pieces = <Piece *>block_alloc(
        w.call.head, capacity * n * sizeof(Piece))
    cdef int64_t *rows = <int64_t *>block_alloc(w.call.head, capacity * 8)
    if g.cells:
        memcpy(pieces, g.pieces, g.cells * n * sizeof(Piece))
        memcpy(rows, g.rows, g.cells * 8)
    g.pieces = pieces
    g.rows = rows
    g.counts = <int32_t *>block_alloc(w.call.head, capacity * 4)
    g.capacity = capacity
    g.views = w.views
    return 0


cdef int _gather(Walk *w) except -1 nogil:
    """Keeps the pieces of one row or element."""
    cdef Gathered *g = <Gathered *>w.state
    cdef int64_t n = w.node.source_count
    if g.cells == g.capacity:
        _more_cells(w, g)
    memcpy(&g.pieces[g.cells * n], w.pieces, n * sizeof(Piece))
    g.rows[g.cells] = w.row
    g.cells += 1
    return 0


cdef int _load_called(Node *node, Block **head, object payload) except -1:
    """Takes ``(function, takes, gives_ids, default_values)``.

    ``takes``: ``text`` (one per cell at most), ``texts`` (the values of a list),
    ``split`` (those, and texts cut at the separator) or ``cells``. The function
    of the first three takes a list of texts, that of ``cells`` a list of lists of
    cells, one for each input; each gives a list with one item per text or cell.
    ``gives_ids``: values are ids as they come, without a bucketizer.
    ``default_values``: values of an empty input, as the function would give them;
    None if they are the default like that of any feature.
    """
    cdef Called *called = <Called *>block_alloc(head, sizeof(Called))
    memset(called, 0, sizeof(Called))
    function, takes, gives_ids, default_values = payload
    if takes not in ("text", "texts", "split", "cells"):
        raise ValueError(f"a function that takes {takes!r}")
    if takes != "cells" and node.source_count != 1:
        raise ValueError("texts come from one input")
    if gives_ids and node.bucketizer.kind != BUCKET_NONE:
        raise ValueError("ids come from a bucketizer or from the function")
    called.function = <void *>function
    called.cells = takes == "cells"
    called.split = takes == "split"
    called.single = takes == "text"
    if default_values is not None:
        called.default_values = <void *>default_values
    node.gives_ids = gives_ids
    if called.single and node.sources[0].origin != ORIGIN_NODE:
        node.sources[0].accepts = ACCEPTS_SCALAR
        if node.sources[0].sequence:
            node.sources[0].accepts |= ACCEPTS_LIST
    node.extra = called
    return 0


# ------------------------------------------------------- what the function gets

cdef str _label(Node *node, int32_t input_):
    name = (<bytes>node.name).decode()
    label = (<bytes>node.sources[input_].label).decode()
    return f"feature {name!r}: input {label!r}"


cdef str _decoded(Node *node, int32_t input_, const char *text, int64_t length):
    try:
        return PyUnicode_DecodeUTF8(text, length, NULL)
    except UnicodeDecodeError:
        raise BadFeature(f"{_label(node, input_)} is not valid UTF-8") from None


cdef int64_t _take_value(
    Node *node, list texts, const Values *v, int64_t i
) except -1:
    """Adds one value of a list, or a number; returns how many texts that is."""
    cdef char[NUMBER_CHARS] digits
    cdef const char *text
    cdef int64_t length
    if value_is_null(v, i):
        return 0
    if v.scalar == STRING:
        text = string_at(v, i, &length)
        if length == 0:
            return 0
        texts.append(_decoded(node, 0, text, length))
        return 1
    length = number_text(v, i, digits)
    texts.append(PyUnicode_DecodeUTF8(digits, length, NULL))
    return 1


cdef int64_t _take_piece(Node *node, list texts, Piece *piece) except -1:
    """Adds the texts of one cell or element; returns how many there were."""
    cdef Called *called = <Called *>node.extra
    cdef const char *rest
    cdef const char *token
    cdef int64_t length, i
    cdef int64_t found = 0
    if piece.kind == PIECE_EMPTY:
        return 0
    if piece.kind == PIECE_TEXT:
        if not called.split:
            texts.append(_decoded(node, 0, piece.text, piece.length))
            return 1
        rest = piece.text
        while next_token(
            &rest, piece.text + piece.length, node.separator, &token, &length
        ):
            # NOTE(14.7): empty tokens inside a value are dropped.
            if length:
                texts.append(_decoded(node, 0, token, length))
                found += 1
        return found
    for i in range(piece.start, piece.stop):
        found += _take_value(node, texts, piece.values, i)
    if called.single and found > 1:
        raise BadFeature(f"{_label(node, 0)} may not be a list of several values")
    return found


cdef object _value_object(Node *node, int32_t input_, const Values *v, int64_t i):
    cdef const char *text
    cdef int64_t length
    if value_is_null(v, i):
        return None
    if v.scalar == STRING:
        text = string_at(v, i, &length)
        return _decoded(node, input_, text, length)
    if v.scalar == FLOAT32 or v.scalar == FLOAT64:
        return value_as_double(v, i)
    return value_as_integer(v, i)


cdef object _piece_object(
    Node *node, int32_t input_, const ColumnView *v, Piece *piece
):
    """A cell or element as the Python value that it is; None if it is empty."""
    cdef Source *source = &node.sources[input_]
    cdef int64_t i
    if piece.kind == PIECE_EMPTY:
        return None
    if piece.kind == PIECE_TEXT:
        return _decoded(node, input_, piece.text, piece.length)
    if piece.keys != NULL:
        return {
            _value_object(node, input_, piece.keys, i):
                _value_object(node, input_, piece.values, i)
            for i in range(piece.start, piece.stop)
        }
    # A feature is read as a list of values; one value is handed over as itself.
    if piece.stop - piece.start == 1 and (
        source.origin == ORIGIN_NODE or v.shape == 0
        or (source.sequence and v.shape == 1)
    ):
        return _value_object(node, input_, piece.values, piece.start)
    return [
        _value_object(node, input_, piece.values, i)
        for i in range(piece.start, piece.stop)
    ]


cdef list _texts(Gathered *g):
    """All texts; ``counts`` are set to how many each cell has."""
    cdef list texts = []
    cdef int64_t i
    for i in range(g.cells):
        g.counts[i] = <int32_t>_take_piece(g.node, texts, &g.pieces[i])
    return texts


cdef list _cells(Gathered *g):
    """All cells of each input."""
    cdef int64_t i
    cdef int32_t k
    cdef int32_t n = g.node.source_count
    cdef list inputs = [[] for _ in range(n)]
    for i in range(g.cells):
        g.counts[i] = 1
        for k in range(n):
            (<list>inputs[k]).append(
                _piece_object(g.node, k, g.views[k], &g.pieces[i * n + k]))
    return inputs


# --------------------------------------------------- what becomes of its results

cdef object _bad_result(Node *node, str what):
    name = (<bytes>node.name).decode()
    return PredictFailed(f"feature {name!r}: its operator gave {what}")


cdef int _append_text_value(Node *node, Output *o, object value) except -1:
    cdef Py_ssize_t length = 0
    cdef const char *text
    if not isinstance(value, str):
        raise _bad_result(node, f"a value of {type(value).__name__}, not a text")
    try:
        text = PyUnicode_AsUTF8AndSize(value, &length)
    except UnicodeEncodeError:
        raise _bad_result(node, "a text that is not valid Unicode") from None
    # NOTE: a text of which nothing is left counts as no value, as everywhere.
    if length:
        append_token(node, o, text, length)
    return 0


cdef int _append_number_value(Node *node, Output *o, object value) except -1:
    cdef int64_t integer
    # An integer becomes an id by its own digits, not by those of a float.
    if (
        isinstance(value, int) and node.form == FORM_IDS
        and node.normalizer.kind == NORMAL_NONE
        and node.bucketizer.kind != BUCKET_BOUNDARIES
    ):
        try:
            integer = value
        except OverflowError:
            raise _bad_result(node, "an integer beyond int64") from None
        return append_id(o, bucket_integer(&node.bucketizer, integer))
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _bad_result(
            node, f"a value of {type(value).__name__}, not a number") from None
    return append_real(
        node, o, normalize_single(&node.normalizer, <float><double>number))


cdef int _append_value(Node *node, Output *o, object value) except -1:
    cdef int64_t number
    if value is None:
        return 0
    if node.gives_ids:
        number = value
        return append_id(o, number)
    if node.default_count:
        return _append_number_value(node, o, value)
    return _append_text_value(node, o, value)


cdef int _append_result(Node *node, Output *o, object value) except -1:
    """Appends what the function gave for one text or cell: a value or several."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _append_value(node, o, item)
        return 0
    return _append_value(node, o, value)


cdef int _append_nothing(Node *node, Output *o) except -1:
    """Appends the default, if there is one."""
    cdef Called *called = <Called *>node.extra
    if called.default_values != NULL:
        return _append_result(node, o, <object>called.default_values)
    return emit_default(node, o)


cdef int64_t _store(
    Node *node, Output *o, list results, int64_t at, int64_t count
) except -1:
    """Appends the values of one cell; returns how many."""
    cdef int64_t first = o.count
    cdef int64_t i
    for i in range(at, at + count):
        _append_result(node, o, results[i])
    if o.count == first:
        _append_nothing(node, o)
    if node.dense:
        if o.count - first != node.width:
            raise _bad_result(
                node, f"{o.count - first} values for a cell, not {node.width}")
    # NOTE(14.6): value_dim n keeps the first n values.
    elif node.value_dim and o.count - first > node.value_dim:
        o.count = first + node.value_dim
        if o.text_ends != NULL:
            o.text_used = o.text_ends[o.count]
    return o.count - first


cdef list _called(Gathered *g):
    """What the function gives: one result per text or cell."""
    cdef Called *called = <Called *>g.node.extra
    cdef list inputs = _cells(g) if called.cells else _texts(g)
    cdef list results = []
    count = len(<list>inputs[0]) if called.cells else len(inputs)
    if count:
        try:
            results = list((<object>called.function)(inputs))
        except RequestError:
            raise
        except Exception as error:
            name = (<bytes>g.node.name).decode()
            raise PredictFailed(f"feature {name!r}: its operator failed") from error
    if len(results) != count:
        raise _bad_result(g.node, f"{len(results)} results, not {count}")
    return results


cdef int _call_back(Gathered *g, Output *out) except -1:
    """Calls the function, and fills the output from its results."""
    cdef list results = _called(g)
    cdef int64_t row, elements
    cdef int64_t cell = 0
    cdef int64_t at = 0
    for row in range(out.rows):
        elements = 0
        while cell < g.cells and g.rows[cell] == row:
            found = _store(g.node, out, results, at, g.counts[cell])
            at += g.counts[cell]
            cell += 1
            elements += 1
            if g.node.sequence:
                append_key(out, found)
            else:
                out.lengths[row] = <int32_t>found
        if g.node.sequence:
            if elements == 0:
                append_key(out, _store(g.node, out, results, at, 0))
                elements = 1
            out.lengths[row] = <int32_t>elements
    return 0


cdef int run_called(Call *call, Node *node, Output *out) except -1 nogil:
    """Hands all inputs to the node's function and stores what it gives."""
    cdef Gathered g
    memset(&g, 0, sizeof(Gathered))
    g.node = node
    walk(call, node, out, _gather, &g)
    # The walk went over the cells; the values are yet to come.
    out.count = 0
    out.text_used = 0
    out.keys = 0
    with gil:
        _call_back(&g, out)
    return 0


register_operator("called", run_called, _load_called)
