# cython: language_level=3, boundscheck=False, cdivision=True
"""Compiled expressions (spec section 7): register code over whole columns.

A program is a list of instructions over registers of doubles. It is loaded once
and then run over chunks of units that fit the cache: each instruction is one
loop over the elements of its domain.

domain      elements
unit        one per unit: results of vector functions
scope k     per unit, as many as the longest variable of scope k has

NOTE(7): where the C library has several answers, muParser's formula is written
out: asinh, acosh, atanh, log2, rint, sign, min and max.
"""

import os

from libc.math cimport (
    NAN, acos, asin, atan, atan2, ceil, cos, cosh, exp, floor, fmod, log, log10,
    pow, sin, sinh, sqrt, tan, tanh, trunc)
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Arena, Block, block_alloc

from procserver.errors import BadFeature

cdef extern from *:
    """
    #include <math.h>
    #include <stdint.h>
    #include <unistd.h>
    static uint64_t fg_expr_counter;
    /* Claims n numbers of one sequence for all threads. */
    static inline uint64_t fg_expr_claim(uint64_t n) {
        return __atomic_fetch_add(&fg_expr_counter, n, __ATOMIC_RELAXED);
    }
    """
    uint64_t fg_expr_counter
    uint64_t fg_expr_claim(uint64_t n) noexcept nogil
    double c_round "round"(double x) noexcept nogil
    int getpid() noexcept nogil

cdef enum:
    CHUNK = 512              # elements that a chunk holds, if its units allow
    # SAFETY: registers of one run hold at most this many numbers.
    MAX_NUMBERS = 1 << 24
    DOMAIN_UNIT = -1

cdef enum Op:
    OP_LOAD = 0
    OP_EXPAND
    OP_RANDOM
    OP_NEGATE
    OP_ABSOLUTE
    OP_ADD
    OP_SUBTRACT
    OP_MULTIPLY
    OP_DIVIDE
    OP_LESS
    OP_LESS_EQUAL
    OP_GREATER
    OP_GREATER_EQUAL
    OP_EQUAL
    OP_NOT_EQUAL
    OP_BOTH
    OP_EITHER
    OP_SMALLER
    OP_LARGER
    OP_SELECT
    OP_UNARY
    OP_BINARY
    OP_HAVERSINE
    OP_REDUCE_FIRST          # what follows turns the elements of a unit into one
    OP_LENGTH
    OP_SUM
    OP_PRODUCT
    OP_MINIMUM
    OP_MAXIMUM
    OP_MEAN
    OP_SQUARED_NORM
    OP_NORM
    OP_VARIANCE
    OP_SAMPLE_VARIANCE
    OP_DEVIATION
    OP_SAMPLE_DEVIATION
    OP_DOT
    OP_DISTANCE
    OP_CORRELATION

OPS = {
    "load": OP_LOAD, "expand": OP_EXPAND, "rnd": OP_RANDOM, "neg": OP_NEGATE,
    "abs": OP_ABSOLUTE, "+": OP_ADD, "-": OP_SUBTRACT, "*": OP_MULTIPLY,
    "/": OP_DIVIDE, "<": OP_LESS, "<=": OP_LESS_EQUAL, ">": OP_GREATER,
    ">=": OP_GREATER_EQUAL, "==": OP_EQUAL, "!=": OP_NOT_EQUAL, "&&": OP_BOTH,
    "||": OP_EITHER, "min": OP_SMALLER, "max": OP_LARGER, "?:": OP_SELECT,
    "haversine": OP_HAVERSINE,
    "len": OP_LENGTH, "reduce_sum": OP_SUM, "reduce_prod": OP_PRODUCT,
    "reduce_min": OP_MINIMUM, "reduce_max": OP_MAXIMUM, "reduce_mean": OP_MEAN,
    "squared_norm": OP_SQUARED_NORM, "l2_norm": OP_NORM, "variance": OP_VARIANCE,
    "pop_variance": OP_SAMPLE_VARIANCE, "std_dev": OP_DEVIATION,
    "pop_std_dev": OP_SAMPLE_DEVIATION, "dot": OP_DOT,
    "euclid_dist": OP_DISTANCE, "corr": OP_CORRELATION,
}
MAX_REGISTER_COUNT = MAX_REGISTERS


