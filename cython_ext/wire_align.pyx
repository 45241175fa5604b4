# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Where the largest tensor of a request lies, told while the request arrives.

A tensor can be a view of the request body if its first value lies on an address
that its element size divides. The receiver chooses where in memory a body
begins, and for that must know the largest tensor's place before it has come:
its tag and length have come by then.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from cython_ext.wire_arrays cimport DOUBLE_VAL, FLOAT_VAL
from cython_ext.wire_reader cimport (
    FIXED32, FIXED64, LEN, VARINT, Fail, read_tag, read_varint)

cdef enum:
    LINE = 64                # bytes of a cache line; every element size divides it
    MAX_FIELDS = 1 << 14     # looked at in one body
    LONGEST_HEADER = 20      # tag and length


cdef enum Level:
    REQUEST = 0              # fields 1 (a tensor) and 3 (a map entry)
    ENTRY = 1                # field 2 (a tensor)
    TENSOR = 2


cdef class Buffer:
    """Memory on a cache line, with a count of those who look at it."""

    cdef void *base
    cdef readonly int64_t size
    cdef readonly int64_t exports

    def __cinit__(self, int64_t size):
        self.base = NULL
        self.size = self.exports = 0
        if size <= 0:
            raise ValueError(f"a buffer of {size} bytes")
        if posix_memalign(&self.base, LINE, size):
            self.base = NULL
            raise MemoryError(f"a buffer of {size} bytes")
        self.size = size

    def __dealloc__(self):
        free(self.base)

    def __len__(self) -> int:
        return self.size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.base, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1


cdef class TensorScan:
    """Walks the fields of a ``PredictRequest`` of ``total`` bytes as they come.

    Only tags and lengths are read; what is not such a message ends the walk, for
    it is the decoder's to refuse. ``length`` and ``place`` are the largest tensor
    found so far, in bytes and from the body's beginning.
    """

    cdef readonly int64_t length
    cdef readonly int64_t place
    cdef readonly bint done
    cdef int64_t total
    cdef int64_t at
    cdef int64_t fields
    cdef int level
    cdef int64_t[3] ends
    cdef int[3] kinds

    def __cinit__(self, int64_t total):
        self.length = self.place = self.at = self.fields = 0
        self.level = 0
        self.total = self.ends[0] = total
        self.kinds[0] = REQUEST
        self.done = False

    @property
    def shift(self) -> int:
        """Where on a cache line the body is to begin, 0 to 63."""
        return <int64_t>(-<uint64_t>self.place % LINE)

    def feed(self, body, int64_t got) -> int:
        """Goes on with the first ``got`` bytes; how many the next step needs.

        :param body: the bytes from the body's beginning, as many or more
        """
        cdef Py_buffer buffer
        PyObject_GetBuffer(body, &buffer, PyBUF_SIMPLE)
        try:
            if got > buffer.len or got > self.total:
                raise ValueError(f"{got} bytes of {buffer.len}")
            self.walk(<const uint8_t *>buffer.buf, got)
        finally:
            PyBuffer_Release(&buffer)
        return min(self.at + LONGEST_HEADER, self.total)

    cdef void walk(self, const uint8_t *base, int64_t got) noexcept nogil:
        cdef int64_t stop
        cdef const uint8_t *p
        cdef uint32_t tag
        cdef uint64_t n
        cdef Fail fail
        while not self.done:
            while self.level and self.at >= self.ends[self.level]:
                self.level -= 1
            stop = self.ends[self.level]
            if self.at >= self.total or self.fields >= MAX_FIELDS:
                self.done = True
                return
            # A header that is not all here yet is looked at again later on.
            if self.at + LONGEST_HEADER > got and got < self.total:
                return
            if stop > got:
                stop = got
            self.fields += 1
            p = read_tag(base + self.at, base + stop, &tag, &fail)
            if p != NULL and (tag & 7) == FIXED32:
                self.at = p - base + 4
                continue
            if p != NULL and (tag & 7) == FIXED64:
                self.at = p - base + 8
                continue
            if p != NULL and ((tag & 7) == LEN or (tag & 7) == VARINT):
                p = read_varint(p, base + stop, &n, &fail)
            else:
                p = NULL
            if p == NULL:
                self.done = True
                return
            self.at = p - base
            if (tag & 7) == VARINT:
                continue
            if n > <uint64_t>(self.ends[self.level] - self.at):
                self.done = True
                return
            self.enter(tag >> 3, <int64_t>n)

    cdef void enter(self, uint32_t field, int64_t n) noexcept nogil:
        """A length-delimited field whose ``n`` bytes begin at ``at``."""
        cdef int inner = -1
        cdef int kind = self.kinds[self.level]
        if kind == REQUEST and field == 1 or kind == ENTRY and field == 2:
            inner = TENSOR
        elif kind == REQUEST and field == 3:
            inner = ENTRY
        elif kind == TENSOR and (field == FLOAT_VAL or field == DOUBLE_VAL):
            if n > self.length:
                self.length = n
                self.place = self.at
        if inner < 0:
            self.at += n
            return
        self.level += 1
        self.kinds[self.level] = inner
        self.ends[self.level] = self.at + n
