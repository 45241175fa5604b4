"""Arrow batches to one generation segment, built aside and published whole."""

import os
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.cache_copy import RecordCopier
from cython_ext.cache_index import ItemIndex
from cython_ext.cache_pack import RowPacker
from cython_ext.cache_records import Records
from cython_ext.column import Column, Kind, arrow_type
from cython_ext.shm import Mapping
from cython_ext.xxh64 import xxh64
from procserver import shm
from procserver.errors import SourceError
from procserver.faults import hit
from procserver.itemcache import layout
from procserver.itemcache.cells import Sieve, column_kind
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import Generation

if TYPE_CHECKING:
    from procserver.itemcache.intake import Intake

# How often a taken name is passed over before the build is given up.
TRIES = 16
# Why a row is left out, other than for a later row of the same id.
LEFT_OUT = ("null_key", "bad_key", "long_key", "huge_row")
# Why one is left out that is not bad: nothing was heard of the item for too long.
EXPIRED = "expired"


class GenerationWriter:
    """Builds one generation. Use as a context manager::

        with GenerationWriter(control, "item_id", schema) as writer:
            for batch in batches:
                writer.append(batch)
            writer.publish()

    Memory is taken block by block (16,384 rows) as rows arrive, each block
    allocated in full before it is written; of the source only the rows of the
    block in hand are held. Rows without a usable id are left out and counted in
    ``skipped`` by reason: ``null_key``, ``bad_key`` (no UTF-8), ``long_key`` (over
    65,535 bytes), ``huge_row`` (2 GiB of text and lists), ``duplicate_key`` (a later
    row of the same id won); so are the cells that ``sieve`` nulls, and rows that
    ``intake`` leaves out (``expired``). ``seen``: rows that came, good or bad. Leaving
    the block before :meth:`publish` removes the segment.

    :raises SourceError: if shared memory does not suffice or cannot be created
    """

    def __init__(
        self,
        control: ControlSegment,
        key: str,
        schema: dict[str, Kind],
        *,
        table: int = 0,
        expected_rows: int | None = None,
        sieve: Sieve | None = None,
        intake: "Intake | None" = None,
    ) -> None:
        self.seen = 0
        self.rows = 0
        self.items = 0
        self._left_out: Counter[str] = Counter()
        self._sieve = Sieve() if sieve is None else sieve
        self._intake = intake
        self._control = control
        self._key = key
        self._schema = dict(schema)
        self._table = table
        self._expected = expected_rows
        self._layout = layout.record_layout(self._schema)
        self._blocks: list[int] = []
        self._pending: list[tuple[RowPacker | RecordCopier, int, int]] = []
        self._pending_rows = 0
        self._pending_heap = 0
        self._keep = False
        self._sealed = False
        self.number, self.name, self._fd = self._create()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _create(self) -> tuple[int, str, int]:
        for _ in range(TRIES):
            number = self._control.next_number()
            name = self._control.generation_name(number)
            try:
                return number, name, shm.create(name)
            except FileExistsError:
                # SAFETY: whoever made it may use it; we take the next number.
                continue
        raise SourceError(f"shared memory {name} and {TRIES - 1} before it are taken")

    def _start(self) -> None:
        section = self._section = self._schema_section()
        self._end = layout.HEAD_BYTES + len(section)
        shm.allocate(self._fd, 0, self._end)
        self._mapping = Mapping(self._fd, self._end, writable=True)
        # The header names the owner from the start, so that a build that dies is
        # known for ours; its flags say that it is not sealed.
        self._write(0, self._header(flags=0).pack())
        self._write(layout.HEAD_BYTES, section)

    def _schema_section(self) -> bytes:
        return layout.pack_schema(self._key, self._schema, source=self._control.source)

    def _write(self, offset: int, data: bytes) -> None:
        hit("cache.write")
        with memoryview(self._mapping) as view:
            view[offset : offset + len(data)] = data

    def _grow(self, end: int) -> None:
        detail = ""
        if self._expected and self.rows and self._expected > self.rows:
            total = end * self._expected // self.rows
            detail = f", about {total} for all of its {self._expected} rows"
        shm.allocate(self._fd, self._end, end, detail)
        self._mapping.resize(end)
        self._end = end

    @property
    def skipped(self) -> Counter[str]:
        """Rows that were left out and cells that were nulled, by reason."""
        return self._left_out + self._sieve.skipped

    @property
    def nbytes(self) -> int:
        """Size of the segment so far."""
        return self._end

    def append(
        self, batch: pa.RecordBatch, times: NDArray[np.int64] | None = None
    ) -> None:
        """Adds the rows of a batch; columns that the schema lacks are ignored.

        :param times: int64 event times of the rows; older events of a delta will
            not overwrite them
        :raises SourceError: if the key is missing or a column does not fit its kind
        """
        names = batch.schema.names
        if self._key not in names:
            raise SourceError(f"key column {self._key!r} is missing")
        packer, rows = self._packer(batch, names, times)
        self.seen += batch.num_rows - rows
        self._append(packer, rows)

    def append_records(self, copier: RecordCopier, rows: int) -> None:
        """Adds records of the same schema as they are."""
        self._append(copier, rows)

    def _append(self, packer: RowPacker | RecordCopier, rows: int) -> None:
        self.seen += rows
        self._left_out["null_key"] += packer.null_keys
        self._left_out["long_key"] += packer.long_keys
        self._left_out["huge_row"] += packer.huge_rows
        start = 0
        block = 1 << layout.BLOCK_SHIFT
        while start < rows:
            stop, kept, heap = packer.measure(start, block - self._pending_rows)
            self._pending.append((packer, start, stop))
            self._pending_rows += kept
            self._pending_heap += heap
            start = stop
            if self._pending_rows == block:
                self._flush()

    def _packer(
        self,
        batch: pa.RecordBatch,
        names: list[str],
        times: NDArray[np.int64] | None,
    ) -> tuple[RowPacker, int]:
        """What packs a batch, and how many rows of it."""
        known = None
        key = batch.column(names.index(self._key))
        column_kind(self._key, key.type)
        key, bad = self._sieve.keys(key)
        # The packer knows them for nulls.
        self._left_out["bad_key"] += bad
        self._left_out["null_key"] -= bad
        try:
            if pa.types.is_null(key.type):
                key = key.cast(pa.string())
            if self._intake is not None:
                batch, key, known, expired = self._intake.take(batch, key)
                self._left_out[EXPIRED] += expired
            ids = Column.from_arrow(key)
            columns = self._sieve.columns(self._schema, batch, (self._key, key))
            cells = list(columns.values())
            return RowPacker(self._layout, ids, cells, times, known), batch.num_rows
        except TypeError as error:
            raise SourceError(
                f"key column {self._key!r} has Arrow type {key.type}; item ids are"
                " strings or integers"
            ) from error

    def _flush(self) -> None:
        """Writes the pending rows as one block."""
        if self._pending_rows:
            start = layout.aligned(self._end)
            heap = start + self._pending_rows * self._layout.stride
            self.rows += self._pending_rows
            self._grow(heap + self._pending_heap)
            self._blocks.append(start)
            hit("cache.write")
            for packer, first, stop in self._pending:
                start, heap = packer.pack(self._mapping, first, stop, start, heap)
        self._pending.clear()
        self._pending_rows = self._pending_heap = 0

    def seal(self) -> None:
        """Adds directory, index and checksums; nothing can be appended after it."""
        if self._sealed:
            return
        self._flush()
        directory = layout.aligned(self._end)
        self._grow(directory + 8 * len(self._blocks))
        self._write(directory, b"".join(b.to_bytes(8, "little") for b in self._blocks))
        fields = self._finish(directory)
        with memoryview(self._mapping) as view:
            body = xxh64(view[layout.HEAD_BYTES :])
        header = self._header(
            items=self.items, directory=directory, body_hash=body, **fields
        )
        self._write(0, header.pack())
        self._sealed = True

    def _finish(self, directory: int) -> dict[str, int]:
        """Adds the index; the header's fields about it."""
        index = layout.aligned(self._end)
        slots = layout.index_slots(self.rows)
        self._grow(index + layout.index_bytes(self.rows))
        records = Records(
            self._mapping, self._layout, self.rows, layout.BLOCK_SHIFT, directory
        )
        duplicates = ItemIndex(records, index, slots).fill()
        self._left_out["duplicate_key"] += duplicates
        self.items = self.rows - duplicates
        return {"flags": layout.SEALED, "index": index, "index_slots": slots}

    def _header(self, **fields: int) -> layout.Header:
        known: dict[str, Any] = {"items": 0, "directory": 0, "index": 0} | {
            "index_slots": 0,
            "body_hash": 0,
        }
        return layout.Header(
            generation=self.number,
            owner_started=self._control.owner.started,
            owner_pid=self._control.owner.pid,
            table=self._table,
            built_at=time.time_ns(),
            rows=self.rows,
            record_size=self._layout.stride,
            block_shift=layout.BLOCK_SHIFT,
            size=self._end,
            schema_offset=layout.HEAD_BYTES,
            schema_size=len(self._section),
            schema_hash=xxh64(self._section),
            **(known | fields),
        )

    def publish(self, deltas: int = 0) -> int:
        """Seals, makes this the current generation, unlinks the one before.

        :param deltas: records of its delta that are published with it
        :return: the generation number
        """
        self.seal()
        before, _ = self._control.state(self._table)
        hit("cache.publish")
        self._control.publish(self.number, self._table, deltas)
        self._keep = True
        hit("cache.publish")
        if before:
            self._control.unlink_generation(before)
        return self.number

    def close(self) -> None:
        """Lets go of the segment; removes it unless it has been published.

        Its companions go with it.
        """
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._pending.clear()
            if not self._keep:
                self._remove()

    def _remove(self) -> None:
        self._control.unlink_generation(self.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class CompanionWriter(GenerationWriter):
    """Builds the companion of a sealed generation: no index, no publication.

    Rows are those of the generation in their order. Leaving the ``with`` block
    before :meth:`keep` removes the segment.

    :raises SourceError: if there is such a companion, or shared memory does not
        suffice
    """

    def __init__(
        self,
        control: ControlSegment,
        generation: Generation,
        digest: str,
        schema: dict[str, Kind],
    ) -> None:
        self._generation = generation
        self._digest = digest
        super().__init__(
            control,
            "",
            schema,
            table=generation.table,
            expected_rows=generation.row_count,
        )

    def _create(self) -> tuple[int, str, int]:
        number = self._generation.number
        name = self._control.companion_name(number, self._digest)
        try:
            return number, name, shm.create(name)
        except FileExistsError as error:
            raise SourceError(f"shared memory {name} exists already") from error

    def _schema_section(self) -> bytes:
        return layout.pack_schema("", self._schema, self._digest)

    def append_columns(self, columns: dict[str, Column]) -> None:
        """Adds rows; ``columns`` are those of the schema, equally long."""
        cells = [columns[name] for name in self._schema]
        rows = len(cells[0]) if cells else 0
        start = self.rows + self._pending_rows
        numbers = pa.array(range(start, start + rows), pa.int64())
        packer = RowPacker(self._layout, Column.from_arrow(numbers), cells)
        self._append(packer, rows)

    def _finish(self, directory: int) -> dict[str, int]:
        if self.rows != self._generation.row_count:
            raise SourceError(
                f"the companion has {self.rows} rows, its generation"
                f" {self._generation.row_count}"
            )
        self.items = self.rows
        return {"flags": layout.SEALED | layout.COMPANION}

    def keep(self) -> None:
        """Seals it; it lives as long as its generation."""
        self.seal()
        self._keep = True

    def publish(self, deltas: int = 0) -> int:
        """Not for companions: the generation is what is published."""
        raise TypeError("a companion is not published")

    def _remove(self) -> None:
        shm.unlink(self.name)


def source_column(name: str, kind: Kind | None, array: pa.Array) -> Column:
    """A source array as a column of ``kind`` (None: of its own).

    :raises SourceError: if it is not and cannot be made one
    """
    if kind is None:
        column_kind(name, array.type)
    try:
        if kind is not None and column_kind(name, array.type) not in (
            kind,
            Kind.ABSENT,
        ):
            array = array.cast(arrow_type(kind))
        return Column.from_arrow(array)
    except (pa.ArrowException, TypeError) as error:
        wanted = "" if kind is None else f" as {kind.name}"
        raise SourceError(f"column {name!r} cannot be read{wanted}: {error}") from error
