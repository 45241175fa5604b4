"""Random text features: the generator against ``tests/reference/fg_oracle_text.py``."""

import json
import sys
from pathlib import Path

import opencc
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_oracle_agreement import (
    SETTINGS,
    arrow_type,
    bucketizers,
    columns,
    normalizers,
    same,
)
from text_models import train_bpe, train_pieces

from procserver.errors import BadFeature
from procserver.fg import FeatureGenerator

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

from fg_oracle import Refused
from fg_oracle_text import TextOracle

SIMPLIFY = opencc.OpenCC("t2s").convert
PATTERNS = st.lists(
    st.sampled_from(
        ["a", "b*", r"\d+", "(a|k)(.)?", "^a", "e$", ";|,", "中.?", "[^0-9]", r"\bx"]
    ),
    min_size=1,
    max_size=3,
)
ALL_TYPES = ("tokenize", "normalize", "regex", "distance")
pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    bpe = train_bpe(folder / "bpe.json")
    pieces = train_pieces(folder / "pieces.model")
    encoders = {
        "bpe.json": lambda text: bpe.encode(text, add_special_tokens=False).ids,
        "pieces.model": lambda text: pieces.encode(text),
    }
    return folder, encoders


@st.composite
def text_features(draw, name, inputs, *, sequence=False, types=ALL_TYPES):
    kind = draw(st.sampled_from(types))
    entry = {"feature_name": name, "expression": draw(st.sampled_from(inputs))}
    entry["default_value"] = draw(st.sampled_from(["", "7", "12"]))
    if draw(st.booleans()):
        entry["separator"] = draw(st.sampled_from(["|", ","]))
    if kind == "tokenize":
        entry["feature_type"] = "tokenize_feature"
        entry["vocab_file"] = draw(st.sampled_from(["bpe.json", "pieces.model"]))
        entry["tokenizer_type"] = (
            "bpe" if entry["vocab_file"] == "bpe.json" else "sentencepiece"
        )
        return entry
    kinds = ["hash_bucket_size", "vocab_list", "num_buckets", None]
    if kind == "normalize":
        entry["feature_type"] = "text_normalizer"
        case = draw(st.sampled_from([0, 2, 4]))
        rest = st.lists(st.sampled_from([8, 16, 32, 512]), unique=True)
        entry["parameter"] = case + sum(draw(rest))
        entry["remove_space"] = draw(st.booleans())
        entry["max_length"] = draw(st.sampled_from([0, 5]))
    elif kind == "regex":
        entry["feature_type"] = "regex_replace_feature"
        entry["regex_pattern"] = draw(PATTERNS)
        groups = sum("(a|k)" in p for p in entry["regex_pattern"])
        entry["replacement"] = draw(
            st.sampled_from(["", "<>", "\\0\\0"] + ["[\\2\\1]"] * bool(groups))
        )
        entry["replace_all"] = draw(st.booleans())
        entry["icase"] = draw(st.booleans())
        entry["value_dim"] = draw(st.integers(0, 2))
    else:
        entry["feature_type"] = "custom_feature"
        entry["operator_name"] = "EditDistance"
        entry["expression"] = [entry["expression"], draw(st.sampled_from(inputs))]
        entry["encoding"] = draw(st.sampled_from(["utf-8", "latin"]))
        entry["normalizer"] = draw(normalizers)
        kinds = ["hash_bucket_size", "boundaries", "num_buckets", None]
        if sequence:
            # The rules of section 9 for several inputs are the other oracle's.
            entry["sequence_fields"] = [
                text.partition(":")[2] for text in entry["expression"]
            ]
    entry |= draw(bucketizers(kinds))
    entry["need_prefix"] = kind != "distance" and draw(st.booleans())
    entry["stub_type"] = draw(st.sampled_from([False, False, True]))
    return entry


def check(models, fg_json, data):
    folder, encoders = models
    arrays = {
        name: pa.array(values, arrow_type(kind))
        for name, (kind, values) in data.items()
    }
    data = {name: (kind, arrays[name].to_pylist()) for name, (kind, _) in data.items()}
    generator = FeatureGenerator(
        json.loads(json.dumps(fg_json)), asset_dir=folder, farm_hash=True
    )
    try:
        oracle = TextOracle(fg_json, encoders=encoders, simplify=SIMPLIFY)
        expected = oracle.transform(data)
    except Refused:
        expected = None
    try:
        found = generator.transform(arrays)
    except BadFeature:
        assert expected is None
        return
    assert expected is not None
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        same(found[name], values, name)


@SETTINGS
@given(st.data(), st.sampled_from([0, 1, 2, 3]))
def test_plain_features(models, data, rows):
    cells = {name: data.draw(columns(rows)) for name in ("a", "b")}
    inputs = ["user:a", "item:b", "item:missing", "const:k|1 A中"]
    entries = [data.draw(text_features(f"f{i}", inputs)) for i in range(2)]
    check(models, {"features": entries}, cells)


@SETTINGS
@given(st.data(), st.integers(0, 3))
def test_one_column_of_text(models, data, rows):
    """Cells that every type takes: nothing is refused, values are compared."""
    texts = st.none() | st.text(alphabet="aAbZ 中漢Ａ！|,;1é\u3000", max_size=10)
    cells = {"a": ("string", data.draw(st.lists(texts, min_size=rows, max_size=rows)))}
    check(models, {"features": [data.draw(text_features("f", ["user:a"]))]}, cells)


@SETTINGS
@given(st.data(), st.integers(0, 3))
def test_stand_alone_sequences(models, data, rows):
    cells = {name: data.draw(columns(rows)) for name in ("a", "b")}
    entry = data.draw(text_features("f", ["user:a", "item:b"], sequence=True))
    entry["feature_type"] = "sequence_" + entry["feature_type"]
    entry["sequence_delim"] = data.draw(st.sampled_from([";", "|"]))
    entry["sequence_length"] = data.draw(st.integers(0, 2))
    check(models, {"features": [entry]}, cells)


@SETTINGS
@given(st.data(), st.integers(1, 3))
def test_groups_and_graphs(models, data, rows):
    cells = {name: data.draw(columns(rows)) for name in ("s__a", "b")}
    first = data.draw(
        text_features("x", ["item:a"], sequence=True, types=("normalize", "regex"))
    )
    second = data.draw(text_features("y", ["feature:x"], sequence=True))
    second["sequence_fields"] = ["x"]
    group = {
        "sequence_name": "s",
        "sequence_delim": ";",
        "sequence_length": data.draw(st.integers(0, 2)),
        "features": [second, first],
    }
    plain = data.draw(text_features("p", ["item:b"], types=("normalize", "regex")))
    outer = data.draw(text_features("z", ["feature:p", "feature:s__y"]))
    check(models, {"features": [outer, plain, group]}, cells)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.characters(exclude_categories=["Cs"]))
def test_every_character_normalises_alone_as_in_a_text(models, character):
    entries = [
        {
            "feature_name": f"f{options}",
            "feature_type": "text_normalizer",
            "expression": "user:a",
            "parameter": options,
            "hash_bucket_size": 2**62,
        }
        for options in (2, 4, 8, 32, 58, 512)
    ]
    cells = {"a": ("string", [character, f"x{character} y{character}中", None])}
    check(models, {"features": entries}, cells)
