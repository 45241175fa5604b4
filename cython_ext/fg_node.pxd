# cython: language_level=3
"""What every feature operator works with: its node, its sources, the run.

An operator runs once per plan run, over whole columns. It reads pieces (cells,
or elements of sequence cells) and appends values to its output.
"""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport Block
from cython_ext.column cimport ColumnView, Values
from cython_ext.fg_bucket cimport Bucketizer, Normalizer, bucket_text
from cython_ext.fg_cells cimport FORM_TEXT, Output, append_id


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
cdef int check_shapes(Call *call, Node *node) except -1 nogil
cdef int64_t rows_of(Call *call, Node *node) noexcept nogil
cdef int append_text(
    Output *o, const char *prefix, int64_t prefix_length,
    const char *text, int64_t length) except -1 nogil
cdef int append_prefixed(
    Node *node, Output *o, const char *text, int64_t length) except -1 nogil
cdef int number_text(const Values *v, int64_t i, char *out) noexcept nogil


cdef inline int append_token(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    if node.form == FORM_TEXT:
        return append_text(o, node.prefix, node.prefix_length, text, length)
    if node.prefix_length:
        return append_prefixed(node, o, text, length)
    return append_id(o, bucket_text(&node.bucketizer, text, length))


cdef inline int append_default(Node *node, Output *o) except -1 nogil:
    """Appends the default of a text-like feature, if it has one."""
    if not node.has_default:
        return 0
    if node.form == FORM_TEXT:
        append_text(o, node.prefix, 0, node.default_text, node.default_length)
    else:
        append_id(o, node.default_id)
    if o.weighted:
        o.weights[o.count - 1] = 1
    return 0
