"""The pyfg face, called as TorchEasyRec's data parser and features call it."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from procserver.errors import FgConfigError
from procserver.offline import pyfg


def raw(name="raw", **more):
    return {
        "feature_type": "raw_feature",
        "feature_name": name,
        "default_value": "0.1",
        "expression": f"item:{name}",
        "value_type": "float",
    } | more


def ids(name="id", expression="user:id", **more):
    return {
        "feature_type": "id_feature",
        "feature_name": name,
        "default_value": "",
        "expression": expression,
        "value_type": "string",
        "need_prefix": False,
        "value_dim": 0,
    } | more


def handler(*entries, threads=1):
    return pyfg.FgArrowHandler({"features": list(entries)}, threads)


GROUP = {
    "sequence_name": "click_seq",
    "sequence_length": 0,
    "sequence_delim": ";",
    "sequence_pk": "user:click_seq",
}
COLUMNS = {
    "cat_a": pa.array([1, 2, 3]),
    "tag_b": pa.array(["4:0.1\x1d5:0.2", "", "6:0.3"]),
    "int_a": pa.array([7, 8, 9], pa.float32()),
    "int_b": pa.array(["27\x1d37", "28\x1d38", "29\x1d39"]),
    "click_seq__cat_a": pa.array(["10;11;12", "13", ""]),
    "click_seq__int_a": pa.array(["14;15;16", "17", ""]),
    "click_seq__tag_b": pa.array(["17\x1d18;19;20\x1d21", "22", ""]),
    "label": pa.array([0, 0, 1], pa.int32()),
    "__SAMPLE_MASK__": pa.array([True, False, False]),
}
LISTS = COLUMNS | {
    "tag_b": pa.array(
        [{4: 0.1, 5: 0.2}, {}, {6: 0.3}], pa.map_(pa.int64(), pa.float32())
    ),
    "int_b": pa.array([[27, 37], [28, 38], [29, 39]], pa.list_(pa.float32())),
    "click_seq__cat_a": pa.array([[10, 11, 12], [13], []], pa.list_(pa.int64())),
    "click_seq__int_a": pa.array([[14, 15, 16], [17], []], pa.list_(pa.float32())),
    "click_seq__tag_b": pa.array(
        [[["17", "18"], ["19"], ["20", "21"]], [["22"]], [[]]],
        pa.list_(pa.list_(pa.string())),
    ),
}
EXPECTED = {
    "f_cat_a.values": torch.tensor([1, 2, 3]),
    "f_cat_a.lengths": torch.tensor([1, 1, 1], dtype=torch.int32),
    "f_tag_b.values": torch.tensor([4, 5, 6]),
    "f_tag_b.lengths": torch.tensor([2, 0, 1], dtype=torch.int32),
    "f_tag_b.weights": torch.tensor([0.1, 0.2, 0.3]),
    "f_int_a.values": torch.tensor([[7.0], [8.0], [9.0]]),
    "f_int_b.values": torch.tensor([[27.0, 37.0], [28.0, 38.0], [29.0, 39.0]]),
    "click_seq__f_cat_a.values": torch.tensor([10, 11, 12, 13, 0]),
    "click_seq__f_cat_a.lengths": torch.tensor([3, 1, 1], dtype=torch.int32),
    "click_seq__f_int_a.values": torch.tensor([[14.0], [15.0], [16.0], [17.0], [0.0]]),
    "click_seq__f_int_a.lengths": torch.tensor([3, 1, 1], dtype=torch.int32),
    "click_seq__f_tag_b.values": torch.tensor([17, 18, 19, 20, 21, 22, 0]),
    "click_seq__f_tag_b.lengths": torch.tensor([3, 1, 1], dtype=torch.int32),
    "click_seq__f_tag_b.key_lengths": torch.tensor([2, 1, 2, 1, 1], dtype=torch.int32),
}


def features(trainer):
    """The features of TorchEasyRec's own parser test (its lookup feature aside)."""
    sequence = [
        ids("f_cat_a", "item:cat_a", default_value="0", num_buckets=100, value_dim=1),
        raw("f_int_a", default_value="0", expression="item:int_a"),
        ids("f_tag_b", "item:tag_b", default_value="0", num_buckets=1000),
    ]
    return [
        trainer.Feature(ids("f_cat_a", "item:cat_a", num_buckets=100)),
        trainer.Feature(
            ids("f_tag_b", "user:tag_b", num_buckets=1000, weighted=True),
            weighted=True,
        ),
        trainer.Feature(raw("f_int_a", default_value="0", expression="user:int_a")),
        trainer.Feature(
            raw("f_int_b", default_value="0", expression="item:int_b", value_dim=2)
        ),
        *(trainer.Feature(entry, GROUP) for entry in sequence),
    ]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


