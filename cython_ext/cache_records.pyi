from collections.abc import Sequence
from enum import IntEnum

from cython_ext.shm import Mapping

class RecordPart(IntEnum):
    RECORD_HEAP = 0
    RECORD_ID = 8
    RECORD_CELLS = 16
    LONGEST_ID = 65535

class RecordLayout:
    count: int
    stride: int
    def __init__(self, kinds: Sequence[int]) -> None: ...
    def describe(self) -> dict[str, list[int] | int]: ...

class Records:
    mapping: Mapping
    layout: RecordLayout
    rows: int
    def __init__(
        self,
        mapping: Mapping,
        layout: RecordLayout,
        rows: int,
        block_shift: int,
        blocks: int,
    ) -> None: ...
    def id_of(self, row: int) -> int | str: ...
    def heap_end(self, row: int) -> int: ...
