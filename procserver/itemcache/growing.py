"""Segments that grow while they are read: a delta, and the delta of a companion."""

import os
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.cache_overlay import Overlay
from cython_ext.cache_pack import RowPacker
from cython_ext.cache_records import RecordLayout
from cython_ext.column import Column
from cython_ext.shm import Mapping
from cython_ext.xxh64 import xxh64
from procserver import shm
from procserver.errors import ServiceError, SourceError
from procserver.itemcache import layout
from procserver.itemcache.companion import BATCH, CompanionMaker
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import Companion, Delta, Generation
from procserver.itemcache.signing import Signature

# Memory is taken by this much at a time.
STEP = 1 << 20
# Slots of an overlay for each id: a miss then takes 2.5 probes.
SLOTS_EACH = 2


class DeltaSegment:
    """A delta, mapped for writing; :meth:`create` or :meth:`attach` one.

    Attributes: ``delta`` (as readers see it, over the same map), ``mapping``,
    ``layout``, ``capacity`` (records), ``written`` (records so far), ``heap_end``
    (where the heap bytes of the next one start).

    :raises SourceError: if it is not the delta of ``rows``
    """

    def __init__(
        self, name: str, fd: int, rows: Generation | Companion, flags: int
    ) -> None:
        self.name = name
        self._fd = fd
        self.mapping = Mapping(fd, os.fstat(fd).st_size, writable=True)
        self.delta = Delta(self.mapping, flags)
        rows.check_delta(self.delta)
        self.capacity = self.delta.row_count
        self.layout: RecordLayout = self.delta.records.layout
        plan = self._plan = self.delta.plan
        self.written = 0
        self.heap_end = plan.heap
        self._signature = self._unsigned()
        # Where memory ends that has been taken, in each part.
        self._taken = {"links": plan.links, "records": plan.records, "heap": plan.heap}

    @classmethod
    def create(
        cls,
        name: str,
        rows: Generation | Companion,
        capacity: int,
        ids: int,
        heap: int,
    ) -> Self:
        """A new one, empty; without ``ids`` it is the delta of a companion.

        :raises SourceError: if the name is taken or shared memory does not suffice
        """
        try:
            fd = shm.create(name)
        except FileExistsError as error:
            raise SourceError(f"shared memory {name} exists already") from error
        flags = layout.DELTA | (0 if ids else layout.COMPANION)
        try:
            _write_head(fd, rows, flags, capacity, ids, heap)
            return cls(name, fd, rows, flags)
        except BaseException:
            os.close(fd)
            shm.unlink(name)
            raise

    @classmethod
    def attach(cls, name: str, rows: Generation | Companion, flags: int) -> Self:
        """One that is there, to be gone on with.

        :raises FileNotFoundError: if there is none of that name
        """
        fd = shm.reopen(name)
        try:
            return cls(name, fd, rows, flags)
        except BaseException:
            os.close(fd)
            raise

    @property
    def overlay(self) -> Overlay:
        """Its index."""
        assert self.delta.overlay is not None, "a companion's delta has none"
        return self.delta.overlay

    @property
    def id_capacity(self) -> int:
        """How many distinct ids there can be."""
        return self.delta.header.items

    @property
    def heap_room(self) -> int:
        """Heap bytes that there is room for."""
        return self._plan.size - self._plan.heap

    @property
    def heap_used(self) -> int:
        """Heap bytes of the records so far."""
        return self.heap_end - self._plan.heap

    @property
    def nbytes(self) -> int:
        """Memory that it has taken."""
        return os.fstat(self._fd).st_blocks * 512

    @property
    def made(self) -> int:
        """Records that a companion's delta says it has."""
        return self.delta.made()

    @made.setter
    def made(self, count: int) -> None:
        self.mapping.store(self._plan.directory + 8, count)

    def resume(self, count: int) -> None:
        """Goes on behind the first ``count`` records.

        :raises SourceError: if there are not so many, or the last is damaged
        """
        self.written = count
        self.heap_end = self._plan.heap
        if count:
            try:
                self.heap_end = self.delta.records.heap_end(count - 1)
            except (IndexError, ValueError) as error:
                raise SourceError(f"{self.name}: {error}") from error

    def sign(self) -> None:
        """Before what has been written is published."""
        self._signature.sign(self.written, self.room())

    def verify(self) -> None:
        """Compares the checksum of what has been published (1 to 10 GB/s).

        :raises SourceError: if it is not what was signed
        """
        if self.written and not self._signature.is_right(self.written, self.room()):
            raise SourceError(f"generation {self.delta.number}: its delta is damaged")

    def clear(self) -> None:
        """Goes on with nothing, whatever has been written and signed."""
        self.resume(0)
        self._signature = self._unsigned()

    def _unsigned(self) -> Signature:
        return Signature(self.mapping, self._plan.records, self._plan.heap)

    def room(self) -> tuple[int, int]:
        """Where the next record goes, and its heap bytes."""
        return self._plan.records + self.written * self.layout.stride, self.heap_end

    def grow(self, records: int, heap: int) -> None:
        """Takes memory for that much more.

        :raises SharedMemoryError: if there is not enough
        """
        written = self.written + records
        plan = self._plan
        if self.delta.overlay is not None:
            self._take("links", plan.links + 4 * written, plan.records)
        stop = plan.records + written * self.layout.stride
        self._take("records", stop, plan.heap)
        self._take("heap", self.heap_end + heap, plan.size)

    def _take(self, part: str, stop: int, limit: int) -> None:
        start = self._taken[part]
        if stop > limit:
            raise SourceError(f"no room in {self.name} for {stop - limit} bytes")
        if stop > start:
            stop = min(-(-stop // STEP) * STEP, limit)
            shm.allocate(self._fd, start, stop, purpose="changes of the item cache")
            self._taken[part] = stop

    def close(self) -> None:
        """Lets go of the descriptor; the segment stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_head(
    fd: int,
    rows: Generation | Companion,
    flags: int,
    capacity: int,
    ids: int,
    heap: int,
) -> None:
    """Header, schema, directory and empty slots; the header last."""
    section = layout.pack_schema(rows.key, rows.schema, rows.digest)
    stride = rows.header.record_size
    plan = layout.DeltaPlan.of(
        layout.HEAD_BYTES + len(section),
        SLOTS_EACH * ids,
        capacity if ids else 0,
        capacity * stride,
    )
    size = layout.aligned(plan.heap + heap)
    os.ftruncate(fd, size)
    shm.allocate(fd, 0, plan.links, purpose="changes of the item cache")
    header = layout.Header(
        owner_pid=rows.header.owner_pid,
        owner_started=rows.header.owner_started,
        generation=rows.number,
        flags=flags,
        table=rows.table,
        built_at=rows.header.built_at,
        rows=capacity,
        items=ids,
        record_size=stride,
        block_shift=layout.DELTA_SHIFT,
        size=size,
        schema_offset=layout.HEAD_BYTES,
        schema_size=len(section),
        schema_hash=xxh64(section),
        directory=plan.directory,
        index=plan.slots if ids else 0,
        index_slots=SLOTS_EACH * ids,
        body_hash=0,
    )
    os.pwrite(fd, section, layout.HEAD_BYTES)
    os.pwrite(fd, plan.records.to_bytes(8, "little"), plan.directory)
    os.pwrite(fd, header.pack(), 0)


def truncate(control: ControlSegment, number: int, count: int) -> None:
    """No delta of a companion of that generation has more than ``count`` records.

    What a writer that died had generated of unpublished records is wrong for those
    that take their places, whether its successor generates or not.
    """
    own = control.delta_name(number)
    for name in shm.list_segments(f"{control.generation_name(number)}-"):
        if name == own or not name.endswith(f"-{layout.DELTA_PART}"):
            continue
        fd = shm.reopen(name)
        try:
            mapping = Mapping(fd, os.fstat(fd).st_size, writable=True)
            delta = Delta(mapping, layout.DELTA | layout.COMPANION)
            mapping.store(delta.plan.directory + 8, min(delta.made(), count))
        except (ServiceError, ValueError):
            # Nobody can read it either.
            shm.unlink(name)
        finally:
            os.close(fd)


class DeltaCompanion:
    """What one maker generates of the records of a delta."""

    def __init__(
        self, segment: DeltaSegment, maker: CompanionMaker, inputs: tuple[str, ...]
    ) -> None:
        """Use :meth:`open`."""
        self.digest = segment.delta.digest
        self._segment = segment
        self._maker = maker
        self._inputs = inputs

    @classmethod
    def open(
        cls,
        control: ControlSegment,
        generation: Generation,
        maker: CompanionMaker,
        capacity: int,
    ) -> Self | None:
        """Goes on with what there is, or begins; None: there is no companion.

        :param generation: with the records of the delta that are published
        :raises SourceError: if this is no companion that the maker can go on with
        """
        number = generation.number
        try:
            base = Companion(shm.attach(control.companion_name(number, maker.digest)))
        except FileNotFoundError:
            return None
        following = maker.continued(base.schema)
        if following is None:
            raise SourceError("the companion's columns are not this fg.json's")
        name = control.delta_name(number, maker.digest)
        try:
            segment = DeltaSegment.attach(name, base, layout.DELTA | layout.COMPANION)
        except FileNotFoundError:
            heap = generation.delta.header.size if generation.delta else 0
            segment = DeltaSegment.create(name, base, capacity, 0, heap)
        made = cls(segment, following, following.inputs(generation.schema))
        try:
            made.resume(generation.count)
            segment.verify()
        except SourceError:
            # SAFETY: damaged, or its writer died before it was signed.
            made.clear()
        return made

    @property
    def nbytes(self) -> int:
        """Memory that it has taken."""
        return self._segment.nbytes

    def resume(self, count: int) -> None:
        """Forgets all but the first ``count`` records."""
        made = min(self._segment.made, count)
        self._segment.made = made
        self._segment.resume(made)

    def clear(self) -> None:
        """Forgets all records; they are generated anew."""
        self._segment.made = 0
        self._segment.clear()

    def sign(self) -> None:
        """Before the records that it was made of are published."""
        self._segment.sign()

    def extend(self, view: Generation, graves: NDArray[np.uint8]) -> None:
        """Generates for the records that are new.

        :param graves: one for each of the last records of the view; 1 for a deleted
            item, of which nothing is generated
        :raises SourceError: if they fit no longer, or there is no room
        """
        segment = self._segment
        first = view.count - len(graves)
        for start in range(segment.written, view.count, BATCH):
            rows = min(BATCH, view.count - start)
            numbers = np.arange(start, start + rows, dtype=np.int64)
            columns = self._generate(view, numbers, graves[numbers - first] == 1)
            packer = RowPacker(
                segment.layout,
                Column.from_arrow(pa.array(numbers)),
                [columns[name] for name in segment.delta.schema],
            )
            _, kept, heap = packer.measure(0, rows)
            if kept != rows:
                raise SourceError("what is generated of one item takes 2 GiB")
            segment.grow(rows, heap)
            at, end = segment.room()
            _, segment.heap_end = packer.pack(segment.mapping, 0, rows, at, end)
            segment.written = start + rows
            segment.made = segment.written

    def _generate(
        self, view: Generation, numbers: NDArray[np.int64], dead: NDArray[np.bool_]
    ) -> dict[str, Column]:
        if dead.all():
            return dict.fromkeys(self._segment.delta.schema, Column.null(len(dead)))
        rows = view.row_count + numbers
        # Nobody reads these; what is generated of another item will do.
        rows[dead] = rows[~dead][0]
        columns = self._maker.generate(view.gather(rows, self._inputs), len(rows))
        if columns is None:
            raise SourceError("what is generated fits the companion no longer")
        return columns

    def close(self) -> None:
        """Lets go of the segment; it stays."""
        self._segment.close()