# ---------------------------------------------------------- scalar functions

cdef double _asinh(double v) noexcept nogil:
    return log(v + sqrt(v * v + 1))


cdef double _acosh(double v) noexcept nogil:
    return log(v + sqrt(v * v - 1))


cdef double _atanh(double v) noexcept nogil:
    return 0.5 * log((1 + v) / (1 - v))


cdef double _log2(double v) noexcept nogil:
    return log(v) / log(2.0)


cdef double _rint(double v) noexcept nogil:
    return floor(v + 0.5)


cdef double _sign(double v) noexcept nogil:
    return -1 if v < 0 else 1 if v > 0 else 0


cdef double _cot(double v) noexcept nogil:
    return 1 / tan(v)


cdef double _coth(double v) noexcept nogil:
    return 1 / tanh(v)


cdef double _sigmoid(double v) noexcept nogil:
    return 1 / (1 + exp(-v))


cdef double _isnan(double v) noexcept nogil:
    return v != v


cdef double _roundp(double x, double places) noexcept nogil:
    """``x`` rounded half away from zero to a number of decimal places."""
    cdef double scale = pow(10, places)
    return c_round(x * scale) / scale


cdef inline int64_t _truncated(double v) noexcept nogil:
    # NOTE(14.8): bits of what no int64 can hold: what an x86 cast gives.
    if not (v >= -9223372036854775808.0 and v < 9223372036854775808.0):
        return INT64_MIN
    return <int64_t>v


cdef double _bit_and(double a, double b) noexcept nogil:
    return <double>(_truncated(a) & _truncated(b))


cdef double _bit_or(double a, double b) noexcept nogil:
    return <double>(_truncated(a) | _truncated(b))


cdef double _haversine(
    double lng1, double lat1, double lng2, double lat2
) noexcept nogil:
    """Great-circle kilometres between two points given in degrees."""
    # NOTE(14.16): a sphere of 6371 km; sphere_dist and haversine are one formula.
    cdef double radian = 0.017453292519943295
    cdef double across = sin((lng2 - lng1) * radian / 2)
    cdef double up = sin((lat2 - lat1) * radian / 2)
    cdef double h = up * up + (
        cos(lat1 * radian) * cos(lat2 * radian) * across * across)
    return 12742.0 * asin(sqrt(1.0 if h > 1 else h))


UNARY = (
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
    "acosh", "atanh", "log", "log2", "log10", "exp", "sqrt", "sign", "rint",
    "floor", "ceil", "trunc", "round", "sigmoid", "isnan", "cot", "coth")
BINARY = ("^", "mod", "atan2", "roundp", "&", "|")

cdef Unary[27] UNARY_CODE = [
    sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, _asinh, _acosh, _atanh, log,
    _log2, log10, exp, sqrt, _sign, _rint, floor, ceil, trunc, c_round, _sigmoid,
    _isnan, _cot, _coth]
cdef Binary[6] BINARY_CODE = [pow, fmod, atan2, _roundp, _bit_and, _bit_or]


# ------------------------------------------------------------- random numbers

cdef uint64_t _STEP = 0x9E3779B97F4A7C15
fg_expr_counter = int.from_bytes(os.urandom(8), "little")


