from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_known import KnownTimes
from cython_ext.cache_records import RecordLayout
from cython_ext.column import Column
from cython_ext.shm import Mapping

class RowPacker:
    null_keys: int
    long_keys: int
    huge_rows: int
    def __init__(
        self,
        layout: RecordLayout,
        key: Column,
        columns: Sequence[Column],
        times: NDArray[np.int64] | None = None,
        known: KnownTimes | None = None,
    ) -> None: ...
    def measure(self, start: int, room: int) -> tuple[int, int, int]: ...
    def pack(
        self, mapping: Mapping, start: int, stop: int, records: int, heap: int
    ) -> tuple[int, int]: ...
