"""Keys of the single feature types: spellings, defaults, refusals, graphs."""

import pyarrow as pa
import pytest

from procserver.errors import FgConfigError
from procserver.fg import FeatureGenerator
from procserver.fg.spec import read_spec
from procserver.fg.types import NEVER, NOT_YET, TYPES

LOOKUP = {
    "feature_name": "f", "feature_type": "lookup_feature", "map": "user:m",
    "key": "item:k",
}  # fmt: skip
MATCH = {
    "feature_name": "f", "feature_type": "match_feature", "user": "user:m",
    "category": "item:c", "item": "item:k",
}  # fmt: skip
OVERLAP = {
    "feature_name": "f", "feature_type": "overlap_feature", "query": "user:q",
    "title": "item:t", "method": "is_equal",
}  # fmt: skip
KV = {
    "feature_name": "f", "feature_type": "kv_dot_product", "query": "user:q",
    "document": "item:t",
}  # fmt: skip
COMBINE = {
    "feature_name": "f", "feature_type": "combine_feature", "expression": "user:x",
}  # fmt: skip
MASK = {
    "feature_name": "f", "feature_type": "bool_mask_feature",
    "expression": ["user:x", "item:y"],
}  # fmt: skip
ENTRIES = [LOOKUP, MATCH, OVERLAP, KV, COMBINE, MASK]
VOCABULARY = {"vocab_list": ["1", "2"], "default_bucketize_value": 9}


def spec_of(entry):
    return read_spec({"features": [entry]}).features[0]


def transform(entry, **columns):
    arrays = {name: pa.array(values) for name, values in columns.items()}
    found = FeatureGenerator({"features": [entry]}).transform(arrays)
    return {name[2:]: array.tolist() for name, array in found.items()}


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (without(LOOKUP, "map"), "map"),
        (without(LOOKUP, "key"), "key"),
        (LOOKUP | {"map": "m"}, "map"),
        (LOOKUP | {"key": ["item:k"]}, "key"),
        (LOOKUP | {"combiner": "median"}, "combiner"),
        (LOOKUP | {"needDiscrete": "perhaps"}, "needDiscrete"),
        (LOOKUP | {"need_key": 7}, "need_key"),
        (LOOKUP | {"default_value": "x"}, "default_value"),
        (LOOKUP | {"needDiscrete": True, "num_buckets": 5, "default_value": "x"},
         "default_value"),
        (LOOKUP | {"combiner": "", "value_dim": 70_000}, "value_dim"),
        (LOOKUP | {"normalizer": "method=none"}, "normalizer"),
        (LOOKUP | {"key": "feature:none"}, "expression"),
        (without(MATCH, "user"), "user"),
        (MATCH | {"category": "every"}, "category"),
        (MATCH | {"matchType": "some"}, "matchType"),
        (MATCH | {"needDiscrete": False, "default_value": "x"}, "default_value"),
        (without(OVERLAP, "method"), "method"),
        (OVERLAP | {"method": "common_word"}, "method"),
        (OVERLAP | {"method": "levenshtein"}, "method"),
        (OVERLAP | {"hash_bucket_size": 5}, "hash_bucket_size"),
        (without(OVERLAP, "title"), "title"),
        (without(KV, "document"), "document"),
        (KV | {"kv_delimiter": "::"}, "kv_delimiter"),
        (KV | {"vocab_list": ["a"]}, "vocab_list"),
        (COMBINE | {"expression": ["user:x", "user:y"]}, "expression"),
        (COMBINE | {"combiner": "first"}, "combiner"),
        (COMBINE | {"value_map": ["a"]}, "value_map"),
        (COMBINE | {"value_map": {"a": "x"}}, "value_map"),
        (COMBINE | {"default_value": "x"}, "default_value"),
        (MASK | {"expression": ["user:x"]}, "expression"),
        (MASK | {"expression": ["user:x"] * 3}, "expression"),
        (MASK | {"num_buckets": 5, "default_value": "x"}, "default_value"),
    ],
)  # fmt: skip
def test_refusals_name_feature_and_key(entry, key):
    with pytest.raises(FgConfigError) as caught:
        FeatureGenerator({"features": [entry]})
    assert caught.value.feature == "f"
    assert caught.value.key == key


