import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_index import ItemIndex
from cython_ext.cache_overlay import Overlay
from cython_ext.cache_records import RecordLayout, Records
from cython_ext.column import Column

class KnownTimes:
    rows: int
    nbytes: int
    def __init__(
        self,
        ids: Column,
        index: ItemIndex,
        overlay: Overlay | None,
        count: int,
        layout: RecordLayout,
        columns: NDArray[np.int64],
    ) -> None: ...

def any_times(records: Records, count: int) -> bool: ...
def latest_times(records: Records, rows: NDArray[np.int64]) -> NDArray[np.int64]: ...
def int64_cells(
    records: Records, column: int, rows: NDArray[np.int64]
) -> NDArray[np.int64]: ...
