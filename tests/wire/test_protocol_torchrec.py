"""The torchrec protocol: rows of several types, refusals, and responses."""

import math
import re

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column, Kind
from procserver.errors import BadFeature, PredictFailed, TooLarge, Undecodable
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest, PBResponse
from tests.reference.wire_noise import length


def scalar(**fields):
    return PBFeature(**fields)


def many(alternative, values):
    feature = PBFeature()
    getattr(feature, alternative).features.extend(values)
    getattr(feature, alternative).SetInParent()
    return feature


def mapping(alternative, values):
    feature = PBFeature()
    getattr(feature, alternative).map_field.update(values)
    getattr(feature, alternative).SetInParent()
    return feature


def nested(alternative, lists):
    feature = PBFeature()
    getattr(feature, alternative).SetInParent()
    for values in lists:
        getattr(feature, alternative).lists.add().features.extend(values)
    return feature


def column_of(*features):
    message = PBRequest()
    message.context_features["x"].features.extend(features)
    column = torchrec.decode(message.SerializeToString()).context["x"]
    return column.kind.name, column.to_pylist()


UNSET, BLANK = PBFeature(), scalar(string_feature="")
INT, LONG = scalar(int_feature=5), scalar(long_feature=-6)
TEXT = scalar(string_feature="abc")
SINGLE, DOUBLE = scalar(float_feature=0.5), scalar(double_feature=0.1)
INTS, TEXTS = many("int_list", [1, -2]), many("string_list", ["a", ""])


@pytest.mark.parametrize(
    ("rows", "kind", "cells"),
    [
        ([], "ABSENT", []),
        ([UNSET, UNSET], "ABSENT", [None, None]),
        ([BLANK, BLANK], "STRING", ["", ""]),
        ([BLANK, UNSET], "STRING", ["", None]),
        ([TEXT, BLANK, UNSET], "STRING", ["abc", "", None]),
        ([BLANK, INT], "INT32", [None, 5]),
        ([INT, BLANK, UNSET, INT], "INT32", [5, None, None, 5]),
        ([INT, LONG], "INT64", [5, -6]),
        ([LONG, BLANK, INT], "INT64", [-6, None, 5]),
        ([SINGLE, DOUBLE], "FLOAT64", [0.5, 0.1]),
        ([INT, SINGLE], "FLOAT64", [5.0, 0.5]),
        ([DOUBLE, LONG], "FLOAT64", [0.1, -6.0]),
        ([scalar(long_feature=2**53), SINGLE], "FLOAT64", [2.0**53, 0.5]),
        ([scalar(long_feature=-(2**63)), SINGLE], "FLOAT64", [-(2.0**63), 0.5]),
        ([INT, LONG, TEXT], "STRING", ["5", "-6", "abc"]),
        ([TEXT, BLANK, INT], "STRING", ["abc", "", "5"]),
        (
            [scalar(long_feature=-(2**63)), scalar(int_feature=0), TEXT],
            "STRING",
            ["-9223372036854775808", "0", "abc"],
        ),
        ([INT, INTS], "LIST_INT32", [[5], [1, -2]]),
        ([INTS, LONG, BLANK], "LIST_INT64", [[1, -2], [-6], None]),
        ([TEXT, TEXTS, BLANK], "LIST_STRING", [["abc"], ["a", ""], None]),
        ([TEXTS, INTS], "LIST_STRING", [["a", ""], ["1", "-2"]]),
        ([INTS, TEXT], "LIST_STRING", [["1", "-2"], ["abc"]]),
        ([SINGLE, INTS, INT], "LIST_FLOAT64", [[0.5], [1.0, -2.0], [5.0]]),
        ([many("int_list", []), BLANK], "LIST_INT32", [[], None]),
        (
            [nested("int_lists", [[1], []]), nested("long_lists", [[2, 3]]), UNSET],
            "LISTS_INT64",
            [[[1], []], [[2, 3]], None],
        ),
        (
            [mapping("int_float_map", {1: 0.5}), mapping("long_double_map", {2: 0.1})],
            "MAP_INT64_FLOAT64",
            [[(1, 0.5)], [(2, 0.1)]],
        ),
        (
            [mapping("string_int_map", {"a": 1}), BLANK],
            "MAP_STRING_INT32",
            [[("a", 1)], None],
        ),
    ],
)
def test_rows_of_several_types(rows, kind, cells):
    assert column_of(*rows) == (kind, cells)
    kind_backwards, cells_backwards = column_of(*reversed(rows))
    assert (kind_backwards, cells_backwards) == (kind, cells[::-1])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([SINGLE, TEXT], "row 1: string_feature after rows of float_feature"),
        ([INT, UNSET, mapping("int_int_map", {1: 1})],
         "row 2: int_int_map after rows of int_feature"),
        ([INTS, nested("int_lists", [[1]])],
         "row 1: int_lists after rows of int_list"),
        ([INT, nested("int_lists", [[1]])], "row 1: int_lists after"),
        ([mapping("int_int_map", {1: 1}), mapping("int_float_map", {}),
          mapping("int_string_map", {})], "row 2: int_string_map after rows of"),
        ([INT, LONG, DOUBLE, TEXT], "row 3: string_feature after rows of double"),
        ([many("float_list", [1]), TEXT], "row 1: string_feature after"),
        ([SINGLE, scalar(long_feature=2**53 + 1)],
         "row 1: a value of this long_feature is not exact as double_feature"),
        ([scalar(long_feature=2**63 - 1), DOUBLE], "row 0: a value of this long"),
        ([many("long_list", [1, 2**60 + 1]), DOUBLE],
         "row 0: a value of this long_list is not exact as double_list"),
        ([nested("long_lists", [[2**60 + 1]]), nested("double_lists", [])],
         "row 0: a value of this long_lists is not exact as double_lists"),
    ],
)  # fmt: skip
def test_types_that_do_not_mix(rows, said):
    for section in ("context_features", "item_features"):
        message = PBRequest()
        getattr(message, section)["price"].features.extend(rows)
        with pytest.raises(BadFeature, match=re.escape(said)) as caught:
            torchrec.decode(message.SerializeToString())
        assert str(caught.value).startswith(f"{section}['price'] row ")


