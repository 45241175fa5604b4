"""``wire_writer`` writes what upb writes, for random arrays of every dtype."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.wire import torch as protocol
from procserver.wire.pb.torch_predict_pb2 import PredictResponse

DTYPES = {
    "f4": (1, "float_val"),
    "f8": (2, "double_val"),
    "i4": (3, "int_val"),
    "u1": (4, "int_val"),
    "i2": (5, "int_val"),
    "i1": (6, "int_val"),
    "i8": (9, "int64_val"),
    "u2": (17, "int_val"),
}


def random_array(rng):
    dtype = rng.choice(list(DTYPES))
    shape = [rng.choice([0, 1, 2, 3, 130]) for _ in range(rng.randrange(3))]
    n = int(np.prod(shape, dtype=np.int64))
    raw = np.frombuffer(rng.randbytes(n * 8), np.int64) >> rng.randrange(64)
    if dtype in ("f4", "f8"):
        return (raw / 7).astype(dtype).reshape(shape)
    return raw.astype(dtype).reshape(shape)


def filled(tensor, array):
    tensor.dtype, field = DTYPES[array.dtype.str[1:]]
    tensor.array_shape.dim.extend(array.shape)
    tensor.array_shape.SetInParent()
    getattr(tensor, field).extend(array.reshape(-1).tolist())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64))
def test_positional(seed):
    rng = random.Random(seed)
    arrays = [random_array(rng) for _ in range(rng.randrange(4))]
    message = PredictResponse()
    for array in arrays:
        filled(message.outputs.add(), array)
    assert protocol.encode(arrays) == message.SerializeToString()
    assert protocol.encode(tuple(arrays)) == message.SerializeToString()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64))
def test_named(seed):
    rng = random.Random(seed)
    names = rng.sample(["", "a", "é" * 70, "x" * 127, "x" * 128, "p.q-r"], k=3)
    arrays = {name: random_array(rng) for name in names}
    message = PredictResponse()
    for name, array in arrays.items():
        filled(message.map_outputs[name], array)
    body = protocol.encode(arrays)
    assert PredictResponse.FromString(body) == message
    assert len(body) == message.ByteSize()


def test_many_outputs():
    arrays = [np.full(3, i, np.float32) for i in range(1000)]
    message = PredictResponse.FromString(protocol.encode(arrays))
    assert [list(t.float_val) for t in message.outputs] == [[i] * 3 for i in range(1000)]


def test_buffers_are_let_go():
    array = bytearray(16)
    view = np.frombuffer(array, np.float32)
    protocol.encode([view])
    del view
    array.extend(b"x")  # BufferError while a buffer is held
