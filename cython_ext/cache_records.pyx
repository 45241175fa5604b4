# cython: language_level=3
"""Row records of the item cache: where things stand in one, and in a segment.

The byte layout is drawn in ``procserver/itemcache/layout.py``. Only fixed-width
cells, bounds and bits are in the record; what has a length is in the row's heap
bytes, one cell after the other in column order, the id's text first.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.column cimport (
    ColumnView,
    INT32,
    INT64,
    SCALAR,
    cell_is_null,
    kind_key,
    kind_shape,
    kind_value,
    scalar_width,
    string_at,
)
from cython_ext.cache_stamps cimport STAMP_EXTRA, stamps_at, stamps_size
from cython_ext.intrinsics cimport load_u64
from cython_ext.shm cimport Mapping
from cython_ext.xxh64 cimport xxh64_bytes

cdef enum:
    LAST_KIND = 30
    MOST_COLUMNS = 1 << 20
    MOST_SHIFT = 30


cdef class RecordLayout:
    """Where the cells of a schema stand in a record; a pure function of kinds.

    Order: heap address, id, 8-byte cells, 4-byte cells, u32 bounds (end of the
    id's text, then of each variable cell, counted from the row's heap address),
    bits (0: the id is text; 1 + i: column i is null; the last one: stamps follow
    the cells). The size is rounded up to 8 bytes. Columns keep schema order inside each group.

    :raises ValueError: for a number that is no ``Kind``
    """

    def __cinit__(self, kinds):
        kinds = [int(kind) for kind in kinds]
        if len(kinds) > MOST_COLUMNS:
            raise ValueError(f"{len(kinds)} columns")
        cdef int64_t i, width
        cdef int64_t offset = RECORD_CELLS
        cdef Field *field
        self.count = len(kinds)
        self.fields = <Field *>calloc(self.count + 1, sizeof(Field))
        if self.fields == NULL:
            raise MemoryError
        for i, kind in enumerate(kinds):
            if not 0 <= kind <= LAST_KIND:
                raise ValueError(f"column {i}: no kind {kind}")
            field = &self.fields[i]
            field.kind = kind
            field.shape = kind_shape(kind)
            field.scalar = kind_value(kind)
            field.key = kind_key(kind)
            field.bit = 1 + i
            if field.shape == SCALAR:
                field.width = scalar_width(field.scalar)
        for width in (8, 4):
            for i in range(self.count):
                if self.fields[i].width == width:
                    self.fields[i].slot = offset
                    offset += width
        self.bounds = offset
        for i in range(self.count):
            if self.fields[i].width == 0 and self.fields[i].kind != 0:
                self.fields[i].slot = offset
                offset += 4
        self.last_bound = offset
        self.bits = offset + 4
        self.stamped = 1 + self.count
        self.stamp_bytes = (self.count + STAMP_EXTRA + 7) // 8
        self.stride = (self.bits + (2 + self.count + 7) // 8 + 7) & ~<int64_t>7

    def __dealloc__(self):
        free(self.fields)

    def describe(self) -> dict:
        """Offsets as Python numbers: for drawings and tests."""
        return {
            "stride": self.stride,
            "bounds": self.bounds,
            "bits": self.bits,
            "slots": [self.fields[i].slot for i in range(self.count)],
        }


cdef bint read_id(const ColumnView *ids, int64_t row, ItemId *out) noexcept nogil:
    """Reads an id of an INT32, INT64 or STRING column; False: no id there."""
    cdef int64_t value = 0
    if cell_is_null(ids, row):
        return False
    out.text = NULL
    out.length = 0
    if ids.kind == INT64:
        value = (<const int64_t *>ids.values.data)[row]
    elif ids.kind == INT32:
        value = (<const int32_t *>ids.values.data)[row]
    else:
        out.text = string_at(&ids.values, row, &out.length)
        if out.length > LONGEST_ID:
            return False
        if not parse_decimal(out.text, out.length, &value):
            out.word = xxh64_bytes(out.text, out.length, 0)
            return True
        out.text = NULL
        out.length = 0
    out.word = <uint64_t>value
    return True


cdef bint id_in_record(
    Records records, const char *record, ItemId *out
) noexcept nogil:
    cdef uint64_t heap = (<const uint64_t *>(record + RECORD_HEAP))[0]
    cdef uint64_t size = records.mapping.size
    out.word = (<const uint64_t *>(record + RECORD_ID))[0]
    out.text = NULL
    out.length = 0
    if bit_of(record, records.layout.bits, 0):
        out.length = (<const uint32_t *>(record + records.layout.bounds))[0]
        if out.length > LONGEST_ID or heap > size or (
            <uint64_t>out.length > size - heap
        ):
            return False
        out.text = records.mapping.base + heap
    return True


cdef int64_t heap_extent(Records records, const char *record) noexcept nogil:
    cdef uint64_t heap = (<const uint64_t *>(record + RECORD_HEAP))[0]
    cdef uint64_t size = records.mapping.size
    cdef uint64_t cells = (<const uint32_t *>(record + records.layout.last_bound))[0]
    cdef int64_t groups = 0
    if heap > size or cells > size - heap:
        return -1
    if not bit_of(record, records.layout.bits, records.layout.stamped):
        return cells
    if stamps_at(
        records.mapping.base + heap + cells, size - heap - cells,
        records.layout.stamp_bytes, &groups) == NULL:
        return -1
    return cells + stamps_size(groups, records.layout.stamp_bytes)


cdef class Records:
    """The records of one mapped segment, every address checked once.

    ``blocks`` is the offset of the directory: one u64 per block of
    ``1 << block_shift`` rows, the last one shorter.

    :raises ValueError: if directory or blocks do not lie inside the mapping
    """

    def __cinit__(
        self, Mapping mapping not None, RecordLayout layout not None,
        int64_t rows, int64_t block_shift, int64_t blocks,
    ):
        cdef int64_t count, i, length
        cdef uint64_t start
        if rows < 0 or block_shift < 0 or block_shift > MOST_SHIFT:
            raise ValueError(f"{rows} rows in blocks of 2**{block_shift}")
        count = (rows >> block_shift) + ((rows & ((1 << block_shift) - 1)) > 0)
        if blocks < 0 or blocks % 8 or count > (mapping.size - blocks) // 8:
            raise ValueError(f"no directory of {count} blocks at {blocks}")
        self.mapping = mapping
        self.layout = layout
        self.rows = rows
        self.shift = block_shift
        self.mask = (<int64_t>1 << block_shift) - 1
        self.blocks = <const uint64_t *>(mapping.base + blocks)
        for i in range(count):
            start = load_u64(&self.blocks[i])
            length = min(rows - (i << block_shift), self.mask + 1)
            if start % 8 or start > <uint64_t>mapping.size or (
                length > (mapping.size - <int64_t>start) // layout.stride
            ):
                raise ValueError(f"block {i} lies outside of the segment")
        self.missing = <char *>calloc(1, layout.stride)
        if self.missing == NULL:
            raise MemoryError
        memset(self.missing + layout.bits, 0xFF, layout.stride - layout.bits)

    def __dealloc__(self):
        free(self.missing)

    def id_of(self, int64_t row) -> int | str:
        """The item id of a row, an integer wherever its text is a decimal one.

        :raises IndexError: if there is no such row
        :raises ValueError: if the record is damaged
        """
        if row < 0 or row >= self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        cdef ItemId item
        if not id_in_record(self, record_at(self, row), &item):
            raise ValueError(f"record {row} is damaged")
        if item.text == NULL:
            return <int64_t>item.word
        return item.text[:item.length].decode("utf-8", "surrogateescape")

    def heap_end(self, int64_t row) -> int:
        """Where the heap bytes of a row end in the segment.

        :raises IndexError: if there is no such row
        :raises ValueError: if the record is damaged
        """
        if row < 0 or row >= self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        cdef const char *record = record_at(self, row)
        cdef int64_t size = heap_extent(self, record)
        if size < 0:
            raise ValueError(f"record {row} is damaged")
        return (<const uint64_t *>(record + RECORD_HEAP))[0] + size
