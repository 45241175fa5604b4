"""A base and a delta in private memory, for tests of the delta kernels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from cache_segments import pack_rows, private_map
from numpy.typing import NDArray

from cython_ext.cache_compose import Composer
from cython_ext.cache_index import SLOT_BYTES, ItemIndex
from cython_ext.cache_overlay import Overlay
from cython_ext.cache_records import Records
from cython_ext.column import Column

CAPACITY = 64
SLOTS = 128
HEAP = 1 << 16


@dataclass
class Table:
    """Records of a base with its index; a delta with its overlay, ``count`` so far."""

    base: Records
    index: ItemIndex
    delta: Records
    overlay: Overlay
    heap: int
    count: int = 0
    starts: dict[str, int] = field(default_factory=dict)

    def apply(
        self,
        ids: pa.Array,
        columns: dict[int, pa.Array] | None,
        times: Sequence[int] | None = None,
    ) -> Composer:
        """One step: composed, written, entered."""
        stamps = None if times is None else np.array(times, np.int64)
        cells = None
        if columns is not None:
            cells = [(n, Column.from_arrow(cell)) for n, cell in columns.items()]
        composer = Composer(self.base.layout, [(Column.from_arrow(ids), cells, stamps)])
        composer.resolve(self.index, self.overlay, self.count)
        at = self.starts["records"] + self.count * self.base.layout.stride
        self.heap = composer.pack(self.delta.mapping, at, self.heap)
        self.overlay.enter(self.count, composer.graves())
        self.count += composer.kept
        return composer

    def lookup(self, ids: pa.Array, count: int | None = None) -> NDArray[np.int64]:
        count = self.count if count is None else count
        return self.index.lookup(Column.from_arrow(ids), self.overlay, count)


def make_table(key: pa.Array, columns: Sequence[pa.Array]) -> Table:
    slots = len(key) * 2 + 1
    base, _ = pack_rows(key, columns, room=slots * SLOT_BYTES)
    index = ItemIndex(base, len(base.mapping) - slots * SLOT_BYTES, slots)
    index.fill()
    starts = {"slots": 64, "links": 64 + 8 * SLOTS}
    starts["records"] = starts["links"] + 4 * CAPACITY
    heap = starts["heap"] = starts["records"] + CAPACITY * base.layout.stride
    mapping = private_map(heap + HEAP)
    mapping.store(0, starts["records"])
    delta = Records(mapping, base.layout, CAPACITY, 24, 0)
    overlay = Overlay(delta, starts["slots"], SLOTS, starts["links"])
    return Table(base, index, delta, overlay, heap, starts=starts)
