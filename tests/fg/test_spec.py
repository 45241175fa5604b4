"""Reading ``fg.json``: spellings, refusals, assets, garbage."""

import json
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import FgConfigError
from procserver.fg import FeatureGenerator
from procserver.fg.bucketizer import read_vocabulary
from procserver.fg.spec import read_spec

ID = {"feature_type": "id_feature", "feature_name": "f", "expression": "user:x"}
RAW = {"feature_type": "raw_feature", "feature_name": "f", "expression": "user:x"}
COMBO = {
    "feature_type": "combo_feature",
    "feature_name": "f",
    "expression": ["user:x", "item:y"],
}


def read_one(entry, **more):
    (feature,) = read_spec({"features": [entry | more]}).features
    return feature


def test_defaults_of_each_type():
    feature = read_one(ID)
    assert (feature.value_dim, feature.default, feature.separator) == (0, None, b"\x1d")
    assert feature.value_type == "string"
    feature = read_one(RAW)
    assert (feature.value_dim, feature.default, feature.value_type) == (1, "0", "float")
    assert read_one(COMBO).default is None


def test_defaults_in_sequences():
    group = {"sequence_name": "s", "features": [ID]}
    feature = read_spec({"features": [group]}).features[0]
    assert feature.name == "s__f"
    assert (feature.value_dim, feature.default) == (1, "0")
    sequence = feature.sequence
    assert (sequence.length, sequence.delim, sequence.pk) == (0, b";", "user:s")
    assert feature.inputs[0].column == "s__x"