cdef inline double _uniform(uint64_t state) noexcept nogil:
    """SplitMix64's output for a state, as a double in [0, 1)."""
    state = (state ^ (state >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * <uint64_t>0x94D049BB133111EB
    return <double>((state ^ (state >> 31)) >> 11) * 1.1102230246251565e-16


cdef void _random(double *out, int64_t n) noexcept nogil:
    # NOTE: the pid tells apart workers that were forked after the import.
    cdef uint64_t state = fg_expr_claim(<uint64_t>n) + (<uint64_t>getpid() << 40)
    cdef int64_t i
    for i in range(n):
        out[i] = _uniform((state + <uint64_t>i) * _STEP)


# -------------------------------------------------------------------- loops

cdef void _elementwise(
    const Instruction *ins, double *out, const double *a, const double *b,
    const double *c, const double *d, int64_t n
) noexcept nogil:
    """One instruction over ``n`` elements; ``out`` overlaps no argument."""
    cdef int64_t i
    cdef int32_t op = ins.op
    cdef double x, y
    cdef Unary unary
    cdef Binary binary
    if op == OP_UNARY:
        unary = ins.unary
        for i in range(n):
            out[i] = unary(a[i])
    elif op == OP_BINARY:
        binary = ins.binary
        for i in range(n):
            out[i] = binary(a[i], b[i])
    elif op == OP_ADD:
        for i in range(n):
            out[i] = a[i] + b[i]
    elif op == OP_SUBTRACT:
        for i in range(n):
            out[i] = a[i] - b[i]
    elif op == OP_MULTIPLY:
        for i in range(n):
            out[i] = a[i] * b[i]
    elif op == OP_DIVIDE:
        for i in range(n):
            out[i] = a[i] / b[i]
    elif op == OP_NEGATE:
        for i in range(n):
            out[i] = -a[i]
    elif op == OP_ABSOLUTE:
        for i in range(n):
            out[i] = a[i] if a[i] >= 0 else -a[i]
    elif op == OP_LESS:
        for i in range(n):
            out[i] = 1.0 if a[i] < b[i] else 0.0
    elif op == OP_LESS_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] <= b[i] else 0.0
    elif op == OP_GREATER:
        for i in range(n):
            out[i] = 1.0 if a[i] > b[i] else 0.0
    elif op == OP_GREATER_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] >= b[i] else 0.0
    elif op == OP_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] == b[i] else 0.0
    elif op == OP_NOT_EQUAL:
        for i in range(n):
            out[i] = 1.0 if a[i] != b[i] else 0.0
    elif op == OP_BOTH:
        for i in range(n):
            out[i] = 1.0 if (a[i] != 0) & (b[i] != 0) else 0.0
    elif op == OP_EITHER:
        for i in range(n):
            out[i] = 1.0 if (a[i] != 0) | (b[i] != 0) else 0.0
    elif op == OP_SMALLER:
        for i in range(n):
            out[i] = b[i] if b[i] < a[i] else a[i]
    elif op == OP_LARGER:
        for i in range(n):
            out[i] = b[i] if a[i] < b[i] else a[i]
    elif op == OP_SELECT:
        # PERF: both are read whatever the condition, so that the loop becomes
        # vector instructions.
        for i in range(n):
            x = b[i]
            y = c[i]
            out[i] = x if a[i] != 0 else y
    elif op == OP_HAVERSINE:
        for i in range(n):
            out[i] = _haversine(a[i], b[i], c[i], d[i])
    elif op == OP_RANDOM:
        _random(out, n)


cdef double _sum(const double *a, int64_t n) noexcept nogil:
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += a[i]
    return total


cdef double _squares(const double *a, const double *b, int64_t n) noexcept nogil:
    """Sum of squared differences."""
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += (a[i] - b[i]) * (a[i] - b[i])
    return total


cdef double _dot(const double *a, const double *b, int64_t n) noexcept nogil:
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += a[i] * b[i]
    return total


cdef double _spread(const double *a, int64_t n) noexcept nogil:
    """Sum of squared differences from the mean."""
    cdef double mean = _sum(a, n) / <double>n
    cdef double total = 0
    cdef int64_t i
    for i in range(n):
        total += (a[i] - mean) * (a[i] - mean)
    return total


cdef double _correlation(const double *a, const double *b, int64_t n) noexcept nogil:
    """Pearson's; not a number where a side does not vary."""
    cdef double mean_a = _sum(a, n) / <double>n
    cdef double mean_b = _sum(b, n) / <double>n
    cdef double together = 0
    cdef int64_t i
    for i in range(n):
        together += (a[i] - mean_a) * (b[i] - mean_b)
    return together / sqrt(_spread(a, n) * _spread(b, n))


