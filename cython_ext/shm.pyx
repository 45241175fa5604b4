# cython: language_level=3
"""Maps of shared memory that close with their last user.

``mmap.mmap`` cannot be closed while a buffer of it is exported and has neither
atomic words nor a growing map that keeps no file descriptor; this is the little
that the item cache needs instead.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport int64_t, uint64_t
from posix.mman cimport (
    MAP_FAILED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    mprotect,
    munmap,
)

from cython_ext.intrinsics cimport add_u64, load_u64, store_u64, swap_u64


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/mman.h>
    static const int procserver_noreserve = MAP_NORESERVE;
    static void *procserver_grow(void *base, size_t size, size_t wanted) {
        return mremap(base, size, wanted, MREMAP_MAYMOVE);
    }
    """
    const int MAP_NORESERVE "procserver_noreserve"
    void *grow "procserver_grow"(void *base, size_t size, size_t wanted) nogil


cdef class Mapping:
    """A map of the first ``size`` bytes behind ``fd``.

    The descriptor may be closed afterwards. The map is ``PROT_READ`` unless
    ``writable``, so a stray write faults instead of changing what others read.
    With ``copy_on_write`` it is writable too, and what is written stays in this
    process: the written page becomes its own, all other pages stay shared.
    It is unmapped when the last reference to it (columns, memoryviews, readers)
    is gone, hence there is no ``close()``. The caller has checked that the file
    has ``size`` bytes: pages beyond its end raise SIGBUS.

    :raises OSError: if the kernel refuses the map
    :raises ValueError: if ``size`` is not positive
    """

    def __cinit__(
        self, int fd, int64_t size, *, bint writable=False, bint copy_on_write=False
    ):
        self.base = NULL
        self.exports = 0
        if size <= 0:
            raise ValueError(f"a map of {size} bytes")
        writable = writable or copy_on_write
        # NOTE: hardly a page of a copy-on-write map is ever written, so the kernel
        # need not set aside memory for all of them.
        cdef int kind = MAP_PRIVATE | MAP_NORESERVE if copy_on_write else MAP_SHARED
        cdef void *base = mmap(
            NULL, size, PROT_READ | (PROT_WRITE if writable else 0), kind, fd, 0)
        if base == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
        self.base = <char *>base
        self.size = size
        self.writable = writable

    def __dealloc__(self):
        # PERF: tearing down the pages of a large generation takes milliseconds;
        # other threads of the worker go on meanwhile.
        if self.base != NULL:
            with nogil:
                munmap(self.base, self.size)

    def __len__(self) -> int:
        return self.size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("the map is read-only")
        PyBuffer_FillInfo(
            buffer, self, self.base, self.size, not self.writable, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1

    @property
    def writable(self) -> bool:
        return self.writable

    def protect(self) -> None:
        """Makes the map read-only in this process, for good.

        :raises BufferError: while a buffer of the map is exported
        :raises OSError: if the kernel refuses
        """
        if self.exports:
            raise BufferError("the map has exported buffers")
        if mprotect(self.base, self.size, PROT_READ) != 0:
            PyErr_SetFromErrno(OSError)
        self.writable = False

    def resize(self, int64_t size) -> None:
        """Maps ``size`` bytes of the same file from now on; may move.

        :raises BufferError: while a buffer of the map is exported
        """
        if self.exports:
            raise BufferError("the map has exported buffers")
        if size <= 0:
            raise ValueError(f"a map of {size} bytes")
        cdef void *base = grow(self.base, self.size, size)
        if base == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
        self.base = <char *>base
        self.size = size

    cdef char *word(self, int64_t offset) except NULL:
        if offset < 0 or offset > self.size - 8 or offset % 8:
            raise IndexError(f"no word at {offset} of {self.size} bytes")
        return self.base + offset

    def load(self, int64_t offset) -> int:
        """Atomic (acquire) load of the 64-bit word at ``offset``."""
        return load_u64(self.word(offset))

    def store(self, int64_t offset, uint64_t value) -> None:
        """Atomic (release) store of the 64-bit word at ``offset``.

        :raises BufferError: if the map is read-only
        """
        if not self.writable:
            raise BufferError("the map is read-only")
        store_u64(self.word(offset), value)

    def add(self, int64_t offset, uint64_t value) -> int:
        """Atomically adds to the word at ``offset``; returns what was there.

        :raises BufferError: if the map is read-only
        """
        if not self.writable:
            raise BufferError("the map is read-only")
        return add_u64(self.word(offset), value)

    def swap(self, int64_t offset, uint64_t expected, uint64_t value) -> bool:
        """Atomically stores ``value`` if the word is ``expected``; whether it did.

        :raises BufferError: if the map is read-only
        """
        if not self.writable:
            raise BufferError("the map is read-only")
        return swap_u64(self.word(offset), expected, value)
