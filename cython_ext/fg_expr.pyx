# cython: language_level=3, boundscheck=False
"""Compiled expressions (spec section 7): register code over whole columns.

A program is a list of instructions over registers of doubles. It is loaded once
and then run over chunks of units that fit the cache: each instruction is one
loop over the elements of its domain.

domain      elements
unit        one per unit: results of vector functions
scope k     per unit, as many as the longest variable of scope k has
"""

from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Arena, Block, block_alloc
from cython_ext.fg_math cimport (
    OP_EXPAND, OP_LOAD, OP_REDUCE_FIRST, elementwise, load_operation, reduced)

from procserver.errors import BadFeature

cdef enum:
    CHUNK = 512              # elements that a chunk holds, if its units allow
    # SAFETY: registers of one run hold at most this many numbers.
    MAX_NUMBERS = 1 << 24
    DOMAIN_UNIT = -1

MAX_REGISTER_COUNT = MAX_REGISTERS


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
        out[unit] = reduced(
            ins.operation.code, a + at, b + at, end - at)
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
        if ins.operation.code == OP_LOAD:
            if r.scopes[ins.domain].single:
                _load_single(r, ins, &r.variables[ins.args[0]], n)
            else:
                _load(r, ins, &r.variables[ins.args[0]], &r.scopes[ins.domain])
        elif ins.operation.code == OP_EXPAND:
            _expand(r, ins, &r.scopes[ins.domain])
        elif ins.operation.code > OP_REDUCE_FIRST:
            _reduce(r, ins)
        else:
            elementwise(
                &ins.operation, r.buffers[ins.out], registers[ins.args[0]],
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
        if ins.operation.code == OP_LOAD:
            registers[ins.out] = x
        else:
            elementwise(
                &ins.operation, &registers[ins.out], &registers[ins.args[0]],
                &registers[ins.args[1]], &registers[ins.args[2]],
                &registers[ins.args[3]], 1)
    return registers[p.result]


# ------------------------------------------------------------------- loading

cdef int _register(Program *p, int64_t number) except -1:
    if not 0 <= number < p.registers:
        raise ValueError(f"there is no register {number}")
    return <int>number


cdef int _load_instruction(Program *p, Instruction *ins, object spec) except -1:
    cdef int64_t i, limit
    name, out, args, domain, inner = spec
    load_operation(&ins.operation, name)
    ins.out = _register(p, out)
    ins.domain = domain
    ins.inner = inner
    if not -1 <= ins.domain < p.scopes or not 0 <= ins.inner < p.scopes:
        raise ValueError(f"there is no scope {domain} or {inner}")
    if ins.domain < 0 and ins.operation.code in (OP_LOAD, OP_EXPAND):
        raise ValueError("a variable has a scope")
    for i in range(4):
        ins.args[i] = args[i] if i < len(args) else 0
        limit = p.variables if ins.operation.code == OP_LOAD else p.registers
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