cdef double _reduced(
    int32_t op, const double *a, const double *b, int64_t n
) noexcept nogil:
    """One vector function of ``n`` (at least one) elements."""
    cdef double found
    cdef int64_t i
    # NOTE(7): std_dev and variance divide by n, the pop_ versions by n - 1: the
    # names are upside down, and so upstream.
    if op == OP_LENGTH:
        return <double>n
    if op == OP_SUM:
        return _sum(a, n)
    if op == OP_MEAN:
        return _sum(a, n) / <double>n
    if op == OP_SQUARED_NORM:
        return _dot(a, a, n)
    if op == OP_NORM:
        return sqrt(_dot(a, a, n))
    if op == OP_VARIANCE:
        return _spread(a, n) / <double>n
    if op == OP_SAMPLE_VARIANCE:
        return _spread(a, n) / <double>(n - 1)
    if op == OP_DEVIATION:
        return sqrt(_spread(a, n) / <double>n)
    if op == OP_SAMPLE_DEVIATION:
        return sqrt(_spread(a, n) / <double>(n - 1))
    if op == OP_DOT:
        return _dot(a, b, n)
    if op == OP_DISTANCE:
        return sqrt(_squares(a, b, n))
    if op == OP_CORRELATION:
        return _correlation(a, b, n)
    found = a[0]
    for i in range(1, n):
        if op == OP_PRODUCT:
            found *= a[i]
        elif op == OP_MINIMUM:
            found = a[i] if a[i] < found else found
        else:
            found = a[i] if found < a[i] else found
    return found


# ------------------------------------------------------------------- running

cdef inline int64_t _length_of(const Variable *v, int64_t unit) noexcept nogil:
    if v.lengths == NULL:
        return 1
    return v.lengths[unit if v.units != 1 else 0]


cdef int64_t unit_length(
    const Program *p, const Variable *variables, int32_t scope, int64_t unit
) noexcept nogil:
    """How many elements a unit has in a scope: at least one."""
    cdef int64_t longest = 1
    cdef int64_t length
    cdef int32_t i
    for i in range(p.scope_starts[scope], p.scope_starts[scope + 1]):
        length = _length_of(&variables[p.scope_variables[i]], unit)
        if length > longest:
            longest = length
    return longest


