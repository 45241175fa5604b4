"""What workers read: the current generation, lookups and gathers."""

import copy
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_gather import gather
from cython_ext.cache_index import ItemIndex
from cython_ext.cache_overlay import GRAVE, NEWEST, Overlay
from cython_ext.cache_records import Records
from cython_ext.column import Column
from cython_ext.shm import Mapping
from cython_ext.xxh64 import xxh64
from procserver import shm
from procserver.errors import ServiceError, SourceError
from procserver.itemcache import layout
from procserver.itemcache.control import ControlSegment

logger = logging.getLogger(__name__)

# A name that is gone was replaced between the load of its number and the open;
# each further try needs another publication in that instant.
TRIES = 32
# Seconds until a generation that could not be attached is tried again.
RETRY = 1.0


class _Rows:
    """The records of a segment, and how many of those of a delta come behind them."""

    def __init__(self, mapping: Mapping, flags: int) -> None:
        with memoryview(mapping) as view:
            header = layout.Header.unpack(view[: layout.HEAD_BYTES].tobytes())
            start, size = header.schema_offset, header.schema_size
            section = view[start : start + size].tobytes()
        if header.flags != flags:
            raise SourceError(f"generation {header.generation} is not complete")
        if header.size != len(mapping):
            raise SourceError(
                f"generation {header.generation} has {len(mapping)} bytes instead of"
                f" {header.size}"
            )
        if xxh64(section) != header.schema_hash:
            raise SourceError(f"generation {header.generation}: schema is damaged")
        self.key, self.schema, self.digest = layout.unpack_schema(section)
        self.source = layout.source_of(section)
        record = layout.record_layout(self.schema)
        if record.stride != header.record_size:
            raise SourceError(f"generation {header.generation}: records do not fit")
        try:
            self._records = Records(
                mapping, record, header.rows, header.block_shift, header.directory
            )
        except (ValueError, OverflowError) as error:
            raise SourceError(f"generation {header.generation}: {error}") from error
        self._columns = {name: i for i, name in enumerate(self.schema)}
        self.header = header
        self.number = header.generation
        self.table = header.table
        self.row_count = header.rows
        self.nbytes = header.size
        self.delta: Delta | None = None
        self.count = 0

    @property
    def records(self) -> Records:
        """The records themselves, for kernels."""
        return self._records

    def _with(self, delta: "Delta | None", count: int) -> Self:
        """The same with the first ``count`` records of a delta."""
        if delta is not None and delta is not self.delta:
            self.check_delta(delta)
        if count > (0 if delta is None else delta.row_count):
            raise SourceError(f"generation {self.number}: no delta of {count} records")
        view = copy.copy(self)
        view.delta, view.count = delta, count
        return view

    def check_delta(self, delta: "Delta") -> None:
        """:raises SourceError: if it is not of these rows"""
        mine, its = self.header, delta.header
        if (
            list(delta.schema.items()) != list(self.schema.items())
            or (delta.key, delta.digest) != (self.key, self.digest)
            or (mine.owner, mine.generation, mine.table)
            != (its.owner, its.generation, its.table)
        ):
            raise SourceError(f"generation {self.number}: a foreign delta")

    def gather(
        self, rows: NDArray[np.int64], names: Sequence[str]
    ) -> dict[str, Column]:
        """The cells of ``rows`` by column name; row -1 gives nulls.

        The columns own their memory: they outlive the generation.

        :raises KeyError: for an unknown name
        :raises IndexError: for a row that does not exist
        """
        numbers = [self._columns[name] for name in names]
        delta = None if self.delta is None else self.delta.records
        cells = gather(self._records, rows, numbers, delta, self.count)
        return dict(zip(names, cells, strict=True))

    def verify(self) -> None:
        """Reads every byte and compares the checksum (1 to 10 GB/s).

        :raises SourceError: if the segment is not what was sealed
        """
        with memoryview(self._records.mapping) as view:
            body = xxh64(view[layout.HEAD_BYTES :])
        if body != self.header.body_hash:
            raise SourceError(f"generation {self.number}: body is damaged")


class Delta(_Rows):
    """What has changed since a generation was built; grows while it is read.

    ``row_count`` is how many records there can be. How many there are is not known
    here: the control segment tells it.

    :raises SourceError: as for a :class:`Generation`
    """

    def __init__(self, mapping: Mapping, flags: int = layout.DELTA) -> None:
        super().__init__(mapping, flags)
        self.plan = plan = layout.DeltaPlan.of_header(self.header)
        self.overlay: Overlay | None = None
        if flags & layout.COMPANION:
            return
        try:
            slots = self.header.index_slots
            self.overlay = Overlay(self._records, plan.slots, slots, plan.links)
        except (ValueError, OverflowError) as error:
            raise SourceError(f"generation {self.number}, delta: {error}") from error

    def made(self) -> int:
        """How many records of a companion's delta have been written."""
        made = self._records.mapping.load(self.plan.directory + 8)
        return min(made, self.row_count)

    def verify(self) -> None:
        """Not for deltas, which have no checksum."""
        raise TypeError("a delta has no checksum")


