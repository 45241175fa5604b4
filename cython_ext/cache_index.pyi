import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_records import Records
from cython_ext.column import Column

SLOT_BYTES: int

class ItemIndex:
    capacity: int
    def __init__(self, records: Records, offset: int, capacity: int) -> None: ...
    def fill(self) -> int: ...
    def lookup(self, ids: Column) -> NDArray[np.int64]: ...
    def find(self, text: bytes) -> int: ...
