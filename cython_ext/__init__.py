"""Compiled kernels: nogil functions over C structs with thin classes on top."""
