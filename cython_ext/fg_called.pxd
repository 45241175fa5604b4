# cython: language_level=3
"""The operator that calls back into Python, once per feature and run."""

from cython_ext.fg_cells cimport Output
from cython_ext.fg_node cimport Call, Node

cdef int run_called(Call *call, Node *node, Output *out) except -1 nogil