# ------------------------------------------------------------------ the data parser


@pytest.mark.parametrize("columns", [COLUMNS, LISTS], ids=["text", "lists"])
@pytest.mark.parametrize("threads", [1, 2])
def test_parsing_all_features_in_one_run(trainer, columns, threads):
    parser = trainer.Parser(features(trainer), threads=threads)
    assert sorted(parser.input_names) == [
        "cat_a", "click_seq__cat_a", "click_seq__int_a", "click_seq__tag_b",
        "int_a", "int_b", "tag_b",
    ]  # fmt: skip
    assert_equal(parser.parse(dict(columns)), EXPECTED)


@pytest.mark.parametrize("columns", [COLUMNS, LISTS], ids=["text", "lists"])
def test_parsing_feature_by_feature(trainer, columns):
    """Each feature has a handler and sees all columns, whatever their types."""
    found = {}
    for feature in features(trainer):
        found |= feature.parse(columns)
    assert_equal(found, EXPECTED)


def test_input_tile(trainer):
    """User columns are cut to one row; their features stay at one row."""
    parser = trainer.Parser(features(trainer), tile=True)
    assert parser.user_features == {
        "f_tag_b", "f_int_a",
        "click_seq__f_cat_a", "click_seq__f_int_a", "click_seq__f_tag_b",
    }  # fmt: skip
    found = parser.parse(dict(COLUMNS))
    assert found["batch_size"].item() == 3
    assert found["f_tag_b.lengths"].tolist() == [2]
    assert found["f_int_a.values"].tolist() == [[7]]
    assert found["f_cat_a.values"].tolist() == [1, 2, 3]
    assert found["f_int_b.values"].shape == (3, 2)
    assert found["click_seq__f_cat_a.values"].tolist() == [10, 11, 12]
    assert found["click_seq__f_tag_b.key_lengths"].tolist() == [2, 1, 2]
    assert found["click_seq__f_int_a.lengths"].tolist() == [3]


def test_bucketize_only(trainer):
    parser = trainer.Parser(features(trainer), bucketize_only=True)
    found = parser.parse(
        {
            "f_cat_a": pa.array([["1"], ["2"], ["3"]]),
            "f_tag_b": pa.array([["4:0.1", "5:0.2"], [], ["6:0.3"]]),
            "f_int_a": pa.array([7, 8, 9], pa.float32()),
            "f_int_b": pa.array([[27, 37], [28, 38], [29, 39]], pa.list_(pa.float32())),
            "click_seq__f_cat_a": pa.array([["10", "11", "12"], ["13"], ["0"]]),
            "click_seq__f_int_a": pa.array([["14", "15", "16"], ["17"], ["0"]]),
            "click_seq__f_tag_b": pa.array(
                [[["17", "18"], ["19"], ["20", "21"]], [["22"]], [["0"]]]
            ),
            "label": pa.array([0, 0, 1], pa.int32()),
        }
    )
    assert_equal(found, EXPECTED)


def test_arrays_become_tensors_without_a_copy(trainer):
    output, _ = handler(ids(num_buckets=9), raw()).process_arrow(
        {"id": pa.array(["1", "2"]), "raw": pa.array([1.0, 2.0])}
    )
    for array in (output["id"].np_values, output["id"].np_lengths,
                  output["raw"].dense_values):  # fmt: skip
        assert trainer.to_tensor(array).data_ptr() == array.ctypes.data


def test_names_of_early_releases(trainer):
    feature = features(trainer)[1]
    output, status = feature.handler().process_arrow(COLUMNS)
    assert status.ok()
    data = output["f_tag_b"]
    found = trainer.early_tensors_of(feature, data)
    assert_equal(found, {n: t for n, t in EXPECTED.items() if n.startswith("f_tag_b")})
    assert data.key_lengths.tolist() == []