cdef inline void _fill(double *out, double value, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        out[i] = value


cdef int64_t _longest_unit(Runner *r) noexcept nogil:
    """The most elements that a unit has in any scope."""
    cdef int64_t longest = 1
    cdef int64_t length, i
    cdef int32_t k
    for k in range(r.program.variables):
        if r.variables[k].lengths != NULL:
            for i in range(r.variables[k].units):
                length = r.variables[k].lengths[i]
                if length > longest:
                    longest = length
    return longest


cdef int _too_large(const char *name) except -1 nogil:
    with gil:
        raise BadFeature(
            f"feature {(<bytes>name).decode()!r}: a row has too many values for its "
            "expression")


cdef int start_runner(
    Runner *r, Block **head, const Program *p, const Variable *variables,
    int64_t units, double fill, const char *name
) except -1 nogil:
    """Prepares an evaluation of ``units`` units; then call :func:`next_chunk`.

    ``name``: of the feature, for the error message.
    """
    cdef int64_t longest, i
    cdef int32_t k
    cdef double *room
    memset(r, 0, sizeof(Runner))
    r.program = p
    r.variables = variables
    r.units = units
    r.fill = fill
    longest = _longest_unit(r)
    r.single = longest == 1
    r.capacity = CHUNK
    if longest > CHUNK:
        r.capacity = longest
    elif r.single and units < CHUNK:
        r.capacity = units
    if (r.capacity + 8) * p.registers > MAX_NUMBERS:
        _too_large(name)
    # PERF: registers are lines apart, so that they do not compete for the
    # same sets of the first-level cache.
    i = ((r.capacity + 7) & ~<int64_t>7) + 8
    room = <double *>block_alloc(head, i * p.registers * 8)
    r.buffers = <double **>block_alloc(head, p.registers * sizeof(double *))
    r.registers = <const double **>block_alloc(head, p.registers * sizeof(double *))
    for k in range(p.registers):
        r.buffers[k] = room + k * i
        r.registers[k] = r.buffers[k]
        if k < p.constants:
            _fill(r.buffers[k], p.numbers[k], r.capacity)
    r.scopes = <Scope *>block_alloc(head, p.scopes * sizeof(Scope))
    for k in range(p.scopes):
        r.scopes[k].single = True
        r.scopes[k].ends = NULL
        for i in range(p.scope_starts[k], p.scope_starts[k + 1]):
            if variables[p.scope_variables[i]].lengths != NULL:
                r.scopes[k].single = False
        if not r.scopes[k].single:
            r.scopes[k].ends = <int64_t *>block_alloc(head, CHUNK * 8)
    return 0


cdef void _choose_units(Runner *r) noexcept nogil:
    """Takes as many units as the registers hold elements of."""
    cdef const Program *p = r.program
    cdef int64_t total = 0
    cdef int64_t longest, length
    cdef int32_t k
    r.first = r.stop
    if r.single:
        r.stop = r.first + r.capacity
        if r.stop > r.units:
            r.stop = r.units
        return
    while r.stop < r.units and r.stop - r.first < CHUNK:
        longest = 1
        for k in range(p.variables):
            length = _length_of(&r.variables[k], r.stop)
            if length > longest:
                longest = length
        if total + longest > r.capacity:
            return
        total += longest
        r.stop += 1


cdef void _measure_scopes(Runner *r) noexcept nogil:
    cdef Scope *scope
    cdef int64_t unit
    cdef int32_t k
    for k in range(r.program.scopes):
        scope = &r.scopes[k]
        scope.count = r.stop - r.first
        if scope.single:
            continue
        scope.count = 0
        for unit in range(r.first, r.stop):
            scope.count += unit_length(r.program, r.variables, k, unit)
            scope.ends[unit - r.first] = scope.count


cdef void _load_single(
    Runner *r, const Instruction *ins, const Variable *v, int64_t n
) noexcept nogil:
    """A variable of one number per unit."""
    cdef double *out = r.buffers[ins.out]
    cdef int64_t i
    if v.units == 1:
        _fill(out, v.values[0 if v.starts == NULL else v.starts[0]], n)
    elif v.starts == NULL:
        r.registers[ins.out] = v.values + r.first
        return
    else:
        for i in range(n):
            out[i] = v.values[v.starts[r.first + i]]
    r.registers[ins.out] = out


cdef void _load(
    Runner *r, const Instruction *ins, const Variable *v, const Scope *scope
) noexcept nogil:
    """A variable, broadcast or filled up to the scope's length of each unit."""
    cdef double *out = r.buffers[ins.out]
    cdef int64_t at = 0
    cdef int64_t unit, start, length, i
    r.registers[ins.out] = out
    for unit in range(r.first, r.stop):
        i = unit if v.units != 1 else 0
        start = i if v.starts == NULL else v.starts[i]
        length = 1 if v.lengths == NULL else v.lengths[i]
        if length == 1:
            _fill(out + at, v.values[start], scope.ends[unit - r.first] - at)
        else:
            memcpy(out + at, v.values + start, length * 8)
            # NOTE(7): a shorter vector is filled up with fill_missing.
            _fill(
                out + at + length, r.fill, scope.ends[unit - r.first] - at - length)
        at = scope.ends[unit - r.first]


cdef void _expand(
    Runner *r, const Instruction *ins, const Scope *scope
) noexcept nogil:
    """One number per unit, repeated for the unit's elements."""
    cdef const double *a = r.registers[ins.args[0]]
    cdef double *out = r.buffers[ins.out]
    cdef int64_t at = 0
    cdef int64_t unit
    if scope.single:
        memcpy(out, a, scope.count * 8)
    else:
        for unit in range(r.stop - r.first):
            _fill(out + at, a[unit], scope.ends[unit] - at)
            at = scope.ends[unit]
    r.registers[ins.out] = out


cdef void _reduce(Runner *r, const Instruction *ins) noexcept nogil:
    cdef const Scope *scope = &r.scopes[ins.inner]
    cdef const double *a = r.registers[ins.args[0]]
    cdef const double *b = r.registers[ins.args[1]]
    cdef double *out = r.buffers[ins.out]
    cdef int64_t at = 0
    cdef int64_t end, unit
    for unit in range(r.stop - r.first):
        end = at + 1 if scope.single else scope.ends[unit]
        out[unit] = _reduced(ins.op, a + at, b + at, end - at)
        at = end
    r.registers[ins.out] = out


cdef bint next_chunk(Runner *r) noexcept nogil:
    """Evaluates the next units; False when there are none left.

    ``r.values`` holds the results of units ``r.first`` to ``r.stop``.
    """
    cdef const Program *p = r.program
    cdef const Instruction *ins
    cdef const double **registers = r.registers
    cdef int64_t n
    cdef int32_t k
    if r.stop == r.units:
        return False
    _choose_units(r)
    _measure_scopes(r)
    for k in range(p.length):
        ins = &p.code[k]
        n = r.stop - r.first
        if ins.domain != DOMAIN_UNIT:
            n = r.scopes[ins.domain].count
        if ins.op == OP_LOAD:
            if r.scopes[ins.domain].single:
                _load_single(r, ins, &r.variables[ins.args[0]], n)
            else:
                _load(r, ins, &r.variables[ins.args[0]], &r.scopes[ins.domain])
        elif ins.op == OP_EXPAND:
            _expand(r, ins, &r.scopes[ins.domain])
        elif ins.op > OP_REDUCE_FIRST:
            _reduce(r, ins)
        else:
            _elementwise(
                ins, r.buffers[ins.out], registers[ins.args[0]],
                registers[ins.args[1]], registers[ins.args[2]],
                registers[ins.args[3]], n)
            registers[ins.out] = r.buffers[ins.out]
    r.values = registers[p.result]
    r.ends = NULL
    if not p.per_unit and not r.scopes[0].single:
        r.ends = r.scopes[0].ends
    return True


cdef double run_scalar(const Program *p, double x) noexcept nogil:
    """The value for one variable that is one number; no vector functions."""
    cdef double[MAX_REGISTERS] registers
    cdef const Instruction *ins
    cdef int32_t k
    for k in range(p.constants):
        registers[k] = p.numbers[k]
    for k in range(p.length):
        ins = &p.code[k]
        if ins.op == OP_LOAD:
            registers[ins.out] = x
        else:
            _elementwise(
                ins, &registers[ins.out], &registers[ins.args[0]],
                &registers[ins.args[1]], &registers[ins.args[2]],
                &registers[ins.args[3]], 1)
    return registers[p.result]


# ------------------------------------------------------------------- loading

cdef int _load_operation(Instruction *ins, str name) except -1:
    ins.unary = NULL
    ins.binary = NULL
    if name in UNARY:
        ins.op = OP_UNARY
        ins.unary = UNARY_CODE[<int>UNARY.index(name)]
    elif name in BINARY:
        ins.op = OP_BINARY
        ins.binary = BINARY_CODE[<int>BINARY.index(name)]
    else:
        ins.op = OPS[name]
    return 0


cdef int _register(Program *p, int64_t number) except -1:
    if not 0 <= number < p.registers:
        raise ValueError(f"there is no register {number}")
    return <int>number


cdef int _load_instruction(Program *p, Instruction *ins, object spec) except -1:
    cdef int64_t i, limit
    name, out, args, domain, inner = spec
    _load_operation(ins, name)
    ins.out = _register(p, out)
    ins.domain = domain
    ins.inner = inner
    if not -1 <= ins.domain < p.scopes or not 0 <= ins.inner < p.scopes:
        raise ValueError(f"there is no scope {domain} or {inner}")
    if (ins.op == OP_LOAD or ins.op == OP_EXPAND) and ins.domain < 0:
        raise ValueError("a variable has a scope")
    for i in range(4):
        ins.args[i] = args[i] if i < len(args) else 0
        limit = p.variables if ins.op == OP_LOAD else p.registers
        if i < len(args) and not 0 <= ins.args[i] < limit:
            raise ValueError(f"there is no operand {ins.args[i]}")
    return 0


cdef int _load_scopes(Program *p, Block **head, object scopes) except -1:
    cdef int32_t *starts
    cdef int32_t *members
    cdef int32_t count = 0
    p.scopes = len(scopes)
    starts = <int32_t *>block_alloc(head, (p.scopes + 1) * 4)
    members = <int32_t *>block_alloc(head, sum(len(one) for one in scopes) * 4)
    starts[0] = 0
    for i, scope in enumerate(scopes):
        for number in scope:
            if not 0 <= number < p.variables:
                raise ValueError(f"there is no variable {number}")
            members[count] = number
            count += 1
        starts[<int>i + 1] = count
    p.scope_starts = starts
    p.scope_variables = members
    return 0


cdef int load_program(Program *p, Block **head, object spec) except -1:
    """Copies ``(code, numbers, registers, variables, scopes, result, per_unit)``.

    ``code``: ``(operation, out, arguments, domain, inner)`` each, in an order in
    which registers are written before they are read.
    """
    cdef double *numbers
    cdef int64_t i
    memset(p, 0, sizeof(Program))
    code, constants, registers, variables, scopes, result, per_unit = spec
    if not len(constants) <= registers <= MAX_REGISTERS or registers < 1:
        raise ValueError(f"{registers} registers")
    p.registers = registers
    p.variables = variables
    p.constants = len(constants)
    p.per_unit = per_unit
    p.result = _register(p, result)
    numbers = <double *>block_alloc(head, p.constants * 8)
    for i in range(p.constants):
        numbers[i] = constants[i]
    p.numbers = numbers
    _load_scopes(p, head, scopes)
    p.length = len(code)
    p.code = <Instruction *>block_alloc(head, p.length * sizeof(Instruction))
    for i in range(p.length):
        _load_instruction(p, &p.code[i], code[i])
    return 0


# ------------------------------------------------------------- Python's face

def fold(str name not None, arguments) -> float:
    """One element-wise operation on numbers, exactly as programs compute it."""
    cdef Instruction ins
    cdef double[4] args
    cdef double out = NAN
    memset(&args, 0, sizeof(args))
    _load_operation(&ins, name)
    if ins.op < OP_RANDOM or ins.op > OP_REDUCE_FIRST or len(arguments) > 4:
        raise ValueError(f"{name} is not element-wise")
    for i, argument in enumerate(arguments):
        args[<int>i] = argument
    _elementwise(&ins, &out, &args[0], &args[1], &args[2], &args[3], 1)
    return out


cdef class Expression:
    """One program by itself, for tests and for what is not a feature."""

    cdef Arena _arena
    cdef Program _program

    def __init__(self, spec) -> None:
        self._arena = Arena()
        load_program(&self._program, &self._arena._head, spec)

    def scalar(self, double x) -> float:
        """The value where the one variable is ``x``."""
        return run_scalar(&self._program, x)

    def evaluate(self, variables, double fill=NAN) -> list:
        """The results of every unit.

        ``variables``: per variable the numbers of each unit, or of one unit for
        all; every unit has at least one number.
        """
        cdef Arena arena = Arena()
        cdef Variable *columns = <Variable *>arena.alloc(
            self._program.variables * sizeof(Variable))
        cdef Runner runner
        cdef int64_t units = max([len(v) for v in variables], default=1)
        cdef int64_t i, unit, at
        if len(variables) != self._program.variables:
            raise ValueError(f"{len(variables)} variables")
        for i in range(len(variables)):
            if len(variables[i]) not in (1, units):
                raise ValueError(f"{len(variables[i])} units, not 1 or {units}")
            _copy_variable(&columns[i], arena, variables[i])
        start_runner(
            &runner, &arena._head, &self._program, columns, units, fill, b"")
        found = []
        while next_chunk(&runner):
            at = 0
            for unit in range(runner.stop - runner.first):
                i = unit + 1 if runner.ends == NULL else runner.ends[unit]
                found.append([runner.values[j] for j in range(at, i)])
                at = i
        return found


cdef int _copy_variable(Variable *v, Arena arena, object cells) except -1:
    cdef int64_t total = sum(len(cell) for cell in cells)
    cdef double *values = <double *>arena.alloc(total * 8)
    cdef int64_t *starts = <int64_t *>arena.alloc(len(cells) * 8)
    cdef int32_t *lengths = <int32_t *>arena.alloc(len(cells) * 4)
    cdef int64_t at = 0
    cdef int64_t row
    for row in range(len(cells)):
        starts[row] = at
        lengths[row] = len(cells[row])
        if lengths[row] < 1:
            raise ValueError("a unit without a number")
        for number in cells[row]:
            values[at] = number
            at += 1
    v.units = len(cells)
    v.values = values
    v.starts = starts
    v.lengths = lengths
    if total == v.units:
        v.lengths = NULL
        v.starts = NULL
    return 0
