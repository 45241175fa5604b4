# cython: language_level=3
"""Events of a delta's batch, by item: what each item is told, in order of arrival."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memset

from cython_ext.cache_known cimport KnownTimes
from cython_ext.cache_records cimport RecordLayout, hash_of, read_id
from cython_ext.cache_stamps cimport STAMP_EXTRA
from cython_ext.column cimport (
    INT32,
    INT64,
    STRING,
    Column,
    ColumnView,
    cell_is_null,
)

cdef int64_t MOST_EVENTS = (<int64_t>1 << 30)


cdef class Events:
    """The events of ``steps``, found by item through a hash table of their ids.

    A step is a tuple (ids, columns, times): ids are a STRING, INT32 or INT64 Column;
    columns a list of (number of the column, Column of its kind or ABSENT), None for
    a deletion, or KnownTimes where only times are told; times an int64 array or None.
    Rows without an id or with an id of more than ``LONGEST_ID`` bytes are left out and
    counted.

    Attributes: ``null_keys``, ``long_keys``, ``items`` (distinct ids).

    :raises TypeError: if a column is of another kind, or ids are no ids
    :raises ValueError: if lengths differ
    """

    def __cinit__(self, RecordLayout layout not None, list steps not None):
        cdef int64_t i
        cdef int64_t total = 0
        self.layout = layout
        self._owners = []
        self.step_count = len(steps)
        self.steps = <Step *>calloc(len(steps) + 1, sizeof(Step))
        self.picks = <Pick *>calloc(layout.count + 1, sizeof(Pick))
        self.times = <int64_t *>calloc(layout.count + STAMP_EXTRA, sizeof(int64_t))
        if self.steps == NULL or self.picks == NULL or self.times == NULL:
            raise MemoryError
        for i, (ids, columns, times) in enumerate(steps):
            self._open(&self.steps[i], ids, columns, times)
            total += self.steps[i].ids.rows
        if total > MOST_EVENTS:
            raise ValueError(f"{total} events at once")
        self.events = <Pick *>malloc((total + 1) * sizeof(Pick))
        self.found = <Item *>malloc((total + 1) * sizeof(Item))
        if self.events == NULL or self.found == NULL:
            raise MemoryError
        self._group(total)

    def __dealloc__(self):
        cdef int64_t i
        if self.steps != NULL:
            for i in range(self.step_count):
                free(self.steps[i].cells)
        free(self.steps)
        free(self.picks)
        free(self.times)
        free(self.events)
        free(self.found)

    cdef int _open(self, Step *step, Column ids, columns, times) except -1:
        cdef const int64_t[::1] stamps
        cdef Column column
        cdef int64_t number
        if ids is None or ids.view.kind not in (INT32, INT64, STRING):
            raise TypeError("ids of events are STRING, INT32 or INT64")
        self._owners.append((ids, columns, times))
        step.ids = &ids.view
        step.deletion = columns is None
        if isinstance(columns, KnownTimes):
            self._open_known(step, columns, ids.view.rows)
            return 0
        if times is not None:
            stamps = times
            if stamps.shape[0] != ids.view.rows:
                raise ValueError(f"{stamps.shape[0]} times of {ids.view.rows} events")
            if ids.view.rows:
                step.times = &stamps[0]
        if columns is None:
            return 0
        step.cells = <const ColumnView **>calloc(
            self.layout.count + 1, sizeof(void *))
        if step.cells == NULL:
            raise MemoryError
        for number, column in columns:
            if number < 0 or number >= self.layout.count:
                raise ValueError(f"column {number} of {self.layout.count}")
            if column.view.kind not in (0, self.layout.fields[number].kind):
                raise TypeError(f"column {number} is {column.kind.name}")
            if column.view.rows != ids.view.rows:
                raise ValueError(f"column {number} has {column.view.rows} rows")
            step.cells[number] = &column.view
        return 0

    cdef int _open_known(self, Step *step, KnownTimes known, int64_t rows) except -1:
        if known.rows != rows:
            raise ValueError(f"known times of {known.rows} of {rows} rows")
        if known.layout.count != self.layout.count:
            raise TypeError("known times of other records")
        step.known = known.offsets
        step.stamps = known.data
        return 0

    cdef int _group(self, int64_t total) except -1:
        """Events by item, through a hash table that lives as long as this call."""
        cdef int64_t size = 8
        while size < 2 * total:
            size *= 2
        cdef int32_t *table = <int32_t *>calloc(size, sizeof(int32_t))
        cdef int32_t *items = <int32_t *>malloc((total + 1) * sizeof(int32_t))
        try:
            if table == NULL or items == NULL:
                raise MemoryError
            with nogil:
                self._find_items(table, size - 1, items)
                self._sort_events(items)
        finally:
            free(table)
            free(items)
        return 0

    cdef void _find_items(
        self, int32_t *table, int64_t mask, int32_t *items
    ) noexcept nogil:
        cdef int64_t s, row, at
        cdef int64_t event = 0
        cdef Item item
        cdef const ColumnView *ids
        memset(&item, 0, sizeof(Item))
        for s in range(self.step_count):
            ids = self.steps[s].ids
            for row in range(ids.rows):
                items[event] = -1
                if read_id(ids, row, &item.id):
                    item.hash = hash_of(&item.id)
                    at = <int64_t>(item.hash >> 20) & mask
                    while table[at] and not self._same(
                        &self.found[table[at] - 1], &item
                    ):
                        at = (at + 1) & mask
                    if table[at] == 0:
                        self.found[self.items] = item
                        self.items += 1
                        table[at] = <int32_t>self.items
                    items[event] = table[at] - 1
                    self.found[items[event]].last += 1
                elif cell_is_null(ids, row):
                    self.null_keys += 1
                else:
                    self.long_keys += 1
                event += 1

    cdef bint _same(self, const Item *a, const Item *b) noexcept nogil:
        return a.hash == b.hash and a.id.word == b.id.word and (
            a.id.length == b.id.length
        ) and (a.id.text == NULL) == (b.id.text == NULL) and (
            a.id.text == NULL or memcmp(a.id.text, b.id.text, a.id.length) == 0)

    cdef void _sort_events(self, const int32_t *items) noexcept nogil:
        """``last`` of an item is how many events it has; then where they end."""
        cdef int64_t i, s, row, count
        cdef int64_t start = 0
        cdef int64_t event = 0
        cdef Item *item
        for i in range(self.items):
            count = self.found[i].last
            self.found[i].first = self.found[i].last = start
            start += count
        for s in range(self.step_count):
            for row in range(self.steps[s].ids.rows):
                if items[event] >= 0:
                    item = &self.found[items[event]]
                    self.events[item.last].step = <int32_t>s
                    self.events[item.last].row = <int32_t>row
                    item.last += 1
                event += 1