def test_a_conflict_in_a_replaced_entry_is_none():
    bad, good = PBRequest(), PBRequest()
    bad.item_features["x"].features.extend([SINGLE, TEXT])
    good.item_features["x"].features.extend([SINGLE])
    bad, good = bad.SerializeToString(), good.SerializeToString()
    assert torchrec.decode(bad + good).item["x"].to_pylist() == [0.5]
    with pytest.raises(BadFeature):
        torchrec.decode(good + bad)


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


def test_columns_do_not_need_the_body():
    message = PBRequest(item_ids=[f"item {i}" for i in range(100)])
    message.context_features["x"].features.extend(
        scalar(string_feature=f"text {i}") for i in range(100)
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
        (length(2, AGE + length(2, b"\x29abc")), "user_features['age']: truncated double"),
        (length(2, AGE + length(2, b"\x25a")), "user_features['age']: truncated float"),
        (length(2, AGE + length(2, b"\x08\x80")), "user_features['age']: truncated int32"),
        (length(2, AGE + length(2, b"\x10" + b"\xff" * 11)),
         "user_features['age']: int64 of more than 10 bytes"),
        (length(2, AGE + length(2, length(3, b"\xc0\x80"))),
         "user_features['age']: string that is not UTF-8"),
        (length(2, AGE + length(2, length(24, b"\x0a\x03abc"))),
         "user_features['age']: packed float values of a broken length"),
        (length(4, AGE + length(2, length(1, b"") + length(1, b"\x29a"))),
         "context_features['age'] row 1: truncated double"),
        (length(6, AGE + length(2, b"\x0a\x09")),
         "item_features['age']: truncated length-delimited field"),
        (length(2, length(1, b"\xff")), "user_features['']: string that is not UTF-8"),
        (length(7, b"\x0a\x01k" + length(2, b"\xed\xa0\x80")),
         "meta_data['k']: string that is not UTF-8"),
        (b"\x9b\x06" * 101, "request: group nested deeper than 100 levels"),
        (b"\x0c", "request: group that does not end as it began"),
        (b"\x00\x00", "request: no valid field number or wire type"),
    ],
)  # fmt: skip
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


