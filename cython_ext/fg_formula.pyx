# cython: language_level=3, boundscheck=False
"""expr_feature and SeqExpr: an expression over several inputs (8.8, 8.16).

A run reads every input into numbers, works out which of them belong to which unit
(a row, or an element of a sequence), evaluates the program over chunks of units,
and appends the results. A unit of which any input is empty gets the default.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Block, block_alloc
from cython_ext.column cimport (
    FLOAT32, FLOAT64, SCALAR, STRING, ColumnView, Values, cell_is_null, string_at,
    value_is_null)
from cython_ext.fg_bucket cimport NORMAL_NONE, normalize_single
from cython_ext.fg_cells cimport (
    FORM_NUMBERS, PIECE_EMPTY, PIECE_TEXT, Elements, Output, Piece, append_key,
    append_number, cell_piece, grow_values, next_element, next_token, open_elements,
    start_output, value_as_double)
from cython_ext.fg_expr cimport (
    Program, Runner, Variable, load_program, next_chunk, start_runner, unit_length)
from cython_ext.fg_node cimport (
    ORIGIN_NODE, Call, Node, Source, append_real, append_real_default, check_shapes,
    register_operator, rows_of, source_view)
from cython_ext.fg_text cimport PARSED, parse_double
from cython_ext.fg_walk cimport emit_default

from procserver.errors import BadFeature

cdef enum:
    # SAFETY: repeating what a client sent cannot make more elements than this.
    MAX_UNITS = 1 << 24


ctypedef struct Formula:
    Program program
    double fill              # what shorter vectors are filled up with
    bint spread              # a sequence of one element stands for any number


ctypedef struct Reading:
    # The numbers of one input, piece by piece (a cell, or an element of one).
    Block **head
    double *values
    int64_t count
    int64_t capacity
    int64_t *starts
    int32_t *lengths
    uint8_t *missing
    int64_t pieces
    int64_t piece_capacity
    bint uneven              # a piece has another length than 1
    bint gaps                # a piece is missing
    int64_t *ends            # sequences: pieces up to and with each row
    int64_t rows


# ------------------------------------------------------------ reading inputs

cdef int _grow_numbers(Reading *r) except -1 nogil:
    cdef int64_t i
    cdef double *larger = <double *>block_alloc(r.head, 2 * r.capacity * 8)
    for i in range(r.count):
        larger[i] = r.values[i]
    r.values = larger
    r.capacity *= 2
    return 0


cdef int _grow_pieces(Reading *r) except -1 nogil:
    cdef int64_t capacity = 2 * r.piece_capacity
    cdef int64_t *starts = <int64_t *>block_alloc(r.head, capacity * 8)
    cdef int32_t *lengths = <int32_t *>block_alloc(r.head, capacity * 4)
    cdef uint8_t *missing = <uint8_t *>block_alloc(r.head, capacity)
    cdef int64_t i
    for i in range(r.pieces):
        starts[i] = r.starts[i]
        lengths[i] = r.lengths[i]
        missing[i] = r.missing[i]
    r.starts = starts
    r.lengths = lengths
    r.missing = missing
    r.piece_capacity = capacity
    return 0


cdef inline int _push(Reading *r, double x) except -1 nogil:
    if r.count == r.capacity:
        _grow_numbers(r)
    r.values[r.count] = x
    r.count += 1
    return 0


cdef inline bint _parsed(const char *text, int64_t length, double *x) noexcept nogil:
    return parse_double(text, length, x) == PARSED


cdef bint _read_text(
    Reading *r, const Piece *piece, char separator
) except -1 nogil:
    """Appends the tokens of a text; False if one is no number."""
    cdef const char *rest = piece.text
    cdef const char *end = rest + piece.length
    cdef const char *token
    cdef int64_t length
    cdef double x = 0
    while next_token(&rest, end, separator, &token, &length):
        if not _parsed(token, length, &x):
            return False
        _push(r, x)
    return True


cdef bint _read_range(Reading *r, const Piece *piece) except -1 nogil:
    """Appends the values of a list or a number; False if one is no number."""
    cdef const Values *v = piece.values
    cdef const char *text
    cdef int64_t i, length
    cdef double x = 0
    # PERF: the usual vector is copied in one loop.
    if v.scalar == FLOAT64 and v.valid == NULL:
        while r.count + piece.stop - piece.start > r.capacity:
            _grow_numbers(r)
        memcpy(
            r.values + r.count, <const double *>v.data + piece.start,
            (piece.stop - piece.start) * 8)
        r.count += piece.stop - piece.start
        return True
    if v.scalar == FLOAT32 and v.valid == NULL:
        while r.count + piece.stop - piece.start > r.capacity:
            _grow_numbers(r)
        for i in range(piece.start, piece.stop):
            r.values[r.count + i - piece.start] = (<const float *>v.data)[i]
        r.count += piece.stop - piece.start
        return True
    for i in range(piece.start, piece.stop):
        if value_is_null(v, i):
            return False
        if v.scalar == STRING:
            text = string_at(v, i, &length)
            if not _parsed(text, length, &x):
                return False
            _push(r, x)
        else:
            _push(r, value_as_double(v, i))
    return True


cdef int _read_piece(
    Reading *r, const Piece *piece, char separator
) except -1 nogil:
    """Appends one piece. What is missing has one number, which nobody sees.

    NOTE(8.8): a value that is no number makes the whole piece a missing one.
    """
    cdef int64_t first = r.count
    cdef bint found = piece.kind != PIECE_EMPTY
    if piece.kind == PIECE_TEXT:
        found = _read_text(r, piece, separator)
    elif found:
        found = _read_range(r, piece)
    if not found:
        r.count = first
        _push(r, 0)
        r.gaps = True
    if r.pieces == r.piece_capacity:
        _grow_pieces(r)
    r.starts[r.pieces] = first
    r.lengths[r.pieces] = <int32_t>(r.count - first)
    r.missing[r.pieces] = not found
    if r.count - first != 1:
        r.uneven = True
    r.pieces += 1
    return 0


cdef int _read_numbers(Reading *r, const ColumnView *v) except -1 nogil:
    """PERF: numeric scalar cells; float64 ones are read where they lie."""
    cdef int64_t row
    r.pieces = r.rows
    r.count = r.rows
    if v.values.scalar == FLOAT64:
        r.values = <double *>v.values.data
    else:
        r.values = <double *>block_alloc(r.head, r.rows * 8)
        for row in range(r.rows):
            r.values[row] = value_as_double(&v.values, row)
    if v.valid == NULL:
        return 0
    r.missing = <uint8_t *>block_alloc(r.head, r.rows)
    for row in range(r.rows):
        r.missing[row] = cell_is_null(v, row)
        if r.missing[row]:
            r.gaps = True
    return 0


cdef int _read_source(
    Call *call, Node *node, Source *source, int64_t rows, Reading *r
) except -1 nogil:
    cdef const ColumnView *v = source_view(call, source)
    cdef bint split_single = source.origin == ORIGIN_NODE
    cdef Piece piece
    cdef Elements e
    cdef int64_t row, found
    memset(r, 0, sizeof(Reading))
    r.head = call.head
    r.rows = 1 if v.rows == 1 else rows
    if v.kind and v.shape == SCALAR and v.values.scalar != STRING and (
        not source.sequence
    ):
        return _read_numbers(r, v)
    r.piece_capacity = 16
    r.capacity = r.rows if r.rows > 16 else 16
    r.values = <double *>block_alloc(r.head, r.capacity * 8)
    while r.piece_capacity < r.rows:
        r.piece_capacity *= 2
    r.piece_capacity //= 2
    _grow_pieces(r)
    if not source.sequence:
        for row in range(r.rows):
            cell_piece(v, row, split_single, &piece)
            _read_piece(r, &piece, node.separator)
        return 0
    r.ends = <int64_t *>block_alloc(r.head, r.rows * 8)
    for row in range(r.rows):
        open_elements(&e, v, row, node.delim, split_single)
        found = 0
        # NOTE(14.5): truncation keeps the first elements.
        while (not node.limit or found < node.limit) and next_element(&e, &piece):
            _read_piece(r, &piece, node.separator)
            found += 1
        r.ends[row] = r.pieces
    return 0


# ------------------------------------------------------------- rows to units

ctypedef struct Units:
    int64_t rows
    int64_t count
    int64_t *ends            # sequences: units up to and with each row
    Variable *variables
    uint8_t *missing         # NULL: none


cdef inline int64_t _row_of(const Reading *r, int64_t row) noexcept nogil:
    return row if r.rows != 1 else 0


cdef inline int64_t _first_of(const Reading *r, int64_t row) noexcept nogil:
    """Number of the first piece of a row."""
    row = _row_of(r, row)
    if r.ends == NULL:
        return row
    return r.ends[row - 1] if row else 0


cdef inline int64_t _pieces_of(const Reading *r, int64_t row) noexcept nogil:
    if r.ends == NULL:
        return 1
    return r.ends[_row_of(r, row)] - _first_of(r, row)


cdef int _rows_as_units(
    Call *call, Node *node, const Reading *readings, Units *units
) except -1 nogil:
    """Not a sequence: every row is a unit."""
    cdef const Reading *r
    cdef int64_t row
    cdef int32_t k
    units.count = units.rows
    for k in range(node.source_count):
        r = &readings[k]
        units.variables[k].values = r.values
        units.variables[k].units = r.rows
        units.variables[k].starts = r.starts if r.uneven else NULL
        units.variables[k].lengths = r.lengths if r.uneven else NULL
        if not r.gaps:
            continue
        if units.missing == NULL:
            units.missing = <uint8_t *>block_alloc(call.head, units.count)
            memset(units.missing, 0, units.count)
        for row in range(units.count):
            units.missing[row] |= r.missing[_row_of(r, row)]
    return 0


cdef int _too_many(Node *node) except -1 nogil:
    with gil:
        name = (<bytes>node.name).decode()
        raise BadFeature(f"feature {name!r} has more than {MAX_UNITS} elements")


cdef int _count_elements(
    Call *call, Node *node, const Reading *readings, Units *units
) except -1 nogil:
    """Elements of each row: those of the longest sequence, and one at least."""
    cdef int64_t row, longest, found
    cdef int32_t k
    units.ends = <int64_t *>block_alloc(call.head, units.rows * 8)
    for row in range(units.rows):
        longest = 1
        for k in range(node.source_count):
            found = _pieces_of(&readings[k], row)
            if found > longest:
                longest = found
        units.count += longest
        if units.count > MAX_UNITS:
            _too_many(node)
        units.ends[row] = units.count
    return 0


cdef int _elements_of(
    Call *call, const Reading *r, bint spread, Units *units, int32_t k
) except -1 nogil:
    """The pieces of one input, element by element."""
    cdef int64_t *starts = <int64_t *>block_alloc(call.head, units.count * 8)
    cdef int32_t *lengths = <int32_t *>block_alloc(call.head, units.count * 4)
    cdef int64_t unit = 0
    cdef int64_t row, first, pieces, at, i
    for row in range(units.rows):
        first = _first_of(r, row)
        pieces = _pieces_of(r, row)
        at = 0
        while unit < units.ends[row]:
            i = first + at
            if r.ends == NULL or (spread and pieces == 1):
                i = first
            elif at >= pieces:
                # NOTE(9): what a shorter sequence lacks is missing.
                i = -1
            if i < 0:
                units.missing[unit] = True
                starts[unit] = 0
                lengths[unit] = 1
            else:
                starts[unit] = i if r.starts == NULL else r.starts[i]
                lengths[unit] = 1 if r.lengths == NULL else r.lengths[i]
                if r.gaps and r.missing[i]:
                    units.missing[unit] = True
            at += 1
            unit += 1
    units.variables[k].starts = starts
    units.variables[k].lengths = lengths if r.uneven else NULL
    return 0


cdef int _elements_as_units(
    Call *call, Node *node, const Reading *readings, Units *units
) except -1 nogil:
    cdef Formula *formula = <Formula *>node.extra
    cdef int32_t k
    _count_elements(call, node, readings, units)
    units.missing = <uint8_t *>block_alloc(call.head, units.count)
    memset(units.missing, 0, units.count)
    for k in range(node.source_count):
        units.variables[k].values = readings[k].values
        units.variables[k].units = units.count
        _elements_of(call, &readings[k], formula.spread, units, k)
        # A sequence without elements has no numbers to point at.
        if readings[k].count == 0:
            units.variables[k].values = <const double *>block_alloc(call.head, 8)
            (<double *>units.variables[k].values)[0] = 0
    return 0


# ----------------------------------------------------------- writing results

cdef int _bad_width(
    Node *node, int64_t found, int64_t width
) except -1 nogil:
    with gil:
        name = (<bytes>node.name).decode()
        raise BadFeature(
            f"feature {name!r}: its expression gives {found} values, not {width}")


cdef int _find_width(
    Node *node, Output *o, const Program *p, const Units *units
) except -1 nogil:
    """Columns of a dense output without ``value_dim``: the most of any unit."""
    cdef int64_t unit, length
    cdef bint uneven = False
    cdef int32_t k
    o.width = node.width
    if o.width:
        return 0
    o.width = 1
    for k in range(node.source_count):
        if units.variables[k].lengths != NULL:
            uneven = True
    if p.per_unit or not uneven:
        return 0
    for unit in range(units.count):
        if units.missing == NULL or not units.missing[unit]:
            length = unit_length(p, units.variables, 0, unit)
            if length > o.width:
                o.width = length
    return 0


cdef int _write_default(Node *node, Output *o) except -1 nogil:
    cdef int64_t _i
    if not node.default_count:
        return emit_default(node, o)
    append_real_default(node, o)
    if node.dense:
        # One number stands for all columns.
        for _i in range(node.default_count, o.width):
            append_number(o, node.default_numbers[0])
    return 0


cdef int _write(
    Node *node, Output *o, const double *values, int64_t count
) except -1 nogil:
    """Appends the results of one unit.

    NOTE(8.8): ``value_dim`` n keeps the first n of more values; a dense row
    repeats a single value, and any other number of values is an error. A default
    is n values, as of raw_feature.
    """
    cdef int64_t kept = count
    cdef int64_t i
    cdef float x = 0
    if node.value_dim and kept > node.value_dim:
        kept = node.value_dim
    if node.dense and kept != o.width:
        if kept != 1:
            _bad_width(node, kept, o.width)
        kept = o.width
    for i in range(kept):
        if i < count:
            x = <float>values[i]
            if node.normalizer.kind != NORMAL_NONE:
                x = normalize_single(&node.normalizer, x)
        append_real(node, o, x)
    return 0


cdef int _write_plain(
    Output *o, const double *values, int64_t first, int64_t n
) except -1 nogil:
    """PERF: one number per unit, none missing; a row is a unit."""
    cdef int64_t i
    if o.count + n > o.capacity:
        grow_values(o, n)
    for i in range(n):
        o.numbers[o.count + i] = <float>values[i]
    for i in range(n):
        o.lengths[first + i] = 1
    o.count += n
    return 0


cdef int _write_chunk(
    Node *node, Output *o, const Runner *r, const Units *units
) except -1 nogil:
    cdef int64_t at = 0
    cdef int64_t unit, end, first
    if (
        node.form == FORM_NUMBERS and not node.sequence and r.ends == NULL
        and units.missing == NULL and (o.width == 1 or not node.dense)
        and node.normalizer.kind == NORMAL_NONE
    ):
        return _write_plain(o, r.values, r.first, r.stop - r.first)
    for unit in range(r.first, r.stop):
        end = at + 1 if r.ends == NULL else r.ends[unit - r.first]
        first = o.count
        if units.missing != NULL and units.missing[unit]:
            _write_default(node, o)
        else:
            _write(node, o, r.values + at, end - at)
        at = end
        if node.sequence:
            append_key(o, o.count - first)
        else:
            o.lengths[unit] = <int32_t>(o.count - first)
    return 0


cdef int run_formula(Call *call, Node *node, Output *out) except -1 nogil:
    """expr_feature and SeqExpr, their sequences included."""
    cdef Formula *formula = <Formula *>node.extra
    cdef Reading *readings = <Reading *>block_alloc(
        call.head, node.source_count * sizeof(Reading))
    cdef int64_t row, first
    cdef int32_t k
    cdef Units units
    cdef Runner runner
    check_shapes(call, node)
    memset(&units, 0, sizeof(Units))
    units.rows = rows_of(call, node)
    units.variables = <Variable *>block_alloc(
        call.head, node.source_count * sizeof(Variable))
    for k in range(node.source_count):
        _read_source(call, node, &node.sources[k], units.rows, &readings[k])
    if node.sequence:
        _elements_as_units(call, node, readings, &units)
    else:
        _rows_as_units(call, node, readings, &units)
    _find_width(node, out, &formula.program, &units)
    start_output(out, units.rows, units.count)
    start_runner(
        &runner, call.head, &formula.program, units.variables, units.count,
        formula.fill, node.name)
    while next_chunk(&runner):
        _write_chunk(node, out, &runner, &units)
    if node.sequence:
        first = 0
        for row in range(units.rows):
            out.lengths[row] = <int32_t>(units.ends[row] - first)
            first = units.ends[row]
    return 0


cdef int _load_formula(Node *node, Block **head, object payload) except -1:
    """Takes ``(program, fill, spread)``; the program's variables are the sources.

    ``spread``: a sequence of one element stands for any number of elements.
    """
    cdef Formula *formula = <Formula *>block_alloc(head, sizeof(Formula))
    program, fill, spread = payload
    load_program(&formula.program, head, program)
    formula.fill = fill
    formula.spread = spread
    node.extra = formula
    if formula.program.variables != node.source_count:
        raise ValueError(f"{node.source_count} sources for {program[3]} variables")
    return 0


register_operator("formula", run_formula, _load_formula)
