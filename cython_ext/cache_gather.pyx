# cython: language_level=3
"""Row records to columns: the reading half of the item cache.

The inverse of ``cache_pack``. Every length found in a record is checked against
the cell, and the cell against the segment, before anything is read through it.
"""

from libc.stdint cimport (
    INT32_MAX,
    int32_t,
    int64_t,
    uint8_t,
    uint32_t,
    uint64_t,
    uintptr_t,
)
from libc.string cimport memcpy, memset

from cython_ext.arena cimport Arena
from cython_ext.cache_cells cimport Run, read_head, read_run, u32_at
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    Field,
    Records,
    record_at,
)
from cython_ext.column cimport (
    LIST,
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


cdef enum:
    # PERF: records looked at together; they and the cells written from them stay
    # in the first-level cache while one column after the other is copied.
    STRIPE = 64
    # Bytes of a record that are fetched ahead.
    PREFETCHED = 256
    # Heap bytes of a row that are fetched ahead.
    HEAP_PREFETCHED = 512


ctypedef struct Sink:
    # Values being put one behind the other.
    int32_t scalar
    int64_t count
    int64_t size             # bytes, texts only
    bint nulls
    char *data
    int32_t *offsets
    uint8_t *valid


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
    if run.count == 0:
        return
    if run.lengths != NULL:
        for i in range(run.count):
            sink.offsets[at + i + 1] = (
                sink.offsets[at + i] + <int32_t>u32_at(run.lengths + 4 * i))
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


cdef void _copy_wide(
    const char **heads, int64_t start, int64_t stop, int64_t slot, uint64_t *out
) noexcept nogil:
    cdef int64_t i
    for i in range(start, stop):
        out[i] = (<const uint64_t *>(heads[i] + slot))[0]


cdef void _copy_narrow(
    const char **heads, int64_t start, int64_t stop, int64_t slot, uint32_t *out
) noexcept nogil:
    cdef int64_t i
    for i in range(start, stop):
        out[i] = (<const uint32_t *>(heads[i] + slot))[0]


cdef class _Gather:
    """One call: the records of the rows asked for, and where cells go."""

    cdef Records records
    cdef Records delta
    cdef uint8_t *deltas     # 1 for each row of the delta; NULL: there is none
    cdef Arena arena
    cdef int64_t rows
    cdef const char **heads
    cdef uint8_t *nulls      # bits of all records, or-ed
    cdef int64_t count
    cdef const Field **fields
    cdef ColumnView *views

    cdef int open(
        self, Records records, const int64_t[::1] rows, list columns,
        Records delta, int64_t count,
    ) except -1:
        """Checks what is asked for and finds the records, not reading them yet."""
        cdef int64_t i, row
        cdef int64_t limit = records.rows
        if delta is not None:
            if not 0 <= count <= delta.rows or (
                delta.layout.stride != records.layout.stride
            ):
                raise IndexError(f"{count} records of {delta.rows}")
            limit += count
        self.records = records
        self.delta = delta
        self.deltas = NULL
        self.rows = rows.shape[0]
        self.count = len(columns)
        self.arena = Arena()
        self.heads = <const char **>self.arena.alloc(self.rows * sizeof(void *))
        self.fields = <const Field **>self.arena.alloc(self.count * sizeof(void *))
        self.views = <ColumnView *>self.arena.alloc(self.count * sizeof(ColumnView))
        for i in range(self.rows):
            row = rows[i]
            if row < -1 or row >= limit:
                raise IndexError(f"row {row} of {limit}")
            if row >= records.rows:
                self.heads[i] = record_at(delta, row - records.rows)
                self.mark_delta(i)
            else:
                self.heads[i] = (
                    records.missing if row < 0 else record_at(records, row))
        for i in range(self.count):
            row = columns[i]
            if row < 0 or row >= records.layout.count:
                raise IndexError(f"column {row} of {records.layout.count}")
            self.fields[i] = &records.layout.fields[row]
        return 0

    cdef int mark_delta(self, int64_t i) except -1:
        if self.deltas == NULL:
            self.deltas = <uint8_t *>self.arena.alloc(self.rows)
            memset(self.deltas, 0, self.rows)
        self.deltas[i] = 1
        return 0

    cdef int run(self) except -1 nogil:
        """Fills the views: fixed-width cells of all columns, then the others."""
        cdef int64_t i
        cdef bint heaps = False
        for i in range(self.count):
            self.start_column(self.fields[i], &self.views[i])
            heaps |= self.fields[i].width == 0 and self.fields[i].kind != 0
        self.copy_fixed()
        if heaps:
            self.prefetch_heaps()
        for i in range(self.count):
            self.finish_column(self.fields[i], &self.views[i])
        return 0

    cdef int start_column(self, const Field *field, ColumnView *out) except -1 nogil:
        memset(out, 0, sizeof(ColumnView))
        out.rows = self.rows
        out.kind = field.kind
        out.shape = field.shape
        if field.width:
            out.values.scalar = field.scalar
            out.values.length = self.rows
            out.values.data = self.arena.alloc(self.rows * field.width)
        return 0

    cdef int copy_fixed(self) except -1 nogil:
        """One stripe of records after the other, so that each is fetched once.

        Ors the bits of all records on the way: most columns have no null among the
        rows of a request and need no bitmap then.
        """
        cdef int64_t bits = self.records.layout.bits
        cdef int64_t size = self.records.layout.stride - bits
        cdef uint8_t *nulls = <uint8_t *>self.arena.alloc(size)
        cdef int64_t start = 0
        cdef int64_t i, byte, stop
        memset(nulls, 0, size)
        self.nulls = nulls
        self.prefetch_records(0)
        while start < self.rows:
            self.prefetch_records(start + STRIPE)
            stop = min(start + STRIPE, self.rows)
            for i in range(start, stop):
                for byte in range(size):
                    nulls[byte] |= (<const uint8_t *>self.heads[i])[bits + byte]
            for i in range(self.count):
                if self.fields[i].width == 8:
                    _copy_wide(
                        self.heads, start, stop, self.fields[i].slot,
                        <uint64_t *>self.views[i].values.data)
                elif self.fields[i].width == 4:
                    _copy_narrow(
                        self.heads, start, stop, self.fields[i].slot,
                        <uint32_t *>self.views[i].values.data)
            start = stop
        return 0

    cdef void prefetch_records(self, int64_t start) noexcept nogil:
        cdef int64_t size = min(self.records.layout.stride, <int64_t>PREFETCHED)
        cdef int64_t i, byte
        for i in range(start, min(start + STRIPE, self.rows)):
            byte = 0
            while byte < size:
                prefetch(self.heads[i] + byte)
                byte += 64

    cdef void prefetch_heaps(self) noexcept nogil:
        cdef int64_t i
        cdef int64_t last = self.records.layout.last_bound
        cdef uint64_t heap, size
        cdef uint64_t base
        for i in range(self.rows):
            base = <uint64_t><uintptr_t>self.records.mapping.base
            if self.deltas != NULL and self.deltas[i]:
                base = <uint64_t><uintptr_t>self.delta.mapping.base
            # An integer sum: the offset is not checked yet, and a prefetch may go
            # anywhere while a pointer may not.
            heap = base + (<const uint64_t *>(self.heads[i] + RECORD_HEAP))[0]
            size = (<const uint32_t *>(self.heads[i] + last))[0]
            size = heap + min(size, <uint64_t>HEAP_PREFETCHED)
            while heap < size:
                prefetch(<const void *><uintptr_t>heap)
                heap += 64

    cdef int finish_column(self, const Field *field, ColumnView *out) except -1 nogil:
        if field.kind == 0:
            return 0
        out.valid = self.validity(field.bit)
        if field.width:
            return 0
        if field.shape == SCALAR:
            self.texts(field, out)
        elif field.shape == LISTS:
            self.nested(field, out)
        elif field.shape == LIST and field.scalar != STRING:
            self.number_lists(field, out)
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

    cdef const char *cell(
        self, const Field *field, int64_t i, const char **end
    ) except NULL nogil:
        """First and last-plus-one byte of a heap cell, inside the segment."""
        cdef const char *head = self.heads[i]
        cdef uint64_t heap = (<const uint64_t *>(head + RECORD_HEAP))[0]
        cdef uint32_t start = (<const uint32_t *>(head + field.slot))[0]
        cdef uint32_t stop = (<const uint32_t *>(head + field.slot + 4))[0]
        cdef uint64_t size = self.records.mapping.size
        cdef const char *base = self.records.mapping.base
        if self.deltas != NULL and self.deltas[i]:
            size = self.delta.mapping.size
            base = self.delta.mapping.base
        if start > stop or heap > size or stop > size - heap:
            _damaged()
        end[0] = base + heap + stop
        return base + heap + start

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
            p = read_run(p, end, field.key, keys)
            if p == NULL:
                _damaged()
        p = read_run(p, end, field.scalar, values)
        if p != end or (field.shape == MAP and keys.count != values.count):
            _damaged()
        return 0

    cdef int number_lists(
        self, const Field *field, ColumnView *out
    ) except -1 nogil:
        """Lists of numbers: each cell is looked at once, then copied."""
        cdef Sink values
        cdef Run *found = <Run *>self.arena.alloc(self.rows * sizeof(Run))
        cdef int32_t *offsets = <int32_t *>self.arena.alloc((self.rows + 1) * 4)
        cdef const char *p
        cdef const char *end = NULL
        cdef int64_t i
        memset(&values, 0, sizeof(Sink))
        values.scalar = field.scalar
        for i in range(self.rows):
            p = self.cell(field, i, &end)
            if p == end:
                found[i].count = found[i].size = 0
                continue
            if read_run(p, end, field.scalar, &found[i]) != end:
                _damaged()
            values.count += found[i].count
            values.nulls |= found[i].valid != NULL
        _open_sink(&values, self.arena)
        offsets[0] = 0
        for i in range(self.rows):
            _put_run(&values, &found[i])
            offsets[i + 1] = <int32_t>values.count
        out.offsets = offsets
        _close_sink(&values, &out.values)
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
        p = read_head(p, end, &inner.count, &inner.valid)
        if p == NULL or inner.count > (end - p) // 4:
            _damaged()
        inner.lengths = p
        for k in range(inner.count):
            total += u32_at(p + 4 * k)
        p = read_run(p + 4 * inner.count, end, field.scalar, values)
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
                    bounds[count + k] + <int32_t>u32_at(inner.lengths + 4 * k))
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
    Records records not None, const int64_t[::1] rows not None, columns,
    Records delta=None, int64_t count=0,
) -> list[Column]:
    """The cells of ``rows`` as columns, one per number in ``columns``.

    Row -1 gives nulls. The columns own their memory (one arena), so they outlive
    the segment. Safe to call from several threads.

    With ``delta``, of the same layout, its first ``count`` records are the rows
    behind those of ``records``.

    :raises IndexError: for a row or column that does not exist
    :raises ValueError: if a record is damaged
    :raises OverflowError: if one column would pass 2 GiB
    """
    cdef _Gather call = _Gather.__new__(_Gather)
    cdef int64_t i
    call.open(records, rows, list(columns), delta, count)
    with nogil:
        call.run()
    return [wrap_column(&call.views[i], call.arena) for i in range(call.count)]
