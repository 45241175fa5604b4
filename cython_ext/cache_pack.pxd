# cython: language_level=3
"""Columns to row records: sizes and bytes of single cells."""

from libc.stdint cimport int64_t

from cython_ext.column cimport ColumnView


# Heap bytes of a cell that is not of fixed width.
cdef int64_t cell_size(const ColumnView *c, int64_t row) noexcept nogil

# Writes them; returns what is behind them.
cdef char *write_cell(char *out, const ColumnView *c, int64_t row) noexcept nogil