def test_what_a_form_lacks_is_empty():
    output, _ = handler(ids(num_buckets=9), raw()).process_arrow(
        {"id": pa.array(["1"]), "raw": pa.array([1.0])}
    )
    assert output["id"].dense_values.size == output["id"].np_weights.size == 0
    assert output["id"].np_key_lengths.dtype == np.int32
    assert output["raw"].np_values.size == output["raw"].np_lengths.size == 0
    assert output["raw"].np_values.dtype == np.int64


def test_one_value_per_element_still_has_key_lengths():
    """A feature reads ``np_key_lengths`` of every id sequence."""
    entry = ids("x", "item:x", num_buckets=9, value_dim=1)
    output, _ = handler(GROUP | {"features": [entry]}).process_arrow(
        {"click_seq__x": pa.array(["1;2", "3"])}
    )
    assert output["click_seq__x"].np_key_lengths.tolist() == [1, 1, 1]
    assert output["click_seq__x"].np_lengths.tolist() == [2, 1]


# -------------------------------------------------------------- the encoded default


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (ids(hash_bucket_size=100), []),
        (ids(hash_bucket_size=100, default_value="4"), [56]),
        (ids(num_buckets=100, default_value="99"), [99]),
        (raw(), [np.float32(0.1)]),
        (raw(value_dim=2, default_value="0.1\x1d0.4"), np.float32([0.1, 0.4]).tolist()),
        (raw(boundaries=[0.1, 0.2, 0.3]), [1]),
        (raw(boundaries=[0.1, 0.2, 0.3], default_value=""), None),
        (raw(boundaries=[0.1, 0.2], value_dim=2, default_value=""), []),
    ],
)
def test_encoded_default(trainer, entry, expected):
    assert trainer.Feature(entry).encoded_default() == expected


def test_encoded_default_of_a_sequence(trainer):
    one = ids("x", "item:x", default_value="4", hash_bucket_size=100, value_dim=1)
    several = ids("y", "item:y", default_value="4", hash_bucket_size=100)
    assert trainer.Feature(one, GROUP).encoded_default() == [56]
    assert trainer.Feature(several, GROUP).encoded_default() == [[56]]
    assert trainer.Feature(raw("z", default_value="2"), GROUP).encoded_default() == [2]


# Facts recorded of the original: the direct call's rows, beside its Arrow outputs.


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([None], [0.1]),
        ([0.2, 0.3, None], [0.2, 0.3, 0.1]),
        (["0.2", "", None], [0.2, 0.1, 0.1]),
        ([0.2, None, "", []], [0.2, 0.1, 0.1, 0.1]),
        ((1, np.float32(2)), [1, 2]),
        ([], []),
    ],
)
def test_direct_rows_of_one_number_are_flat(rows, expected):
    direct, status = handler(raw())({"raw": rows})
    assert status.ok()
    assert direct == {"raw": np.float32(expected).tolist()}


def test_direct_rows_of_several_numbers():
    entry = raw(value_dim=2, default_value="0.1|0.4", separator="|")
    rows = [[0.2, 0.5], [], None, "0.3|0.6"]
    direct, status = handler(entry)({"raw": rows})
    assert status.ok()
    expected = np.float32([[0.2, 0.5], [0.1, 0.4], [0.1, 0.4], [0.3, 0.6]]).tolist()
    assert direct["raw"] == expected
    assert handler(entry)({"raw": []})[0]["raw"] == []


@pytest.mark.parametrize("value", [0.0, 0])
def test_direct_null_beside_a_number(value):
    """Null is 0.0, un-normalised, in a numeric column; nothing by itself."""
    entry = raw(
        boundaries=[-1, 0, 1], default_value="",
        normalizer="method=zscore,mean=10,standard_deviation=1",
    )  # fmt: skip
    assert handler(entry)({"raw": [value, None]})[0]["raw"] == [0, 2]
    assert handler(entry)({"raw": [None]})[0]["raw"] == [None]


@pytest.mark.parametrize("rows", [["0.2", "", None], [[0.2], [], None]])
def test_direct_missing_rows_of_texts_and_lists(rows):
    entry = raw(boundaries=[0.1, 0.2], default_value="")
    assert handler(entry)({"raw": rows})[0]["raw"] == [2, None, None]


