# cython: language_level=3
"""The operator of id_feature."""

from cython_ext.fg_cells cimport Output
from cython_ext.fg_node cimport Call, Node

cdef int run_id(Call *call, Node *node, Output *out) except -1 nogil
