"""Answers read and compared, whichever protocol they are of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from procserver.wire.pb import torch_predict_pb2 as torch_pb
from procserver.wire.pb import torchrec_predict_pb2 as torchrec_pb

Outputs = Mapping[str, NDArray[Any]]

_VALUES = ("float_val", "double_val", "int_val", "string_val", "int64_val")


def outputs_of(answer: bytes) -> Outputs | None:
    """Outputs by name (by position for positional ones); None: no answer of ours.

    An answer does not say which message it is: it is the one whose arrays all have
    as many values as their shapes ask for.
    """
    if not answer:
        return {}
    for read in (_torchrec, _torch):
        try:
            outputs = read(answer)
        except (DecodeError, ValueError):
            continue
        if outputs:
            return outputs
    return None


def _torchrec(answer: bytes) -> Outputs:
    message = torchrec_pb.PBResponse.FromString(answer)
    outputs = {name: _array(array) for name, array in message.map_outputs.items()}
    if message.item_ids:
        outputs["item_ids"] = np.array(list(message.item_ids), dtype=object)
    return outputs


def _torch(answer: bytes) -> Outputs:
    message = torch_pb.PredictResponse.FromString(answer)
    outputs = {str(i): _array(array) for i, array in enumerate(message.outputs)}
    outputs |= {name: _array(array) for name, array in message.map_outputs.items()}
    return outputs


def _array(array: Any) -> NDArray[Any]:
    values = next((v for n in _VALUES if (v := getattr(array, n))), ())
    shape = tuple(array.array_shape.dim)
    if not array.dtype or math.prod(shape) != len(values):
        raise ValueError("no array of ours")
    text = array.dtype == torch_pb.DT_STRING
    return np.array(list(values), dtype=object if text else None).reshape(shape)


def differences(one: Outputs, other: Outputs) -> Iterator[tuple[str, float]]:
    """(output, greatest absolute difference) of two answers.

    Infinite where the two cannot be told by a number: an output that one of them
    lacks, another shape, a NaN or infinity on one side, other texts.
    """
    for name in {**one, **other}:
        if name not in one or name not in other:
            yield name, math.inf
        else:
            yield name, _difference(one[name], other[name])


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return math.inf
    if not one.size:
        return 0.0
    if one.dtype == object or other.dtype == object:
        return 0.0 if one.tolist() == other.tolist() else math.inf
    if one.dtype.kind != "f" and other.dtype.kind != "f":
        # Python's integers: a difference of two int64 may not fit into one.
        pairs: Iterable[tuple[int, int]] = zip(one.flat, other.flat, strict=True)
        return float(max(abs(int(a) - int(b)) for a, b in pairs))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64))[~same]
    return math.inf if np.isnan(gap).any() else float(gap.max())
