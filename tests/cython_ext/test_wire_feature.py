"""``wire_feature``: merging, map keys and the one-pass columns, against upb."""

import random
import time

import pytest
from google.protobuf.message import DecodeError

from procserver.errors import Undecodable
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference import wire_walk
from tests.reference.wire_noise import length, tag, varint


def agree(body):
    """Our request, once it is found equal to upb's."""
    request = torchrec.decode(body)
    expected = wire_walk.request(PBRequest.FromString(body))
    assert wire_walk.frozen(wire_walk.decoded(request)) == wire_walk.frozen(expected)
    return request


def user(feature):
    return length(2, b"\x0a\x01x" + length(2, feature))


def rows(*features):
    columns = b"".join(length(1, feature) for feature in features)
    return length(4, b"\x0a\x01x" + length(2, columns))


FIVE, SIX = length(21, b"\x08\x05"), length(21, length(1, b"\x06\x07"))


@pytest.mark.parametrize(
    ("feature", "cell"),
    [
        (FIVE + SIX, [5, 6, 7]),
        (FIVE + tag(100, 0) + b"\x01" + SIX, [5, 6, 7]),
        (FIVE + b"\x08\x01" + SIX, [6, 7]),
        (FIVE + SIX + b"\x08\x01", 1),
        (FIVE + SIX + length(3, b""), ""),
        # The wrong wire type is an unknown field and clears nothing.
        (FIVE + b"\x0d\x00\x00\x00\x00" + SIX, [5, 6, 7]),
        (FIVE + length(22, b"") + SIX, [6, 7]),
        (FIVE + length(22, b"\x08\x09") + length(22, b"\x08\x0a"), [9, 10]),
        (length(26, length(1, b"\x08\x01")) + length(26, length(1, b"")), [[1], []]),
        (length(3, b"abc") + length(3, b"de"), "de"),
        (length(21, b"") * 2, []),
    ],
)
def test_the_last_alternative_wins_and_messages_merge(feature, cell):
    assert agree(user(feature)).user["x"].to_pylist() == [cell]
    assert agree(rows(feature, feature)).context["x"].to_pylist() == [cell, cell]


def test_values_of_a_map_entry_merge():
    entry = b"\x0a\x01x" + length(2, FIVE) + tag(2, 0) + b"\x01" + length(2, SIX)
    # The stray varint makes the entry one with an unknown field: upb drops it.
    assert agree(length(2, entry)).user == {}
    entry = b"\x0a\x01x" + length(2, FIVE) + b"\x0a\x01y" + length(2, SIX)
    assert agree(length(2, entry)).user["y"].to_pylist() == [[5, 6, 7]]
    entry = length(2, length(1, FIVE)) + length(2, length(1, SIX)) + b"\x0a\x01z"
    assert agree(length(4, entry)).context["z"].to_pylist() == [[5], [6, 7]]


def test_entries_without_key_or_value():
    for section in (2, 4, 6, 7):
        agree(length(section, b""))
        agree(length(section, b"\x0a\x01a"))
    empty = length(6, length(1, b""))
    assert agree(user(empty)).user["x"].to_pylist() == [[(0, "")]]


def test_many_parts_merge_in_linear_time():
    def seconds(n):
        body = user(FIVE * n)
        entry = length(2, b"\x0a\x01x" + length(2, FIVE) * n)
        start = time.perf_counter()
        assert len(torchrec.decode(body).user["x"].to_pylist()[0]) == n
        assert len(torchrec.decode(entry).user["x"].to_pylist()[0]) == n
        return time.perf_counter() - start

    few, many = min(seconds(2000) for _ in range(5)), seconds(100_000)
    assert many < 50 * few * 10


@pytest.mark.parametrize("key", ["long", "string", "int"])
def test_large_maps_with_repeated_keys(key):
    rng = random.Random(7)
    feature = PBFeature()
    number = feature.DESCRIPTOR.fields_by_name[f"{key}_long_map"].number
    entries = b""
    for value in range(5000):
        k = rng.randrange(1500)
        head = length(1, str(k).encode()) if key == "string" else b"\x08" + varint(k)
        entries += length(1, head + b"\x10" + varint(value))
    column = agree(user(length(number, entries))).user["x"]
    assert len(column.to_pylist()[0]) < 1500


def test_int32_keys_are_cut_to_32_bits_before_they_are_compared():
    entry = b"\x08" + varint(2**32 + 5) + b"\x10\x01"
    other = b"\x08\x05\x10\x02"
    body = user(length(17, length(1, entry) + length(1, other)))
    assert agree(body).user["x"].to_pylist() == [[(5, 2)]]


SCALARS = {
    "int_feature": [0, 1, -1, 2**31 - 1, -(2**31), 127, 128],
    "long_feature": [0, -1, 2**63 - 1, -(2**63), 2**35],
    "string_feature": ["", "a", "x" * 15, "y" * 16, "z" * 17, "w" * 126, "é" * 70],
    "float_feature": [0.0, -1.5],
    "double_feature": [0.0, -1.5e300],
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_plain_columns_and_what_breaks_their_pattern(name, n):
    message = PBRequest()
    features = message.item_features["x"].features
    for i in range(n):
        setattr(features.add(), name, SCALARS[name][i % len(SCALARS[name])])
    agree(message.SerializeToString())
    # One odd row, first, last or between: unset, blank, or with unknown fields.
    plain = [f.SerializeToString() for f in features]
    unknown = tag(99, 0) + b"\x01"
    for at in {0, n // 2, n}:
        for odd in (b"", length(3, b""), plain[0] + unknown, plain[0] + plain[-1],
                    unknown, unknown + plain[0]):  # fmt: skip
            agree(rows(*plain[:at], odd, *plain[at:]))
    body = rows(*plain)
    for end in range(4, len(body), max(1, len(body) // 100)):
        broken = length(4, b"\x0a\x01x" + length(2, body[6:end]))
        try:
            PBRequest.FromString(broken)
        except DecodeError:
            with pytest.raises(Undecodable):
                torchrec.decode(broken)
        else:
            agree(broken)