def test_old_overlap_methods_say_why():
    with pytest.raises(FgConfigError, match="not published"):
        spec_of(OVERLAP | {"method": "diff_word"})


def test_every_type_is_listed_once():
    assert set(TYPES).isdisjoint(NOT_YET | NEVER)
    assert all(name == kind.feature_type for name, kind in TYPES.items())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["feature_type"])
@pytest.mark.parametrize("form", ["plain", "sequence_", "is_sequence", "group"])
def test_every_type_in_every_form(entry, form):
    """Null columns give the default, whatever the form; names and forms agree."""
    entry = entry | {"default_value": "1"}
    if entry["feature_type"] in ("bool_mask_feature", "match_feature"):
        entry["num_buckets"] = 5
    if form == "sequence_":
        entry["feature_type"] = form + entry["feature_type"]
    elif form == "is_sequence":
        entry["is_sequence"] = True
    features = [entry]
    if form == "group":
        features = [{"sequence_name": "s", "features": [entry]}]
    generator = FeatureGenerator({"features": features})
    name = "s__f" if form == "group" else "f"
    assert generator.default_row()[name].tolist() == [1]
    rows = {slot.name: pa.array([None, None, ""]) for slot in generator.plan.slots}
    tensors = generator.transform(rows)
    assert set(tensors) == set(generator.tensor_names())
    assert tensors[f"{name}.values"].reshape(-1).tolist() == [1, 1, 1]
    if form != "plain":
        assert tensors[f"{name}.lengths"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("spellings", "column"),
    [
        ({"needDiscrete": True}, {"values": [2, 1], "lengths": [2]}),
        ({"need_discrete": "true"}, {"values": [2, 1], "lengths": [2]}),
        ({"needDiscrete": True, "combiner": "sum"}, {"values": [2, 1], "lengths": [2]}),
        ({"needDiscrete": False, "combiner": "SUM"}, {"values": [3], "lengths": [1]}),
        ({"value_type": "String"}, {"values": [2, 1], "lengths": [2]}),
        ({"value_type": "Double"}, {"values": [3], "lengths": [1]}),
        ({}, {"values": [3], "lengths": [1]}),
        ({"combiner": "Avg"}, {"values": [1], "lengths": [1]}),
    ],
)
def test_lookup_spellings(spellings, column):
    entry = LOOKUP | {"num_buckets": 10} | spellings
    assert transform(entry, m=["a:1\x1db:2"], k=["b\x1da"]) == column


@pytest.mark.parametrize("spelling", ["needKey", "need_key"])
def test_need_key(spelling):
    entry = LOOKUP | {"needDiscrete": True, spelling: True, "stub_type": True}
    generator = FeatureGenerator({"features": [entry]})
    columns = {"m": pa.array(["a:1"]), "k": pa.array(["a", "b"])}
    assert generator.unbucketized(columns) == {"f": [["a_1"], ["0"]]}


def test_the_order_of_bucketizers_is_the_types_own():
    for entry in (LOOKUP, MATCH):
        both = entry | {"needDiscrete": True, "num_buckets": 10} | VOCABULARY
        assert spec_of(both).bucketizer.kind == "number"
        assert spec_of(both | {"hash_bucket_size": 5}).bucketizer.kind == "hash"
    mask = MASK | {"num_buckets": 10} | VOCABULARY
    assert spec_of(mask).bucketizer.kind == "vocab"


@pytest.mark.parametrize("spelling", ["matchType", "match_type"])
def test_match_spellings(spelling):
    entry = MATCH | {spelling: "multihit", "category": "ALL", "num_buckets": 10}
    columns = {"m": ["ca^a:1,b:2|cb^a:3"], "k": ["a", "b"]}
    assert transform(entry, **columns) == {"values": [1, 3, 2], "lengths": [2, 1]}


