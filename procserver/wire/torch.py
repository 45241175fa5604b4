"""The bypass protocol of torch models: ``PredictRequest`` and ``PredictResponse``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cython_ext.wire_response import encode_torch
from cython_ext.wire_torch import decode_request
from procserver.wire.dtypes import ArrayDataType


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """An input tensor: its dtype on the wire and its values in shape.

    ``values`` is a view of the request body where the data is aligned for its
    elements (read-only if the body is ``bytes``) and keeps the body alive.
    HALF and BFLOAT16 tensors arrive as float32 values: see ``dtype``.
    """

    dtype: ArrayDataType
    values: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TorchRequest:
    """A decoded ``PredictRequest``; inputs are None where none were sent."""

    inputs: list[ArrayValue] | None
    map_inputs: dict[str, ArrayValue] | None
    output_filter: list[int]
    debug_level: int


def decode(body: bytes | bytearray | memoryview) -> TorchRequest:
    """Decodes a request body (already decompressed) to arrays.

    Implements section 4 of the protocol: the product of the dimensions must be
    the number of values (no dimensions: one value), in the field that carries
    the dtype (:class:`ArrayDataType`) and in no other.

    :raises Undecodable: if the bytes are not such a message
    :raises BadTensor: if dtype, shape and values of an input do not agree; the
        message names ``inputs[2]`` or ``map_inputs['x.values']``
    :raises TooLarge: beyond 2 GiB, 16,384 tensors or as many output indexes
    """
    inputs, named, output_filter, debug_level = decode_request(body)
    values = [_value(*tensor) for tensor in inputs] if inputs else None
    map_inputs = None
    if named:
        map_inputs = {name: _value(*tensor) for name, tensor in named.items()}
    return TorchRequest(values, map_inputs, output_filter, debug_level)


def _value(dtype: int, values: np.ndarray[Any, Any]) -> ArrayValue:
    return ArrayValue(ArrayDataType(dtype), values)


def encode(
    outputs: Sequence[np.ndarray[Any, Any]] | Mapping[str, np.ndarray[Any, Any]],
) -> bytes:
    """Writes a ``PredictResponse``: a sequence to ``outputs``, a mapping by name.

    float32, float64, int64, int32, int16, int8, uint8, uint16 and complex
    arrays keep their dtype; bool is sent as INT8, float16 as FLOAT, uint32 as
    INT64. Contiguous float data is copied once, whatever its alignment.

    :raises PredictFailed: if an output's dtype has no place in the protocol
    """
    return encode_torch(outputs)
