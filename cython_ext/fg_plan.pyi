from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column
from cython_ext.fg_bucket import BucketSpec, NormalizerSpec

SourceSpec = tuple[str, int, bool, bool, str]

class CompiledPlan:
    def __init__(
        self, slots: list[str], literals: list[Column], features: int
    ) -> None: ...
    def add(
        self,
        operator: str,
        name: str,
        sources: list[SourceSpec],
        *,
        form: str,
        value_dim: int,
        sequence: bool = False,
        weighted: bool = False,
        separator: bytes = b"\x1d",
        delim: bytes = b";",
        limit: int = 0,
        prefix: bytes = b"",
        default_text: bytes | None = None,
        default_id: int = 0,
        default_numbers: Sequence[float] = (),
        bucketizer: BucketSpec | None = None,
        normalizer: NormalizerSpec | None = None,
        emit: bool = True,
        keys: bool = False,
        one_row: bool = False,
        width: int | None = None,
        details: object | None = None,
    ) -> int: ...
    def run(
        self,
        columns: list[Column | None],
        rows: int,
        *,
        tile: bool,
        part: bytes | None = None,
    ) -> dict[str, NDArray[np.generic]]: ...
    def compute(self, columns: list[Column | None], rows: int) -> None: ...
    def values(
        self, columns: list[Column | None], rows: int, numbers: list[int]
    ) -> list[Column]: ...
