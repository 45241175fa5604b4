"""``wire_fill``: maps whose keys repeat, against upb."""

import random

import pytest

from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference.wire_cases import agree, mapping, user
from tests.reference.wire_noise import length, varint


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


def test_map_entries_keep_the_first_place_and_the_last_value():
    for n in (3, 40):
        entries = b""
        for i in [*range(n), 1, 0, 1]:
            value = len(entries)
            key = b"\x0a\x02" + b"%02d" % i
            entries += length(1, key + b"\x12" + bytes([len(str(value))]) +
                              str(value).encode())  # fmt: skip
        feature = length(11, entries)
        body = length(2, b"\x0a\x01m" + length(2, feature))
        column = torchrec.decode(body).user["m"]
        upb = PBRequest.FromString(body).user_features["m"].string_string_map.map_field
        (cells,) = column.to_pylist()
        assert dict(cells) == dict(upb)
        assert [k for k, _ in cells] == [f"{i:02d}" for i in range(n)]


def test_map_keys_of_every_length():
    keys = ["k" * n for n in range(40)] + [f"{i:08d}tail" for i in range(200)]
    feature = mapping("string_long_map", {k: i for i, k in enumerate(keys)})
    message = PBRequest(user_features={"m": feature})
    (cells,) = torchrec.decode(message.SerializeToString()).user["m"].to_pylist()
    assert dict(cells) == {k: i for i, k in enumerate(keys)}
