"""Counters, gauges, histograms and texts over the words of a metrics block.

A :class:`Registry` gives every declared instrument its place in a row, so all
processes of a service know the same offsets without talking. Label values are
declared too: an unknown one counts as ``other``, so no input makes a new series.
Instruments write to the row that :meth:`Registry.bind` chose last; a new registry
writes to private memory.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

from cython_ext.buckets import Buckets
from cython_ext.shm import Mapping
from procserver.observe.block import ROW_HEAD_BYTES, Block, aligned, digest_of
from procserver.shm import Owner

OTHER = "other"
WORD = 8
TEXT_BYTES = 240
NANO = 1_000_000_000

Aggregation = Literal["sum", "max", "last", "age"]
Kind = Literal["counter", "gauge", "histogram", "info"]

_MASK = (1 << 64) - 1
_SIGN = 1 << 63
_TEXT_HEAD = 16
_SEPARATOR = "\x1f"


def _signed(word: int) -> int:
    return word - (1 << 64) if word & _SIGN else word


class Instrument:
    """One declared metric: its words in a row and the label that splits it.

    ``per_process`` metrics are rendered once for each process, else added up.
    """

    kind: Kind
    words_each = 1

    def __init__(
        self,
        name: str,
        help: str,
        *,
        label: str = "",
        values: Sequence[str] = (),
        per_process: bool = False,
    ) -> None:
        if bool(label) != bool(values):
            raise ValueError(f"{name}: a label comes with its values")
        self.name = name
        self.help = help
        self.label = label
        self.values = (*values, OTHER) if values else ("",)
        self.per_process = per_process
        self.offset = 0
        self._places: dict[str, int] = {}
        self._other = 0

    @property
    def size(self) -> int:
        """Bytes of a row that this instrument takes."""
        return WORD * self.words_each * len(self.values)

    @property
    def declaration(self) -> str:
        """What decides about offsets and their meaning."""
        return f"{self.kind} {self.name} {self.label} {' '.join(self.values)}"

    def start(self, base: int, value: str) -> int:
        """Where the words of one label value begin in the row at ``base``."""
        index = self.values.index(value)
        return base + self.offset + WORD * self.words_each * index

    def bind(self, mapping: Mapping, base: int) -> None:
        """Writes to the row at ``base`` from now on."""
        self._places = {value: self.start(base, value) for value in self.values}
        self._other = self._places[self.values[-1]]

    def forget(self, mapping: Mapping, base: int) -> None:
        """Clears what only its last writer could vouch for."""


class Counter(Instrument):
    """A number that only grows."""

    kind: Kind = "counter"

    def bind(self, mapping: Mapping, base: int) -> None:
        super().bind(mapping, base)
        self._add = mapping.add

    def add(self, n: int = 1, label: str = "") -> None:
        """Adds ``n`` (not negative) to the series of ``label``."""
        self._add(self._places.get(label, self._other), n)

    def read(self, block: Block, row: int, value: str) -> int:
        """What the row has counted."""
        return block.mapping.load(self.start(block.base(row), value))


class Gauge(Instrument):
    """A number that goes up and down: a word for it and one for when it was set.

    How the rows of several processes become one number: ``sum``, ``max``,
    ``last`` (set most recently) or ``age`` (seconds since the last :meth:`mark`).
    ``scale`` units make one of what is rendered.
    """

    kind: Kind = "gauge"
    words_each = 2

    def __init__(
        self,
        name: str,
        help: str,
        *,
        aggregation: Aggregation = "sum",
        scale: int = 1,
        label: str = "",
        values: Sequence[str] = (),
        per_process: bool = False,
    ) -> None:
        super().__init__(
            name, help, label=label, values=values, per_process=per_process
        )
        self.aggregation = aggregation
        self.scale = scale

    @property
    def declaration(self) -> str:
        return f"{super().declaration} {self.aggregation} {self.scale}"

    def bind(self, mapping: Mapping, base: int) -> None:
        super().bind(mapping, base)
        self._add = mapping.add
        self._store = mapping.store

    def forget(self, mapping: Mapping, base: int) -> None:
        for value in self.values:
            place = self.start(base, value)
            mapping.store(place + WORD, 0)
            mapping.store(place, 0)

    def set(self, number: float, label: str = "") -> None:
        """The number as it is now."""
        place = self._places.get(label, self._other)
        self._store(place, round(number * self.scale) & _MASK)
        self._store(place + WORD, time.monotonic_ns())

    def add(self, n: int = 1, label: str = "") -> None:
        """Adds ``n``, which may be negative; for gauges that are summed up."""
        self._add(self._places.get(label, self._other), (n * self.scale) & _MASK)

    def mark(self, label: str = "", *, ago: float = 0.0) -> None:
        """Something happened ``ago`` seconds before; an ``age`` gauge counts on."""
        place = self._places.get(label, self._other)
        self._store(place, 0)
        # 0 would mean that it never happened.
        stamp = max(1, time.monotonic_ns() - round(ago * NANO))
        self._store(place + WORD, stamp)

    def read(self, block: Block, row: int, value: str) -> tuple[float, int]:
        """(number, CLOCK_MONOTONIC ns at which it was set; 0: never)."""
        place = self.start(block.base(row), value)
        stamp = block.mapping.load(place + WORD)
        return _signed(block.mapping.load(place)) / self.scale, stamp


class Histogram(Instrument):
    """Durations by bucket: a word for each bound, one for more, one for the sum.

    ``cells`` are the counting ends by label value in the order of declaration.
    """

    kind: Kind = "histogram"

    def __init__(
        self,
        name: str,
        help: str,
        bounds: Sequence[float],
        *,
        label: str = "",
        values: Sequence[str] = (),
        per_process: bool = False,
    ) -> None:
        super().__init__(
            name, help, label=label, values=values, per_process=per_process
        )
        if list(bounds) != sorted(set(bounds)) or not bounds:
            raise ValueError(f"{name}: bucket bounds must grow")
        self.bounds = tuple(bounds)
        self._bounds_ns = [round(bound * NANO) for bound in bounds]
        self.words_each = len(bounds) + 2
        self.cells: tuple[Buckets, ...] = ()

    @property
    def declaration(self) -> str:
        return f"{super().declaration} {self.bounds}"

    def bind(self, mapping: Mapping, base: int) -> None:
        super().bind(mapping, base)
        self.cells = tuple(
            Buckets(mapping, place, self._bounds_ns) for place in self._places.values()
        )
        self._cells = dict(zip(self.values, self.cells, strict=True))

    def observe(self, seconds: float, label: str = "") -> None:
        """Counts one duration."""
        self.observe_ns(int(seconds * NANO), label)

    def observe_ns(self, nanoseconds: int, label: str = "") -> None:
        """Counts one duration."""
        self._cells.get(label, self.cells[-1]).observe(nanoseconds)

    def read(self, block: Block, row: int, value: str) -> list[int]:
        """Counts by bucket (not cumulative, the last is "more") and the sum, ns."""
        place = self.start(block.base(row), value)
        return [
            block.mapping.load(place + WORD * word) for word in range(self.words_each)
        ]


class Text(Instrument):
    """Short texts, rendered as the labels of a series with the value 1.

    ::

        offset  size  field
             0     8  CLOCK_MONOTONIC ns at which it was set; 0: never
             8     4  bytes of text
            12     4  CRC-32 of the text: a torn read is noticed and repeated
            16   240  UTF-8, the labels' texts joined by 0x1f
    """

    kind: Kind = "info"
    words_each = (_TEXT_HEAD + TEXT_BYTES) // WORD

    def __init__(self, name: str, help: str, labels: Sequence[str]) -> None:
        super().__init__(name, help)
        self.labels = tuple(labels)

    @property
    def declaration(self) -> str:
        return f"{super().declaration} {' '.join(self.labels)}"

    def bind(self, mapping: Mapping, base: int) -> None:
        super().bind(mapping, base)
        self._view = memoryview(mapping)
        self._store = mapping.store

    def forget(self, mapping: Mapping, base: int) -> None:
        mapping.store(self.start(base, ""), 0)

    def set(self, *texts: str) -> None:
        """One text for each label; long ones are cut, control characters go."""
        if len(texts) != len(self.labels):
            raise ValueError(f"{self.name}: texts for {', '.join(self.labels)}")
        longest = TEXT_BYTES // len(texts) - 1
        data = _SEPARATOR.encode().join(_clean(text, longest) for text in texts)
        place = self._other
        head = len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little")
        self._view[place + WORD : place + _TEXT_HEAD] = head
        self._view[place + _TEXT_HEAD : place + _TEXT_HEAD + len(data)] = data
        self._store(place, time.monotonic_ns())

    def read(self, block: Block, row: int) -> tuple[str, ...] | None:
        """The texts; None: not set."""
        place = self.start(block.base(row), "")
        view = memoryview(block.mapping)
        for _ in range(3):
            if not block.mapping.load(place):
                return None
            size = int.from_bytes(view[place + WORD : place + WORD + 4], "little")
            crc = int.from_bytes(view[place + WORD + 4 : place + _TEXT_HEAD], "little")
            start = place + _TEXT_HEAD
            data = view[start : start + min(size, TEXT_BYTES)].tobytes()
            if zlib.crc32(data) == crc:
                texts = data.decode(errors="replace").split(_SEPARATOR)
                return tuple(texts) if len(texts) == len(self.labels) else None
        return None


def _clean(text: str, longest: int) -> bytes:
    printable = "".join(c if c.isprintable() else "?" for c in text)
    cut = printable.encode(errors="replace")[:longest]
    return cut.decode(errors="ignore").encode()


Declared = TypeVar("Declared", bound=Instrument)


class Registry:
    """The instruments of a service in the order of their declaration.

    Declare all, then :meth:`bind_private`; a service's master calls :meth:`create`
    and every process of it :meth:`bind` with its row, before it starts threads.
    """

    def __init__(self) -> None:
        self._instruments: dict[str, Instrument] = {}
        self._end = ROW_HEAD_BYTES
        self.block: Block | None = None
        self.row = 0

    def __iter__(self) -> Iterator[Instrument]:
        return iter(self._instruments.values())

    def declare(self, instrument: Declared) -> Declared:
        """Gives an instrument its place in the row; before anything is bound."""
        if instrument.name in self._instruments:
            raise ValueError(f"{instrument.name} is declared twice")
        if self.block is not None:
            raise ValueError(f"{instrument.name} is declared too late")
        instrument.offset = self._end
        self._end += instrument.size
        self._instruments[instrument.name] = instrument
        return instrument

    @property
    def row_bytes(self) -> int:
        """Bytes of one process's row."""
        return aligned(self._end)

    @property
    def digest(self) -> int:
        """Of the declarations; a block of another digest is not read."""
        return digest_of("\n".join(one.declaration for one in self))

    def create(self, service: str, rows: int, owner: Owner | None = None) -> Block:
        """Makes the metrics segment of a service; nothing writes to it yet.

        :raises SharedMemoryError: if the system refuses
        """
        return Block.create(service, rows, self.row_bytes, self.digest, owner)

    def attach(self, name: str) -> Block:
        """Opens a service's segment read-only, to render it.

        :raises FileNotFoundError: if there is none of that name
        :raises SharedMemoryError: if it is of another version
        """
        return Block.attach(name, self.digest)

    def bind(self, block: Block, row: int) -> None:
        """Every instrument writes to ``row`` of ``block`` from now on.

        Counters go on where the row's last process ended; its gauges and texts
        went with it.
        """
        alone = block.take(row)
        base = block.base(row)
        for instrument in self:
            if alone:
                instrument.forget(block.mapping, base)
            instrument.bind(block.mapping, base)
        self.block, self.row = block, row

    def bind_private(self) -> None:
        """Every instrument writes to fresh memory of this process's own."""
        self.bind(Block.private(self.row_bytes, self.digest), 0)