class Generation(_Rows):
    """One immutable state of an item table: a generation and what has changed since.

    Keeps its maps for as long as it is referenced, also after the writer has
    unlinked the segments. All methods are safe from several threads at once.

    Row numbers below ``row_count`` are those of the generation, the ``count`` behind
    them those of its delta.

    Attributes: ``number`` (grows with every generation), ``count`` (records of the
    delta; grows with every publication of the same generation), ``schema`` (column
    name to kind), ``key`` (name of the id column), ``row_count`` (records of the
    generation), ``item_count`` (its distinct ids), ``nbytes``, ``built_at`` (seconds
    since 1970), ``table``, ``source`` (digest of the source's configuration, "" if
    nobody said), ``companion`` (what was generated ahead, if there is any).

    :raises SourceError: if the segment is foreign, damaged, unsealed, of another
        layout, or has lost bytes since it was written
    """

    def __init__(self, mapping: Mapping) -> None:
        super().__init__(mapping, layout.SEALED)
        header = self.header
        try:
            self._index = ItemIndex(self._records, header.index, header.index_slots)
        except (ValueError, OverflowError) as error:
            raise SourceError(f"generation {header.generation}: {error}") from error
        self._overlay: Overlay | None = None
        self.companion: Companion | None = None
        self.item_count = header.items
        self.built_at = header.built_at / 1e9

    @property
    def index(self) -> ItemIndex:
        """The generation's own index, without the delta."""
        return self._index

    def at(self, count: int, delta: Delta | None = None) -> "Generation":
        """The same generation with ``count`` records of its delta.

        :param delta: None: the one that it has
        :raises SourceError: if that is no delta of this generation
        """
        view = self._with(self.delta if delta is None else delta, count)
        view._overlay = None
        if view.delta is not None and count:
            view._overlay = view.delta.overlay
        if self.companion is not None:
            view.companion = self.companion.at(count)
        return view

    def attach_companion(self, mapping: Mapping, digest: str) -> None:
        """Takes the segment in ``mapping`` for :attr:`companion`.

        :raises SourceError: if it is not what ``digest`` made of this generation
        """
        companion = Companion(mapping)
        mine, its = self.header, companion.header
        if companion.digest != digest or (
            (mine.owner, mine.generation, mine.table, mine.rows)
            != (its.owner, its.generation, its.table, its.rows)
        ):
            raise SourceError(f"generation {self.number}: a foreign companion")
        self.companion = companion

    def lookup(self, ids: Column) -> NDArray[np.int64]:
        """Row numbers of item ids, -1 where an id is null, unknown or deleted.

        ``ids`` is STRING, INT32 or INT64; the text of an integer and the integer
        are one id ("0123" and "+1" are texts like any other).

        :raises TypeError: for any other kind
        """
        return self._index.lookup(ids, self._overlay, self.count)

    def count_items(self) -> int:
        """Items that there are now: changes have made new ones and ended others."""
        if self._overlay is None:
            return self.item_count
        newest = np.frombuffer(self._overlay.newest(self.count), np.uint8)
        alive, ended = np.flatnonzero(newest == NEWEST), np.flatnonzero(newest == GRAVE)
        made = int(self._index.missing(self._overlay, alive).sum())
        unknown = int(self._index.missing(self._overlay, ended).sum())
        return self.item_count + made - (len(ended) - unknown)

    def get(self, item_id: str | int) -> dict[str, Any] | None:
        """One item as Python objects, for humans; None: unknown."""
        rows = self.lookup(Column.from_texts([str(item_id)]))
        if rows[0] < 0:
            return None
        columns = self.gather(rows, list(self.schema))
        return {name: column.to_pylist()[0] for name, column in columns.items()}

    def item_id(self, row: int) -> int | str:
        """The id of a row, an integer wherever its text is a decimal one."""
        if self.delta is not None and self.row_count <= row < self.row_count + (
            self.count
        ):
            return self.delta.records.id_of(row - self.row_count)
        return self._records.id_of(row)


