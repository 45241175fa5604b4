"""The torchrec protocol: what a request holds, and what a refused one is told."""

import re

import pytest

from cython_ext.column import Kind
from procserver.errors import TooLarge, Undecodable
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference.wire_noise import length


def test_user_features():
    message = PBRequest(debug_level=3, faiss_neigh_num=50, item_ids=["a", "é", ""])
    message.user_features["unset"].SetInParent()
    message.user_features["blank"].string_feature = ""
    message.user_features["ids"].long_list.features.extend([1, 2])
    message.meta_data["request_id"] = "r1"
    message.context_features["none"].SetInParent()
    request = torchrec.decode(message.SerializeToString())
    assert request.user["unset"].kind is Kind.ABSENT
    assert request.user["unset"].to_pylist() == [None]
    assert request.user["blank"].to_pylist() == [""]
    assert request.user["ids"].to_pylist() == [[1, 2]]
    assert request.item_ids.to_pylist() == ["a", "é", ""]
    assert request.meta == {"request_id": "r1"}
    assert len(request.context["none"]) == 0
    assert (request.debug_level, request.faiss_neigh_num) == (3, 50)
    assert request.item == {}
    assert not request.is_empty


@pytest.mark.parametrize(
    ("body", "empty"),
    [
        (b"", True),
        (b"\x08\x01\x28\x05", True),
        (length(7, b"\x0a\x01a\x12\x01b"), True),
        (length(99, b"unknown"), True),
        (length(3, b""), False),
        (length(2, b"\x0a\x01a"), False),
        (length(4, b"\x0a\x01a"), False),
        (length(6, b"\x0a\x01a"), False),
    ],
)
def test_is_empty(body, empty):
    assert torchrec.decode(body).is_empty is empty


def test_columns_do_not_need_the_body():
    message = PBRequest(item_ids=[f"item {i}" for i in range(100)])
    message.context_features["x"].features.extend(
        PBFeature(string_feature=f"text {i}") for i in range(100)
    )
    message.user_features["l"].double_list.features.extend([0.5, 0.25])
    body = bytearray(message.SerializeToString())
    request = torchrec.decode(body)
    body[:] = bytes(len(body))
    assert request.item_ids.to_pylist()[99] == "item 99"
    assert request.context["x"].to_pylist()[50] == "text 50"
    assert request.user["l"].to_pylist() == [[0.5, 0.25]]


AGE = b"\x0a\x03age"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x12", "request: truncated varint"),
        (b"\x12\x05ab", "request: truncated length-delimited field"),
        (b"\x1a\x05ab", "item_ids: truncated length-delimited field"),
        (length(3, b"ok") + length(3, b"\xff"), "item_ids[1]: string that is not"),
        (
            length(2, AGE + length(2, b"\x29abc")),
            "user_features['age']: truncated double",
        ),
        (length(2, AGE + length(2, b"\x25a")), "user_features['age']: truncated float"),
        (
            length(2, AGE + length(2, b"\x08\x80")),
            "user_features['age']: truncated int32",
        ),
        (
            length(2, AGE + length(2, b"\x10" + b"\xff" * 11)),
            "user_features['age']: int64 of more than 10 bytes",
        ),
        (
            length(2, AGE + length(2, length(3, b"\xc0\x80"))),
            "user_features['age']: string that is not UTF-8",
        ),
        (
            length(2, AGE + length(2, length(24, b"\x0a\x03abc"))),
            "user_features['age']: packed float values of a broken length",
        ),
        (
            length(4, AGE + length(2, length(1, b"") + length(1, b"\x29a"))),
            "context_features['age'] row 1: truncated double",
        ),
        (
            length(6, AGE + length(2, b"\x0a\x09")),
            "item_features['age']: truncated length-delimited field",
        ),
        (length(2, length(1, b"\xff")), "user_features['']: string that is not UTF-8"),
        (
            length(7, b"\x0a\x01k" + length(2, b"\xed\xa0\x80")),
            "meta_data['k']: string that is not UTF-8",
        ),
        (b"\x9b\x06" * 101, "request: group nested deeper than 100 levels"),
        (b"\x0c", "request: group that does not end as it began"),
        (b"\x00\x00", "request: no valid field number or wire type"),
    ],
)
def test_undecodable_bodies_name_the_place(body, said):
    with pytest.raises(Undecodable, match=re.escape(said)):
        torchrec.decode(body)


def test_names_in_messages_are_short():
    body = length(2, length(1, b"n" * 5000) + length(2, b"\x29abc"))
    with pytest.raises(Undecodable) as caught:
        torchrec.decode(body)
    assert len(str(caught.value)) < 200


def test_too_many_features():
    with pytest.raises(TooLarge, match="70000 features"):
        torchrec.decode(length(2, b"") * 70000)


def test_only_buffers_are_decoded():
    with pytest.raises(TypeError):
        torchrec.decode("text")


def test_memory_follows_the_body_not_the_numbers_in_it():
    # A length of 2 GiB, and a map that announces nothing it does not hold.
    for body in (b"\x1a\xff\xff\xff\xff\x07", length(2, b"\x12\xff\xff\xff\xff\x07")):
        with pytest.raises(Undecodable):
            torchrec.decode(body)
