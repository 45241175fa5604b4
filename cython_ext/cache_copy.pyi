import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_records import Records
from cython_ext.shm import Mapping

class RecordCopier:
    null_keys: int
    long_keys: int
    huge_rows: int
    def __init__(
        self,
        records: Records,
        rows: NDArray[np.int64],
        delta: Records | None = None,
        count: int = 0,
        number: int = -1,
    ) -> None: ...
    def measure(self, start: int, room: int) -> tuple[int, int, int]: ...
    def pack(
        self, mapping: Mapping, start: int, stop: int, records: int, heap: int
    ) -> tuple[int, int]: ...
