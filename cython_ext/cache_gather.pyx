# cython: language_level=3
"""Row records to columns: the reading half of the item cache.

The inverse of ``cache_pack``. Every length found in a record is checked against
the cell, and the cell against the segment, before anything is read through it.
"""

from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Arena
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    Field,
    Records,
    record_at,
)
from cython_ext.column cimport (
    LISTS,
    MAP,
    SCALAR,
    STRING,
    Column,
    ColumnView,
    Values,
    bit_is_set,
    scalar_width,
    wrap_column,
)
from cython_ext.intrinsics cimport prefetch


ctypedef struct Run:
    # A run of elements inside a cell, every length checked.
    int64_t count
    const uint8_t *valid     # NULL: none is null
    const char *lengths      # texts only: count u32
    const char *data
    int64_t size             # bytes at data


ctypedef struct Sink:
    # Values being put one behind the other.
    int32_t scalar
    int64_t count
    int64_t size             # bytes, texts only
    bint nulls
    char *data
    int32_t *offsets
    uint8_t *valid


cdef inline uint32_t _u32(const char *p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef const char *_read_head(
    const char *p, const char *end, int64_t *count, const uint8_t **valid
) noexcept nogil:
    """Returns what follows count and bitmap; NULL: they do not fit."""
    cdef uint32_t head
    cdef int64_t size
    if end - p < 4:
        return NULL
    head = _u32(p)
    p += 4
    count[0] = head >> 1
    valid[0] = NULL
    if head & 1:
        size = (count[0] + 7) // 8
        if end - p < size:
            return NULL
        valid[0] = <const uint8_t *>p
        p += size
    return p


cdef const char *_read_run(
    const char *p, const char *end, int32_t scalar, Run *run
) noexcept nogil:
    """Returns what follows the run; NULL: it does not fit."""
    cdef int64_t i
    p = _read_head(p, end, &run.count, &run.valid)
    if p == NULL:
        return NULL
    run.lengths = NULL
    if scalar == STRING:
        if run.count > (end - p) // 4:
            return NULL
        run.lengths = p
        p += 4 * run.count
        run.size = 0
        for i in range(run.count):
            run.size += _u32(run.lengths + 4 * i)
    else:
        run.size = run.count * scalar_width(scalar)
    if run.size > end - p:
        return NULL
    run.data = p
    return p + run.size


cdef void _count_run(Sink *sink, const Run *run) noexcept nogil:
    sink.count += run.count
    sink.nulls |= run.valid != NULL
    if sink.scalar == STRING:
        sink.size += run.size


cdef int _open_sink(Sink *sink, Arena arena) except -1 nogil:
    """Allocates what was counted and starts again at the first value."""
    if sink.count > INT32_MAX or sink.size > INT32_MAX:
        with gil:
            raise OverflowError("over 2 GiB gathered into one column")
    if sink.scalar == STRING:
        sink.data = <char *>arena.alloc(sink.size)
        sink.offsets = <int32_t *>arena.alloc((sink.count + 1) * 4)
        sink.offsets[0] = 0
    else:
        sink.data = <char *>arena.alloc(sink.count * scalar_width(sink.scalar))
    if sink.nulls:
        sink.valid = <uint8_t *>arena.alloc((sink.count + 7) // 8)
        memset(sink.valid, 0xFF, (sink.count + 7) // 8)
    sink.count = 0
    sink.size = 0
    return 0


cdef void _put_run(Sink *sink, const Run *run) noexcept nogil:
    cdef int64_t i
    cdef int64_t at = sink.count
    cdef int64_t width = scalar_width(sink.scalar)
    if run.lengths != NULL:
        for i in range(run.count):
            sink.offsets[at + i + 1] = (
                sink.offsets[at + i] + <int32_t>_u32(run.lengths + 4 * i))
        memcpy(sink.data + sink.offsets[at], run.data, run.size)
    else:
        memcpy(sink.data + at * width, run.data, run.size)
    if run.valid != NULL:
        _clear_bits(sink.valid, at, run.valid, run.count)
    sink.count += run.count


cdef void _clear_bits(
    uint8_t *out, int64_t at, const uint8_t *valid, int64_t count
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        if not bit_is_set(valid, i):
            out[(at + i) >> 3] &= <uint8_t>~(1 << ((at + i) & 7))


cdef void _close_sink(Sink *sink, Values *out) noexcept nogil:
    out.scalar = sink.scalar
    out.length = sink.count
    out.data = sink.data
    out.offsets = sink.offsets
    out.valid = sink.valid
    out.valid_offset = 0


cdef int _damaged() except -1 nogil:
    with gil:
        raise ValueError("a record of the item cache is damaged")


cdef class _Gather:
    """One call: the records of the rows asked for, and where cells go."""

    cdef Records records
    cdef Arena arena
    cdef int64_t rows
    cdef const char **heads
    cdef uint8_t *nulls      # bits of all records, or-ed

    cdef int find(self, const int64_t[::1] rows) except -1:
        """Looks up and prefetches the records.

        :raises IndexError: for a row that is neither -1 nor in range
        """
        cdef int64_t i, row, byte
        cdef int64_t bits = self.records.layout.bits
        cdef int64_t size = self.records.layout.stride - bits
        self.rows = rows.shape[0]
        self.arena = Arena()
        self.heads = <const char **>self.arena.alloc(self.rows * sizeof(void *))
        for i in range(self.rows):
            row = rows[i]
            if row < -1 or row >= self.records.rows:
                raise IndexError(f"row {row} of {self.records.rows}")
            if row < 0:
                self.heads[i] = self.records.missing
                continue
            self.heads[i] = record_at(self.records, row)
            for byte in range(0, min(self.records.layout.stride, 256), 64):
                prefetch(self.heads[i] + byte)
        # PERF: most columns have no null among the rows of a request; one pass
        # over the bits tells which, instead of one pass for each column.
        self.nulls = <uint8_t *>self.arena.alloc(size)
        memset(self.nulls, 0, size)
        for i in range(self.rows):
            for byte in range(size):
                self.nulls[byte] |= (<const uint8_t *>self.heads[i])[bits + byte]
        return 0

    cdef void prefetch_heaps(self) noexcept nogil:
        cdef int64_t i
        cdef const char *base = self.records.mapping.base
        for i in range(self.rows):
            prefetch(base + (<const uint64_t *>(self.heads[i] + RECORD_HEAP))[0])

    cdef int column(self, const Field *field, ColumnView *out) except -1 nogil:
        memset(out, 0, sizeof(ColumnView))
        out.rows = self.rows
        out.kind = field.kind
        if field.kind == 0:
            return 0
        out.shape = field.shape
        out.valid = self.validity(field.bit)
        if field.width == 8:
            self.wide(field, out)
        elif field.width == 4:
            self.narrow(field, out)
        elif field.shape == SCALAR:
            self.texts(field, out)
        elif field.shape == LISTS:
            self.nested(field, out)
        else:
            self.lists(field, out)
        return 0

    cdef const uint8_t *validity(self, int64_t bit) except? NULL nogil:
        """The cells' bitmap; NULL if none is null."""
        cdef int64_t i
        cdef int64_t byte = self.records.layout.bits + (bit >> 3)
        cdef uint8_t mask = <uint8_t>(1 << (bit & 7))
        cdef uint8_t *bits
        if not self.nulls[bit >> 3] & mask:
            return NULL
        bits = <uint8_t *>self.arena.alloc((self.rows + 7) // 8)
        memset(bits, 0, (self.rows + 7) // 8)
        for i in range(self.rows):
            if not (<const uint8_t *>self.heads[i])[byte] & mask:
                bits[i >> 3] |= <uint8_t>(1 << (i & 7))
        return bits

    cdef int wide(self, const Field *field, ColumnView *out) except -1 nogil:
        cdef uint64_t *cells = <uint64_t *>self.arena.alloc(self.rows * 8)
        cdef int64_t slot = field.slot
        cdef int64_t i
        for i in range(self.rows):
            cells[i] = (<const uint64_t *>(self.heads[i] + slot))[0]
        out.values.scalar = field.scalar
        out.values.length = self.rows
        out.values.data = cells
        return 0

    cdef int narrow(self, const Field *field, ColumnView *out) except -1 nogil:
        cdef uint32_t *cells = <uint32_t *>self.arena.alloc(self.rows * 4)
        cdef int64_t slot = field.slot
        cdef int64_t i
        for i in range(self.rows):
            cells[i] = (<const uint32_t *>(self.heads[i] + slot))[0]
        out.values.scalar = field.scalar
        out.values.length = self.rows
        out.values.data = cells
        return 0

    cdef const char *cell(
        self, const Field *field, int64_t i, const char **end
    ) except NULL nogil:
        """First and last-plus-one byte of a heap cell, inside the segment."""
        cdef const char *head = self.heads[i]
        cdef uint64_t heap = (<const uint64_t *>(head + RECORD_HEAP))[0]
        cdef uint32_t start = (<const uint32_t *>(head + field.slot))[0]
        cdef uint32_t stop = (<const uint32_t *>(head + field.slot + 4))[0]
        cdef uint64_t size = self.records.mapping.size
        if start > stop or heap > size or stop > size - heap:
            _damaged()
        end[0] = self.records.mapping.base + heap + stop
        return self.records.mapping.base + heap + start

    cdef int texts(self, const Field *field, ColumnView *out) except -1 nogil:
        cdef Sink sink
        cdef Run run
        cdef const char *end = NULL
        cdef int64_t i
        memset(&sink, 0, sizeof(Sink))
        sink.scalar = STRING
        sink.count = self.rows
        for i in range(self.rows):
            sink.size += -(self.cell(field, i, &end) - end)
        _open_sink(&sink, self.arena)
        for i in range(self.rows):
            run.data = self.cell(field, i, &end)
            run.size = end - run.data
            memcpy(sink.data + sink.offsets[i], run.data, run.size)
            sink.offsets[i + 1] = sink.offsets[i] + <int32_t>run.size
        sink.count = self.rows
        _close_sink(&sink, &out.values)
        return 0

    cdef int runs(
        self, const Field *field, int64_t i, Run *keys, Run *values
    ) except -1 nogil:
        """Reads the runs of a list or map cell."""
        cdef const char *end = NULL
        cdef const char *p = self.cell(field, i, &end)
        memset(keys, 0, sizeof(Run))
        memset(values, 0, sizeof(Run))
        if p == end:
            return 0
        if field.shape == MAP:
            p = _read_run(p, end, field.key, keys)
            if p == NULL:
                _damaged()
        p = _read_run(p, end, field.scalar, values)
        if p != end or (field.shape == MAP and keys.count != values.count):
            _damaged()
        return 0

    cdef int lists(self, const Field *field, ColumnView *out) except -1 nogil:
        cdef Sink keys
        cdef Sink values
        cdef Run key
        cdef Run value
        cdef int32_t *offsets = <int32_t *>self.arena.alloc((self.rows + 1) * 4)
        cdef int64_t i
        memset(&keys, 0, sizeof(Sink))
        memset(&values, 0, sizeof(Sink))
        keys.scalar = field.key
        values.scalar = field.scalar
        for i in range(self.rows):
            self.runs(field, i, &key, &value)
            _count_run(&keys, &key)
            _count_run(&values, &value)
        _open_sink(&values, self.arena)
        if field.shape == MAP:
            _open_sink(&keys, self.arena)
        offsets[0] = 0
        for i in range(self.rows):
            self.runs(field, i, &key, &value)
            _put_run(&values, &value)
            if field.shape == MAP:
                _put_run(&keys, &key)
            offsets[i + 1] = <int32_t>values.count
        out.offsets = offsets
        _close_sink(&values, &out.values)
        if field.shape == MAP:
            _close_sink(&keys, &out.keys)
        return 0

    cdef int lists_cell(
        self, const Field *field, int64_t i, Run *inner, Run *values
    ) except -1 nogil:
        """Reads a list of lists; ``inner`` has the lengths of its lists."""
        cdef const char *end = NULL
        cdef const char *p = self.cell(field, i, &end)
        cdef int64_t total = 0
        cdef int64_t k
        memset(inner, 0, sizeof(Run))
        memset(values, 0, sizeof(Run))
        if p == end:
            return 0
        p = _read_head(p, end, &inner.count, &inner.valid)
        if p == NULL or inner.count > (end - p) // 4:
            _damaged()
        inner.lengths = p
        for k in range(inner.count):
            total += _u32(p + 4 * k)
        p = _read_run(p + 4 * inner.count, end, field.scalar, values)
        if p != end or total != values.count:
            _damaged()
        return 0

    cdef int nested(self, const Field *field, ColumnView *out) except -1 nogil:
        cdef Sink values
        cdef Run inner
        cdef Run value
        cdef int32_t *outer = <int32_t *>self.arena.alloc((self.rows + 1) * 4)
        cdef int32_t *bounds
        cdef uint8_t *valid = NULL
        cdef bint nulls = False
        cdef int64_t i, k
        cdef int64_t count = 0
        memset(&values, 0, sizeof(Sink))
        values.scalar = field.scalar
        for i in range(self.rows):
            self.lists_cell(field, i, &inner, &value)
            _count_run(&values, &value)
            count += inner.count
            nulls |= inner.valid != NULL
        if count >= INT32_MAX:
            with gil:
                raise OverflowError("over 2 GiB gathered into one column")
        _open_sink(&values, self.arena)
        bounds = <int32_t *>self.arena.alloc((count + 1) * 4)
        if nulls:
            valid = <uint8_t *>self.arena.alloc((count + 7) // 8)
            memset(valid, 0xFF, (count + 7) // 8)
        outer[0] = 0
        bounds[0] = 0
        count = 0
        for i in range(self.rows):
            self.lists_cell(field, i, &inner, &value)
            for k in range(inner.count):
                bounds[count + k + 1] = (
                    bounds[count + k] + <int32_t>_u32(inner.lengths + 4 * k))
            if inner.valid != NULL:
                _clear_bits(valid, count, inner.valid, inner.count)
            _put_run(&values, &value)
            count += inner.count
            outer[i + 1] = <int32_t>count
        out.offsets = outer
        out.inner = bounds
        out.inner_valid = valid
        _close_sink(&values, &out.values)
        return 0


def gather(
    Records records not None, const int64_t[::1] rows not None, columns
) -> list[Column]:
    """The cells of ``rows`` as columns, one per number in ``columns``.

    Row -1 gives nulls. The columns own their memory (one arena), so they outlive
    the segment. Safe to call from several threads.

    :raises IndexError: for a row or column that does not exist
    :raises ValueError: if a record is damaged
    :raises OverflowError: if one column would pass 2 GiB
    """
    cdef _Gather call = _Gather.__new__(_Gather)
    cdef ColumnView view
    cdef int64_t number
    cdef const Field *field
    cdef bint fetched = False
    call.records = records
    call.find(rows)
    gathered = []
    for number in columns:
        if number < 0 or number >= records.layout.count:
            raise IndexError(f"column {number} of {records.layout.count}")
        field = &records.layout.fields[number]
        with nogil:
            if field.width == 0 and field.kind != 0 and not fetched:
                fetched = True
                call.prefetch_heaps()
            call.column(field, &view)
        gathered.append(wrap_column(&view, call.arena))
    return gathered
