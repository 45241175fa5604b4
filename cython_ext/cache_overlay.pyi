from typing_extensions import Buffer

from cython_ext.cache_records import Records

MOST_RECORDS: int
REPLACED: int
NEWEST: int
GRAVE: int

class Overlay:
    records: Records
    capacity: int
    def __init__(
        self, records: Records, slots: int, capacity: int, links: int
    ) -> None: ...
    def enter(self, first: int, graves: Buffer) -> int: ...
    def repair(self, count: int) -> int: ...
    def newest(self, count: int) -> bytearray: ...
    def graves(self, count: int) -> bytearray: ...
