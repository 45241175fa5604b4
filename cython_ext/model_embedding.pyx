# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Rows of embedding tables, pooled or one by one, for all features of a request.

A table is a C-contiguous matrix, one row per id::

    float32, float16   dim values
    INT8               dim uint8 codes, then float16 scale, then float16 offset;
                       a value is code * scale + offset, rounded after each step

Sums are float32 in the order of the ids. A table with keys of its own has an
index over them: slots of 16 bytes, collisions go to the next one::

    0  i64  key
    8  i64  row + 1; 0: empty

and one row more than keys, the last: what an unknown key gives.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import numpy as np

cimport numpy as cnp

from procserver.errors import BadTensor

from cython_ext.cache_records cimport mix
from cython_ext.intrinsics cimport mul_high, prefetch

cnp.import_array()

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    /* Branch-free, so that loops over it become vector code. The product shifts
       the exponent's bias and is exact, subnormal values included. */
    static inline float procserver_half(uint16_t half) {
        uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
        uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
        float value;
        memcpy(&value, &bits, 4);
        value *= 0x1p112f;
        memcpy(&bits, &value, 4);
        bits |= special | (uint32_t)(half & 0x8000) << 16;
        memcpy(&value, &bits, 4);
        return value;
    }
    """
    float half_value "procserver_half"(uint16_t half)

cdef enum:
    AHEAD = 20               # rows fetched ahead of the one that is read
    LINE = 64
    MOST_LINES = 8           # of one row; what follows the hardware fetches itself
    TRAILER = 4              # bytes of scale and offset behind INT8 codes

cdef enum Kind:
    FLOAT = 0
    HALF = 1
    CODES = 2

cdef enum Mode:
    GATHER = 0
    SUM = 1
    MEAN = 2

cdef enum Fault:
    NONE = 0
    BAD_ID = 1
    BAD_LENGTH = 2


ctypedef struct Slot:
    int64_t key
    int64_t row


ctypedef struct Rows:
    # A table: what Table holds for C.
    const char *base
    int64_t rows
    int64_t dim
    int64_t stride           # bytes from row to row
    int64_t fetched          # bytes of a row that are asked for ahead
    const Slot *slots        # NULL: an id is its row number
    int64_t capacity
    Kind kind


ctypedef struct Job:
    # One feature of one request.
    Rows table
    Mode mode
    const int64_t *ids
    int64_t count
    const char *lengths
    bint narrow              # lengths are int32
    int64_t bags
    float *out
    int64_t step             # floats from row to row of out


cdef class Table:
    """One table as a plain array, and the index over its keys if it has one.

    :param array: [rows, dim] float32 or float16, or [rows, dim + 4] uint8
    :param slots: what ``index_keys`` made; the last row is then the default
    :raises ValueError: if the arrays are of another type or shape
    """

    cdef Rows rows_
    cdef object _array
    cdef object _slots

    def __cinit__(self, cnp.ndarray array not None, cnp.ndarray slots=None):
        cdef int kind = cnp.PyArray_TYPE(array)
        if array.ndim != 2 or not cnp.PyArray_ISCARRAY_RO(array):
            raise ValueError("a table is an aligned C-contiguous matrix")
        self.rows_.dim = array.shape[1]
        if kind == cnp.NPY_FLOAT32:
            self.rows_.kind = FLOAT
        elif kind == cnp.NPY_FLOAT16:
            self.rows_.kind = HALF
        elif kind == cnp.NPY_UINT8:
            self.rows_.kind = CODES
            self.rows_.dim -= TRAILER
        else:
            raise ValueError(f"a table cannot be of {array.dtype}")
        if self.rows_.dim < 1:
            raise ValueError(f"a table cannot have {self.rows_.dim} columns")
        self.rows_.rows = array.shape[0]
        self.rows_.stride = array.shape[1] * array.itemsize
        self.rows_.fetched = min(self.rows_.stride, <int64_t>(MOST_LINES * LINE))
        self.rows_.base = <const char *>cnp.PyArray_DATA(array)
        self._array = array
        if slots is not None:
            if (cnp.PyArray_TYPE(slots) != cnp.NPY_INT64 or slots.ndim != 2
                    or slots.shape[1] != 2 or not cnp.PyArray_ISCARRAY_RO(slots)
                    or slots.shape[0] < array.shape[0] or array.shape[0] < 1):
                raise ValueError("this is no index over the table's keys")
            self.rows_.slots = <const Slot *>cnp.PyArray_DATA(slots)
            self.rows_.capacity = slots.shape[0]
            self._slots = slots

    @property
    def rows(self) -> int:
        """Rows, that of unknown keys included."""
        return self.rows_.rows

    @property
    def dim(self) -> int:
        """Values of a row."""
        return self.rows_.dim


def index_keys(cnp.ndarray keys not None):
    """Slots of an index over int64 keys, and how many keys a later one replaced.

    :raises ValueError: if ``keys`` is not a contiguous vector of int64
    """
    if cnp.PyArray_TYPE(keys) != cnp.NPY_INT64 or keys.ndim != 1 or (
            not cnp.PyArray_ISCARRAY_RO(keys)):
        raise ValueError("keys are a contiguous vector of int64")
    cdef int64_t count = keys.shape[0]
    # A probe ends at an empty slot: there is always one.
    cdef int64_t capacity = count + count // 2 + 2
    cdef cnp.ndarray slots = np.zeros((capacity, 2), dtype=np.int64)
    cdef int64_t replaced
    with nogil:
        replaced = _enter(
            <const int64_t *>cnp.PyArray_DATA(keys), count,
            <Slot *>cnp.PyArray_DATA(slots), capacity)
    return slots, replaced


cdef int64_t _enter(
    const int64_t *keys, int64_t count, Slot *slots, int64_t capacity
) noexcept nogil:
    cdef int64_t i, at
    cdef int64_t replaced = 0
    for i in range(count):
        if i + AHEAD < count:
            prefetch(&slots[_home(keys[i + AHEAD], capacity)])
        at = _home(keys[i], capacity)
        while slots[at].row != 0 and slots[at].key != keys[i]:
            at = at + 1 if at + 1 < capacity else 0
        replaced += slots[at].row != 0
        slots[at].key = keys[i]
        slots[at].row = i + 1
    return replaced


cdef inline int64_t _home(int64_t key, int64_t capacity) noexcept nogil:
    return mul_high(mix(<uint64_t>key), <uint64_t>capacity)


def row_lengths(
    str name not None,
    cnp.ndarray lengths not None,
    cnp.ndarray key_lengths not None,
    int64_t count,
):
    """Ids per row of a sequence with several ids per step.

    :param lengths: steps per row, int32 or int64
    :param key_lengths: ids per step, int32 or int64
    :param count: all ids
    :return: a vector of the type of ``key_lengths``
    :raises BadTensor: if they do not add up
    """
    cdef const char *steps = _vector(lengths, name)
    cdef const char *keys = _vector(key_lengths, name)
    cdef cnp.ndarray out = np.empty(lengths.shape[0], dtype=key_lengths.dtype)
    cdef char *to = <char *>cnp.PyArray_DATA(out)
    cdef bint narrow_steps = cnp.PyArray_ITEMSIZE(lengths) == 4
    cdef bint narrow = cnp.PyArray_ITEMSIZE(key_lengths) == 4
    cdef int64_t rows = lengths.shape[0]
    cdef int64_t left = key_lengths.shape[0]
    cdef int64_t ids_left = count
    cdef int64_t row, n, k, total, at = 0
    for row in range(rows):
        n = _length(steps, narrow_steps, row)
        if n < 0 or n > left:
            left = -1
            break
        left -= n
        total = 0
        for _ in range(n):
            k = _length(keys, narrow, at)
            at += 1
            if k < 0 or k > ids_left:
                raise BadTensor(
                    f"{name}.key_lengths: they do not add up to {count} values")
            ids_left -= k
            total += k
        if narrow:
            (<int32_t *>to)[row] = <int32_t>total
        else:
            (<int64_t *>to)[row] = total
    if left != 0:
        raise BadTensor(
            f"{name}.lengths: they do not add up to the "
            f"{key_lengths.shape[0]} of {name}.key_lengths")
    return out


cdef class Lookups:
    """The features of a model: which table each reads, and how.

    :param names: the features, for messages
    :param tables: a ``Table`` for each
    :param poolings: "SUM", "MEAN" or "NONE" (every id's row by itself) for each
    :param columns: where in a row of the output a feature's values begin
    """

    cdef tuple names
    cdef tuple tables
    cdef tuple columns
    cdef tuple modes
    cdef int64_t size

    def __cinit__(self, names, tables, poolings, columns):
        spelled = {"NONE": GATHER, "SUM": SUM, "MEAN": MEAN}
        self.names = tuple(names)
        self.tables = tuple(tables)
        self.modes = tuple([spelled[pooling] for pooling in poolings])
        self.columns = tuple(columns)
        self.size = len(self.names)
        if not (len(self.tables) == len(self.modes) == len(self.columns)
                == self.size):
            raise ValueError("each feature has a table, a pooling and a column")
        for table in self.tables:
            if not isinstance(table, Table):
                raise TypeError(f"no table: {table!r}")

    def run(self, list ids not None, list lengths not None, list outs not None):
        """Fills the outputs of one request.

        Nothing is read before ids and lengths are found right.

        :param ids: int64 vectors, one for each feature
        :param lengths: ids per row, int32 or int64 vectors
        :param outs: float32 matrices with a row for each length or, where
            nothing is pooled, for each id; features may share one
        :raises BadTensor: if lengths do not add up to the ids, or an id has no row
        :raises ValueError: if an output has another type or shape
        """
        if not (len(ids) == len(lengths) == len(outs) == self.size):
            raise ValueError(f"{self.size} features, but other numbers of arrays")
        if self.size == 0:
            return
        cdef Job *jobs = <Job *>malloc(self.size * sizeof(Job))
        cdef int64_t *found = NULL
        cdef int64_t i, room = 0, position = 0
        cdef Fault fault = NONE
        if jobs == NULL:
            raise MemoryError
        try:
            for i in range(self.size):
                self._prepare(&jobs[i], i, ids[i], lengths[i], outs[i])
                if jobs[i].table.slots != NULL:
                    room = max(room, jobs[i].count)
            if room:
                found = <int64_t *>malloc(room * sizeof(int64_t))
                if found == NULL:
                    raise MemoryError
            with nogil:
                for i in range(self.size):
                    fault = _look_up(&jobs[i], found, &position)
                    if fault != NONE:
                        break
            if fault != NONE:
                raise self._refusal(&jobs[i], i, fault, position)
        finally:
            free(found)
            free(jobs)

    cdef int _prepare(
        self, Job *job, int64_t i, cnp.ndarray ids, cnp.ndarray lengths,
        cnp.ndarray out,
    ) except -1:
        cdef int64_t column = self.columns[i]
        cdef int64_t rows
        # SAFETY: typed arguments let None through.
        if ids is None or lengths is None or out is None:
            raise TypeError(f"{self.names[i]}: an array is missing")
        job.table = (<Table>self.tables[i]).rows_
        job.mode = self.modes[i]
        if cnp.PyArray_TYPE(ids) != cnp.NPY_INT64 or ids.ndim != 1 or (
                not cnp.PyArray_ISCARRAY_RO(ids)):
            raise BadTensor(f"{self.names[i]}.values: not a vector of int64")
        job.ids = <const int64_t *>cnp.PyArray_DATA(ids)
        job.count = ids.shape[0]
        job.lengths = _vector(lengths, self.names[i])
        job.narrow = cnp.PyArray_ITEMSIZE(lengths) == 4
        job.bags = lengths.shape[0]
        rows = job.count if job.mode == GATHER else job.bags
        if (cnp.PyArray_TYPE(out) != cnp.NPY_FLOAT32 or out.ndim != 2
                or not cnp.PyArray_ISCARRAY(out) or out.shape[0] != rows
                or column < 0 or column > out.shape[1] - job.table.dim):
            raise ValueError(f"{self.names[i]}: the output has the wrong shape")
        job.step = out.shape[1]
        job.out = <float *>cnp.PyArray_DATA(out) + column
        return 0

    cdef object _refusal(self, const Job *job, int64_t i, Fault fault, int64_t at):
        name = self.names[i]
        if fault == BAD_LENGTH:
            return BadTensor(
                f"{name}.lengths: they do not add up to {job.count} values")
        return BadTensor(
            f"{name}.values[{at}]: id {job.ids[at]} is outside of its embedding "
            f"table of {job.table.rows} rows")


cdef const char *_vector(cnp.ndarray lengths, str name) except? NULL:
    cdef int kind = cnp.PyArray_TYPE(lengths)
    if (kind != cnp.NPY_INT32 and kind != cnp.NPY_INT64) or lengths.ndim != 1 or (
            not cnp.PyArray_ISCARRAY_RO(lengths)):
        raise BadTensor(f"{name}.lengths: not a vector of int32 or int64")
    return <const char *>cnp.PyArray_DATA(lengths)


cdef inline int64_t _length(
    const char *lengths, bint narrow, int64_t i
) noexcept nogil:
    if narrow:
        return (<const int32_t *>lengths)[i]
    return (<const int64_t *>lengths)[i]


cdef Fault _look_up(const Job *job, int64_t *found, int64_t *position) noexcept nogil:
    cdef const int64_t *rows = job.ids
    if not _adds_up(job):
        return BAD_LENGTH
    if job.table.slots != NULL:
        _find(&job.table, job.ids, job.count, found)
        rows = found
    else:
        position[0] = _first_outside(job)
        if position[0] < job.count:
            return BAD_ID
    if job.mode == GATHER:
        _gather(job, rows)
    else:
        _pool(job, rows)
    return NONE


cdef bint _adds_up(const Job *job) noexcept nogil:
    cdef int64_t left = job.count
    cdef int64_t i, n
    for i in range(job.bags):
        n = _length(job.lengths, job.narrow, i)
        if n < 0 or n > left:
            return False
        left -= n
    return left == 0


cdef int64_t _first_outside(const Job *job) noexcept nogil:
    """Position of the first id without a row; their number if there is none."""
    cdef int64_t i
    # NOTE: pooled INT8 tables take -1 for an absent value, as fbgemm's do.
    cdef int64_t least = -1 if job.table.kind == CODES and job.mode != GATHER else 0
    for i in range(job.count):
        if job.ids[i] < least or job.ids[i] >= job.table.rows:
            return i
    return job.count


cdef void _find(
    const Rows *table, const int64_t *keys, int64_t count, int64_t *rows
) noexcept nogil:
    cdef int64_t i, at, probes
    cdef const Slot *slot
    for i in range(count):
        if i + AHEAD < count:
            prefetch(&table.slots[_home(keys[i + AHEAD], table.capacity)])
        at = _home(keys[i], table.capacity)
        slot = &table.slots[at]
        rows[i] = table.rows - 1
        # SAFETY: bounded, and row numbers are checked, so that a damaged index
        # can neither keep a worker nor lead it outside of the table.
        probes = table.capacity
        while slot.row != 0 and probes > 0:
            if slot.key == keys[i]:
                if 0 < slot.row < table.rows:
                    rows[i] = slot.row - 1
                break
            at = at + 1 if at + 1 < table.capacity else 0
            probes -= 1
            slot = &table.slots[at]


cdef inline void _fetch(const Rows *table, int64_t row) noexcept nogil:
    cdef const char *at = table.base + row * table.stride
    cdef int64_t line = 0
    while line < table.fetched:
        prefetch(at + line)
        line += LINE
    # NOTE: rows are not aligned to lines: the last byte may lie in one more.
    prefetch(at + table.fetched - 1)


cdef void _gather(const Job *job, const int64_t *rows) noexcept nogil:
    cdef int64_t i
    for i in range(job.count):
        if i + AHEAD < job.count:
            _fetch(&job.table, rows[i + AHEAD])
        if job.table.kind == FLOAT:
            memcpy(
                job.out + i * job.step,
                job.table.base + rows[i] * job.table.stride, job.table.stride)
        else:
            memset(job.out + i * job.step, 0, job.table.dim * sizeof(float))
            _add(&job.table, rows[i], job.out + i * job.step)


cdef void _pool(const Job *job, const int64_t *rows) noexcept nogil:
    cdef int64_t bag, i, n, d
    cdef int64_t at = 0
    cdef float *out
    for bag in range(job.bags):
        n = _length(job.lengths, job.narrow, bag)
        out = job.out + bag * job.step
        memset(out, 0, job.table.dim * sizeof(float))
        for i in range(at, at + n):
            if i + AHEAD < job.count and rows[i + AHEAD] >= 0:
                _fetch(&job.table, rows[i + AHEAD])
            if rows[i] >= 0:
                _add(&job.table, rows[i], out)
        at += n
        if job.mode == MEAN and n > 1:
            for d in range(job.table.dim):
                out[d] /= <float>n


cdef inline void _add(const Rows *table, int64_t row, float *out) noexcept nogil:
    cdef const char *at = table.base + row * table.stride
    if table.kind == FLOAT:
        _add_floats(out, <const float *>at, table.dim)
    elif table.kind == HALF:
        _add_halves(out, <const uint16_t *>at, table.dim)
    else:
        _add_codes(out, <const uint8_t *>at, table.dim)


cdef inline void _add_floats(
    float *out, const float *row, int64_t dim
) noexcept nogil:
    cdef int64_t d
    for d in range(dim):
        out[d] += row[d]


cdef inline void _add_halves(
    float *out, const uint16_t *row, int64_t dim
) noexcept nogil:
    cdef int64_t d
    for d in range(dim):
        out[d] += half_value(row[d])


cdef inline void _add_codes(
    float *out, const uint8_t *row, int64_t dim
) noexcept nogil:
    cdef int64_t d
    cdef uint16_t[2] trailer
    memcpy(trailer, row + dim, TRAILER)
    cdef float scale = half_value(trailer[0])
    cdef float offset = half_value(trailer[1])
    for d in range(dim):
        out[d] += <float>row[d] * scale + offset
