"""custom_feature: the built-in operators and the plug-in interface."""

import importlib
import json
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from procserver.errors import BadFeature, FgConfigError, PredictFailed
from procserver.fg import FeatureGenerator
from procserver.fg.plugins import GROUP

POINTS = {
    "BucketOp": "bucket_plugin:BucketOp",
    "Tags": "bucket_plugin:Tags",
    "Big": "bucket_plugin:Big",
    "Slow": "bucket_plugin:Slow",
    "Broken": "bucket_plugin:broken",
    "Shapeless": "bucket_plugin:shapeless",
    "Twice": "bucket_plugin:Tags",
    "Nowhere": "no_such_module_at_all:Op",
}


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The plug-ins' distribution, as pip would have left it."""
    info = tmp_path / "bucket_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bucket-plugin\n")
    lines = [f"{name} = {where}" for name, where in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    other = tmp_path / "another-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: another\n")
    twice = "Twice = bucket_plugin:Big\nBucketOp = bucket_plugin:BucketOp\n"
    (other / "entry_points.txt").write_text(f"[{GROUP}]\n{twice}")
    importlib.invalidate_caches()


def entry_of(operator, inputs, **keys):
    return {
        "feature_name": "f",
        "feature_type": "custom_feature",
        "operator_name": operator,
        "expression": inputs,
    } | keys


def generator(*entries, **options):
    return FeatureGenerator(json.loads(json.dumps({"features": entries})), **options)


def transform(entry, **columns):
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values)
        for name, values in columns.items()
    }
    found = generator(entry).transform(arrays)
    return {name.partition(".")[2]: array.tolist() for name, array in found.items()}


# ------------------------------------------------------------------- built in


def test_edit_distance_forms():
    columns = {"a": ["裙子", "ab", None, ""], "b": ["连衣裙", "ab", "x", "x"]}
    inputs = ["user:a", "item:b"]

    def run(**keys):
        return transform(entry_of("EditDistance", inputs, **keys), **columns)

    assert run(encoding="utf-8") == {"values": [[3], [0], [0], [0]]}
    assert run()["values"][0] == [8]
    assert run(encoding="utf-8", default_value="7")["values"] == [[3], [0], [7], [7]]
    assert run(encoding="utf-8", boundaries=[1, 3], default_value="") == {
        "values": [2, 0],
        "lengths": [1, 1, 0, 0],
    }
    assert run(encoding="utf-8", num_buckets=3)["values"] == [0, 0, 0, 0]
    normalizer = "method=zscore,mean=1,standard_deviation=2"
    assert run(encoding="utf-8", normalizer=normalizer)["values"][0] == [1]
    vocab = {"vocab_list": ["3", "0"], "default_bucketize_value": 9}
    assert run(encoding="utf-8", value_type="string", **vocab)["values"] == [0, 1, 1, 1]


def test_edit_distance_in_a_group_repeats_the_other_side():
    group = {
        "sequence_name": "s",
        "sequence_delim": ";",
        "sequence_length": 2,
        "features": [
            entry_of(
                "EditDistance", ["user:q", "item:t"], is_sequence=True,
                sequence_fields=["t"], default_value="9",
            )
        ],
    }  # fmt: skip
    found = generator(group).transform(
        {"q": pa.array(["abc"]), "s__t": pa.array(["abd;;x", None, "abc"])}
    )
    assert found["s__f.lengths"].tolist() == [2, 1, 1]
    assert found["s__f.values"].tolist() == [[1], [9], [9], [0]]


