from collections.abc import Sequence

from cython_ext.shm import Mapping

class Buckets:
    def __init__(
        self, mapping: Mapping, offset: int, bounds: Sequence[int]
    ) -> None: ...
    def observe(self, value: int) -> None: ...
