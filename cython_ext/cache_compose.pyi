import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_records import Records
from cython_ext.cache_settle import Settlement
from cython_ext.shm import Mapping

NO_TIME: int

class Composer(Settlement):
    def graves(self) -> bytearray: ...
    def pack(self, mapping: Mapping, records: int, heap: int) -> int: ...

def buried(records: Records, rows: NDArray[np.int64]) -> NDArray[np.int64]: ...
