"""``wire_torch`` against upb: random, noisy, mutated and recorded messages."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.wire import torch as protocol
from procserver.wire.pb.torch_predict_pb2 import ArrayProto
from tests.reference import wire_noise
from tests.reference.wire_random import torch_request
from tests.reference.wire_verdicts import TORCH

BODIES = Path(__file__).parent.parent / "data" / "captures" / "bodies"
# Sent through a compressor: Java's five, Python's snappy.
COMPRESSED = [
    *(BODIES / f"java_{number:03}_torch.bin" for number in range(8, 13)),
    BODIES / "python_003_torch.bin",
]
RECORDED = [
    path
    for path in sorted(BODIES.glob("*torch*.bin"))
    if "torchrec" not in path.stem and path not in COMPRESSED
]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**64))
def test_random_requests_decode_as_upb_decodes_them(seed):
    body = torch_request(random.Random(seed)).SerializeToString()
    assert TORCH.by_us(body) == TORCH.by_upb(body)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**64))
def test_unusual_serialisations_decode_as_upb_decodes_them(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(torch_request(rng), rng)
    assert TORCH.by_us(body) == TORCH.by_upb(body)
    # At every alignment.
    for shift in range(8):
        view = memoryview(bytes(shift) + body)[shift:]
        assert TORCH.by_us(view) == TORCH.by_upb(body)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64))
def test_mutated_requests_are_refused_exactly_when_upb_refuses(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(torch_request(rng), rng)
    for _ in range(15):
        broken = wire_noise.mutated(body, rng)
        assert TORCH.by_us(broken) == TORCH.by_upb(broken), broken.hex()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(body):
    assert TORCH.by_us(body) == TORCH.by_upb(body)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_bodies(path):
    body = path.read_bytes()
    expected = TORCH.by_upb(body)
    assert isinstance(expected, tuple)
    assert TORCH.by_us(body) == expected
    for n in range(len(body)):
        assert TORCH.by_us(body[:n]) == TORCH.by_upb(body[:n]), n


@pytest.mark.parametrize("path", COMPRESSED, ids=lambda path: path.stem)
def test_a_compressed_body_is_not_taken_for_a_request(path):
    body = path.read_bytes()
    assert TORCH.by_us(body) == "undecodable" == TORCH.by_upb(body)


def test_merged_map_value():
    first = ArrayProto(dtype=1, float_val=[1.0])
    first.array_shape.dim.append(2)
    second = ArrayProto(float_val=[2.0])
    entry = (
        wire_noise.length(1, b"x")
        + wire_noise.length(2, first.SerializeToString())
        + wire_noise.length(2, second.SerializeToString())
    )
    request = protocol.decode(wire_noise.length(3, entry))
    assert request.map_inputs["x"].values.tolist() == [1.0, 2.0]
