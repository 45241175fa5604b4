# cython: language_level=3
"""The operator of raw_feature."""

from cython_ext.fg_cells cimport Output
from cython_ext.fg_node cimport Call, Node

cdef int run_raw(Call *call, Node *node, Output *out) except -1 nogil
