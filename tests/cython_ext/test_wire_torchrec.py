"""``wire_torchrec`` against upb: random, noisy, mutated and recorded messages."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import wire_noise
from tests.reference.wire_random import torchrec_request
from tests.reference.wire_verdicts import TORCHREC

BODIES = Path(__file__).parent.parent / "data" / "captures" / "bodies"


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**64))
def test_random_requests_decode_as_upb_decodes_them(seed):
    body = torchrec_request(random.Random(seed)).SerializeToString()
    assert TORCHREC.by_us(body) == TORCHREC.by_upb(body)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**64))
def test_unusual_serialisations_decode_as_upb_decodes_them(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(torchrec_request(rng), rng)
    assert TORCHREC.by_us(body) == TORCHREC.by_upb(body)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64))
def test_mutated_requests_are_refused_exactly_when_upb_refuses(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(torchrec_request(rng), rng)
    for _ in range(15):
        broken = wire_noise.mutated(body, rng)
        assert TORCHREC.by_us(broken) == TORCHREC.by_upb(broken), broken.hex()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(body):
    assert TORCHREC.by_us(body) == TORCHREC.by_upb(body)


def test_every_truncation_of_a_recorded_body():
    body = (BODIES / "python_005_torchrec.bin").read_bytes()
    for n in range(len(body)):
        assert TORCHREC.by_us(body[:n]) == TORCHREC.by_upb(body[:n]), n


@pytest.mark.parametrize(
    "path", sorted(BODIES.glob("*rec.bin")), ids=lambda path: path.stem
)
def test_recorded_bodies(path):
    body = path.read_bytes()
    expected = TORCHREC.by_upb(body)
    assert isinstance(expected, dict)
    assert TORCHREC.by_us(body) == expected
    assert TORCHREC.by_us(bytearray(body)) == expected
    assert TORCHREC.by_us(memoryview(b"xyz" + body)[3:]) == expected
