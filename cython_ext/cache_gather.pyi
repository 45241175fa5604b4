from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_records import Records
from cython_ext.column import Column

def gather(
    records: Records,
    rows: NDArray[np.int64],
    columns: Sequence[int],
    delta: Records | None = None,
    count: int = 0,
) -> list[Column]: ...
