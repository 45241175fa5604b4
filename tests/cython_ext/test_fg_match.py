"""match_feature: nested maps as text and as map columns."""

import pyarrow as pa
import pytest
from one_operator import HASH, h, run

USER = "ca^ba:1,bb:2|cb^ba:3,bb:4\x1dbc:x"


def match(
    user, category, item, *, many=False, any_category=False, any_item=False,
    numeric=False, name=None, shown=(False, False), **options,
):  # fmt: skip
    if numeric:
        options = {
            "form": "numbers",
            "value_dim": 1,
            "default_numbers": [0.0],
        } | options
    else:
        options = {"form": "ids", "bucketizer": HASH} | options
    details = (many, any_category, any_item, numeric, name, *shown)
    arrays = [user, category, item]
    return run("match", arrays, takes_maps=True, details=details, **options)


def test_texts_that_are_hashed():
    arrays = [
        pa.array([USER]),
        pa.array(["cb", "ca", "cc"]),
        pa.array(["bc", "ba", "ba"]),
    ]
    assert match(*arrays)["values"] == [h("x"), h("1")]
    assert match(*arrays)["lengths"] == [1, 1, 0]
    assert match(*arrays, name=b"f")["values"] == [h("f_x"), h("f_1")]
    both = match(*arrays, name=b"f", shown=(True, True))
    assert both["values"] == [h("f_cb_bc_x"), h("f_ca_ba_1")]
    item = match(*arrays, name=b"f", shown=(False, True))
    assert item["values"] == [h("f_bc_x"), h("f_ba_1")]


@pytest.mark.parametrize(
    "user",
    [
        pa.array([USER]),
        pa.array([["ca^ba:1,bb:2", None, "cb^ba:3,bb:4,bc:x"]]),
        pa.array(
            [[("ca", "ba:1,bb:2"), ("cb", "ba:3,bb:4,bc:x"), ("cc", None)]],
            pa.map_(pa.string(), pa.string()),
        ),
    ],
)
def test_numbers(user):
    category, item = (
        pa.array(["ca", "cb", "cb", None]),
        pa.array(["bb", "bb", "bc", "ba"]),
    )
    found = match(user, category, item, numeric=True)
    assert found["values"] == [[2], [4], [0], [0]]


def test_categories_that_are_numbers():
    user = pa.array([[(7, "1:5"), (8, "1:6")]], pa.map_(pa.int64(), pa.string()))
    seven = pa.array([7], pa.int32())
    found = match(user, seven, pa.array([1], pa.int64()), numeric=True)
    assert found["values"] == [[5]]


def test_hit_ends_with_the_first_match_and_multihit_goes_on():
    arrays = [pa.array([USER]), pa.array(["cx\x1dcb\x1dca"]), pa.array(["bb\x1dba"])]
    assert match(*arrays)["values"] == [h("4")]
    found = match(*arrays, many=True)
    assert found["values"] == [h(text) for text in "4321"]


def test_all_means_any_key_for_multihit():
    user, ca, ba = pa.array([USER]), pa.array(["ca"]), pa.array(["ba"])
    everything = {"many": True, "any_category": True, "any_item": True}
    assert match(user, ca, ba, **everything)["values"] == [h(t) for t in "1234x"]
    assert match(user, ca, ba, many=True, any_item=True)["values"] == [h("1"), h("2")]
    found = match(user, ca, ba, many=True, any_category=True)
    assert found["values"] == [h("1"), h("3")]


def test_a_category_and_an_item_are_no_other_pair():
    """``a`` + ``bc`` is not ``ab`` + ``c``."""
    user = pa.array([[("a", "bc:1")]], pa.map_(pa.string(), pa.string()))
    assert match(user, pa.array(["ab"]), pa.array(["c"]))["lengths"] == [0]
    assert match(user, pa.array(["a"]), pa.array(["bc"]))["lengths"] == [1]


@pytest.mark.parametrize(
    "text",
    ["", "|", "^", "a", "a:1", "^b", "a^", "a^b", "a^b:", "a^:1", "|||^^^,,,:::"],
)
def test_broken_texts_match_nothing(text):
    everything = {"many": True, "any_category": True, "any_item": True}
    one = pa.array(["a"])
    assert match(pa.array([text]), one, one, **everything)["lengths"] == [0]


def test_the_empty_category_is_one_like_others():
    everything = {"many": True, "any_category": True, "any_item": True}
    one = pa.array(["a"])
    assert match(pa.array(["^b:1"]), one, one, **everything)["values"] == [h("1")]


def test_details_are_checked():
    with pytest.raises(ValueError, match="numeric default"):
        match(*[pa.array(["a"])] * 3, numeric=True, default_numbers=[])
