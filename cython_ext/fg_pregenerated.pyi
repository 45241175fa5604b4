from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column

# Tensor names, values of missing rows, weights of missing rows.
Restored = tuple[tuple[str, ...], NDArray[Any], NDArray[np.float32] | None]

def column_of(
    values: NDArray[Any], lengths: NDArray[np.int32] | None, kind: int
) -> Column | None: ...
def restore(
    rows: NDArray[np.int64], features: list[Restored], columns: dict[str, Column]
) -> dict[str, NDArray[Any]]: ...
