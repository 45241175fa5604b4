# cython: language_level=3
"""Feature operators: what one compiled feature does to its input columns."""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport Block
from cython_ext.column cimport ColumnView
from cython_ext.fg_bucket cimport Bucketizer, Normalizer
from cython_ext.fg_cells cimport Output


cdef enum Origin:
    # Where a source's column comes from.
    ORIGIN_SLOT = 0          # an input column of the run
    ORIGIN_NODE = 1          # an earlier feature
    ORIGIN_CONST = 2         # a literal of the plan


cdef enum Accepts:
    # Shapes of cells, as bits, that an operator takes from a source.
    ACCEPTS_SCALAR = 1
    ACCEPTS_LIST = 2
    ACCEPTS_LISTS = 4
    ACCEPTS_MAP = 8


ctypedef struct Source:
    int32_t origin
    int32_t index
    bint sequence            # its cells are split into elements
    int32_t accepts
    const char *label        # for error messages


ctypedef struct Call:
    # One run of a plan.
    Block **head
    const ColumnView *slots
    const ColumnView *consts
    Output *outputs
    int64_t rows


cdef struct Node

ctypedef int (*Operator)(Call *call, Node *node, Output *out) except -1 nogil


cdef struct Node:
    # One feature. Everything that it points at lives in the plan's arena.
    const char *name
    Operator run
    Source *sources
    int32_t source_count
    int32_t form
    bint consumed            # another feature reads it
    bint sequence
    bint weighted
    char separator
    char delim
    int64_t limit            # elements kept; 0: all
    int64_t value_dim
    const char *prefix
    int64_t prefix_length
    bint has_default
    const char *default_text
    int64_t default_length
    int64_t default_id
    const float *default_numbers   # raw: value_dim of them
    Bucketizer bucketizer
    Normalizer normalizer


cdef const ColumnView *source_view(Call *call, Source *source) noexcept nogil
cdef int run_id(Call *call, Node *node, Output *out) except -1 nogil
cdef int run_raw(Call *call, Node *node, Output *out) except -1 nogil
cdef int run_combo(Call *call, Node *node, Output *out) except -1 nogil
