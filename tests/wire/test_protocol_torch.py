"""The torch protocol: what a refused tensor is told, views, and responses."""

import gc
import re

import numpy as np
import pytest

from procserver.errors import BadTensor, PredictFailed, TooLarge, Undecodable
from procserver.wire import torch as protocol
from procserver.wire.dtypes import ArrayDataType as Dtype
from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse


def request(dims=(), named=None, **fields):
    message = PredictRequest()
    tensor = message.map_inputs[named] if named else message.inputs.add()
    for name, value in fields.items():
        if name == "dtype":
            tensor.dtype = value
        else:
            getattr(tensor, name).extend(value)
    tensor.array_shape.dim.extend(dims)
    return message.SerializeToString()


def one(**fields):
    return protocol.decode(request(**fields)).inputs[0]


FLOAT, INT8 = int(Dtype.DT_FLOAT), int(Dtype.DT_INT8)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(dtype=FLOAT, dims=[2, 3], float_val=[1] * 5), "[2, 3] has 6 elements, but float_val holds 5 values"),
        (dict(dtype=FLOAT, dims=[2, 2], float_val=[1] * 5), "has 4 elements, but float_val holds 5"),
        (dict(dtype=FLOAT, float_val=[1, 2]), "[] has 1 elements, but float_val holds 2"),
        (dict(dtype=FLOAT), "has 1 elements, but float_val holds 0"),
        (dict(dtype=FLOAT, dims=[-1], float_val=[1]), "negative dimension -1"),
        (dict(dtype=FLOAT, dims=[-2, -2], float_val=[1] * 4), "negative dimension -2"),
        (dict(dtype=FLOAT, dims=[0, -1]), "negative dimension -1"),
        (dict(dtype=FLOAT, dims=[2**62, 4]), "multiply to more than"),
        (dict(dtype=FLOAT, dims=[2**62, 4, 0]), "multiply to more than"),
        (dict(dtype=FLOAT, dims=[2**32, 2**32, 1]), "multiply to more than"),
        (dict(dtype=FLOAT, dims=[2**40]), "1099511627776 elements, but float_val holds 0"),
        (dict(dtype=FLOAT, dims=[1] * 65, float_val=[1]), "more than 64 dimensions"),
        (dict(dtype=FLOAT, dims=[2], double_val=[1, 2]), "DT_FLOAT is read from float_val, which holds 0 values; double_val holds 2"),
        (dict(dtype=FLOAT, dims=[1], float_val=[1], int_val=[1]), "int_val holds 1"),
        (dict(dtype=9, dims=[2], int_val=[1, 2]), "DT_INT64 is read from int64_val"),
        (dict(dtype=3, dims=[1], int64_val=[1]), "DT_INT32 is read from int_val"),
        (dict(dtype=0, dims=[1], float_val=[1]), "DT_INVALID"),
        (dict(), "DT_INVALID"),
        (dict(dtype=7, dims=[1], string_val=[b"x"]), "no DT_STRING inputs"),
        (dict(dtype=20), "no DT_RESOURCE inputs"),
        (dict(dtype=77), "unknown dtype 77"),
        (dict(dtype=-3), "unknown dtype -3"),
        (dict(dtype=INT8, dims=[2], int_val=[1, 128]), "128 is out of the range of DT_INT8"),
        (dict(dtype=INT8, dims=[1], int_val=[-129]), "-129 is out of the range of DT_INT8"),
        (dict(dtype=4, dims=[1], int_val=[-1]), "-1 is out of the range of DT_UINT8"),
        (dict(dtype=4, dims=[1], int_val=[256]), "256 is out of the range of DT_UINT8"),
        (dict(dtype=5, dims=[1], int_val=[40000]), "40000 is out of the range of DT_INT16"),
        (dict(dtype=17, dims=[1], int_val=[65536]), "65536 is out of the range of DT_UINT16"),
        (dict(dtype=10, dims=[1], int_val=[2]), "2 is out of the range of DT_BOOL"),
        (dict(dtype=8, dims=[2], float_val=[1, 2, 3]), "2 elements, but float_val holds 3 values (pairs of them)"),
    ],
)  # fmt: skip
def test_refused_tensors_are_named_with_both_numbers(fields, said):
    with pytest.raises(BadTensor, match=re.escape(said)) as caught:
        protocol.decode(request(**fields))
    assert str(caught.value).startswith("inputs[0]: ")
    with pytest.raises(BadTensor, match=re.escape(said)) as caught:
        protocol.decode(request(named="x.values", **fields))
    assert str(caught.value).startswith("map_inputs['x.values']: ")
    good = request(dtype=FLOAT, float_val=[1])
    with pytest.raises(BadTensor, match=r"^inputs\[2\]: "):
        protocol.decode(good + good + request(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(dtype=FLOAT, float_val=[2.5]), np.array(2.5, np.float32)),
        (dict(dtype=FLOAT, dims=[0]), np.zeros(0, np.float32)),
        (dict(dtype=9, dims=[3, 0]), np.zeros((3, 0), np.int64)),
        (dict(dtype=9, dims=[2], int64_val=[-(2**63), 2**63 - 1]), np.array([-(2**63), 2**63 - 1])),
        (dict(dtype=INT8, dims=[2], int_val=[-128, 127]), np.array([-128, 127], np.int8)),
        (dict(dtype=4, dims=[2], int_val=[0, 255]), np.array([0, 255], np.uint8)),
        (dict(dtype=5, dims=[1, 1], int_val=[-5]), np.array([[-5]], np.int16)),
        (dict(dtype=10, dims=[2], int_val=[1, 0]), np.array([True, False])),
        (dict(dtype=13, dims=[1], int_val=[-7]), np.array([-7], np.int32)),
        (dict(dtype=2, dims=[2], double_val=[0.1, 2]), np.array([0.1, 2])),
        (dict(dtype=19, dims=[1], float_val=[0.5]), np.array([0.5], np.float32)),
        (dict(dtype=14, dims=[1], float_val=[0.5]), np.array([0.5], np.float32)),
        (dict(dtype=8, dims=[1], float_val=[1, 2]), np.array([1 + 2j], np.complex64)),
        (dict(dtype=18, dims=[1], double_val=[1, 2]), np.array([1 + 2j])),
    ],
)  # fmt: skip
def test_dtypes_and_their_carriers(fields, expected):
    value = one(**fields)
    assert value.dtype is Dtype(fields["dtype"])
    assert value.values.dtype == expected.dtype
    assert value.values.shape == expected.shape
    assert value.values.tolist() == expected.tolist()


