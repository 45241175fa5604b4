# cython: language_level=3
"""A bump allocator: everything that a request allocates, freed at once."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

cdef enum:
    ALIGNMENT = 64
    BLOCK_BYTES = 64 * 1024


cdef void *block_alloc(Block **head, int64_t size) except NULL nogil:
    """:meth:`Arena.alloc` for kernels that hold the arena's chain of blocks.

    :raises MemoryError: if the system has no memory or size is negative
    """
    cdef Block *block = head[0]
    cdef int64_t need
    cdef int64_t capacity
    cdef char *start
    if size < 0 or size > (<int64_t>1 << 46):
        with gil:
            raise MemoryError(f"arena: {size} bytes asked for")
    need = (size + ALIGNMENT) & ~(<int64_t>ALIGNMENT - 1)
    if block == NULL or block.size - block.used < need:
        capacity = need if need > BLOCK_BYTES else BLOCK_BYTES
        block = <Block *>malloc(sizeof(Block) + capacity + ALIGNMENT)
        if block == NULL:
            with gil:
                raise MemoryError(f"arena: {size} bytes asked for")
        start = <char *>block + sizeof(Block)
        block.data = start + (-<int64_t><size_t>start & (ALIGNMENT - 1))
        block.size = capacity
        block.used = 0
        # PERF: a large block goes behind the current one, so that the room
        # left in the current one still serves small allocations.
        if head[0] != NULL and capacity > BLOCK_BYTES:
            block.next = head[0].next
            head[0].next = block
            block.used = capacity
            return block.data
        block.next = head[0]
        head[0] = block
    start = block.data + block.used
    block.used += need
    return start


cdef class Arena:
    """Owns the memory behind the columns and tensors of one request.

    Memory is 64-byte aligned, uninitialised, and lives until the arena is
    collected; columns keep a reference to theirs. One thread at a time.
    """

    def __cinit__(self):
        self._head = NULL

    def __dealloc__(self):
        cdef Block *block = self._head
        cdef Block *following
        while block != NULL:
            following = block.next
            free(block)
            block = following

    @property
    def nbytes(self) -> int:
        """Bytes reserved from the system so far."""
        cdef int64_t total = 0
        cdef Block *block = self._head
        while block != NULL:
            total += block.size
            block = block.next
        return total

    cdef void *alloc(self, int64_t size) except NULL nogil:
        """Returns ``size`` bytes at a 64-byte boundary (one byte at least).

        :raises MemoryError: if the system has no memory or size is negative
        """
        return block_alloc(&self._head, size)
