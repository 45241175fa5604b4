"""Bucketize-only mode, the debug dump, and files that were exported for RTP."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import train_bpe

from procserver.errors import FgConfigError
from procserver.fg import FeatureGenerator

EXAMPLES = Path(__file__).parent.parent / "data" / "fg" / "fg_examples"


def feature(kind, name, expression, **more):
    return {
        "feature_type": f"{kind}_feature",
        "feature_name": name,
        "expression": expression,
    } | more


FG = {
    "features": [
        feature("id", "city", "user:city", hash_bucket_size=1000, need_prefix=True),
        feature("id", "tags", "item:tags", hash_bucket_size=1000, default_value="none"),
        feature(
            "raw", "price", "item:price", normalizer="method=zscore,mean=1,"
            "standard_deviation=2",
        ),
        feature(
            "raw", "level", "item:price", boundaries=[-1, 0, 1],
            normalizer="method=minmax,min=0,max=9", default_value="0.5",
        ),
        feature("combo", "cross", ["user:city", "item:tags"], hash_bucket_size=1000),
        feature("id", "stub", "user:city", stub_type=True),
        {
            "sequence_name": "clicks",
            "sequence_delim": ";",
            "sequence_length": 3,
            "features": [
                feature("id", "tag", "item:tag", hash_bucket_size=50, value_dim=0),
                feature("id", "one", "item:tag", num_buckets=7, value_dim=1),
                feature("raw", "price", "item:price", normalizer="method=log10"),
            ],
        },
    ]
}  # fmt: skip


def plain(tensors):
    return {
        name: (array.dtype, array.shape, array.tobytes())
        for name, array in tensors.items()
    }


texts = st.none() | st.text(alphabet="12ab;.\x1d", max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(*[
    st.lists(texts, min_size=n, max_size=n)] * 3, st.lists(
    st.floats(0, 100, width=32), min_size=n, max_size=n))))  # fmt: skip
def test_bucketizing_what_was_not_bucketized_is_generating(drawn):
    """Un-bucketized output, fed back by feature name, gives the tensors."""
    city, tags, clicks, price = drawn
    columns = {
        "city": pa.array(city, pa.string()),
        "tags": pa.array(tags, pa.string()),
        "price": pa.array(price, pa.float32()),
        "clicks__tag": pa.array(clicks, pa.string()),
        "clicks__price": pa.array(
            [None if text is None else [1.5, 20.0] for text in clicks],
            pa.list_(pa.float32()),
        ),
    }
    whole = FeatureGenerator(FG)
    types = {"tag": pa.string(), "one": pa.string(), "price": pa.float32()}
    between = {}
    for name, rows in whole.unbucketized(columns).items():
        _, joint, own = name.partition("__")
        numeric = name in ("price", "level")
        kind = types[own] if joint else pa.float32() if numeric else pa.string()
        kind = pa.list_(pa.list_(kind)) if joint else pa.list_(kind)
        between[name] = pa.array(rows, kind)
    rest = FeatureGenerator(FG, bucketize_only=True)
    assert set(rest.inputs) == set(between) - {"stub"}
    assert plain(rest.transform(between)) == plain(whole.transform(columns))


def test_bucketizing_what_a_tokenizer_made(tmp_path):
    """Its ids come as they are; the default, a text, is in them already."""
    train_bpe(tmp_path / "tokenizer.json")
    tokenize = feature(
        "tokenize", "words", "item:text", vocab_file="tokenizer.json",
        default_value="red dress",
    )  # fmt: skip
    fg = {"features": [tokenize]}
    columns = {"text": pa.array(["a blue dress", None])}
    tensors = FeatureGenerator(fg, asset_dir=tmp_path).transform(columns)
    first, second = tensors["words.lengths"].tolist()
    ids = tensors["words.values"].tolist()
    assert second > 1
    rest = FeatureGenerator(fg, asset_dir=tmp_path, bucketize_only=True)
    between = {"words": pa.array([ids[:first], ids[first:]])}
    assert plain(rest.transform(between)) == plain(tensors)
    assert rest.transform({"words": pa.array([None])})["words.lengths"].tolist() == [0]


def test_bucketizing_what_other_types_made():
    """Any number of values in a row, of types whose rows are not of one width."""
    lookup = {
        "feature_type": "lookup_feature",
        "feature_name": "l",
        "map": "user:m",
        "key": "item:k",
        "boundaries": [1, 5],
        "combiner": "",
        "needDiscrete": True,
        "value_type": "float",
        "default_value": "",
    }
    formula = {
        "feature_type": "expr_feature",
        "feature_name": "e",
        "expression": "a * 2",
        "variables": ["item:a"],
        "boundaries": [1, 5],
        "default_value": "",
    }
    fg = {"features": [lookup, formula]}
    columns = {
        "m": pa.array(["x:1\x1dy:7", "x:2", "x:2"]),
        "k": pa.array(["x\x1dy", "z", None]),
        "a": pa.array([1.0, 2.0, 3.0], pa.float32()),
    }
    whole = FeatureGenerator(fg)
    between = {
        name: pa.array(rows, pa.list_(pa.string() if name == "l" else pa.float32()))
        for name, rows in whole.unbucketized(columns).items()
    }
    rest = FeatureGenerator(fg, bucketize_only=True)
    assert plain(rest.transform(between)) == plain(whole.transform(columns))


def test_bucketize_only_knows_what_the_file_reads():
    generator = FeatureGenerator(FG, bucketize_only=True)
    assert [one.name for one in generator.spec.features][:3] == [
        "city",
        "tags",
        "price",
    ]
    assert generator.sequence_pks == {"clicks": "user:clicks"}
    assert set(generator.tensor_names()) == set(FeatureGenerator(FG).tensor_names())


def test_dump():
    generator = FeatureGenerator(FG)
    tensors = generator.transform(
        {
            "city": pa.array([None]),
            "tags": pa.array(["a", "b\x1dc"]),
            "price": pa.array([1.0, 2.0]),
            "clicks__tag": pa.array(["1\x1d2;3", ""]),
            "clicks__price": pa.array(["10;100", None]),
        }
    )
    first, second = generator.dump(tensors)
    assert [part.partition(":")[0] for part in first.split(" | ")] == [
        "city", "tags", "price", "level", "cross",
        "clicks__tag", "clicks__one", "clicks__price",
    ]  # fmt: skip
    ids = tensors["clicks__tag.values"].tolist()
    assert f"| clicks__tag:{ids[0]},{ids[1]};{ids[2]} |" in first
    assert "city: |" in first
    assert first.endswith("clicks__price:1.0;2.0")
    assert second.endswith("clicks__price:0.0")
    assert "price:0.5 |" in second
    assert "," in second.split(" | ")[1]


def test_dump_repeats_rows_that_stand_for_all():
    generator = FeatureGenerator(FG, for_parser=True)
    tensors = generator.transform(
        {"city": pa.array(["x"]), "tags": pa.array(["a", "b", "c"])}, repeat=False
    )
    assert len(tensors["city.lengths"]) == 1
    lines = generator.dump(tensors)
    assert len(lines) == 3
    assert len({line.split(" | ")[0] for line in lines}) == 1


def test_dump_of_no_rows():
    generator = FeatureGenerator({"features": [feature("raw", "x", "item:x")]})
    assert generator.dump(generator.transform({"x": pa.array([], pa.int32())})) == []


def test_weighted_ids_are_sorted_as_text():
    generator = FeatureGenerator(
        {"features": [feature("id", "x", "user:x", num_buckets=99, weighted=True)]}
    )
    tensors = generator.transform({"x": pa.array(["9:0.5\x1d10:2\x1d9:0.25", None])})
    assert generator.dump(tensors) == ["x:10:2.0,9:0.25,9:0.5", "x:"]


# ----------------------------------------------------------------------------- RTP


def test_rtp_joins_names_with_one_underscore():
    path = EXAMPLES / "multi_tower_din_fg_rtp_mock.fg.json"
    groups = [
        entry for entry in json.loads(path.read_text())["features"]
        if "sequence_name" in entry
    ]  # fmt: skip
    fg = {"features": groups}
    generator = FeatureGenerator(fg, rtp=True, farm_hash=True)
    assert "click_50_seq_item_id" in generator.inputs
    assert "click_50_seq_item_id.values" in set(generator.tensor_names())
    usual = FeatureGenerator(fg, farm_hash=True)
    columns = {
        name: pa.array(["1|2|3", None, "7"])
        for name in usual.inputs
        if "raw_3" not in name
    }
    renamed = {name.replace("__", "_"): column for name, column in columns.items()}
    assert plain(generator.transform(renamed)) == {
        name.replace("__", "_"): value
        for name, value in plain(usual.transform(columns)).items()
    }


def test_rtp_references_within_a_group_follow():
    fg = {
        "features": [
            {
                "sequence_name": "s",
                "features": [
                    feature("id", "x", "item:x", stub_type=True),
                    feature(
                        "combo", "y", ["feature:x", "user:u"], hash_bucket_size=9,
                        sequence_fields=["x"],
                    ),
                ],
            }
        ]
    }  # fmt: skip
    generator = FeatureGenerator(fg, rtp=True, farm_hash=True)
    found = generator.unbucketized({"s_x": pa.array(["1;2"]), "u": pa.array(["z"])})
    assert found["s_y"] == [[["1_z"], ["2_z"]]]


def test_rtp_without_farm_hash_is_logged(caplog):
    FeatureGenerator({"features": [feature("raw", "x", "item:x")]}, rtp=True)
    assert "FarmHash" in caplog.text


def test_rtp_spellings_of_bucketizers():
    generator = FeatureGenerator(
        {
            "features": [
                feature(
                    "id", "i", "item:x", hash_bucket_size=10, gen_key_type="mod",
                    gen_val_type="idx",
                ),
                feature("raw", "r", "item:x", boundaries="1, 2.5,4"),
                feature("raw", "n", "item:x", hash_bucket_size=3, gen_key_type="mod"),
                feature("id", "h", "item:x", hash_bucket_size=10, gen_key_type="hash"),
            ]
        }
    )  # fmt: skip
    tensors = generator.transform({"x": pa.array([0, 2, 4, 11], pa.int64())})
    assert tensors["i.values"].tolist() == [0, 2, 4, 0]
    assert tensors["r.values"].tolist() == [0, 1, 3, 3]
    assert tensors["n.values"].tolist() == [0, 2, 0, 0]
    hashed = FeatureGenerator(
        {"features": [feature("id", "h", "item:x", hash_bucket_size=10)]}
    ).transform({"x": pa.array(["0", "2", "4", "11"])})
    assert np.array_equal(tensors["h.values"], hashed["h.values"])


def test_a_cross_takes_no_mod():
    with pytest.raises(FgConfigError) as caught:
        FeatureGenerator(
            {
                "features": [
                    feature(
                        "combo", "c", ["item:x", "item:y"], hash_bucket_size=10,
                        gen_key_type="mod",
                    )
                ]
            }
        )  # fmt: skip
    assert (caught.value.feature, caught.value.key) == ("c", "hash_bucket_size")


@pytest.mark.parametrize("size", [2**63 - 1, 2**63 - 2, 2**32 + 1])
def test_sizes_of_dynamic_tables(size):
    """Zero-collision and dynamic tables hash into the whole of int64."""
    generator = FeatureGenerator(
        {"features": [feature("id", "x", "user:x", hash_bucket_size=size)]},
        farm_hash=True,
    )
    ids = generator.transform({"x": pa.array([str(i) for i in range(100)])})["x.values"]
    assert (ids >= 0).all()
    assert (ids < size).all()
    assert ids.max() > size // 2
