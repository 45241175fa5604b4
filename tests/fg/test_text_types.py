"""tokenize_feature, text_normalizer and regex_replace_feature as features."""

import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from text_models import train_bpe, train_pieces

from cython_ext.column import Column
from procserver.errors import BadFeature, FgConfigError
from procserver.fg import FeatureGenerator

WORDS = {"red": 0, "Ġdress": 1}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    train_bpe(folder / "tokenizer.json")
    train_pieces(folder / "pieces.model")
    (folder / "stops").write_text("！\n，\n")
    (folder / "gbk").write_bytes("，".encode("gbk"))
    return folder


def tokenize(name="t", expression="item:a", **keys):
    return {
        "feature_name": name,
        "feature_type": "tokenize_feature",
        "expression": expression,
        "vocab_file": "tokenizer.json",
    } | keys


def generator(assets, *entries):
    """Reads a file beside its assets, as an export is laid out."""
    path = assets / "fg.json"
    path.write_text(json.dumps({"features": entries}))
    return FeatureGenerator(path)


def ids(assets, text):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(assets / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_tokens_as_sequence_are_plain_sparse(assets):
    entry = tokenize(tokens_as_sequence=True, sequence_length=2, default_value="x")
    made = generator(assets, entry)
    found = made.transform({"a": pa.array(["the red dress", "", None])})
    one, default = ids(assets, "the red dress"), ids(assets, "x")
    assert set(found) == {"t.values", "t.lengths"}
    assert found["t.values"].tolist() == one + default + default
    assert found["t.lengths"].tolist() == [len(one), len(default), len(default)]
    assert made.default_row()["t"].tolist() == default
    assert made.unbucketized({"a": pa.array(["the red dress"])})["t"] == [one]


def test_the_stand_alone_sequence(assets):
    entry = tokenize(feature_type="sequence_tokenize_feature", sequence_delim=";",
                     sequence_length=2)  # fmt: skip
    made = generator(assets, entry)
    found = made.transform({"a": pa.array(["red;;dress", None])})
    red, zero = ids(assets, "red"), ids(assets, "0")
    assert found["t.values"].tolist() == red + zero + zero
    assert found["t.lengths"].tolist() == [2, 1]
    assert found["t.key_lengths"].tolist() == [len(red), len(zero), len(zero)]
    lists = made.transform({"a": pa.array([["red", None, "dress"], []])})
    assert lists["t.values"].tolist() == found["t.values"].tolist()
    with pytest.raises(BadFeature, match="'item:a' may not be a list of lists"):
        made.transform({"a": pa.array([[["red"]]])})


def test_lists_are_refused(assets):
    with pytest.raises(BadFeature, match="'item:a' may not be a list"):
        generator(assets, tokenize()).transform({"a": pa.array([["red"]])})
    stub = {
        "feature_name": "x", "feature_type": "regex_replace_feature",
        "expression": "item:a", "regex_pattern": "-", "replacement": " ",
        "value_dim": 0, "stub_type": True,
    }  # fmt: skip
    made = generator(assets, stub, tokenize(expression="feature:x"))
    found = made.transform({"a": pa.array(["red-dress"])})
    assert found["t.values"].tolist() == ids(assets, "red dress")
    with pytest.raises(BadFeature, match="'feature:x' may not be a list"):
        made.transform({"a": pa.array([["red", "dress"]])})


def test_words_are_bucketized(assets):
    entry = tokenize(output_type="word", vocab_dict=WORDS, default_bucketize_value=9,
                     default_value="red dress")  # fmt: skip
    found = generator(assets, entry).transform({"a": pa.array(["red the", None])})
    assert found["t.values"].tolist() == [0, 9, 0, 1]
    assert found["t.lengths"].tolist() == [2, 2]
    plain = generator(assets, tokenize(output_type="word"))
    assert plain.transform({"a": pa.array(["red"])}) == {}
    assert plain.unbucketized({"a": pa.array(["red dress"])})["t"] == [list(WORDS)]
    pieces = tokenize(output_type="word", vocab_file="pieces.model",
                      tokenizer_type="sentencepiece")  # fmt: skip
    found = generator(assets, pieces).unbucketized({"a": pa.array(["dress"])})
    assert "".join(found["t"][0]) == "▁dress"


def test_ids_are_values_for_other_features(assets):
    outer = {"feature_name": "c", "feature_type": "combo_feature",
             "expression": ["feature:t", "const:k"]}  # fmt: skip
    made = generator(assets, tokenize(stub_type=True), outer)
    found = made.unbucketized({"a": pa.array(["the red"])})
    assert found["c"] == [[f"{one}_k" for one in ids(assets, "the red")]]


def test_user_side_is_one_row_when_tiled(assets):
    made = generator(assets, tokenize(expression="user:u"), tokenize("i"))
    user = {"u": Column.from_arrow(pa.array(["the red dress"]))}
    item = {"a": Column.from_arrow(pa.array(["red", "x", None]))}
    tiled = made.generate(user, item, {}, 3, tile=True)
    flat = made.generate(user, item, {}, 3, tile=False)
    tokens = ids(assets, "the red dress")
    assert tiled["t.values"].tolist() == tokens
    assert tiled["t.lengths"].tolist() == [len(tokens)]
    assert flat["t.values"].tolist() == tokens * 3
    assert tiled["i.values"].tolist() == flat["i.values"].tolist()
    offline = made.transform(
        {"u": pa.array(["the red dress"]), "a": pa.array(["red", "x", None])}
    )
    assert {n: a.tolist() for n, a in offline.items()} == {
        n: a.tolist() for n, a in flat.items()
    }


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"vocab_file": "missing.json"}, "vocab_file"),
        ({"vocab_file": "stops"}, "vocab_file"),
        ({"vocab_file": None}, "vocab_file"),
        ({"vocab_file": "a\0b"}, "vocab_file"),
        ({"tokenizer_type": "wordpiece"}, "tokenizer_type"),
        ({"tokenizer_type": "sentencepiece"}, "vocab_file"),
        ({"hash_bucket_size": 10}, "hash_bucket_size"),
        ({"vocab_list": ["a"], "default_bucketize_value": 0}, "vocab_list"),
        ({"expression": ["item:a", "item:b"]}, "expression"),
    ],
)
def test_refused_tokenizers(assets, keys, key):
    with pytest.raises(FgConfigError) as caught:
        generator(assets, tokenize(**keys))
    assert (caught.value.feature, caught.value.key) == ("t", key)


