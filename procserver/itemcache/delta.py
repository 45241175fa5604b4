"""Changes applied to a generation while it is read: the writer of its delta."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from cython_ext.cache_compose import NO_TIME, Composer, buried
from cython_ext.cache_copy import RecordCopier
from cython_ext.cache_known import KnownTimes
from cython_ext.cache_overlay import GRAVE, MOST_RECORDS
from cython_ext.column import Column
from procserver.errors import ServiceError, SourceError
from procserver.faults import hit
from procserver.itemcache import layout
from procserver.itemcache.companion import CompanionMaker
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.events import Ready, chunks, read_step
from procserver.itemcache.expiry import Expiry
from procserver.itemcache.growing import DeltaCompanion, DeltaSegment, truncate
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import ROW_TIME, Delete, Upsert
from procserver.itemcache.writer import EXPIRED

# How many records a delta has room for, and ids where the table has fewer rows: no
# fewer than one step of the refresher's may have, or that would never fit.
CAPACITY = 1 << 20
LEAST_IDS = 1 << 14
# Heap bytes that there is room for: for each record, and at least.
HEAP_EACH = 512
LEAST_HEAP = 1 << 28
# Deletions that are known from the generation before may take so much of it.
GRAVES_SHARE = 4


class DeltaFull(SourceError):
    """The delta has no room for more: it is to be folded into a new generation."""


@dataclass(frozen=True)
class Applied:
    """What became of the events of some steps.

    ``upserted``: rows that set something; ``deleted``: items that ended; ``stale``:
    events that changed nothing, being older than what is known (or the deletion of
    what is not there); ``skipped``: rows and columns left out, by reason:
    ``null_key``, ``long_key``, ``huge_row``, ``bad_value`` (rows with a value that
    its column cannot hold), ``unknown_column`` (columns of a step), ``expired`` (rows
    that are too old to bring an item back).
    """

    upserted: int = 0
    deleted: int = 0
    stale: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Applied") -> "Applied":
        return Applied(
            self.upserted + other.upserted,
            self.deleted + other.deleted,
            self.stale + other.stale,
            self.skipped + other.skipped,
        )


class DeltaWriter:
    """Appends changes to a generation, published or not yet. One at a time.

    An existing delta is gone on with: what its writer had not published when it died
    is forgotten. Use as a context manager or :meth:`close`; the segment stays, it
    goes with its generation.

    What ``makers`` generate of the changed rows is written with them, for those of
    which the generation has a companion. Once one cannot go on (a value fits no
    longer), it is asked no more; ``companion_problem`` tells why, and requests
    generate for themselves what is behind that.

    :param capacity: records that there shall be room for, at most 16,777,215
    :param expiry: what tells when items end, if the generation has their times
    :raises SourceError: if shared memory does not suffice, or what is there under
        the delta's name is not what was published
    """

    def __init__(
        self,
        control: ControlSegment,
        generation: Generation,
        *,
        table: int = 0,
        makers: Sequence[CompanionMaker] = (),
        capacity: int = CAPACITY,
        expiry: Expiry | None = None,
    ) -> None:
        if generation.table != table:
            raise SourceError(f"generation {generation.number} is not of table {table}")
        self._control = control
        self._table = table
        self._expiry = expiry if ROW_TIME in generation.schema else None
        self.companion_problem = ""
        self._companions: list[DeltaCompanion] = []
        number, count = control.state(table)
        self._published = count if number == generation.number else 0
        self._segment = self._open(generation.at(0), min(capacity, MOST_RECORDS))
        try:
            self._generation = generation.at(0, self._segment.delta)
            self._written = self._published
            self._segment.resume(self._written)
            self._segment.verify()
            self._ids = self._segment.overlay.repair(self._published)
            if self._published:
                truncate(control, generation.number, self._published)
            for maker in makers:
                self.add_maker(maker)
        except BaseException:
            self.close()
            raise

    def _open(self, generation: Generation, capacity: int) -> DeltaSegment:
        name = self._control.delta_name(generation.number)
        if self._published:
            return self._attach(name, generation)
        # What a writer left that published nothing may be of any capacity.
        self._control.unlink_delta(generation.number)
        ids = min(capacity, max(generation.row_count, LEAST_IDS))
        rows = max(generation.row_count, 1)
        mean = (generation.nbytes // rows) * 2
        heap = max(capacity * max(mean, HEAP_EACH), LEAST_HEAP)
        return DeltaSegment.create(name, generation, capacity, ids, heap)

    def _attach(self, name: str, generation: Generation) -> DeltaSegment:
        try:
            return DeltaSegment.attach(name, generation, layout.DELTA)
        except FileNotFoundError as error:
            raise SourceError(f"generation {generation.number}: {error}") from error

    @property
    def number(self) -> int:
        """The generation's."""
        return self._generation.number

    @property
    def rows(self) -> int:
        """Records written, published or not."""
        return self._written

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the delta and those of companions have taken."""
        return self._segment.nbytes + sum(c.nbytes for c in self._companions)

    @property
    def fullness(self) -> float:
        """Share of the room that is used: 1 raises :class:`DeltaFull` soon."""
        segment = self._segment
        return max(
            self._written / segment.capacity,
            self._ids / segment.id_capacity,
            segment.heap_used / segment.heap_room,
        )

    def view(self) -> Generation:
        """The generation with everything that was written, published or not."""
        return self._generation.at(self._written)

    def add_maker(self, maker: CompanionMaker) -> None:
        """Generates for one more maker, beginning with what is in the delta already.

        Nothing happens where the generation has no companion of its digest.
        """
        if any(c.digest == maker.digest for c in self._companions):
            return
        try:
            companion = DeltaCompanion.open(
                self._control, self.view(), maker, self._segment.capacity
            )
            if companion is None:
                return
            graves = self._segment.overlay.graves(self._written)
            if self._extend(companion, self.view(), graves):
                self._companions.append(companion)
                if self._published == self._written:
                    companion.sign()
        except ServiceError as error:
            self._complain(error)

    def keep_makers(self, digests: Iterable[str]) -> None:
        """Generates for these only from now on."""
        wanted = set(digests)
        for companion in self._companions:
            if companion.digest not in wanted:
                self._end(companion)
        self._companions = [c for c in self._companions if c.digest in wanted]

    def _extend(
        self, companion: DeltaCompanion, view: Generation, graves: bytearray
    ) -> bool:
        """Generates what is new; False: that companion has come to its end."""
        try:
            companion.extend(view, np.frombuffer(graves, np.uint8))
        except Exception as error:
            # Whatever it is (no memory, a plug-in's error): items can be served.
            self._complain(error)
            self._end(companion)
            return False
        return True

    def _end(self, companion: DeltaCompanion) -> None:
        # NOTE: what is not published may be replaced by other records.
        companion.resume(self._published)
        companion.close()

    def apply(
        self, steps: Sequence[Upsert | Delete], *, publish: bool = True
    ) -> Applied:
        """Makes the changes of ``steps``, in order: all of them, or none.

        With ``publish`` readers see them all at once when this returns; otherwise
        with the next publication. Several events of one item make one record.

        :raises DeltaFull: if there is no room; nothing has been changed then. Of an
            empty delta: they are too large for any
        :raises SourceError: if a step has no key column, or shared memory does not
            suffice
        """
        before = self._written
        total = Applied()
        try:
            for chunk in chunks(self._read(step) for step in steps):
                total += self._apply(chunk)
        except BaseException:
            self._roll_back(before)
            raise
        if publish:
            self.publish()
        return total

    def _read(self, step: Upsert | Delete) -> Ready:
        expired = 0
        if self._expiry is not None and isinstance(step, Upsert):
            step, expired = self._expiry.stamped(step, self.view())
        ready = read_step(step, self._generation)
        ready.skipped.update({EXPIRED: expired} if expired else {})
        return ready

    def remember(self, ids: Column, known: KnownTimes) -> None:
        """Times of events that are known of items, for those that are there.

        :raises DeltaFull: if there is no room; nothing has been changed then
        """
        before = self._written
        try:
            self._apply([Ready((ids, known, None), len(ids), Counter())])
        except BaseException:
            self._roll_back(before)
            raise

    def publish(self) -> None:
        """Shows readers what has been written, and the generation, in one store."""
        if self._published == self._written and (
            self._control.state(self._table)[0] == self.number
        ):
            return
        hit("delta.publish")
        self._sign()
        self._control.publish(self.number, self._table, self._written)
        self._published = self._written
        hit("delta.publish")

    def release(self) -> int:
        """How many records whoever publishes the generation now is to publish."""
        self._sign()
        self._published = self._written
        return self._written

    def _sign(self) -> None:
        self._segment.sign()
        for companion in self._companions:
            companion.sign()

    def forget(self) -> None:
        """Takes back what was written and not published."""
        self._roll_back(self._published)

    def _apply(self, chunk: Sequence[Ready]) -> Applied:
        composer = Composer(self._segment.layout, [ready.step for ready in chunk])
        composer.resolve(self._generation.index, self._segment.overlay, self._written)
        skipped = sum((ready.skipped for ready in chunk), Counter[str]())
        for reason in ("null_key", "long_key", "huge_row"):
            skipped[reason] += getattr(composer, f"{reason}s")
        if composer.kept:
            self._reserve(composer.kept, composer.fresh, composer.heap)
            at, heap = self._segment.room()
            hit("delta.write")
            self._segment.heap_end = composer.pack(self._segment.mapping, at, heap)
            self._enter(composer.graves())
        return Applied(composer.upserted, composer.deleted, composer.stale, +skipped)

    def inherit(self, before: Generation) -> int:
        """Goes on with the times of deletions that ``before`` knows.

        To be called first, for a generation that takes the place of ``before``: older
        events shall not bring back what was deleted there. Items that this generation
        has are left alone. Of more than a quarter of what there is room for the oldest
        deletions are forgotten.

        :return: how many there are
        :raises DeltaFull: if there is no room; nothing has been changed then
        """
        if before.delta is None or before.delta.overlay is None or not before.count:
            return 0
        overlay, records = before.delta.overlay, before.delta.records
        newest = np.frombuffer(overlay.newest(before.count), np.uint8)
        graves = np.flatnonzero(newest == GRAVE)
        graves = graves[self._generation.index.missing(overlay, graves)]
        times = buried(records, graves)
        graves = graves[times != NO_TIME]
        most = min(self._segment.capacity, self._segment.id_capacity) // GRAVES_SHARE
        if len(graves) > most:
            latest = np.argsort(times[times != NO_TIME], kind="stable")[-most:]
            graves = np.sort(graves[latest])
        if len(graves):
            self._carry(RecordCopier(records, graves), len(graves))
        return len(graves)

    def _carry(self, copier: RecordCopier, records: int) -> None:
        before = self._written
        try:
            _, _, size = copier.measure(0, records)
            self._reserve(records, records, size)
            at, heap = self._segment.room()
            _, self._segment.heap_end = copier.pack(
                self._segment.mapping, 0, records, at, heap
            )
            self._enter(bytearray(b"\1") * records)
        except BaseException:
            self._roll_back(before)
            raise

    def _reserve(self, records: int, ids: int, heap: int) -> None:
        segment = self._segment
        if (
            self._written + records > segment.capacity
            or self._ids + ids > segment.id_capacity
            or segment.heap_used + heap > segment.heap_room
        ):
            detail = f"{records} records with {heap} bytes beside {self._written}"
            raise DeltaFull(f"delta of generation {self.number} is full: {detail}")
        segment.grow(records, heap)

    def _enter(self, graves: bytearray) -> None:
        """Records are there: companions next, then the overlay leads to them."""
        first = self._written
        written = first + len(graves)
        self._segment.written = written
        hit("delta.write")
        view = self._generation.at(written)
        self._companions = [
            companion
            for companion in self._companions
            if self._extend(companion, view, graves)
        ]
        hit("delta.write")
        self._ids += self._segment.overlay.enter(first, graves)
        hit("delta.write")
        self._written = written

    def _complain(self, error: Exception) -> None:
        self.companion_problem = f"{type(error).__name__}: {error}"

    def _roll_back(self, count: int) -> None:
        self._ids = self._segment.overlay.repair(count)
        self._written = count
        self._segment.resume(count)
        for companion in self._companions:
            companion.resume(count)

    def close(self) -> None:
        """Lets go of the segments; they stay."""
        self._segment.close()
        for companion in self._companions:
            companion.close()
        self._companions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
