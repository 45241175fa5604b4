"""``wire_torchrec`` against upb: random, noisy, mutated and recorded messages."""

import random
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import BadFeature, Undecodable
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest
from tests.reference import wire_noise, wire_walk
from tests.reference.wire_random import torchrec_request

BODIES = Path(__file__).parent.parent / "data" / "captures" / "bodies"


def outcome_of_upb(body):
    message = PBRequest()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return "undecodable"
    try:
        return wire_walk.frozen(wire_walk.request(message))
    except wire_walk.Conflict:
        return "bad feature"


def outcome(body):
    try:
        request = torchrec.decode(body)
    except Undecodable:
        return "undecodable"
    except BadFeature:
        return "bad feature"
    return wire_walk.frozen(wire_walk.decoded(request))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**64))
def test_random_requests_decode_as_upb_decodes_them(seed):
    body = torchrec_request(random.Random(seed)).SerializeToString()
    assert outcome(body) == outcome_of_upb(body)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**64))
def test_unusual_serialisations_decode_as_upb_decodes_them(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(torchrec_request(rng), rng)
    assert outcome(body) == outcome_of_upb(body)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64))
def test_mutated_requests_are_refused_exactly_when_upb_refuses(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(torchrec_request(rng), rng)
    for _ in range(15):
        broken = wire_noise.mutated(body, rng)
        assert outcome(broken) == outcome_of_upb(broken), broken.hex()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(body):
    assert outcome(body) == outcome_of_upb(body)


def test_every_truncation_of_a_recorded_body():
    body = (BODIES / "python_005_torchrec.bin").read_bytes()
    for n in range(len(body)):
        assert outcome(body[:n]) == outcome_of_upb(body[:n]), n


@pytest.mark.parametrize(
    "path", sorted(BODIES.glob("*rec.bin")), ids=lambda path: path.stem
)
def test_recorded_bodies(path):
    body = path.read_bytes()
    expected = outcome_of_upb(body)
    assert isinstance(expected, dict)
    assert outcome(body) == expected
    assert outcome(bytearray(body)) == expected
    assert outcome(memoryview(b"xyz" + body)[3:]) == expected