class Companion(_Rows):
    """What was generated ahead from a generation; its rows have the same numbers.

    Attributes: ``digest`` (of what generated it), ``schema``, ``row_count``,
    ``nbytes``, ``number`` and ``table`` (of its generation), ``count`` (records of
    the delta of which something was generated).

    :raises SourceError: as for a :class:`Generation`
    """

    def __init__(self, mapping: Mapping) -> None:
        super().__init__(mapping, layout.SEALED | layout.COMPANION)

    def attach_delta(self, delta: Delta) -> None:
        """Takes what was generated of the delta; see :meth:`at`.

        :raises SourceError: if it is not of this companion
        """
        self.delta = self._with(delta, 0).delta

    def at(self, count: int) -> "Companion":
        """The same with what was generated of the first ``count`` records."""
        made = 0 if self.delta is None else min(self.delta.made(), count)
        return self._with(self.delta, made)

    def covers(self, rows: NDArray[np.int64]) -> bool:
        """Whether all of these rows were generated ahead."""
        if not len(rows):
            return True
        return bool(rows.max() < self.row_count + self.count)


class CacheReader:
    """Follows one item table of a control segment.

    ``error`` tells why the published generation could not be attached while an
    older one is served in its place; None is the rule. With ``digest``, each
    generation comes with the companion of that digest, if it has a sound one.

    :raises SourceError: if there is no such control segment
    """

    def __init__(
        self, control_name: str, *, table: int = 0, digest: str | None = None
    ) -> None:
        self._digest = digest
        self._control = ControlSegment.open(control_name)
        self._table = table
        self._lock = threading.Lock()
        self._generation: Generation | None = None
        self._retry_at = 0.0
        self.error: ServiceError | None = None

    def current(self) -> Generation:
        """What the writer published last; call once per request.

        One atomic load unless it has changed. Numbers never go back, and of one
        number the count of the delta never does. A generation that cannot be
        attached (see ``error``) leaves the one before in service and is tried again
        after a second.

        :raises SourceError: if none has been published, or the first one cannot be
            attached
        """
        generation = self._generation
        if generation is not None:
            state = self._control.state(self._table)
            if state == (generation.number, generation.count):
                return generation
            if time.monotonic() < self._retry_at:
                return generation
        with self._lock:
            try:
                self._generation = self._attach(self._generation)
                self.error = None
            except ServiceError as error:
                if self._generation is None:
                    raise
                self.error = error
                self._retry_at = time.monotonic() + RETRY
            return self._generation

    def _attach(self, known: Generation | None) -> Generation:
        for attempt in range(TRIES):
            number, count = self._control.state(self._table)
            # NOTE: state 0 after a generation means that the owner is at its end;
            # what is mapped serves the requests that are still under way.
            if known is not None and not number:
                return known
            if not number:
                raise SourceError("no generation of the item cache is published yet")
            try:
                generation = known
                if generation is None or generation.number != number:
                    generation = self._attach_generation(number)
                if generation.count != count:
                    generation = self._attach_delta(generation, count)
            except FileNotFoundError:
                time.sleep(0.001 * attempt)
                continue
            return generation
        raise SourceError(f"generation {number} of the item cache is gone")

    def _attach_generation(self, number: int) -> Generation:
        """:raises FileNotFoundError: if its name is gone"""
        generation = Generation(shm.attach(self._control.generation_name(number)))
        if generation.header.owner != self._control.owner or (
            generation.number != number
        ):
            raise SourceError(f"generation {number} belongs to another service")
        self._attach_companion(generation)
        return generation

    def _attach_delta(self, generation: Generation, count: int) -> Generation:
        """:raises FileNotFoundError: if its name is gone"""
        delta = generation.delta
        if delta is None:
            delta = Delta(shm.attach(self._control.delta_name(generation.number)))
        companion = generation.companion
        if companion is not None and companion.delta is None:
            self._attach_companion_delta(companion)
        return generation.at(count, delta)

    def _attach_companion(self, generation: Generation) -> None:
        """Everything works without it, only slower."""
        if self._digest is None:
            return
        name = self._control.companion_name(generation.number, self._digest)
        try:
            generation.attach_companion(shm.attach(name), self._digest)
        except FileNotFoundError:
            return
        except ServiceError as error:
            logger.warning("%s is not used: %s", name, error)

    def _attach_companion_delta(self, companion: Companion) -> None:
        """Everything works without it, only slower."""
        name = self._control.delta_name(companion.number, companion.digest)
        try:
            flags = layout.DELTA | layout.COMPANION
            companion.attach_delta(Delta(shm.attach(name), flags))
        except FileNotFoundError:
            return
        except ServiceError as error:
            logger.warning("%s is not used: %s", name, error)
