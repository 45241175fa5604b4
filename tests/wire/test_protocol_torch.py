"""The torch protocol: what a request holds, and what a refused one is told."""

import re

import pytest

from procserver.errors import BadTensor, TooLarge, Undecodable
from procserver.wire import torch as protocol
from procserver.wire.dtypes import ArrayDataType as Dtype
from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from tests.reference.wire_cases import tensor_request

FLOAT, INT8 = int(Dtype.DT_FLOAT), int(Dtype.DT_INT8)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            dict(dtype=FLOAT, dims=[2, 3], float_val=[1] * 5),
            "[2, 3] has 6 elements, but float_val holds 5 values",
        ),
        (
            dict(dtype=FLOAT, dims=[2, 2], float_val=[1] * 5),
            "has 4 elements, but float_val holds 5",
        ),
        (
            dict(dtype=FLOAT, float_val=[1, 2]),
            "[] has 1 elements, but float_val holds 2",
        ),
        (dict(dtype=FLOAT), "has 1 elements, but float_val holds 0"),
        (dict(dtype=FLOAT, dims=[-1], float_val=[1]), "negative dimension -1"),
        (dict(dtype=FLOAT, dims=[-2, -2], float_val=[1] * 4), "negative dimension -2"),
        (dict(dtype=FLOAT, dims=[0, -1]), "negative dimension -1"),
        (dict(dtype=FLOAT, dims=[2**62, 4]), "multiply to more than"),
        (dict(dtype=FLOAT, dims=[2**62, 4, 0]), "multiply to more than"),
        (dict(dtype=FLOAT, dims=[2**32, 2**32, 1]), "multiply to more than"),
        (
            dict(dtype=FLOAT, dims=[2**40]),
            "1099511627776 elements, but float_val holds 0",
        ),
        (dict(dtype=FLOAT, dims=[1] * 65, float_val=[1]), "more than 64 dimensions"),
        (
            dict(dtype=FLOAT, dims=[2], double_val=[1, 2]),
            "DT_FLOAT is read from float_val, which holds 0 values; double_val holds 2",
        ),
        (dict(dtype=FLOAT, dims=[1], float_val=[1], int_val=[1]), "int_val holds 1"),
        (dict(dtype=9, dims=[2], int_val=[1, 2]), "DT_INT64 is read from int64_val"),
        (dict(dtype=3, dims=[1], int64_val=[1]), "DT_INT32 is read from int_val"),
        (dict(dtype=0, dims=[1], float_val=[1]), "DT_INVALID"),
        ({}, "DT_INVALID"),
        (dict(dtype=7, dims=[1], string_val=[b"x"]), "no DT_STRING inputs"),
        (dict(dtype=20), "no DT_RESOURCE inputs"),
        (dict(dtype=77), "unknown dtype 77"),
        (dict(dtype=-3), "unknown dtype -3"),
        (
            dict(dtype=INT8, dims=[2], int_val=[1, 128]),
            "128 is out of the range of DT_INT8",
        ),
        (
            dict(dtype=INT8, dims=[1], int_val=[-129]),
            "-129 is out of the range of DT_INT8",
        ),
        (dict(dtype=4, dims=[1], int_val=[-1]), "-1 is out of the range of DT_UINT8"),
        (dict(dtype=4, dims=[1], int_val=[256]), "256 is out of the range of DT_UINT8"),
        (
            dict(dtype=5, dims=[1], int_val=[40000]),
            "40000 is out of the range of DT_INT16",
        ),
        (
            dict(dtype=17, dims=[1], int_val=[65536]),
            "65536 is out of the range of DT_UINT16",
        ),
        (dict(dtype=10, dims=[1], int_val=[2]), "2 is out of the range of DT_BOOL"),
        (
            dict(dtype=8, dims=[2], float_val=[1, 2, 3]),
            "2 elements, but float_val holds 3 values (pairs of them)",
        ),
    ],
)
def test_refused_tensors_are_named_with_both_numbers(fields, said):
    with pytest.raises(BadTensor, match=re.escape(said)) as caught:
        protocol.decode(tensor_request(**fields))
    assert str(caught.value).startswith("inputs[0]: ")
    with pytest.raises(BadTensor, match=re.escape(said)) as caught:
        protocol.decode(tensor_request(named="x.values", **fields))
    assert str(caught.value).startswith("map_inputs['x.values']: ")
    good = tensor_request(dtype=FLOAT, float_val=[1])
    with pytest.raises(BadTensor, match=r"^inputs\[2\]: "):
        protocol.decode(good + good + tensor_request(**fields))


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
    bad = tensor_request(named="x", dtype=FLOAT, dims=[3])
    good = tensor_request(named="x", dtype=FLOAT, float_val=[1])
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


def test_too_many_output_indexes():
    # An index takes a byte here, and much more as a Python object.
    most = b"\x12\x80\x80\x01" + b"\x01" * 16384
    assert protocol.decode(most).output_filter == [1] * 16384
    for more in (b"\x10\x01", b"\x12\x01\x05", most * 1000):
        with pytest.raises(TooLarge, match="output_filter of 16"):
            protocol.decode(most + more)