def test_direct_rows_of_ids():
    call = handler(ids(num_buckets=100, default_value="1"))
    rows = {"id": [["1", "2"], [], None]}
    before, _ = call(rows)
    assert before == {"id": [[1, 2], [1], [1]]}
    call.reset_executor()
    assert call(rows)[0] == before
    assert call({"id": (1, np.int64(2))})[0] == {"id": [[1], [2]]}


def test_direct_weights_and_maps():
    call = handler(ids(num_buckets=100, weighted=True))
    assert call({"id": [{"3": 0.5, "4": 1.0}, None]})[0] == {"id": [[3, 4], []]}


def test_direct_rows_of_one_input_are_repeated():
    cross = {
        "feature_type": "combo_feature",
        "feature_name": "x",
        "expression": ["user:u", "item:i"],
        "hash_bucket_size": 100,
    }
    call = handler(cross, ids("u", "user:u", num_buckets=9))
    output, status = call({"u": ["1"], "i": ["a", "b", "c"]})
    assert status.ok()
    assert [len(rows) for rows in output["x"]] == [1, 1, 1]
    assert output["u"] == [[1], [1], [1]]


# --------------------------------------------------------------- what goes wrong


def test_status():
    output, status = handler(ids(num_buckets=9)).process_arrow({"id": pa.array(["1"])})
    assert (status.ok(), status.message()) == (True, "")
    assert set(output) == {"id"}


def test_a_bad_cell_is_a_status_not_an_exception():
    call = handler(raw(value_dim=2))
    output, status = call.process_arrow({"raw": pa.array(["1\x1d2\x1d3"])})
    assert not status.ok()
    assert output == {}
    assert "raw" in status.message()
    output, status = call({"raw": [[1, 2, 3]]})
    assert not status.ok()
    assert "raw" in status.message()


@pytest.mark.parametrize(
    "cell", [object(), {"a": object()}, 2**70, [[[[1]]]], b"\xff", {1: 2, "a": 3}]
)
def test_cells_that_no_feature_takes(cell):
    output, status = handler(ids(num_buckets=9))({"id": [cell]})
    assert not status.ok()
    assert output == {}
    assert "id" in status.message()


def test_missing_columns_are_named():
    call = handler(ids(num_buckets=9), raw())
    output, status = call.process_arrow({"x": pa.array([1])})
    assert not status.ok()
    assert output == {}
    assert status.message() == "input columns are missing: id, raw"


def test_unequal_columns():
    call = handler(ids(num_buckets=9), raw())
    columns = {"id": pa.array(["1", "2"]), "raw": pa.array([1.0, 2.0, 3.0])}
    assert "[2, 3] rows" in call.process_arrow(columns)[1].message()
    assert "[2, 3] rows" in call({"id": ["1", "2"], "raw": [1, 2, 3]})[1].message()


def test_columns_must_be_arrow_and_rows_lists():
    call = handler(ids(num_buckets=9))
    for column in ([1], np.array([1]), pa.table({"id": [1]})):
        with pytest.raises(TypeError, match="'id'"):
            call.process_arrow({"id": column})
    for rows in (pa.array([1]), np.array([1]), "1", None):
        with pytest.raises(TypeError, match="'id'"):
            call({"id": rows})


def test_what_cannot_be_loaded_is_raised():
    with pytest.raises(FgConfigError, match="separator"):
        handler(ids(num_buckets=9, separator="||"))
    with pytest.raises(ValueError, match="threads"):
        handler(ids(num_buckets=9), threads=0)


# -------------------------------------------------------- environment and the rest


def test_hash_mode(monkeypatch):
    monkeypatch.delenv(pyfg.HASH_MODE, raising=False)
    entry = ids(hash_bucket_size=100)

    def bucket():
        output, _ = handler(entry).process_arrow({"id": pa.array(["abc"])})
        return output["id"].np_values.tolist()

    assert bucket() == [33]
    pyfg.set_env(pyfg.HASH_MODE, "true")
    assert os.environ[pyfg.HASH_MODE] == "true"
    assert bucket() == [85]
    pyfg.set_env(pyfg.HASH_MODE, "True")
    assert bucket() == [33]
    # As test cases do: from os.environ first, and then again.
    os.environ.pop(pyfg.HASH_MODE)
    pyfg.unset_env(pyfg.HASH_MODE)
    assert bucket() == [33]


