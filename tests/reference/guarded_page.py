"""Memory that ends where the next page may not be read."""

import ctypes
import mmap


class GuardedPage:
    """Holds a body so that reading one byte behind it ends the process."""

    def __init__(self, size: int = 1 << 16) -> None:
        self._map = mmap.mmap(-1, size + mmap.PAGESIZE)
        self._size = size
        self._view = memoryview(self._map)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        protect = libc.mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert protect(start + size, mmap.PAGESIZE, 0) == 0

    def holding(self, body: bytes) -> memoryview:
        """The body, its last byte before the guard; until the next call."""
        at = self._size - len(body)
        self._view[at : self._size] = body
        return self._view[at : self._size]