@pytest.mark.parametrize(
    ("entry", "same"),
    [
        (RAW | {"value_dimension": 3}, RAW | {"value_dim": 3}),
        (RAW | {"value_dim": "3"}, RAW | {"value_dim": 3}),
        (RAW | {"bucketize_boundaries": [1, 2]}, RAW | {"boundaries": [1, 2]}),
        (RAW | {"boundaries": "1, 2,"}, RAW | {"boundaries": [1, 2]}),
        (RAW | {"value_type": "Double"}, RAW | {"value_type": "double"}),
        (RAW | {"default_value": 0.25}, RAW | {"default_value": "0.25"}),
        (RAW | {"default_value": 3}, RAW | {"default_value": "3"}),
        (ID | {"value_type": "BIGINT"}, ID | {"value_type": "int64"}),
        (ID | {"need_prefix": "true"}, ID | {"need_prefix": True}),
        (ID | {"weighted": 1}, ID | {"weighted": True}),
        (ID | {"hash_bucket_size": 10.0}, ID | {"hash_bucket_size": 10}),
        (ID | {"hash_bucket_size": 0, "num_buckets": 5}, ID | {"num_buckets": 5}),
        (ID | {"vocab_list": None, "num_buckets": 5}, ID | {"num_buckets": 5}),
        (ID | {"hash_bucket_size": 5, "num_buckets": 9}, ID | {"hash_bucket_size": 5}),
        (ID | {"expression": ["user:x"]}, ID),
        (
            ID | {"combiner": "mean", "is_multi": False, "embedding_dim": 4, "zz": {}},
            ID,
        ),
    ],
)
def test_spellings_of_the_same(entry, same):
    assert read_one(entry) == read_one(same)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"feature_type": "id_feature"}, "feature_name"),
        (ID | {"feature_type": "slice_feature"}, "feature_type"),
        (ID | {"feature_type": "bm25_feature"}, "feature_type"),
        (ID | {"feature_type": "sequence_bm25_feature"}, "feature_type"),
        (ID | {"feature_type": "no_such_feature"}, "feature_type"),
        (ID | {"feature_type": 5}, "feature_type"),
        (ID | {"expression": "x"}, "expression"),
        (ID | {"expression": "table:x"}, "expression"),
        (ID | {"expression": "user:"}, "expression"),
        (ID | {"expression": ["user:x", "user:y"]}, "expression"),
        (ID | {"expression": {}}, "expression"),
        (ID | {"expression": "feature:none"}, "expression"),
        (ID | {"expression": "feature:f"}, "expression"),
        (COMBO | {"expression": ["user:x"]}, "expression"),
        (COMBO | {"num_buckets": 5}, "num_buckets"),
        (RAW | {"hash_bucket_size": 5}, "hash_bucket_size"),
        (ID | {"hash_bucket_size": -1}, "hash_bucket_size"),
        (ID | {"hash_bucket_size": 2**63}, "hash_bucket_size"),
        (ID | {"hash_bucket_size": 1.5}, "hash_bucket_size"),
        (ID | {"hash_bucket_size": True}, "hash_bucket_size"),
        (ID | {"vocab_list": ["a"]}, "default_bucketize_value"),
        (ID | {"vocab_dict": {"a": 1}}, "default_bucketize_value"),
        (ID | {"vocab_dict": {"a": "x"}, "default_bucketize_value": 1}, "vocab_dict"),
        (ID | {"vocab_list": {"a": 1}, "default_bucketize_value": 1}, "vocab_list"),
        (ID | {"vocab_list": [["a"]], "default_bucketize_value": 1}, "vocab_list"),
        (ID | {"vocab_file": "none", "default_bucketize_value": 1}, "vocab_file"),
        (ID | {"num_buckets": 9, "default_value": "1|2"}, "default_value"),
        (ID | {"boundaries": [1], "default_value": "x"}, "default_value"),
        (RAW | {"boundaries": [2, 1]}, "boundaries"),
        (RAW | {"boundaries": ["x"]}, "boundaries"),
        (RAW | {"boundaries": [float("nan")]}, "boundaries"),
        (RAW | {"boundaries": [1e39]}, "boundaries"),
        (RAW | {"boundaries": 5}, "boundaries"),
        (RAW | {"default_value": "x"}, "default_value"),
        (RAW | {"default_value": "1\x1d2\x1d3", "value_dim": 2}, "default_value"),
        (RAW | {"default_value": True}, "default_value"),
        (RAW | {"value_dim": -1}, "value_dim"),
        (RAW | {"value_dim": 10**9}, "value_dim"),
        (RAW | {"value_dim": 10**30}, "value_dim"),
        (RAW | {"value_type": "decimal"}, "value_type"),
        (RAW | {"normalizer": "log10"}, "normalizer"),
        (RAW | {"normalizer": "method=log2"}, "normalizer"),
        (RAW | {"normalizer": "method=expression,expr=x,y"}, "normalizer"),
        (RAW | {"normalizer": "method=zscore,mean=1"}, "normalizer"),
        (RAW | {"normalizer": "method=zscore,mean=1,standard_deviation=0"},
         "normalizer"),
        (RAW | {"normalizer": "method=minmax,min=1,max=1"}, "normalizer"),
        (RAW | {"normalizer": "method=minmax,min=nan,max=1"}, "normalizer"),
        (RAW | {"normalizer": "method=minmax,min=1e39,max=1"}, "normalizer"),
        (RAW | {"separator": "ab"}, "separator"),
        (RAW | {"separator": ""}, "separator"),
        (RAW | {"separator": "中"}, "separator"),
        (RAW | {"need_prefix": "perhaps"}, "need_prefix"),
        (RAW | {"default_value": "\ud800"}, "default_value"),
        (ID | {"feature_type": "sequence_id_feature", "sequence_delim": "--"},
         "sequence_delim"),
        (ID | {"feature_type": "sequence_id_feature", "sequence_length": -1},
         "sequence_length"),
    ],
)  # fmt: skip
def test_refusals_name_feature_and_key(entry, key):
    with pytest.raises(FgConfigError) as caught:
        FeatureGenerator({"features": [entry]})
    assert caught.value.key == key
    assert caught.value.feature == entry.get("feature_name", "")
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("fg_json", "key"),
    [
        ({}, "features"),
        ({"features": {}}, "features"),
        ({"features": [1]}, "features"),
        ({"features": [ID, ID]}, "feature_name"),
        ({"features": [{"sequence_name": "s"}]}, "features"),
        ({"features": [{"sequence_name": "", "features": []}]}, "sequence_name"),
        (
            {"features": [{"sequence_name": "s", "features": []}] * 2},
            "sequence_name",
        ),
        (
            {"features": [{"sequence_name": "s", "sequence_pk": "x", "features": []}]},
            "sequence_pk",
        ),
        ({"features": [{"feature_name": "f"}]}, "feature_type"),
    ],
)
def test_refusals_of_the_file(fg_json, key):
    with pytest.raises(FgConfigError) as caught:
        read_spec(fg_json)
    assert caught.value.key == key


