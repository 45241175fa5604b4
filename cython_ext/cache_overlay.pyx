# cython: language_level=3
"""Index from item ids to the records of a delta, read while it is written.

One writer, any number of readers, no locks. A slot is one 64-bit word, loaded and
stored in one::

    bits 0..23   number of the id's newest record + 1; 0: none any more
    bits 24..63  part of the id's hash, never 0; a word of 0 is an empty slot

A link, u32, belongs to each record::

    bits 0..23   number of the record of the same id before it + 1; 0: none
    bit 31       the item was deleted: the record is its grave

A reader knows how many records are published to it. From a slot that names a later
one it follows the links down to one that is published; records, their links and
what they hold are written before the slot is. A slot whose tag fits is believed
only when the record has the very id.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp

from cython_ext.cache_records cimport (
    ItemId,
    Records,
    hash_of,
    id_in_record,
    record_at,
)
from cython_ext.intrinsics cimport load_u64, mul_high, prefetch, store_u64

cdef enum:
    # How often a lookup starts again when its slot changes under it. That takes a
    # writer that died and its successor in the same instant.
    RESTARTS = 8

cdef uint32_t BURIED = <uint32_t>1 << 31
# What newest() says of a record.
REPLACED, NEWEST, GRAVE = range(3)
MOST_RECORDS = NUMBER_MASK


cdef inline uint64_t _tag(uint64_t hash_) noexcept nogil:
    return (hash_ | 1) << NUMBER_BITS


cdef inline int64_t _number(uint64_t word) noexcept nogil:
    return <int64_t>(word & NUMBER_MASK) - 1


cdef class Overlay:
    """``capacity`` slots at ``slots`` and a link for each of ``records`` at ``links``.

    ``records`` are those of the delta; their ``rows`` is how many there can be.

    :raises ValueError: if slots or links do not lie inside the segment
    """

    def __cinit__(
        self, Records records not None, int64_t slots, int64_t capacity, int64_t links
    ):
        cdef int64_t size = records.mapping.size
        if slots < 0 or slots % 8 or capacity <= 0 or (
            capacity > (size - slots) // 8
        ):
            raise ValueError(f"no overlay of {capacity} slots at {slots}")
        if links < 0 or links % 4 or records.rows > NUMBER_MASK or (
            records.rows > (size - links) // 4
        ):
            raise ValueError(f"no links of {records.rows} records at {links}")
        self.records = records
        self.slots = <uint64_t *>(records.mapping.base + slots)
        self.links = <uint32_t *>(records.mapping.base + links)
        self.capacity = capacity

    cdef int64_t find(
        self, const ItemId *item, uint64_t hash_, int64_t count
    ) noexcept nogil:
        """The newest of the first ``count`` records of an id; -1: there is none.

        ``count`` is at most the number of records that the caller may read.
        """
        cdef uint64_t tag = _tag(hash_)
        cdef int64_t at = mul_high(hash_, self.capacity)
        cdef int64_t home = at
        cdef int64_t probes = self.capacity
        cdef int64_t restarts = RESTARTS
        cdef int64_t number
        cdef uint64_t word = load_u64(&self.slots[at])
        # SAFETY: bounded, as is the walk: a link always leads to a smaller number.
        while word != 0 and probes > 0:
            probes -= 1
            if word & ~<uint64_t>NUMBER_MASK == tag:
                number = _number(word)
                if number >= self.records.rows:
                    return -1
                if number >= count:
                    number = self._walk(number, count)
                    if load_u64(&self.slots[at]) != word and restarts > 0:
                        restarts -= 1
                        at = home
                        probes = self.capacity
                        word = load_u64(&self.slots[at])
                        continue
                if number >= 0 and self._equal(number, item):
                    return number
            at += 1
            if at == self.capacity:
                at = 0
            word = load_u64(&self.slots[at])
        return -1

    cdef int64_t _walk(self, int64_t number, int64_t count) noexcept nogil:
        cdef int64_t before
        while number >= count:
            before = <int64_t>(self.links[number] & NUMBER_MASK) - 1
            if before >= number:
                return -1
            number = before
        return number

    cdef bint is_grave(self, int64_t number) noexcept nogil:
        """Whether a record says that its item was deleted."""
        return self.links[number] & BURIED != 0

    cdef bint _equal(self, int64_t number, const ItemId *item) noexcept nogil:
        cdef ItemId known
        if not id_in_record(self.records, record_at(self.records, number), &known):
            return False
        if known.word != item.word or known.length != item.length or (
            (known.text == NULL) != (item.text == NULL)
        ):
            return False
        return item.text == NULL or memcmp(known.text, item.text, item.length) == 0

    cdef void fetch(self, uint64_t hash_) noexcept nogil:
        """Asks for the home slot of an id."""
        prefetch(&self.slots[mul_high(hash_, self.capacity)])

    cdef void fetch_record(self, uint64_t hash_) noexcept nogil:
        """Asks for the record behind the home slot, if that fits."""
        cdef uint64_t word = load_u64(&self.slots[mul_high(hash_, self.capacity)])
        cdef int64_t number = _number(word)
        if word & ~<uint64_t>NUMBER_MASK == _tag(hash_) and (
            0 <= number < self.records.rows
        ):
            prefetch(record_at(self.records, number))

    cdef uint64_t *_place(
        self, const ItemId *item, uint64_t hash_, int64_t *before
    ) noexcept nogil:
        """The slot for an id and its record so far (-1); NULL: all are taken."""
        cdef int64_t at = mul_high(hash_, self.capacity)
        cdef int64_t probes = self.capacity
        cdef uint64_t *free = NULL
        cdef uint64_t word
        while probes > 0:
            word = self.slots[at]
            before[0] = _number(word)
            if word == 0:
                return &self.slots[at] if free == NULL else free
            if before[0] < 0:
                if free == NULL:
                    free = &self.slots[at]
            elif word & ~<uint64_t>NUMBER_MASK == _tag(hash_) and (
                before[0] < self.records.rows and self._equal(before[0], item)
            ):
                return &self.slots[at]
            probes -= 1
            at += 1
            if at == self.capacity:
                at = 0
        before[0] = -1
        return free

    def enter(self, int64_t first, const uint8_t[::1] graves not None) -> int:
        """Makes records ``first`` ... the newest of their ids, in order. Writer only.

        ``graves`` has one byte for each of them: 1 says that the item is deleted.
        Records, links and memory behind them must have been allocated.

        :return: ids that had no record yet
        :raises BufferError: if the segment is mapped read-only
        :raises IndexError: if there is no room for that many records
        :raises ValueError: if a record is damaged or no slot is free
        """
        cdef int64_t count = graves.shape[0]
        cdef int64_t new = 0
        if not self.records.mapping.writable:
            raise BufferError("the map is read-only")
        if first < 0 or count > self.records.rows - first:
            raise IndexError(f"records {first}:{first + count} of {self.records.rows}")
        with nogil:
            if count:
                new = self._enter(first, &graves[0], count)
        if new < 0:
            raise ValueError("the overlay of the item cache is damaged or full")
        return new

    cdef int64_t _enter(
        self, int64_t first, const uint8_t *graves, int64_t count
    ) noexcept nogil:
        cdef int64_t i
        cdef int64_t new = 0
        cdef int64_t before = -1
        cdef ItemId item
        cdef uint64_t hash_
        cdef uint64_t *slot
        for i in range(count):
            if not id_in_record(
                self.records, record_at(self.records, first + i), &item
            ):
                return -1
            hash_ = hash_of(&item)
            slot = self._place(&item, hash_, &before)
            if slot == NULL or before >= first + i:
                return -1
            new += before < 0
            self.links[first + i] = <uint32_t>(before + 1) | (
                BURIED if graves[i] else 0)
            store_u64(slot, _tag(hash_) | <uint64_t>(first + i + 1))
        return new

    def repair(self, int64_t count) -> int:
        """Forgets all records but the first ``count``. Writer only, on attaching.

        What a writer had entered and not published when it died goes; slots lead
        to published records again before a new record takes their place.

        :return: slots that are taken
        :raises BufferError: if the segment is mapped read-only
        """
        cdef int64_t i, number
        cdef int64_t taken = 0
        cdef uint64_t word
        if not self.records.mapping.writable:
            raise BufferError("the map is read-only")
        if count < 0 or count > self.records.rows:
            raise IndexError(f"{count} records of {self.records.rows}")
        with nogil:
            for i in range(self.capacity):
                word = self.slots[i]
                if word == 0:
                    continue
                taken += 1
                number = _number(word)
                if number >= count:
                    number = (
                        self._walk(number, count) if number < self.records.rows else -1)
                    store_u64(
                        &self.slots[i],
                        word & ~<uint64_t>NUMBER_MASK | <uint64_t>(number + 1))
        return taken

    def graves(self, int64_t count) -> bytearray:
        """One byte for each of the first ``count`` records: 1 for a grave."""
        if count < 0 or count > self.records.rows:
            raise IndexError(f"{count} records of {self.records.rows}")
        found = bytearray(count)
        cdef uint8_t[::1] out = found
        cdef int64_t i
        for i in range(count):
            out[i] = self.is_grave(i)
        return found

    def newest(self, int64_t count) -> bytearray:
        """One byte for each of the first ``count`` records.

        REPLACED: a later one of the same id is among them; NEWEST: it is that; GRAVE:
        it is that, and the item was deleted.
        """
        if count < 0 or count > self.records.rows:
            raise IndexError(f"{count} records of {self.records.rows}")
        found = bytearray(b"\1") * count
        cdef uint8_t[::1] out = found
        cdef int64_t i, before
        if count:
            with nogil:
                for i in range(count):
                    if self.links[i] & BURIED:
                        out[i] = 2
                    before = <int64_t>(self.links[i] & NUMBER_MASK) - 1
                    if 0 <= before < i:
                        out[before] = 0
        return found