def test_fg_json_as_text_or_path(tmp_path):
    content = {"features": [ids(num_buckets=9)]}
    path = tmp_path / "fg.json"
    path.write_text(json.dumps(content))
    for given in (content, json.dumps(content), str(path), path):
        output, _ = pyfg.FgArrowHandler(given).process_arrow({"id": pa.array(["7"])})
        assert output["id"].np_values.tolist() == [7]


def test_assets_are_found_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vocab").write_text("a\nb\n")
    monkeypatch.chdir(tmp_path)
    for name in ("data/vocab", str(tmp_path / "data" / "vocab")):
        call = handler(ids(vocab_file=name, default_bucketize_value=0))
        assert call({"id": ["b"]})[0] == {"id": [[1]]}


def test_a_handler_reaches_other_processes():
    call = handler(ids(num_buckets=9))
    again = pickle.loads(pickle.dumps(call))
    assert again({"id": ["7"]})[0] == {"id": [[7]]}


def test_the_table_initializer(trainer):
    """Keys of a dynamic table and its vectors, from two columns, two threads."""
    call = pyfg.FgArrowHandler(
        {
            "features": [
                ids("key", "item:key", value_dim=1, hash_bucket_size=2**63 - 1),
                raw("vector", expression="item:vector", value_dim=3, separator=","),
            ]
        },
        2,
    )
    output, status = call.process_arrow(
        {"key": pa.array([11, 12]), "vector": pa.array(["1,2,3", "4,5,6"])}
    )
    assert status.ok()
    assert output["key"].np_values.dtype == np.int64
    assert (output["key"].np_values % 4 >= 0).all()
    assert output["vector"].dense_values.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_a_handler_reads():
    nested = ids("x", "item:x", num_buckets=9)
    call = handler(
        ids("a", "user:a", num_buckets=9),
        raw("b", expression="context:b"),
        raw("c", expression="item:c"),
        ids("k", "const:k", hash_bucket_size=9),
        ids("d", "feature:a", hash_bucket_size=9),
        GROUP | {"features": [nested], "sequence_pk": "user:clicked"},
    )
    assert call.user_inputs() == {"a", "click_seq__x", "clicked"}
    assert call.item_inputs() == {"c"}
    assert call.context_inputs() == {"b"}
    assert call.user_features() == {"a", "k", "d", "click_seq__x"}
    assert call.sequence_feature_pks() == {"click_seq": "clicked"}
    assert call.sequence_input_to_name() == {"click_seq__x": "click_seq"}
    assert call.sequence_feature_to_name() == {"click_seq__x": "click_seq"}


# -------------------------------------------------------------------- tokenizers


# The tokenizers that real exports were made with are not kept here.
ASSETS = Path(
    os.environ.get("PROCSERVER_FG_ASSETS")
    or Path(__file__).parents[3] / "shared" / "cases" / "assets"
)


def tokenize(vocab_file, kind="bpe", **more):
    return {
        "feature_type": "tokenize_feature",
        "feature_name": "token",
        "default_value": "",
        "vocab_file": str(vocab_file),
        "expression": "feature:token__text_norm",
        "tokenizer_type": kind,
        "output_type": "word_id",
        "output_delim": "\x03",
    } | more


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [("tokenizer.json", "bpe", 50277), ("spiece.model", "sentencepiece", 32000)],
)
def test_vocabulary_size(trainer, name, kind, size):
    """Asked of the last of a feature's objects, whatever it reads."""
    if not (ASSETS / name).is_file():
        pytest.skip(f"{name} is not in PROCSERVER_FG_ASSETS")
    assert trainer.vocabulary_size(tokenize(ASSETS / name, kind)) == size


def test_vocabulary_size_of_a_small_tokenizer(trainer, tmp_path):
    """Added tokens count: they have rows in the embedding table."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert trainer.vocabulary_size(tokenize(tmp_path / "tokenizer.json")) == 4


def test_what_has_no_vocabulary(tmp_path):
    with pytest.raises(FgConfigError, match="id_feature"):
        pyfg.FeatureFactory.create(ids(num_buckets=9), True)
    with pytest.raises(FgConfigError, match="vocab_file"):
        pyfg.FeatureFactory.create(tokenize(tmp_path / "none.json"), False)
