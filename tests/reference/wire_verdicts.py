"""What our decoders and upb make of the same bytes, in a form to compare.

Both refuse, or both accept with equal content. What upb accepts and we refuse on
purpose has a verdict of its own: ``BAD_FEATURE``, ``BAD_TENSOR``, ``TOO_LARGE``. There
is nothing the other way round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from procserver.errors import BadFeature, BadTensor, TooLarge, Undecodable
from procserver.wire import torch, torchrec
from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse
from tests.reference import wire_walk

UNDECODABLE = "undecodable"
# Rows of types that do not mix; dtype, shape and values that do not agree; more
# features, tensors or output indexes than anybody sends.
BAD_FEATURE, BAD_TENSOR, TOO_LARGE = "bad feature", "bad tensor", "too large"
VERDICTS = {
    Undecodable: UNDECODABLE,
    BadFeature: BAD_FEATURE,
    BadTensor: BAD_TENSOR,
    TooLarge: TOO_LARGE,
}
MAX_FEATURES, MAX_TENSORS = 1 << 16, 1 << 14


def bits(tensor: tuple[int, np.ndarray]) -> tuple[Any, ...]:
    """A tensor as (dtype number, numpy dtype, shape, bytes)."""
    dtype, values = tensor
    return int(dtype), values.dtype.str, values.shape, values.tobytes()


# ---------------------------------------------------------------- by our decoders


def torchrec_content(request: torchrec.TorchRecRequest) -> Any:
    return wire_walk.frozen(wire_walk.decoded(request))


def torch_content(r: torch.TorchRequest) -> Any:
    assert r.inputs != []
    assert r.map_inputs != {}
    return (
        [bits((v.dtype, v.values)) for v in r.inputs or []],
        {k: bits((v.dtype, v.values)) for k, v in (r.map_inputs or {}).items()},
        r.output_filter,
        r.debug_level,
    )


# ------------------------------------------------------------------------- by upb


def top_level(body: bytes, wanted: set[int]) -> int:
    """How many length-delimited fields of these numbers stand in the message.

    The bytes are ones that upb accepted.
    """
    at = count = depth = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(body):
        key = varint()
        wire = key & 7
        if wire == 0:
            varint()
        elif wire == 2:
            count += depth == 0 and key >> 3 in wanted
            size = varint()
            at += size
        elif wire in (3, 4):
            depth += 1 if wire == 3 else -1
        else:
            at += 8 if wire == 1 else 4
    return count


def torchrec_by_upb(body: bytes) -> Any:
    try:
        message = PBRequest.FromString(body)
    except DecodeError:
        return UNDECODABLE
    if len(body) > MAX_FEATURES and top_level(body, {2, 4, 6, 7}) > MAX_FEATURES:
        return TOO_LARGE
    try:
        return wire_walk.frozen(wire_walk.request(message))
    except wire_walk.Conflict:
        return BAD_FEATURE


def torch_by_upb(body: bytes) -> Any:
    try:
        message = PredictRequest.FromString(body)
    except DecodeError:
        return UNDECODABLE
    if len(body) > MAX_TENSORS and (
        top_level(body, {1, 3}) > MAX_TENSORS
        or len(message.output_filter) > MAX_TENSORS
    ):
        return TOO_LARGE
    try:
        inputs, named, chosen, level = wire_walk.arrays(message)
    except wire_walk.Refused:
        return BAD_TENSOR
    return (
        [bits(t) for t in inputs],
        {k: bits(t) for k, t in named.items()},
        chosen,
        level,
    )


# -------------------------------------------------------------------- the answers


# Dtypes that the protocol lacks.
SENT_AS = {"b1": np.int8, "f2": np.float32, "u4": np.int64}


def same_array(proto: Message, sent: np.ndarray) -> bool:
    values = wire_walk.array(proto)
    sent = sent.astype(SENT_AS.get(sent.dtype.str[1:], sent.dtype.newbyteorder("=")))
    return bits((0, values)) == bits((0, sent))


def torch_answer(request: torch.TorchRequest) -> None:
    """The request's tensors as an answer, by position and by name."""
    named = {k: v.values for k, v in (request.map_inputs or {}).items()}
    arrays = [v.values for v in request.inputs or []] + list(named.values())
    body = torch.encode(arrays)
    message = PredictResponse.FromString(body)
    assert body == message.SerializeToString()
    assert len(message.outputs) == len(arrays)
    assert all(map(same_array, message.outputs, arrays))
    # Fields 1 of request and response are the same.
    again = torch.decode(body).inputs or []
    assert [bits((0, v.values)) for v in again] == [
        bits((0, wire_walk.array(proto))) for proto in message.outputs
    ]
    answer = PredictResponse.FromString(torch.encode(named)).map_outputs
    assert set(answer) == set(named)
    assert all(same_array(answer[name], array) for name, array in named.items())


SCORES = {
    "probs": np.linspace(0, 1, 7, dtype=np.float32),
    "": np.array([[2**62, -1]]),
    "scalar": np.array(0.5),
    "half": np.array([0.5, np.inf], np.float16),
    "flags": np.array([True, False]),
    "unsigned": np.array([2**32 - 1], np.uint32),
    "swapped": np.array([1, -2], ">i4"),
    "apart": np.arange(12.0).reshape(3, 4).T[::2],
    "none": np.zeros((0, 3), np.int16),
}


def torchrec_answer(request: torchrec.TorchRecRequest) -> None:
    """The request's ids and meta data in an answer."""
    texts = request.meta
    body = torchrec.encode(
        SCORES,
        request.item_ids,
        generate_features=texts,
        raw_features=texts,
        pass_through=texts,
    )
    message = PBResponse.FromString(body)
    assert len(body) == message.ByteSize()
    assert list(message.item_ids) == request.item_ids.to_pylist()
    for field in (
        message.generate_features,
        message.raw_features,
        message.pass_through_data,
    ):
        assert dict(field) == texts
    assert set(message.map_outputs) == set(SCORES)
    assert all(same_array(message.map_outputs[k], v) for k, v in SCORES.items())


@dataclass(frozen=True)
class Protocol:
    """A request message, our decoder of it, and upb's view in the same form."""

    name: str
    message: type[Message]
    decode: Callable[[bytes | memoryview], Any]
    content: Callable[[Any], Any]
    by_upb: Callable[[bytes], Any]
    answer: Callable[[Any], None]

    def by_us(self, body: bytes | memoryview) -> Any:
        try:
            return self.content(self.decode(body))
        except tuple(VERDICTS) as error:
            return VERDICTS[type(error)]


TORCHREC = Protocol(
    "torchrec", PBRequest, torchrec.decode, torchrec_content, torchrec_by_upb,
    torchrec_answer,
)  # fmt: skip
TORCH = Protocol(
    "torch", PredictRequest, torch.decode, torch_content, torch_by_upb, torch_answer
)
PROTOCOLS = (TORCHREC, TORCH)


def agree(ours: Any, upbs: Any) -> bool:
    """Whether the two verdicts on a body are the same.

    A body with too many features may be broken behind them: it is refused without
    being looked at.
    """
    return ours == upbs or (ours == TOO_LARGE and upbs == UNDECODABLE)