# ------------------------------------------------------------- responses


def test_a_response_returns_as_it_was():
    outputs = {
        "probs_ctr": np.array([0.1, math.nan, -0.0], np.float32),
        "logits": np.array([[0.1, 0.2]]),
        "ids": np.array([2**60, -1]),
        "short": np.array([-7], np.int16),
        "flag": np.array([True, False]),
        "": np.float32(2.0),
    }
    ids = Column.from_arrow(pa.array(["a", None, "", "长" * 100]))
    body = torchrec.encode(
        outputs,
        ids,
        generate_features={"a": "x:1 | y:2", "é": ""},
        raw_features={"": "r" * 1000},
        pass_through={"model_version": "7"},
    )
    message = PBResponse.FromString(body)
    assert list(message.item_ids) == ["a", "", "", "长" * 100]
    assert dict(message.generate_features) == {"a": "x:1 | y:2", "é": ""}
    assert dict(message.raw_features) == {"": "r" * 1000}
    assert dict(message.pass_through_data) == {"model_version": "7"}
    assert set(message.map_outputs) == set(outputs)
    values = message.map_outputs
    assert np.array_equal(
        np.array(values["probs_ctr"].float_val, np.float32).view(np.int32),
        outputs["probs_ctr"].view(np.int32),
    )
    assert list(values["logits"].double_val) == [0.1, 0.2]
    assert list(values["logits"].array_shape.dim) == [1, 2]
    assert list(values["ids"].int64_val) == [2**60, -1]
    assert list(values["short"].int_val) == [-7]
    assert list(values["flag"].int_val) == [1, 0]
    assert list(values[""].float_val) == [2.0]
    assert [t.dtype for t in values.values()].count(1) == 2
    assert len(body) == message.ByteSize()
    places = [body.index(name.encode()) for name in list(outputs)[:-1]]
    assert places == sorted(places)


def test_sliced_and_missing_ids():
    ids = Column.from_arrow(pa.array(["a", "b", "c", None])).slice(1, 3)
    assert list(PBResponse.FromString(torchrec.encode({}, ids)).item_ids) == [
        "b",
        "c",
        "",
    ]
    assert torchrec.encode({}, None) == b""
    assert torchrec.encode({}, Column.null(0)) == b""
    with pytest.raises(TypeError, match="INT64"):
        torchrec.encode({}, Column.from_arrow(pa.array([1])))


def test_an_echo_of_the_request():
    message = PBRequest(item_ids=[f"{i}" * (i % 200) for i in range(300)])
    ids = torchrec.decode(message.SerializeToString()).item_ids
    answer = PBResponse.FromString(torchrec.encode({}, ids))
    assert list(answer.item_ids) == list(message.item_ids)


def test_outputs_without_a_place_in_the_protocol():
    with pytest.raises(PredictFailed, match="output 'bad' has dtype uint64"):
        torchrec.encode({"bad": np.array([1], np.uint64)}, None)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 127, 128, 5000, 2**15])
def test_lengths_of_every_size(n):
    outputs = {"x" * (n % 300): np.arange(n, dtype=np.float32)}
    ids = Column.from_arrow(pa.array(["y" * n]))
    body = torchrec.encode(outputs, ids, generate_features={"k": "z" * n})
    message = PBResponse.FromString(body)
    (tensor,) = message.map_outputs.values()
    assert list(tensor.float_val) == list(range(n))
    assert message.item_ids[0] == "y" * n
    assert message.generate_features["k"] == "z" * n
    assert len(body) == message.ByteSize()
