"""The walk over tags and lengths of a request that still arrives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.wire_align import Buffer, TensorScan
from procserver.wire.pb.torch_predict_pb2 import PredictRequest


def walked(body: bytes, step: int = 1) -> TensorScan:
    """A scan that was fed ``step`` bytes more each time."""
    scan = TensorScan(len(body))
    got = 0
    while not scan.done and got < len(body):
        got = min(len(body), got + step)
        scan.feed(memoryview(body), got)
    return scan


def request(*sizes: int, named: bool = False) -> bytes:
    message = PredictRequest(debug_level=1, output_filter=[1, 2])
    for i, size in enumerate(sizes):
        array = message.map_inputs[f"n{i}"] if named else message.inputs.add()
        array.array_shape.dim.append(size)
        if i % 2:
            array.double_val.extend([i / 2] * size)
        else:
            array.float_val.extend([i + 0.25] * size)
        array.int_val.extend([7] * i)
    body: bytes = message.SerializeToString()
    return body


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
@pytest.mark.parametrize("sizes", [(5,), (5, 80, 3), (200, 10), (0,), (3, 9, 300)])
def test_finds_the_largest(named: bool, step: int, sizes: tuple[int, ...]) -> None:
    body = request(*sizes, named=named)
    scan = walked(body, step)
    width = [8 if i % 2 else 4 for i in range(len(sizes))]
    largest = max(range(len(sizes)), key=lambda i: sizes[i] * width[i])
    assert scan.length == sizes[largest] * width[largest]
    if scan.length:
        kind = np.float64 if largest % 2 else np.float32
        values = np.frombuffer(body, kind, sizes[largest], scan.place)
        assert set(values) == {largest / 2 if largest % 2 else largest + 0.25}
        assert (scan.place + scan.shift) % 64 == 0
    assert 0 <= scan.shift < 64


@given(st.binary(max_size=300), st.integers(1, 50), st.integers(0, 10))
@settings(max_examples=500)
def test_any_bytes(body: bytes, step: int, more: int) -> None:
    scan = walked(request(4, 9)[:more] + body, step)
    assert 0 <= scan.place <= len(body) + more
    assert 0 <= scan.length <= len(body) + more


def test_lengths_that_lie_end_the_walk() -> None:
    for body in (
        b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 50,
        b"\x0a\x05\x1a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 50,
        b"\x0a\x20\x1a\x40" + b"x" * 200,
        b"\x1a" + b"\xff" * 60,
    ):
        scan = walked(body)
        assert scan.done
        assert scan.length == 0


def test_the_walk_is_bounded() -> None:
    # A tensor of ones that are not packed: a tag for each.
    body = b"\x0a\xc0\x84\x3d" + b"\x28\x01" * 500_000
    scan = TensorScan(len(body))
    scan.feed(body, len(body))
    assert scan.done


def test_more_bytes_than_there_are() -> None:
    scan = TensorScan(100)
    for got in (11, 101):
        with pytest.raises(ValueError, match="bytes of"):
            scan.feed(b"x" * 10, got)


def test_buffers() -> None:
    buffer = Buffer(1000)
    assert len(buffer) == buffer.size == 1000
    assert buffer.exports == 0
    view = memoryview(buffer)
    assert np.frombuffer(view, np.uint8).ctypes.data % 64 == 0
    part = view[10:20]
    part[:] = b"0123456789"
    assert bytes(view[10:20]) == b"0123456789"
    view.release()
    assert buffer.exports == 1
    part.release()
    assert buffer.exports == 0
    for size in (0, -1):
        with pytest.raises(ValueError, match="a buffer of"):
            Buffer(size)
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        Buffer(2**62)
