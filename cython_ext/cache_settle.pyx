# cython: language_level=3
"""What an item is after the upserts and deletions of a batch.

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

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.cache_index cimport ItemIndex
from cython_ext.cache_overlay cimport Overlay
from cython_ext.cache_pack cimport cell_size
from cython_ext.cache_records cimport (
    RECORD_HEAP,
    Field,
    Records,
    bit_of,
    record_at,
)
from cython_ext.cache_stamps cimport (
    STAMP_EXTRA,
    STAMP_TIME,
    no_time,
    stamp_has,
    stamp_time,
    stamps_at,
    stamps_size,
)
from cython_ext.intrinsics cimport prefetch

cdef enum:
    AHEAD = 8                # items whose records are fetched ahead

cdef int64_t MOST_HEAP = (<int64_t>1 << 31) - 1


cdef int damaged() except -1 nogil:
    """Raises ValueError; for what others have overwritten."""
    with gil:
        raise ValueError("a record of the item cache is damaged")


cdef class Settlement(Events):
    """Events of a batch, and what they leave of each item.

    Attributes after :meth:`resolve`: ``kept`` (records to write), ``fresh`` (those of
    ids that are new to the delta), ``heap`` (their heap bytes), ``upserted``,
    ``deleted`` and ``stale`` (events), ``huge_rows`` (items that would have 2 GiB of
    heap bytes, left as they are). One thread at a time.
    """

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
            damaged()
        p = stamps_at(
            item.base + heap + end, item.size - heap - end, self.layout.stamp_bytes,
            &groups)
        if p == NULL:
            damaged()
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
            damaged()
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