def normalizer(**keys):
    return {
        "feature_name": "n",
        "feature_type": "text_normalizer",
        "expression": "item:a",
        "is_gbk_input": False,
        "is_gbk_output": False,
    } | keys


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["AB 汉C", "AB"]),
        ({"parameter": 4}, ["ａb 漢，c！", "a-b"]),
        ({"parameter": 32, "stop_char_file": "stops"}, ["ａB 漢c", "a-b"]),
        ({"parameter": 0, "remove_space": True}, ["ａB漢，c！", "a-b"]),
        ({"max_length": 3}, ["ａB 漢，c！", "AB"]),
        ({"parameter": 512}, ["ａB 漢 ，c！", "a-b"]),
    ],
)
def test_normalised_text(assets, keys, expected):
    made = generator(assets, normalizer(**keys))
    found = made.unbucketized({"a": pa.array(["ａB 漢，c！", "a-b", "", None])})
    assert found["n"] == [[expected[0]], [expected[1]], [], []]


def test_a_default_is_not_normalised_and_stands_for_nothing_left(assets):
    made = generator(assets, normalizer(default_value="d-d"))
    found = made.unbucketized({"a": pa.array(["!!", "", "a"])})
    assert found["n"] == [["d-d"], ["d-d"], ["A"]]


def test_normalised_text_takes_a_bucketizer(assets):
    vocab = {"vocab_list": ["A", "B"], "default_bucketize_value": 7}
    made = generator(assets, normalizer(**vocab))
    found = made.transform({"a": pa.array([["a", "b!"], ["c"]])})
    assert found["n.values"].tolist() == [0, 1, 7]
    assert found["n.lengths"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"parameter": 6}, "parameter"),
        ({"parameter": 1}, "parameter"),
        ({"parameter": 1024 + 4}, "parameter"),
        ({"parameter": "many"}, "parameter"),
        ({"is_gbk_input": True}, "is_gbk_input"),
        ({"is_gbk_output": "true"}, "is_gbk_output"),
        ({"stop_char_file": "missing"}, "stop_char_file"),
        ({"stop_char_file": "gbk"}, "stop_char_file"),
        ({"max_length": -1}, "max_length"),
    ],
)
def test_refused_normalizers(assets, keys, key):
    with pytest.raises(FgConfigError) as caught:
        generator(assets, normalizer(**keys))
    assert (caught.value.feature, caught.value.key) == ("n", key)


def regex(**keys):
    return {
        "feature_name": "r",
        "feature_type": "regex_replace_feature",
        "expression": "item:a",
        "regex_pattern": [r"\|"],
        "replacement": " ",
    } | keys


def test_what_the_separator_cuts(assets):
    columns = {"a": pa.array(["a|b\x1dc|d", None])}
    one = generator(assets, regex(value_dim=1)).unbucketized(columns)
    assert one["r"] == [["a b\x1dc d"], []]
    several = generator(assets, regex(default_value="x|y")).unbucketized(columns)
    assert several["r"] == [["a b", "c d"], ["x|y"]]


def test_prefix_and_number_of_values(assets):
    columns = {"a": pa.array([["a|b", "c", "d"], ["|"]])}
    made = generator(assets, regex(value_dim=2, need_prefix=True))
    assert made.unbucketized(columns)["r"] == [["r_a b", "r_c"], ["r_ "]]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"regex_pattern": []}, "regex_pattern"),
        ({"regex_pattern": None}, "regex_pattern"),
        ({"regex_pattern": ["a", "(?=b)"]}, "regex_pattern"),
        ({"regex_pattern": {}}, "regex_pattern"),
        ({"replacement": "\\1"}, "replacement"),
        ({"replace_all": "perhaps"}, "replace_all"),
    ],
)
def test_refused_replacements(assets, keys, key):
    with pytest.raises(FgConfigError) as caught:
        generator(assets, regex(**keys))
    assert (caught.value.feature, caught.value.key) == ("r", key)


def test_threads_share_a_generator(assets):
    """Libraries are called from several threads at once, with equal results."""
    entries = [
        tokenize("b"),
        tokenize("p", vocab_file="pieces.model", tokenizer_type="sentencepiece"),
        normalizer(hash_bucket_size=2**62),
        regex(hash_bucket_size=2**62),
    ]
    made = generator(assets, *entries)
    batches = [
        {"a": pa.array([f"red|dress，{i} 漢字 {k}" for k in range(50)])}
        for i in range(16)
    ]

    def work(columns):
        return {name: array.tolist() for name, array in made.transform(columns).items()}

    expected = [work(columns) for columns in batches]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, batches * 4)) == expected * 4
