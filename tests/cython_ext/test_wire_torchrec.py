"""``wire_torchrec`` against upb: random, noisy, mutated and recorded messages."""

import random
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import BadFeature, Undecodable
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference import wire_noise, wire_walk

BODIES = Path(__file__).parent.parent / "data" / "captures" / "bodies"
ALTERNATIVES = [field.name for field in PBFeature.DESCRIPTOR.fields]
TEXTS = ["", "a", "item_1", "0123456789abcdef", "x" * 130, "é", "日本語", "😀b", "\0"]
INTS = [0, 1, -1, 127, 128, 300, 2**31 - 1, -(2**31)]
LONGS = [*INTS, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 10**12]
FLOATS = [0.0, -0.0, 1.5, -2.25, float("inf"), float("nan"), 3.4e38]
DOUBLES = [*FLOATS, 0.1, 1e300, 5e-324]
VALUES = {
    "int": INTS,
    "long": LONGS,
    "string": TEXTS,
    "float": FLOATS,
    "double": DOUBLES,
}


def fill(feature, alternative, rng):
    """Sets the alternative to random content, empty content included."""
    *of, last = alternative.split("_")
    if last == "feature":
        setattr(feature, alternative, rng.choice(VALUES[of[0]]))
        return
    message = getattr(feature, alternative)
    message.SetInParent()
    n = rng.choice([0, 1, 2, 3, 12])
    if last == "map":
        for _ in range(n):
            key = rng.choice(VALUES[of[0]])
            if rng.random() < 0.5:
                key = str(rng.random()) if of[0] == "string" else rng.randrange(99)
            message.map_field[key] = rng.choice(VALUES[of[1]])
    elif last == "list":
        message.features.extend(rng.choices(VALUES[of[0]], k=n))
    else:
        for _ in range(n):
            inner = message.lists.add()
            inner.features.extend(rng.choices(VALUES[of[0]], k=rng.choice([0, 1, 5])))


def fill_rows(features, rng):
    """Rows of one type, with or without blanks, or of a few types."""
    kinds = [rng.choice(ALTERNATIVES)]
    if rng.random() < 0.4:
        kinds += ["string_feature"]
    if rng.random() < 0.3:
        kinds += rng.choices(ALTERNATIVES[:5] + ALTERNATIVES[20:25], k=2)
    plain = rng.random() < 0.5
    for _ in range(rng.choice([0, 1, 2, 9])):
        feature = features.add()
        if plain:
            fill(feature, kinds[0], rng)
        elif rng.random() < 0.3:
            feature.string_feature = ""
        elif rng.random() < 0.9:
            fill(feature, rng.choice(kinds), rng)


def random_request(rng):
    message = PBRequest()
    if rng.random() < 0.5:
        message.debug_level = rng.choice(INTS)
        message.faiss_neigh_num = rng.choice(INTS)
    message.item_ids.extend(rng.choices(TEXTS, k=rng.choice([0, 1, 5])))
    for i in range(rng.randrange(5)):
        fill(message.user_features[f"u{i}"], rng.choice(ALTERNATIVES), rng)
    if rng.random() < 0.2:
        message.user_features[rng.choice(TEXTS)].SetInParent()
    for columns in (message.context_features, message.item_features):
        for i in range(rng.randrange(4)):
            columns[f"é{i}"].SetInParent()
            fill_rows(columns[f"é{i}"].features, rng)
    for i in range(rng.randrange(3)):
        message.meta_data[f"m{i}"] = rng.choice(TEXTS)
    return message


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
    body = random_request(random.Random(seed)).SerializeToString()
    assert outcome(body) == outcome_of_upb(body)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**64))
def test_unusual_serialisations_decode_as_upb_decodes_them(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(random_request(rng), rng)
    assert outcome(body) == outcome_of_upb(body)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64))
def test_mutated_requests_are_refused_exactly_when_upb_refuses(seed):
    rng = random.Random(seed)
    body = wire_noise.noisy(random_request(rng), rng)
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
