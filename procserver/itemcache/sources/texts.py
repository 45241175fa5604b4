"""Cells that come as text: their types, told or inferred."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# What separates elements where a list is no JSON, as in EasyRec's data.
SEPARATOR = "\x1d"
SCALARS = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    # To a feature these are numbers.
    "bool": pa.int32(),
    "timestamp": pa.int64(),
}
_INTEGER = re.compile(rb"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(rb"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def type_named(name: str) -> pa.DataType:
    """The Arrow type of ``float32``, ``list<string>``, ``map<string,float32>``, ..."""
    if name in SCALARS:
        return SCALARS[name]
    outer, _, inner = name.removesuffix(">").partition("<")
    if outer == "list":
        return pa.list_(type_named(inner))
    key, _, value = inner.partition(",")
    return pa.map_(SCALARS[key], SCALARS[value])


def inferred(cells: Iterable[bytes]) -> pa.DataType:
    """What all cells are: integers, numbers, or else text.

    Integers are written as a program writes them: ``007`` is text, since it may be
    an id. Cells without text say nothing.
    """
    found = pa.int64()
    known = False
    for cell in cells:
        if not cell:
            continue
        known = True
        if pa.types.is_integer(found) and not _INTEGER.fullmatch(cell):
            found = pa.float64()
        if pa.types.is_floating(found):
            number = _NUMBER.fullmatch(cell)
            padded = re.match(rb"[+-]?0[0-9]", cell)
            if not number or padded or not math.isfinite(float(cell)):
                return pa.string()
    return found if known else pa.string()


def to_array(cells: Sequence[bytes | None], type_: pa.DataType) -> tuple[pa.Array, int]:
    """Cells as ``type_``, and how many could not be read and are null.

    No text at all is null too, except where text is wanted.
    """
    raw = pa.array(cells, pa.binary())
    try:
        text = raw.cast(pa.string())
    except pa.ArrowInvalid:
        return _one_by_one(cells, type_)
    if pa.types.is_string(type_):
        return text, 0
    if pa.types.is_nested(type_):
        return _one_by_one(cells, type_)
    try:
        filled = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        return filled.cast(type_), 0
    except pa.ArrowInvalid:
        return _one_by_one(cells, type_)


def _one_by_one(
    cells: Sequence[bytes | None], type_: pa.DataType
) -> tuple[pa.Array, int]:
    read = _reader(type_)
    values: list[Any] = []
    bad = 0
    for cell in cells:
        value = None
        if cell is not None and (cell or pa.types.is_string(type_)):
            try:
                value = read(cell.decode())
                # An Arrow array knows the limits of the type.
                pa.scalar(value, type_)
            except (ValueError, TypeError, ArithmeticError, RecursionError):
                value = None
                bad += 1
        values.append(value)
    return pa.array(values, type_), bad


def _reader(type_: pa.DataType) -> Callable[[str], Any]:
    if pa.types.is_list(type_):
        return lambda text: _list(text, type_)
    if pa.types.is_map(type_):
        return lambda text: _map(text, type_)
    element = _element(type_)
    return lambda text: element(text)


def _element(type_: pa.DataType) -> Callable[[Any], Any]:
    """One value, of JSON or of text, as the type has it."""
    if pa.types.is_integer(type_):
        return _whole
    if pa.types.is_floating(type_):
        return _floating
    return _text


def _whole(value: Any) -> int | None:
    if value is None or isinstance(value, int):
        return None if value is None else int(value)
    number = float(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return int(value)
    if not number.is_integer():
        raise ValueError("not a whole number")
    return int(number)


def _floating(value: Any) -> float | None:
    return None if value is None else float(value)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise TypeError("not a text")


def _list(text: str, type_: pa.DataType) -> list[Any]:
    inner = type_.value_type
    if text.lstrip().startswith("["):
        return _elements(json.loads(text), type_)
    if pa.types.is_list(inner):
        raise ValueError("lists of lists are given as JSON")
    return [_element(inner)(part) for part in text.split(SEPARATOR)]


def _elements(values: Any, type_: pa.DataType) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError("not a list")
    inner = type_.value_type
    if pa.types.is_list(inner):
        return [None if one is None else _elements(one, inner) for one in values]
    return [_element(inner)(one) for one in values]


def _map(text: str, type_: pa.DataType) -> list[tuple[Any, Any]]:
    key, value = _element(type_.key_type), _element(type_.item_type)
    if text.lstrip().startswith("{"):
        pairs = list(json.loads(text).items())
    else:
        pairs = []
        for part in text.split(SEPARATOR):
            name, colon, cell = part.rpartition(":")
            if not colon:
                raise ValueError("an entry without a colon")
            pairs.append((name, cell))
    return [(key(one), value(other)) for one, other in pairs]
