from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Table:
    rows: int
    dim: int
    def __init__(
        self, array: NDArray[Any], slots: NDArray[np.int64] | None = None
    ) -> None: ...

class Lookups:
    def __init__(
        self,
        names: Iterable[str],
        tables: Sequence[Table],
        poolings: Iterable[str],
        columns: Iterable[int],
    ) -> None: ...
    def run(
        self,
        ids: list[NDArray[Any]],
        lengths: list[NDArray[Any]],
        outs: list[NDArray[np.float32]],
    ) -> None: ...

def index_keys(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]: ...
def row_lengths(
    name: str, lengths: NDArray[Any], key_lengths: NDArray[Any], count: int
) -> NDArray[Any]: ...
