"""``wire_response`` and ``wire_writer``: answers that upb reads as they were."""

import math

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column
from procserver.errors import PredictFailed
from procserver.wire import torch as protocol
from procserver.wire import torchrec
from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(3.5),
    np.array([], np.float32),
    np.zeros((0, 4), np.int64),
    np.array([1, -1, 2**63 - 1, -(2**63)]),
    np.array([1, -1, 2**31 - 1, -(2**31)], np.int32),
    np.array([-300, 300], np.int16),
    np.array([-128, 127], np.int8),
    np.array([0, 255], np.uint8),
    np.array([0, 65535], np.uint16),
    np.array([1 + 2j, -3j], np.complex64),
    np.array([[1 + 2j]], np.complex128),
    np.array([np.nan, np.inf, -0.0], np.float32),
]
NUMBER = {
    "f4": 1, "f8": 2, "i4": 3, "u1": 4, "i2": 5, "i1": 6, "c8": 8, "i8": 9,
    "u2": 17, "c16": 18,
}  # fmt: skip


def as_request(tensors):
    """The same tensors as a request, so that the decoder can read them back."""
    return PredictRequest(inputs=tensors).SerializeToString()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_outputs_return_as_they_were(array):
    message = PredictResponse.FromString(protocol.encode([array]))
    (tensor,) = message.outputs
    assert tensor.dtype == NUMBER[array.dtype.str[1:]]
    assert tensor.HasField("array_shape")
    assert tuple(tensor.array_shape.dim) == array.shape
    # upb writes the same bytes.
    assert protocol.encode([array]) == message.SerializeToString()
    value = protocol.decode(as_request([tensor])).inputs[0].values
    assert value.dtype == array.dtype
    assert value.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("array", "number", "dtype"),
    [
        (np.array([True, False]), 6, np.int8),
        (np.array([0.5, 2.0], np.float16), 1, np.float32),
        (np.array([0, 2**32 - 1], np.uint32), 9, np.int64),
        (np.array([1, -2], ">i4"), 3, np.int32),
        (np.array([1.5, -2], ">f8"), 2, np.float64),
        (np.array(True), 6, np.int8),
    ],
)
def test_outputs_that_change_dtype(array, number, dtype):
    (tensor,) = PredictResponse.FromString(protocol.encode([array])).outputs
    assert tensor.dtype == number
    value = protocol.decode(as_request([tensor])).inputs[0].values
    assert value.dtype == dtype
    assert value.shape == array.shape
    assert value.tolist() == array.astype(dtype).tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12)[::2],
        np.arange(12.0)[::-1],
        np.arange(12, dtype=np.int32)[1:],
        np.broadcast_to(np.float32(7), (2, 3)),
    ],
)
def test_outputs_in_any_memory_order(array):
    (tensor,) = PredictResponse.FromString(protocol.encode([array])).outputs
    value = protocol.decode(as_request([tensor])).inputs[0].values
    assert value.tolist() == array.tolist()


def test_names_and_order():
    outputs = {"b.x": np.zeros(2), "a": np.ones(1), "": np.ones(0), "é": np.ones(1)}
    body = protocol.encode(outputs)
    message = PredictResponse.FromString(body)
    assert set(message.map_outputs) == set(outputs)
    assert not message.outputs
    places = [body.index(b"\x0a\x03b.x"), body.index(b"\x0a\x01a"),
              body.index(b"\x0a\x02" + "é".encode())]  # fmt: skip
    assert places == sorted(places)
    assert protocol.encode([]) == b""
    assert protocol.encode({}) == b""


@pytest.mark.parametrize(
    "array",
    [np.array(["a"]), np.array([object()]), np.array([1], np.uint64),
     np.array(["2020-01-01"], "M8[D]"), np.zeros(1, np.dtype("f4,i4"))],
)  # fmt: skip
def test_dtypes_without_a_place_in_the_protocol(array):
    with pytest.raises(PredictFailed, match="output 'x' has dtype"):
        protocol.encode({"x": array})
    with pytest.raises(PredictFailed, match="output 1 has dtype"):
        protocol.encode([np.ones(1), array])


def test_a_response_returns_as_it_was():
    outputs = {
        "probs_ctr": np.array([0.1, math.nan, -0.0], np.float32),
        "logits": np.array([[0.1, 0.2]]),
        "ids": np.array([2**60, -1]),
        "short": np.array([-7], np.int16),
        "flag": np.array([True, False]),
        "": np.float32(2.0),
    }
    ids = Column.from_arrow(pa.array(["a", None, "", "长" * 100]))
    body = torchrec.encode(
        outputs,
        ids,
        generate_features={"a": "x:1 | y:2", "é": ""},
        raw_features={"": "r" * 1000},
        pass_through={"model_version": "7"},
    )
    message = PBResponse.FromString(body)
    assert list(message.item_ids) == ["a", "", "", "长" * 100]
    assert dict(message.generate_features) == {"a": "x:1 | y:2", "é": ""}
    assert dict(message.raw_features) == {"": "r" * 1000}
    assert dict(message.pass_through_data) == {"model_version": "7"}
    assert set(message.map_outputs) == set(outputs)
    values = message.map_outputs
    assert np.array_equal(
        np.array(values["probs_ctr"].float_val, np.float32).view(np.int32),
        outputs["probs_ctr"].view(np.int32),
    )
    assert list(values["logits"].double_val) == [0.1, 0.2]
    assert list(values["logits"].array_shape.dim) == [1, 2]
    assert list(values["ids"].int64_val) == [2**60, -1]
    assert list(values["short"].int_val) == [-7]
    assert list(values["flag"].int_val) == [1, 0]
    assert list(values[""].float_val) == [2.0]
    assert [t.dtype for t in values.values()].count(1) == 2
    assert len(body) == message.ByteSize()
    places = [body.index(name.encode()) for name in list(outputs)[:-1]]
    assert places == sorted(places)


def test_sliced_and_missing_ids():
    ids = Column.from_arrow(pa.array(["a", "b", "c", None])).slice(1, 3)
    assert list(PBResponse.FromString(torchrec.encode({}, ids)).item_ids) == [
        "b",
        "c",
        "",
    ]
    assert torchrec.encode({}, None) == b""
    assert torchrec.encode({}, Column.null(0)) == b""
    with pytest.raises(TypeError, match="INT64"):
        torchrec.encode({}, Column.from_arrow(pa.array([1])))


def test_an_echo_of_the_request():
    message = PBRequest(item_ids=[f"{i}" * (i % 200) for i in range(300)])
    ids = torchrec.decode(message.SerializeToString()).item_ids
    answer = PBResponse.FromString(torchrec.encode({}, ids))
    assert list(answer.item_ids) == list(message.item_ids)


def test_named_outputs_without_a_place_in_the_protocol():
    with pytest.raises(PredictFailed, match="output 'bad' has dtype uint64"):
        torchrec.encode({"bad": np.array([1], np.uint64)}, None)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 127, 128, 5000, 2**15])
def test_lengths_of_every_size(n):
    outputs = {"x" * (n % 300): np.arange(n, dtype=np.float32)}
    ids = Column.from_arrow(pa.array(["y" * n]))
    body = torchrec.encode(outputs, ids, generate_features={"k": "z" * n})
    message = PBResponse.FromString(body)
    (tensor,) = message.map_outputs.values()
    assert list(tensor.float_val) == list(range(n))
    assert message.item_ids[0] == "y" * n
    assert message.generate_features["k"] == "z" * n
    assert len(body) == message.ByteSize()