def test_cycles_are_refused():
    first = ID | {"feature_name": "a", "expression": "feature:b"}
    second = ID | {"feature_name": "b", "expression": "feature:a"}
    with pytest.raises(FgConfigError, match="cycle"):
        FeatureGenerator({"features": [first, second]})


def test_a_long_chain_is_no_recursion():
    entries = [ID | {"feature_name": "f0", "num_buckets": 10}]
    for i in range(1, 5000):
        entries.append(
            ID | {"feature_name": f"f{i}", "expression": f"feature:f{i - 1}",
                  "num_buckets": 10}
        )  # fmt: skip
    generator = FeatureGenerator({"features": entries[::-1]})
    assert [f.spec.name for f in generator.plan.features[:2]] == ["f0", "f1"]


def test_legacy_top_level_keys_are_ignored_with_a_debug_log(caplog):
    with caplog.at_level(logging.DEBUG, logger="procserver.fg.spec"):
        read_spec({"features": [ID], "separator": ";", "reserves": ["label"]})
    assert "'separator'" in caplog.text
    assert "reserves" not in caplog.text


def test_vocabulary_files():
    assert read_vocabulary(b"a\nb\na\n") == {b"a": 2, b"b": 1}
    assert read_vocabulary(b"a 5\r\nb 6\r\n") == {b"a": 5, b"b": 6}
    assert read_vocabulary(b"  0\nx 1\n") == {b"": 0, b"x": 1}
    assert read_vocabulary(b"iphone 12\nipad\n") == {b"iphone 12": 0, b"ipad": 1}
    assert read_vocabulary(b"a\n\nb") == {b"a": 0, b"": 1, b"b": 2}
    assert read_vocabulary(b"") == {}


def test_assets_are_found_beside_the_file(tmp_path):
    (tmp_path / "vocab").write_text("a\nb\n")
    entry = ID | {"vocab_file": "vocab", "default_bucketize_value": 7}
    path = tmp_path / "fg.json"
    path.write_text(json.dumps({"features": [entry]}))
    words = read_spec(path).features[0].bucketizer.words
    assert words == {b"a": 0, b"b": 1}
    assert read_spec({"features": [entry]}, tmp_path).features[0].bucketizer.words
    with pytest.raises(FgConfigError) as caught:
        read_spec({"features": [entry]}, tmp_path / "elsewhere")
    assert "vocab" in str(caught.value)
    (tmp_path / "vocab").write_bytes(b"\xff\n")
    with pytest.raises(FgConfigError, match="UTF-8"):
        read_spec(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FgConfigError, match="cannot be read"):
        read_spec(tmp_path / "none.json")
    path = tmp_path / "fg.json"
    for content in (b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"nan"):
        path.write_bytes(content)
        with pytest.raises(FgConfigError):
            read_spec(path)


def test_random_garbage_is_refused(tmp_path):
    path = tmp_path / "fg.json"
    source = random.Random(7)
    for _ in range(20):
        path.write_bytes(source.randbytes(100_000))
        with pytest.raises(FgConfigError):
            FeatureGenerator(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=8,
)
KEYS = [
    "feature_type", "feature_name", "expression", "default_value", "value_type",
    "separator", "value_dim", "need_prefix", "hash_bucket_size", "vocab_list",
    "vocab_dict", "vocab_file", "num_buckets", "boundaries", "normalizer",
    "default_bucketize_value", "stub_type", "weighted", "sequence_fields",
    "sequence_name", "sequence_length", "sequence_delim", "sequence_pk", "features",
    "is_sequence",
]  # fmt: skip


@settings(deadline=None)
@given(st.data())
def test_wrong_values_are_refused_or_taken(data):
    """Any value under any key: a generator that works, or FgConfigError."""
    entry = dict(data.draw(st.sampled_from([ID, RAW, COMBO])))
    for key in data.draw(st.lists(st.sampled_from(KEYS), max_size=3)):
        entry[key] = data.draw(json_values)
    try:
        generator = FeatureGenerator({"features": [entry]})
    except FgConfigError:
        return
    generator.default_row()