def test_edit_distance_refuses_lists_and_texts_beyond_measure():
    with pytest.raises(BadFeature, match="'item:b' may not be a list"):
        transform(entry_of("EditDistance", ["user:a", "item:b"]), a=["x"],
                  b=[["x", "y"]])  # fmt: skip
    with pytest.raises(BadFeature, match="too long"):
        transform(entry_of("EditDistance", ["user:a", "item:b"]), a=["x" * 400_000],
                  b=["y" * 400_000])  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"encoding": "gbk"}, "encoding"),
        ({"expression": ["user:a"]}, "expression"),
        ({"default_value": "x"}, "default_value"),
        ({"operator_name": None}, "operator_name"),
    ],
)
def test_edit_distance_refusals(keys, key):
    with pytest.raises(FgConfigError) as caught:
        generator(entry_of("EditDistance", ["user:a", "user:b"]) | keys)
    assert (caught.value.feature, caught.value.key) == ("f", key)


def test_regex_replace_operator():
    vocab = {"vocab_list": ["0", "a b"], "default_bucketize_value": 7}
    for key in ("regex_patten", "regex_pattern"):
        entry = entry_of(
            "RegexReplace", ["user:a"], replacement=" ", **vocab, **{key: r"\|"}
        )
        found = transform(entry, a=["a|b", "x", None])
        assert found == {"values": [1, 7, 0], "lengths": [1, 1, 1]}
    with pytest.raises(FgConfigError, match="'regex_patten'"):
        generator(entry_of("RegexReplace", ["user:a"]))
    with pytest.raises(FgConfigError, match="'value_type'"):
        generator(
            entry_of("RegexReplace", ["user:a"], regex_patten="a", value_type="float")
        )


# -------------------------------------------------------------------- plug-ins


def test_a_plugin_gets_the_entry_and_every_cell_in_one_call():
    entry = entry_of("BucketOp", ["item:x"], bucket_threshold="0.1:1:5")
    made = generator(entry)
    found = made.transform({"x": pa.array(["0.5", None, "7"])})
    assert found["f.values"].tolist() == [[1], [0], [3]]
    operator = made.spec.features[0].details.operator
    assert operator.calls == [[["0.5", None, "7"]]]


def test_the_user_side_is_one_call_with_one_cell():
    from cython_ext.column import Column

    entry = entry_of("BucketOp", ["user:x"], bucket_threshold="1")
    made = generator(entry)
    user = {"x": Column.from_arrow(pa.array([3.0]))}
    tiled = made.generate(user, {}, {}, 5, tile=True)
    assert tiled["f.values"].tolist() == [[1]]
    repeated = made.generate(user, {}, {}, 5, tile=False)
    assert repeated["f.values"].tolist() == [[1]] * 5
    assert made.spec.features[0].details.operator.calls == [[[3.0]], [[3.0]]]
    # No row at all is no call.
    assert made.transform({"x": pa.array([], pa.string())})["f.values"].shape == (0, 1)
    assert len(made.spec.features[0].details.operator.calls) == 2


def test_normalizer_and_bucketizer_follow():
    entry = entry_of("BucketOp", ["user:x"], bucket_threshold="1:2:3:4",
                     normalizer="method=minmax,min=0,max=4",
                     boundaries=[0.5], default_value="")  # fmt: skip
    assert transform(entry, x=["1.5", "9", None]) == {
        "values": [0, 1],
        "lengths": [1, 1, 0],
    }


@pytest.mark.parametrize(
    ("column", "left"),
    [
        (["a", "b\x1dc"], ["'a'", "'b\\x1dc'"]),
        (pa.array([1, 2], pa.int32()), ["1", "2"]),
        (pa.array([1.5, 2], pa.float32()), ["1.5", "2.0"]),
        ([["a", None], ["b"]], ["['a', None]", "['b']"]),
        (
            pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
            ["{'a': 1}", "{'b': 2}"],
        ),
    ],
)
def test_cells_come_as_python_values(column, left):
    entry = entry_of("Tags", ["user:a", "user:b"], value_type="string", value_dim=0)
    made = generator(entry)
    array = column if isinstance(column, pa.Array) else pa.array(column)
    found = made.unbucketized({"a": array, "b": pa.array([None], pa.string())})
    assert found["f"] == [[text, "None"] for text in left]


