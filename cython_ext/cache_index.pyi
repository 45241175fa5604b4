import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_overlay import Overlay
from cython_ext.cache_records import Records
from cython_ext.column import Column

SLOT_BYTES: int

class ItemIndex:
    records: Records
    capacity: int
    def __init__(self, records: Records, offset: int, capacity: int) -> None: ...
    def fill(self) -> int: ...
    def lookup(
        self, ids: Column, overlay: Overlay | None = None, count: int = 0
    ) -> NDArray[np.int64]: ...
    def reachable(self) -> bytearray: ...
    def covered(
        self, overlay: Overlay, first: int, count: int
    ) -> NDArray[np.int64]: ...
    def find(self, text: bytes) -> int: ...
    def missing(
        self, overlay: Overlay, records: NDArray[np.int64]
    ) -> NDArray[np.bool_]: ...
