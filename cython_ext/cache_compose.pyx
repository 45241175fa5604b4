# cython: language_level=3
"""Events to complete records: what an item is after an upsert or a deletion.

A delta holds whole records, so an event that brings some columns is laid over what
the item is now. Cells that stay are copied as bytes; nothing is decoded.

With event times each value is the one of the latest event that set it, whatever
the order in which they come, and of two with the same time the one that came later:

* an upsert sets its columns that have no later time, and brings the item to life;
* a deletion nulls what is not later than it, and ends the item unless some upsert
  is later. Its time stays with the item: older upserts come too late.

An event without a time counts from when it comes. It overwrites; as a deletion it
forgets the times.

Times that are known from elsewhere are laid over an item too: they change no value,
and what is older comes too late from then on. See ``cache_stamps.pxd`` for how times
are kept.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

import numpy as np

from cython_ext.cache_index cimport ItemIndex
from cython_ext.cache_known cimport KnownTimes
from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_pack cimport cell_size, write_cell
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    RECORD_ID,
    Field,
    ItemId,
    RecordLayout,
    Records,
    bit_of,
    hash_of,
    heap_extent,
    read_id,
    record_at,
)
from cython_ext.cache_stamps cimport (
    STAMP_EXTRA,
    STAMP_TIME,
    no_time,
    put_stamp_count,
    stamp_has,
    stamp_time,
    stamps_at,
    stamps_size,
)
from cython_ext.column cimport (
    INT32,
    INT64,
    STRING,
    Column,
    ColumnView,
    cell_is_null,
)
from cython_ext.intrinsics cimport prefetch
from cython_ext.shm cimport Mapping

cdef enum:
    KEPT = -1                # a pick: the cell stays
    NULLED = -2
    AHEAD = 8                # items whose records are fetched ahead

cdef int64_t MOST_HEAP = (<int64_t>1 << 31) - 1
cdef int64_t MOST_EVENTS = (<int64_t>1 << 30)


cdef struct Pick:
    # Which event a cell comes from; or KEPT, NULLED as its step.
    int32_t step
    int32_t row


cdef struct Step:
    const ColumnView *ids
    const ColumnView **cells  # by column; NULL where the event has none
    const int64_t *times      # NULL: none has one
    bint deletion
    const int64_t *known      # where the stamps of each row are, if that is all
    const uint8_t *stamps


cdef struct Item:
    ItemId id
    uint64_t hash
    int64_t first            # of its events
    int64_t last
    const char *record       # what it is now; NULL: unknown
    const char *base         # of the record's segment
    int64_t size
    bint dead                # the record is a grave
    bint fresh               # the delta has no record of it
    bint grave               # what it becomes
    int64_t heap             # bytes that it becomes; -1: it stays as it is


# A time that is none.
NO_TIME = no_time()


cdef int _damaged() except -1 nogil:
    with gil:
        raise ValueError("a record of the item cache is damaged")


cdef class Composer:
    """The events of ``steps``, in order, on their way into records.

    A step is a tuple (ids, columns, times): ids are a STRING, INT32 or INT64 Column;
    columns a list of (number of the column, Column of its kind or ABSENT), None for
    a deletion, or KnownTimes where only times are told; times an int64 array or None.
    Rows without an id or with an id of more than ``LONGEST_ID`` bytes are left out and
    counted.

    First :meth:`resolve`, then :meth:`pack`. Attributes: ``null_keys``,
    ``long_keys``, ``items`` (distinct ids); after :meth:`resolve` ``kept`` (records
    to write), ``fresh`` (those of ids that are new to the delta), ``heap`` (their heap
    bytes), ``upserted``, ``deleted`` and ``stale``
    (events), ``huge_rows`` (items that would have 2 GiB of heap bytes, left as they
    are). One thread at a time.

    :raises TypeError: if a column is of another kind, or ids are no ids
    :raises ValueError: if lengths differ
    """

    cdef RecordLayout layout
    cdef list _owners
    cdef Step *steps
    cdef int64_t step_count
    cdef Item *found
    cdef Pick *events        # by item, in order of arrival
    cdef Pick *picks         # of one item: one for each column
    cdef int64_t *times      # of one item: columns, row, deletion
    cdef bint timed          # some column of it has a time
    cdef readonly int64_t items
    cdef readonly int64_t null_keys
    cdef readonly int64_t long_keys
    cdef readonly int64_t huge_rows
    cdef readonly int64_t kept
    cdef readonly int64_t fresh
    cdef readonly int64_t heap
    cdef readonly int64_t upserted
    cdef readonly int64_t deleted
    cdef readonly int64_t stale

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

    def resolve(
        self, ItemIndex index not None, Overlay overlay not None, int64_t count
    ) -> None:
        """Finds what each item is now, and what it becomes.

        ``count`` records of the overlay's delta are there.

        :raises IndexError: if the delta cannot have that many records
        :raises TypeError: if a segment has records of another layout
        :raises ValueError: if a record is damaged
        """
        if count < 0 or count > overlay.records.rows:
            raise IndexError(f"{count} records of {overlay.records.rows}")
        for records in (index.records, overlay.records):
            if (<Records>records).layout.stride != self.layout.stride:
                raise TypeError("records of another layout")
        self.kept = self.fresh = self.heap = self.huge_rows = 0
        self.upserted = self.deleted = self.stale = 0
        with nogil:
            self._locate(index, overlay, count)
            self._measure()

    cdef void _locate(
        self, ItemIndex index, Overlay overlay, int64_t count
    ) noexcept nogil:
        cdef int64_t i, number
        cdef Item *item
        for i in range(min(self.items, <int64_t>AHEAD)):
            index.fetch(self.found[i].hash)
            overlay.fetch(self.found[i].hash)
        for i in range(self.items):
            if i + AHEAD < self.items:
                index.fetch(self.found[i + AHEAD].hash)
                overlay.fetch(self.found[i + AHEAD].hash)
            item = &self.found[i]
            item.record = NULL
            item.dead = False
            item.fresh = False
            number = overlay.find(&item.id, item.hash, count)
            if number >= 0:
                item.dead = overlay.is_grave(number)
                self._found_in(item, overlay.records, number)
                continue
            item.fresh = True
            number = index.find_row(&item.id, item.hash)
            if number >= 0:
                self._found_in(item, index.records, number)

    cdef void _found_in(self, Item *item, Records records, int64_t row) noexcept nogil:
        item.record = record_at(records, row)
        item.base = records.mapping.base
        item.size = records.mapping.size
        prefetch(item.record)

    cdef int _measure(self) except -1 nogil:
        cdef int64_t i, size
        cdef Item *item
        for i in range(self.items):
            item = &self.found[i]
            item.heap = -1
            if not self._settle(item, True):
                continue
            size = self._size(item)
            if size > MOST_HEAP:
                self.huge_rows += 1
                continue
            item.heap = size
            self.heap += size
            self.kept += 1
            self.fresh += item.fresh
        return 0

    cdef bint _settle(self, Item *item, bint counted) except -1 nogil:
        """Fills ``picks`` and ``times`` with what the events leave; False: nothing new.
        """
        cdef int64_t i, c, time
        cdef Step *step
        cdef bint alive = item.record != NULL and not item.dead
        cdef bint changed = False
        cdef int64_t columns = self.layout.count
        for c in range(columns):
            self.picks[c].step = KEPT if alive else NULLED
        for c in range(columns + STAMP_EXTRA):
            self.times[c] = no_time()
        self.timed = False
        if item.record != NULL:
            self._load_times(item)
        for i in range(item.first, item.last):
            step = &self.steps[self.events[i].step]
            if step.known != NULL:
                # What is not there has no times either.
                if item.record != NULL:
                    changed |= self._raise(step, self.events[i].row)
                continue
            time = no_time()
            if step.times != NULL:
                time = step.times[self.events[i].row]
            self.timed |= time != no_time()
            if step.deletion:
                c = self._bury(time, &alive)
                changed |= c != 0
                if counted:
                    self.stale += c == 0
                    self.deleted += c == 2
            else:
                c = self._lay_over(&self.events[i], step, time, &alive)
                changed |= c != 0
                if counted:
                    self.stale += c == 0
                    self.upserted += c != 0
        item.grave = not alive
        return changed

    cdef int _load_times(self, const Item *item) except -1 nogil:
        cdef int64_t groups = 0
        cdef int64_t bit, _i
        cdef uint64_t heap = (<const uint64_t *>(item.record + RECORD_HEAP))[0]
        cdef uint64_t end = (
            <const uint32_t *>(item.record + self.layout.last_bound))[0]
        cdef const char *p
        if not bit_of(item.record, self.layout.bits, self.layout.stamped):
            return 0
        if heap > <uint64_t>item.size or end > item.size - heap:
            _damaged()
        p = stamps_at(
            item.base + heap + end, item.size - heap - end, self.layout.stamp_bytes,
            &groups)
        if p == NULL:
            _damaged()
        for _i in range(groups):
            for bit in range(self.layout.count + STAMP_EXTRA):
                if stamp_has(p, bit):
                    self.times[bit] = stamp_time(p)
            p += STAMP_TIME + self.layout.stamp_bytes
        self.timed |= groups > 0
        return 0

    cdef bint _raise(self, const Step *step, int64_t row) noexcept nogil:
        """Whether something that was known elsewhere is later than what is here."""
        cdef int64_t bit, _k
        cdef int64_t groups = 0
        cdef bint changed = False
        cdef const char *p = <const char *>step.stamps + step.known[row]
        if step.known[row + 1] == step.known[row]:
            return False
        p = stamps_at(
            p, step.known[row + 1] - step.known[row], self.layout.stamp_bytes, &groups)
        for _k in range(groups):
            for bit in range(self.layout.count + STAMP_EXTRA):
                if stamp_has(p, bit) and stamp_time(p) > self.times[bit]:
                    self.times[bit] = stamp_time(p)
                    changed = True
            p += STAMP_TIME + self.layout.stamp_bytes
        self.timed |= changed
        return changed

    cdef int64_t _bury(self, int64_t time, bint *alive) noexcept nogil:
        """A deletion; 0: it comes too late, 1: it leaves its time, 2: it ends the item.
        """
        cdef int64_t c
        cdef int64_t columns = self.layout.count
        cdef bint lived = alive[0]
        if time == no_time():
            if not lived:
                return 0
            for c in range(columns):
                self.picks[c].step = NULLED
            for c in range(columns + STAMP_EXTRA):
                self.times[c] = no_time()
            alive[0] = False
            return 2
        if time < self.times[columns + 1]:
            return 0
        self.times[columns + 1] = time
        for c in range(columns):
            if self.times[c] <= time:
                self.picks[c].step = NULLED
        if time >= self.times[columns]:
            alive[0] = False
        return 2 if lived and not alive[0] else 1

    cdef int64_t _lay_over(
        self, const Pick *event, const Step *step, int64_t time, bint *alive
    ) noexcept nogil:
        """An upsert; 0: all that it sets has a later time."""
        cdef int64_t c
        cdef int64_t columns = self.layout.count
        cdef int64_t changed = not alive[0]
        if time != no_time() and time < self.times[columns + 1]:
            return 0
        alive[0] = True
        for c in range(columns):
            if step.cells[c] == NULL or (
                time != no_time() and time < self.times[c]
            ):
                continue
            self.picks[c] = event[0]
            if time != no_time():
                self.times[c] = time
            changed = 1
        if time > self.times[columns]:
            self.times[columns] = time
            changed = 1
        return changed

    cdef int64_t _groups(self) noexcept nogil:
        """How many different times there are to keep; drops what deletions cover."""
        cdef int64_t c, k
        cdef int64_t groups = 0
        cdef int64_t columns = self.layout.count
        if not self.timed:
            return 0
        for c in range(columns + STAMP_EXTRA):
            if c != columns + 1 and self.times[c] <= self.times[columns + 1]:
                self.times[c] = no_time()
            if self.times[c] == no_time():
                continue
            for k in range(c):
                if self.times[k] == self.times[c]:
                    break
            else:
                groups += 1
        return groups

    cdef const char *_kept_cell(
        self, const Item *item, const Field *field, int64_t *size
    ) except NULL nogil:
        """Heap bytes of a cell as it is now."""
        cdef uint64_t heap = (<const uint64_t *>(item.record + RECORD_HEAP))[0]
        cdef uint32_t start = (<const uint32_t *>(item.record + field.slot))[0]
        cdef uint32_t stop = (<const uint32_t *>(item.record + field.slot + 4))[0]
        if start > stop or heap > <uint64_t>item.size or stop > item.size - heap:
            _damaged()
        size[0] = stop - start
        return item.base + heap + start

    cdef int64_t _size(self, const Item *item) except -1 nogil:
        """Heap bytes of what was settled."""
        cdef int64_t c, size
        cdef const Pick *pick
        cdef const Field *field
        cdef int64_t groups = self._groups()
        cdef int64_t total = item.id.length
        if groups:
            total += stamps_size(groups, self.layout.stamp_bytes)
        if item.grave:
            return total
        for c in range(self.layout.count):
            field = &self.layout.fields[c]
            if field.width or field.kind == 0:
                continue
            pick = &self.picks[c]
            if pick.step == KEPT:
                self._kept_cell(item, field, &size)
                total += size
            elif pick.step >= 0:
                total += cell_size(self.steps[pick.step].cells[c], pick.row)
        return total

    def graves(self) -> bytearray:
        """One byte for each record that :meth:`pack` writes: 1 for a deleted item."""
        found = bytearray(self.kept)
        cdef int64_t i
        cdef int64_t at = 0
        for i in range(self.items):
            if self.found[i].heap >= 0:
                found[at] = self.found[i].grave
                at += 1
        return found

    def pack(self, Mapping mapping not None, int64_t records, int64_t heap) -> int:
        """Writes ``kept`` records, ``heap`` bytes behind each other.

        Both are offsets in the mapping, the first a multiple of 8; whatever was there
        is overwritten.

        :return: the heap's offset after the last record
        :raises IndexError: if memory does not suffice
        """
        if not mapping.writable or records < 0 or heap < 0 or records % 8 or (
            self.kept * self.layout.stride > mapping.size - records
        ) or self.heap > mapping.size - heap:
            raise IndexError(f"no room for {self.kept} records and {self.heap} bytes")
        with nogil:
            heap = self._pack(mapping.base, records, heap)
        return heap

    cdef int64_t _pack(self, char *base, int64_t at, int64_t heap) except -1 nogil:
        cdef int64_t i
        cdef Item *item
        cdef char *end
        for i in range(self.items):
            item = &self.found[i]
            if item.heap < 0:
                continue
            self._settle(item, False)
            end = self._write(item, base + at, base, heap)
            if end - (base + heap) != item.heap:
                # Somebody else has written what is read here.
                _damaged()
            at += self.layout.stride
            heap += item.heap
        return heap

    cdef char *_write(
        self, const Item *item, char *record, char *base, int64_t heap
    ) except NULL nogil:
        cdef int64_t c
        cdef char *end = base + heap
        cdef const Field *field
        cdef int64_t room = item.heap - item.id.length
        memset(record, 0, self.layout.stride)
        (<uint64_t *>(record + RECORD_HEAP))[0] = heap
        (<uint64_t *>(record + RECORD_ID))[0] = item.id.word
        (<uint32_t *>(record + self.layout.bounds))[0] = <uint32_t>item.id.length
        if item.id.text != NULL:
            memcpy(end, item.id.text, item.id.length)
            end += item.id.length
            record[self.layout.bits] |= 1
        for c in range(self.layout.count):
            field = &self.layout.fields[c]
            if self._write_fixed(item, record, c):
                self._set(record, field.bit)
            elif field.width == 0:
                end = self._write_heap(item, end, &room, c)
            if field.width == 0 and field.kind != 0:
                (<uint32_t *>(record + field.slot + 4))[0] = <uint32_t>(
                    end - (base + heap))
        if self.timed and self._groups():
            end = self._write_stamps(end, &room)
            self._set(record, self.layout.stamped)
        return end

    cdef void _set(self, char *record, int64_t bit) noexcept nogil:
        (<uint8_t *>record)[self.layout.bits + (bit >> 3)] |= (
            <uint8_t>(1 << (bit & 7)))

    cdef bint _write_fixed(
        self, const Item *item, char *record, int64_t c
    ) noexcept nogil:
        """Writes a cell of fixed width; True: the cell, of any width, is null."""
        cdef const Field *field = &self.layout.fields[c]
        cdef const Pick *pick = &self.picks[c]
        cdef const ColumnView *view
        if item.grave or pick.step == NULLED or field.kind == 0:
            return True
        if pick.step == KEPT:
            memcpy(record + field.slot, item.record + field.slot, field.width)
            return bit_of(item.record, self.layout.bits, field.bit)
        view = self.steps[pick.step].cells[c]
        if cell_is_null(view, pick.row):
            return True
        if field.width == 8:
            (<uint64_t *>(record + field.slot))[0] = (
                (<const uint64_t *>view.values.data)[pick.row])
        elif field.width == 4:
            (<uint32_t *>(record + field.slot))[0] = (
                (<const uint32_t *>view.values.data)[pick.row])
        return False

    cdef char *_write_heap(
        self, const Item *item, char *end, int64_t *room, int64_t c
    ) except NULL nogil:
        """Writes a cell with a length that is not null; returns what is behind it."""
        cdef const Field *field = &self.layout.fields[c]
        cdef const Pick *pick = &self.picks[c]
        cdef const ColumnView *view
        cdef const char *cell
        cdef int64_t size = 0
        if pick.step == KEPT:
            cell = self._kept_cell(item, field, &size)
            if size <= room[0]:
                memcpy(end, cell, size)
        else:
            view = self.steps[pick.step].cells[c]
            size = cell_size(view, pick.row)
            if size <= room[0]:
                write_cell(end, view, pick.row)
        room[0] -= size
        if room[0] < 0:
            _damaged()
        return end + size

    cdef char *_write_stamps(self, char *p, int64_t *room) except NULL nogil:
        cdef int64_t c, k
        cdef int64_t bits = self.layout.count + STAMP_EXTRA
        cdef int64_t groups = self._groups()
        room[0] -= stamps_size(groups, self.layout.stamp_bytes)
        if room[0] < 0:
            _damaged()
        p = put_stamp_count(p, groups)
        for c in range(bits):
            if self.times[c] == no_time():
                continue
            for k in range(c):
                if self.times[k] == self.times[c]:
                    break
            else:
                memcpy(p, &self.times[c], STAMP_TIME)
                p += STAMP_TIME
                memset(p, 0, self.layout.stamp_bytes)
                for k in range(c, bits):
                    if self.times[k] == self.times[c]:
                        (<uint8_t *>p)[k >> 3] |= <uint8_t>(1 << (k & 7))
                p += self.layout.stamp_bytes
        return p


def buried(Records records not None, const int64_t[::1] rows not None):
    """When the items of these records were deleted (int64); NO_TIME: nobody said.

    :raises IndexError: for a row that does not exist
    :raises ValueError: if a record is damaged
    """
    cdef int64_t i, _k
    cdef int64_t groups = 0
    cdef int64_t bit = records.layout.count + 1
    cdef const char *record
    cdef const char *p
    cdef uint64_t end
    found = np.full(rows.shape[0], NO_TIME, dtype=np.int64)
    cdef int64_t[::1] out = found
    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < records.rows:
            raise IndexError(f"row {rows[i]} of {records.rows}")
        record = record_at(records, rows[i])
        if not bit_of(record, records.layout.bits, records.layout.stamped):
            continue
        if heap_extent(records, record) < 0:
            _damaged()
        end = (<const uint64_t *>(record + RECORD_HEAP))[0] + (
            (<const uint32_t *>(record + records.layout.last_bound))[0])
        p = stamps_at(
            records.mapping.base + end, records.mapping.size - end,
            records.layout.stamp_bytes, &groups)
        for _k in range(groups):
            if stamp_has(p, bit):
                out[i] = stamp_time(p)
            p += STAMP_TIME + records.layout.stamp_bytes
    return found
