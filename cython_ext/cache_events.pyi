from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_known import KnownTimes
from cython_ext.cache_records import RecordLayout
from cython_ext.column import Column

# Ids; columns by number, None for a deletion, or times alone; times.
Step = tuple[
    Column,
    Sequence[tuple[int, Column]] | KnownTimes | None,
    NDArray[np.int64] | None,
]

class Events:
    items: int
    null_keys: int
    long_keys: int
    def __init__(self, layout: RecordLayout, steps: list[Step]) -> None: ...
