"""``wire_feature``: rows of several types in one column."""

import re

import pytest

from procserver.errors import BadFeature
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference.wire_cases import many, mapping, nested


def scalar(**fields):
    return PBFeature(**fields)


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
