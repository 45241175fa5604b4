"""Rows of FeatureDB: bytes to values.

A row is ``F1`` and then, field by field, a byte that is 1 for null and otherwise
followed by the value, little-endian::

    int32 int64 float double bool   their bytes; a timestamp is int64 milliseconds
    string                          u32 length, bytes
    array<T>                        u32 count, elements
    array<string>                   u32 count, u32 ends (count + 1, from 0), bytes
    array<array<float>>             u32 count, u32 total, u32 lengths, elements; without
                                    elements no lengths, without arrays no total
    map<K,V>                        u32 count, keys, values as in arrays

A row may end early: fields that were added since are null in it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from procserver.errors import SourceError

PREFIX = b"F1"

# Takes the bytes and a place; gives the value and the place behind it.
Read = Callable[[bytes, int], tuple[Any, int]]
Elements = Callable[[bytes, int, int], tuple[Sequence[Any], int]]


def read_row(
    data: bytes, fields: Sequence[tuple[str, Read]], wanted: dict[str, int]
) -> list[Any]:
    """The values of the fields in ``wanted``, each at its place.

    :raises ValueError: for bytes that are no row (struct.error, UnicodeDecodeError)
    """
    if data[: len(PREFIX)] != PREFIX:
        raise ValueError("not a row of this protocol")
    row: list[Any] = [None] * len(wanted)
    at = len(PREFIX)
    for name, read in fields:
        if at >= len(data):
            break
        is_null = data[at]
        at += 1
        if is_null == 1:
            continue
        value, at = read(data, at)
        if name in wanted:
            row[wanted[name]] = value
    return row


_SCALARS = {
    "int32": "<i",
    "int64": "<q",
    "float32": "<f",
    "float64": "<d",
    "bool": "<B",
    "timestamp": "<q",
}


def reader(text: str, label: str) -> Read:
    """How a value of the type named ``text`` is read.

    :raises SourceError: for a type that FeatureDB does not have
    """
    if text in _SCALARS:
        return _scalar(struct.Struct(_SCALARS[text]))
    if text == "string":
        return _string
    outer, _, inner = text.removesuffix(">").partition("<")
    if outer == "list" and inner == "list<float32>":
        return _lists
    if outer == "list" and inner in (*_SCALARS, "string"):
        return _array(_elements(inner))
    if outer == "map":
        key, _, value = inner.partition(",")
        return _map(_elements(key), _elements(value))
    raise SourceError(f"{label}: FeatureDB has no type {text}")


def _scalar(layout: struct.Struct) -> Read:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        (value,) = layout.unpack_from(data, at)
        return value, at + layout.size

    return read


_U32 = struct.Struct("<I")


def _string(data: bytes, at: int) -> tuple[Any, int]:
    (length,) = _U32.unpack_from(data, at)
    return _take(data, at + 4, length).decode(), at + 4 + length


def _take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("a row ends within a value")
    return data[at : at + size]


def _elements(text: str) -> Elements:
    """How so many elements in a row are read."""
    if text == "string":
        return _strings
    code = _SCALARS[text][1]
    size = struct.calcsize(_SCALARS[text])

    def read(data: bytes, at: int, count: int) -> tuple[Sequence[Any], int]:
        end = at + count * size
        return struct.unpack(f"<{count}{code}", _take(data, at, count * size)), end

    return read


def _strings(data: bytes, at: int, count: int) -> tuple[Sequence[Any], int]:
    if count == 0:
        return (), at
    ends = struct.unpack(f"<{count + 1}I", _take(data, at, 4 * (count + 1)))
    at += 4 * (count + 1)
    text = _take(data, at, ends[-1])
    if any(a > b for a, b in pairwise(ends)):
        raise ValueError("texts overlap")
    parts = [text[a:b].decode() for a, b in pairwise(ends)]
    return parts, at + ends[-1]


def _array(elements: Elements) -> Read:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        (count,) = _U32.unpack_from(data, at)
        return elements(data, at + 4, count)

    return read


def _map(keys: Elements, values: Elements) -> Read:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        (count,) = _U32.unpack_from(data, at)
        names, at = keys(data, at + 4, count)
        held, at = values(data, at, count)
        return list(zip(names, held, strict=True)), at

    return read


_floats = _elements("float32")
_lengths: Elements = lambda data, at, count: (  # noqa: E731
    struct.unpack(f"<{count}I", _take(data, at, 4 * count)),
    at + 4 * count,
)


def _lists(data: bytes, at: int) -> tuple[Any, int]:
    (count,) = _U32.unpack_from(data, at)
    at += 4
    if count == 0:
        return [], at
    (total,) = _U32.unpack_from(data, at)
    at += 4
    if total == 0:
        if count > len(data):
            raise ValueError("more lists than bytes")
        return [[] for _ in range(count)], at
    lengths, at = _lengths(data, at, count)
    if sum(lengths) != total:
        raise ValueError("lists of other lengths than they say")
    values, at = _floats(data, at, total)
    lists, start = [], 0
    for length in lengths:
        lists.append(values[start : start + length])
        start += length
    return lists, at
