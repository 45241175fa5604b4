"""PBLogData: written, told apart from other messages, sent again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procserver.wire import torchrec
from procserver.wire.logdata import encode, request_body, without_debug_level
from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from procserver.wire.pb.torchrec_predict_pb2 import PBLogData, PBRequest

BODIES = Path(__file__).resolve().parents[1] / "data" / "captures" / "bodies"


def request(level: int = 100) -> PBRequest:
    message = PBRequest(debug_level=level, item_ids=["a", "b"])
    message.user_features["age"].int_feature = 3
    message.meta_data["request_id"] = "r"
    return message


TEXTS = st.dictionaries(st.text(max_size=5), st.text(max_size=300), max_size=4)


@given(TEXTS, TEXTS, st.sampled_from([0, 1, 127, 128, 20_000]))
def test_what_is_written_is_read_by_protobuf(
    raw: dict[str, str], made: dict[str, str], size: int
) -> None:
    message = request()
    message.user_features["text"].string_feature = "x" * size
    body = message.SerializeToString()
    content = encode(body, raw, made)
    entry = PBLogData.FromString(content)
    assert entry.request == message
    assert dict(entry.raw_features) == raw
    assert dict(entry.generate_features) == made
    assert request_body(content) == body


@pytest.mark.parametrize("level", [100, 102, 903])
def test_entries_of_other_writers_are_recognised(level: int) -> None:
    entry = PBLogData(request=request(level), raw_features={"a": "x"})
    body = request_body(entry.SerializeToString())
    assert body is not None
    assert PBRequest.FromString(body) == request(level)


@pytest.mark.parametrize(
    "path", sorted(BODIES.glob("*.bin")), ids=lambda path: path.stem
)
def test_recorded_bodies_are_no_entries(path: Path) -> None:
    assert request_body(path.read_bytes()) is None


def test_tensor_requests_are_no_entries() -> None:
    for dtype in (1, 3, 9, 22):
        message = PredictRequest(output_filter=[0, 1])
        array = message.inputs.add(dtype=dtype)
        array.array_shape.dim.extend([2])
        assert request_body(message.SerializeToString()) is None
        message.map_inputs["x"].CopyFrom(array)
        assert request_body(message.SerializeToString()) is None
        del message.inputs[:]
        assert request_body(message.SerializeToString()) is None


@given(st.binary(max_size=60))
def test_arbitrary_bytes_do_no_harm(content: bytes) -> None:
    request_body(content)
    request_body(b"\x0a" + content)


def test_truncated_entries_are_no_entries() -> None:
    content = encode(request().SerializeToString(), {"a": "x"}, {})
    for end in range(len(content)):
        body = request_body(content[:end])
        assert body is None or body == request().SerializeToString()
    assert request_body(b"") is None
    assert request_body(b"\x0a\x00") is None


def test_the_debug_level_is_taken_back() -> None:
    body = without_debug_level(request().SerializeToString())
    assert PBRequest.FromString(body) == request(0)
    assert torchrec.decode(body).debug_level == 0