def test_elements_are_cells_of_a_sequence():
    entry = entry_of("Tags", ["item:a", "user:b"], value_type="string", value_dim=0,
                     is_sequence=True, sequence_delim=";", sequence_length=2,
                     default_value="d")  # fmt: skip
    made = generator(entry)
    found = made.unbucketized(
        {"a": pa.array(["x;y;z", "", ";u"]), "b": pa.array([7], pa.int64())}
    )
    assert found["f"] == [
        [["'x'", "7"], ["'y'", "7"]],
        [["d"]],
        [["d"], ["'u'", "7"]],
    ]


def test_a_feature_is_handed_over_as_its_value_or_values():
    raw = {"feature_name": "r", "feature_type": "raw_feature", "expression": "user:x"}
    ids = {"feature_name": "i", "feature_type": "id_feature", "expression": "user:x",
           "separator": ".", "num_buckets": 10}  # fmt: skip
    entry = entry_of("Tags", ["feature:r", "feature:i"], value_type="string",
                     value_dim=0)  # fmt: skip
    found = generator(raw, ids, entry).unbucketized({"x": pa.array(["1.5"])})
    assert found["f"] == [["1.5", "[1, 5]"]]


def test_integers_keep_their_digits():
    entry = entry_of("Big", ["user:x"], value=2**53 + 1, num_buckets=2**60)
    assert transform(entry, x=["a"])["values"] == [2**53 + 1]
    with pytest.raises(PredictFailed, match="beyond int64"):
        transform(entry | {"value": 2**64}, x=["a"])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("text", "a value of str, not a number"),
        ([1, 2], "2 values for a cell, not 1"),
        ({}, "a value of dict, not a number"),
    ],
)
def test_results_that_do_not_fit_name_the_feature(value, what):
    with pytest.raises(PredictFailed, match=f"'f': its operator gave {what}"):
        transform(entry_of("Big", ["user:x"], value=value), x=["a"])


def test_a_plugin_that_raises_does_not_blame_the_client():
    entry = entry_of("BucketOp", ["user:x"], bucket_threshold="1")
    with pytest.raises(PredictFailed, match="'f'") as caught:
        transform(entry, x=["not a number"])
    assert isinstance(caught.value.__cause__, ValueError)
    assert "not a number" not in str(caught.value)


@pytest.mark.parametrize("safe", [False, True])
def test_calls_overlap_only_if_the_entry_says_so(safe):
    made = generator(entry_of("Slow", ["user:x"], is_op_thread_safe=safe))
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        made.transform({"x": pa.array(["a"])})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    most = sys.modules["bucket_plugin"].Slow.most
    assert most > 1 if safe else most == 1


def test_several_values_per_cell_make_a_wide_row():
    entry = entry_of("Big", ["user:x"], value=[1, 2.5], value_dim=2)
    assert transform(entry, x=["a", "b"]) == {"values": [[1, 2.5], [1, 2.5]]}


@pytest.mark.parametrize(
    ("operator", "keys", "key", "reason"),
    [
        ("Unheard", {}, "operator_name", GROUP),
        ("Nowhere", {}, "operator_name", "no_such_module_at_all"),
        ("Broken", {}, "operator_name", "no such parameter"),
        ("Twice", {}, "operator_name", "several packages"),
        ("Shapeless", {}, "operator_name", "value_type"),
        ("Tags", {"value_type": "float"}, "value_type", "string"),
        ("Big", {"value": 1, "value_type": "string"}, "value_type", "int64"),
        ("Big", {"value": 1, "expression": []}, "expression", "required"),
    ],
)
def test_plugin_refusals(operator, keys, key, reason):
    with pytest.raises(FgConfigError) as caught:
        generator(entry_of(operator, ["user:a", "user:b"]) | keys)
    assert (caught.value.feature, caught.value.key) == ("f", key)
    assert reason in caught.value.reason
    if key == "operator_name":
        assert operator in caught.value.reason
