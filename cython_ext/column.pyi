from collections.abc import Sequence
from enum import IntEnum
from typing import Any

class Kind(IntEnum):
    ABSENT = 0
    INT32 = 1
    INT64 = 2
    STRING = 3
    FLOAT32 = 4
    FLOAT64 = 5
    MAP_INT64_STRING = 6
    MAP_INT64_INT32 = 7
    MAP_INT64_INT64 = 8
    MAP_INT64_FLOAT32 = 9
    MAP_INT64_FLOAT64 = 10
    MAP_STRING_STRING = 11
    MAP_STRING_INT32 = 12
    MAP_STRING_INT64 = 13
    MAP_STRING_FLOAT32 = 14
    MAP_STRING_FLOAT64 = 15
    MAP_INT32_STRING = 16
    MAP_INT32_INT32 = 17
    MAP_INT32_INT64 = 18
    MAP_INT32_FLOAT32 = 19
    MAP_INT32_FLOAT64 = 20
    LIST_INT32 = 21
    LIST_INT64 = 22
    LIST_STRING = 23
    LIST_FLOAT32 = 24
    LIST_FLOAT64 = 25
    LISTS_INT32 = 26
    LISTS_INT64 = 27
    LISTS_STRING = 28
    LISTS_FLOAT32 = 29
    LISTS_FLOAT64 = 30

class Shape(IntEnum):
    SCALAR = 0
    LIST = 1
    LISTS = 2
    MAP = 3

def shape_of(kind: int) -> Shape: ...
def value_kind(kind: int) -> Kind: ...
def key_kind(kind: int) -> Kind: ...
def kind_of_arrow(type_: Any) -> Kind: ...
def arrow_type(kind: int) -> Any: ...

class Column:
    def __len__(self) -> int: ...
    @property
    def kind(self) -> Kind: ...
    @staticmethod
    def null(rows: int) -> Column: ...
    @staticmethod
    def from_arrow(array: Any) -> Column: ...
    @staticmethod
    def from_texts(texts: Sequence[str]) -> Column: ...
    def to_pylist(self) -> list[Any]: ...
    def slice(self, start: int, rows: int) -> Column: ...
    def nest(self) -> Column: ...
    def elements(self, row: int) -> Column: ...
