from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_index import ItemIndex
from cython_ext.cache_known import KnownTimes
from cython_ext.cache_overlay import Overlay
from cython_ext.cache_records import RecordLayout, Records
from cython_ext.column import Column
from cython_ext.shm import Mapping

NO_TIME: int

# Ids; columns by number, None for a deletion, or times alone; times.
Step = tuple[
    Column,
    Sequence[tuple[int, Column]] | KnownTimes | None,
    NDArray[np.int64] | None,
]

class Composer:
    items: int
    null_keys: int
    long_keys: int
    huge_rows: int
    kept: int
    fresh: int
    heap: int
    upserted: int
    deleted: int
    stale: int
    def __init__(self, layout: RecordLayout, steps: list[Step]) -> None: ...
    def resolve(self, index: ItemIndex, overlay: Overlay, count: int) -> None: ...
    def graves(self) -> bytearray: ...
    def pack(self, mapping: Mapping, records: int, heap: int) -> int: ...

def buried(records: Records, rows: NDArray[np.int64]) -> NDArray[np.int64]: ...
