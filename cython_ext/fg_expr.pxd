# cython: language_level=3
"""Compiled expressions (spec section 7): register code over whole columns."""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport Block
from cython_ext.fg_math cimport Operation


cdef enum:
    # SAFETY: no program has more registers; the reader refuses what needs more.
    MAX_REGISTERS = 256


ctypedef struct Instruction:
    Operation operation
    int32_t out              # register
    int32_t[4] args          # registers; LOAD: the variable
    int32_t domain           # DOMAIN_UNIT, or the scope whose elements it covers
    int32_t inner            # reductions: the scope that is reduced


ctypedef struct Program:
    # Registers 0 to constants - 1 hold numbers. Variables of a scope are
    # broadcast to the longest one of that scope: scope 0 is the expression
    # itself, every argument list of a vector function has its own.
    Instruction *code
    int32_t length
    int32_t registers
    int32_t constants
    const double *numbers
    int32_t variables
    int32_t scopes
    const int32_t *scope_starts
    const int32_t *scope_variables
    int32_t result
    bint per_unit            # one value per unit, whatever the variables' lengths


ctypedef struct Variable:
    # The numbers of one variable, unit by unit (a unit is a row, or an element
    # of a sequence). ``starts`` NULL: unit u has the one number u (or, if there
    # is one unit only, all units share it). ``lengths`` NULL: all are 1.
    const double *values
    const int64_t *starts
    const int32_t *lengths
    int64_t units


ctypedef struct Scope:
    bint single              # every unit has one element
    int64_t count            # elements of the chunk
    int64_t *ends            # per unit of the chunk; not if single


ctypedef struct Runner:
    # One evaluation over all units, a chunk at a time.
    const Program *program
    const Variable *variables
    int64_t units
    double fill
    int64_t capacity
    double **buffers
    const double **registers
    Scope *scopes
    bint single
    int64_t first            # the chunk
    int64_t stop
    const double *values     # its results
    const int64_t *ends      # per unit; NULL: one result each


cdef int load_program(Program *p, Block **head, object spec) except -1
cdef double run_scalar(const Program *p, double x) noexcept nogil
cdef int64_t unit_length(
    const Program *p, const Variable *variables, int32_t scope, int64_t unit
) noexcept nogil
cdef int start_runner(
    Runner *r, Block **head, const Program *p, const Variable *variables,
    int64_t units, double fill, const char *name) except -1 nogil
cdef bint next_chunk(Runner *r) noexcept nogil