@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize(("dtype", "width"), [("float", 4), ("double", 8)])
def test_aligned_data_is_a_view_and_other_data_is_copied(shift, dtype, width):
    n = 1000
    number = 1 if dtype == "float" else 2
    body = request(dtype=number, dims=[n], **{f"{dtype}_val": np.arange(n)})
    buffer = bytearray(bytes(shift) + body)
    view = memoryview(buffer)[shift:]
    values = protocol.decode(view).inputs[0].values
    start = np.frombuffer(buffer, np.uint8).ctypes.data
    inside = start <= values.ctypes.data < start + len(buffer)
    last = len(buffer) - n * width
    # The values are the last field but the shape, whichever upb wrote last.
    at = bytes(buffer).index(np.arange(n, dtype=f"f{width}").tobytes())
    assert at <= last
    assert inside == ((start + at) % width == 0)
    assert values.ctypes.data % width == 0
    assert values.tolist() == list(range(n))


def test_a_view_keeps_the_body_alive():
    for shift in range(4):
        buffer = bytearray(shift) + request(
            dtype=1, dims=[50000], float_val=np.arange(50000)
        )
        values = protocol.decode(memoryview(buffer)[shift:]).inputs[0].values
        del buffer
        gc.collect()
        junk = [bytearray(200_000) for _ in range(20)]
        assert values.sum(dtype=np.float64) == 50000 * 49999 / 2
        del junk


def test_views_of_bytes_are_read_only_and_of_bytearrays_writable():
    body = bytearray(request(dtype=1, dims=[400], float_val=[1] * 400))
    for kind, writable in ((bytes, False), (bytearray, True)):
        for shift in range(4):
            whole = kind(bytes(shift) + body)
            values = protocol.decode(memoryview(whole)[shift:]).inputs[0].values
            is_view = not values.flags.owndata
            assert values.flags.writeable == (writable if is_view else True)


def test_request_fields():
    message = PredictRequest(output_filter=[0, 3, -1], debug_level=903)
    decoded = protocol.decode(message.SerializeToString())
    assert decoded == protocol.TorchRequest(None, None, [0, 3, -1], 903)
    # 0x10: output_filter unpacked.
    assert protocol.decode(b"\x10\x05\x12\x02\x06\x07\x10\x08").output_filter == [
        5, 6, 7, 8,
    ]  # fmt: skip
    assert protocol.decode(b"") == protocol.TorchRequest(None, None, [], 0)


def test_a_replaced_map_entry_is_not_judged():
    bad = request(named="x", dtype=FLOAT, dims=[3])
    good = request(named="x", dtype=FLOAT, float_val=[1])
    assert protocol.decode(bad + good).map_inputs["x"].values.tolist() == 1.0
    with pytest.raises(BadTensor):
        protocol.decode(good + bad)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x0a", "request: truncated varint"),
        (b"\x0a\x05\x08", "request: truncated length-delimited field"),
        (b"\x0a\x00\x0a\x02\x1a\x03", "inputs[1]: truncated length-delimited"),
        (b"\x0a\x05\x1a\x03abc", "inputs[0]: packed float values of a broken length"),
        (b"\x0a\x03\x2a\x01\x80", "inputs[0]: truncated packed varint"),
        (b"\x1a\x06\x0a\x01x\x12\x01\x08", "map_inputs['x']: truncated varint"),
        (b"\x1a\x03\x0a\x01\xff", "map_inputs['']: string that is not UTF-8"),
        (b"\x07", "request: no valid field number or wire type"),
    ],
)
def test_undecodable_bodies_name_the_place(body, said):
    with pytest.raises(Undecodable, match=re.escape(said)):
        protocol.decode(body)


def test_too_many_tensors():
    with pytest.raises(TooLarge, match="20000 tensors"):
        protocol.decode(b"\x0a\x00" * 20000)


# ------------------------------------------------------------- responses

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