def test_all_is_a_literal_key_for_hit():
    entry = MATCH | {"category": "ALL", "needDiscrete": False}
    columns = {"m": ["ca^a:1|ALL^a:2"], "k": ["a", "b"]}
    assert transform(entry, **columns) == {"values": [[2], [0]]}
    assert transform(without(entry, "category"), **columns) == {"values": [[2], [0]]}


def test_which_match_text_is_bucketized():
    """14.1: the hash sees the feature's name, vocabularies the bare value."""
    columns = {"m": ["ca^ba:1"], "c": ["ca"], "k": ["ba"]}
    entry = MATCH | {"show_item": True}
    assert transform(entry | VOCABULARY, **columns)["values"] == [0]
    assert transform(entry | {"num_buckets": 5}, **columns)["values"] == [1]
    generator = FeatureGenerator({"features": [entry | {"hash_bucket_size": 5}]})
    arrays = {name: pa.array(values) for name, values in columns.items()}
    assert generator.unbucketized(arrays) == {"f": [["f_ba_1"]]}
    generator = FeatureGenerator({"features": [entry | {"num_buckets": 5}]})
    assert generator.unbucketized(arrays) == {"f": [["1"]]}


@pytest.mark.parametrize("entry", [OVERLAP, KV, COMBINE])
def test_an_empty_default_is_zero_and_bucketized(entry):
    columns = {"q": [""], "t": ["a"], "x": [None]}
    empty = entry | {"default_value": ""}
    assert transform(empty, **columns) == {"values": [[0]]}
    bounds = {"boundaries": [-0.5, 0.5]}
    assert transform(empty | bounds, **columns) == {"values": [1], "lengths": [1]}


@pytest.mark.parametrize("entry", [LOOKUP, MATCH | {"needDiscrete": False}])
def test_an_empty_default_of_a_map_is_no_value(entry):
    columns = {"m": ["x"], "c": [""], "k": ["a"]}
    empty = entry | {"default_value": ""}
    assert transform(empty, **columns) == {"values": [[0]]}
    bounds = {"boundaries": [-0.5, 0.5]}
    assert transform(empty | bounds, **columns) == {"values": [], "lengths": [0]}


def test_maps_stay_whole_in_sequences():
    """In a sequence of user columns only, the keys are the sequence."""
    entry = LOOKUP | {"key": "user:k", "feature_type": "sequence_lookup_feature"}
    found = transform(entry, m=["a:1\x1db:2"], k=["a;b;c"])
    assert found == {"values": [[1], [2], [0]], "lengths": [3]}
    ref = spec_of(entry | {"sequence_fields": ["m", "k"]}).inputs
    assert [one.sequence for one in ref] == [True, True]


def test_several_features_read_each_other():
    """A binned number is the key of a lookup; its hits are masked and combined."""
    features = [
        COMBINE | {"feature_name": "total", "expression": "feature:kept"},
        MASK | {"feature_name": "kept", "expression": ["feature:hits", "item:bits"],
                "stub_type": True},
        LOOKUP | {"feature_name": "hits", "key": "feature:bin", "needDiscrete": True,
                  "stub_type": True},
        {"feature_name": "bin", "feature_type": "raw_feature", "expression": "user:x",
         "boundaries": [1, 2, 3], "value_dim": 2, "stub_type": True},
    ]  # fmt: skip
    generator = FeatureGenerator({"features": features})
    found = generator.transform(
        {
            "x": pa.array(["1.5\x1d2.5"]),
            "m": pa.array(["1:10\x1d2:20"]),
            "bits": pa.array(["1\x1d1", "0\x1d1", "0"]),
        }
    )
    assert {name: array.tolist() for name, array in found.items()} == {
        "total.values": [[30], [20], [0]]
    }


def test_user_side_features_keep_one_row():
    entry = LOOKUP | {"key": "user:k"}
    generator = FeatureGenerator({"features": [entry]})
    assert generator.describe()[0]["side"] == "user"
    assert FeatureGenerator({"features": [LOOKUP]}).describe()[0]["side"] == "crossing"
