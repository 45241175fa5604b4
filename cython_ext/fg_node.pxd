# cython: language_level=3
"""What every feature operator works with: its node, its sources, the run.

An operator runs once per plan run, over whole columns. It reads pieces (cells,
or elements of sequence cells) and appends values to its output.
"""

from libc.stdint cimport int32_t, int64_t

from cython_ext.arena cimport Block
from cython_ext.column cimport ColumnView, Values
from cython_ext.fg_bucket cimport (
    BUCKET_BOUNDARIES, BUCKET_NUMBER, NORMAL_NONE, Bucketizer, Normalizer,
    bucket_float, bucket_number, bucket_text, bucket_truncated, normalize_double,
    normalize_single)
from cython_ext.fg_cells cimport (
    FORM_NUMBERS, FORM_TEXT, Output, append_id, append_number)


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

# Runs a feature over whole columns.
ctypedef int (*Operator)(Call *call, Node *node, Output *out) except -1 nogil
# Fills ``node.extra`` (in the plan's arena) from a Python payload, once.
ctypedef int (*Loader)(Node *node, Block **head, object payload) except -1


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
    int64_t default_count    # numbers in a default; 0: values are text
    const float *default_numbers
    int64_t width            # dense columns; 0: as the operator computes
    bint dense               # emitted as a matrix: every row must be ``width`` wide
    Bucketizer bucketizer
    Normalizer normalizer
    bint gives_ids           # values are ids as they come; set by the loader
    void *extra              # the operator's own struct


cdef int register_operator(str name, Operator run, Loader load) except -1
cdef int load_operator(Node *node, Block **head, str name, object payload) except -1
cdef const ColumnView *source_view(Call *call, Source *source) noexcept nogil
cdef int check_shapes(Call *call, Node *node) except -1 nogil
cdef int64_t rows_of(Call *call, Node *node) noexcept nogil
cdef int append_text(
    Output *o, const char *prefix, int64_t prefix_length,
    const char *text, int64_t length) except -1 nogil
cdef int append_prefixed(
    Node *node, Output *o, const char *text, int64_t length) except -1 nogil
cdef int append_value(
    Node *node, Output *o, const Values *v, int64_t i) except -1 nogil
cdef bint steps_in_double(Node *node, const ColumnView *v) noexcept nogil
cdef int number_text(const Values *v, int64_t i, char *out) noexcept nogil


cdef inline int append_token(
    Node *node, Output *o, const char *text, int64_t length
) except -1 nogil:
    if node.form == FORM_TEXT:
        return append_text(o, node.prefix, node.prefix_length, text, length)
    if node.prefix_length:
        return append_prefixed(node, o, text, length)
    return append_id(o, bucket_text(&node.bucketizer, text, length))


cdef inline int append_real(Node *node, Output *o, double x) except -1 nogil:
    """Appends a number (normalised by now), bucketized if the feature is."""
    if node.form == FORM_NUMBERS:
        return append_number(o, <float>x)
    if node.bucketizer.kind == BUCKET_BOUNDARIES:
        return append_id(o, bucket_float(&node.bucketizer, <float>x))
    if node.bucketizer.kind == BUCKET_NUMBER:
        return append_id(o, bucket_truncated(&node.bucketizer, x))
    # A normalised number is a float32, and so is its text.
    return append_id(o, bucket_number(
        &node.bucketizer, x, node.normalizer.kind != NORMAL_NONE))


cdef inline int append_normalised(
    Node *node, Output *o, double x, bint in_double
) except -1 nogil:
    """Normalises a number and appends it; ``in_double`` as the column says."""
    if node.normalizer.kind == NORMAL_NONE:
        return append_real(node, o, x)
    if in_double:
        return append_real(node, o, normalize_double(&node.normalizer, x))
    return append_real(node, o, normalize_single(&node.normalizer, <float>x))


cdef inline int64_t append_real_default(Node *node, Output *o) except -1 nogil:
    """The default numbers, never normalised; none: 0.0 if dense, else nothing.

    NOTE(14.4): only raw_feature makes a bucket of 0.0 out of nothing.
    """
    cdef int64_t i
    if not node.has_default and node.form != FORM_NUMBERS:
        return 0
    if node.form != FORM_NUMBERS and node.bucketizer.kind < BUCKET_NUMBER:
        append_id(o, node.default_id)
        return 1
    for i in range(node.default_count):
        append_real(node, o, node.default_numbers[i])
    return node.default_count


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
