"""``wire_arrays``: what carries each dtype, and when the data is a view."""

import gc

import numpy as np
import pytest

from procserver.wire import torch as protocol
from procserver.wire.dtypes import ArrayDataType as Dtype
from tests.reference.wire_cases import tensor_request

FLOAT, INT8 = int(Dtype.DT_FLOAT), int(Dtype.DT_INT8)


def one(**fields):
    return protocol.decode(tensor_request(**fields)).inputs[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(dtype=FLOAT, float_val=[2.5]), np.array(2.5, np.float32)),
        (dict(dtype=FLOAT, dims=[0]), np.zeros(0, np.float32)),
        (dict(dtype=9, dims=[3, 0]), np.zeros((3, 0), np.int64)),
        (
            dict(dtype=9, dims=[2], int64_val=[-(2**63), 2**63 - 1]),
            np.array([-(2**63), 2**63 - 1]),
        ),
        (
            dict(dtype=INT8, dims=[2], int_val=[-128, 127]),
            np.array([-128, 127], np.int8),
        ),
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
)
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
    body = tensor_request(dtype=number, dims=[n], **{f"{dtype}_val": np.arange(n)})
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
        buffer = bytearray(shift) + tensor_request(
            dtype=1, dims=[50000], float_val=np.arange(50000)
        )
        values = protocol.decode(memoryview(buffer)[shift:]).inputs[0].values
        del buffer
        gc.collect()
        junk = [bytearray(200_000) for _ in range(20)]
        assert values.sum(dtype=np.float64) == 50000 * 49999 / 2
        del junk


def test_views_of_bytes_are_read_only_and_of_bytearrays_writable():
    body = bytearray(tensor_request(dtype=1, dims=[400], float_val=[1] * 400))
    for kind, writable in ((bytes, False), (bytearray, True)):
        for shift in range(4):
            whole = kind(bytes(shift) + body)
            values = protocol.decode(memoryview(whole)[shift:]).inputs[0].values
            is_view = not values.flags.owndata
            assert values.flags.writeable == (writable if is_view else True)
