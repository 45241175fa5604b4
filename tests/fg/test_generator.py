"""Online and offline generation: sides, tiling, sequences, descriptions."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.column import Column
from procserver.errors import BadFeature
from procserver.fg import FeatureGenerator, SequenceJoin

EXAMPLES = Path(__file__).parent.parent / "data" / "fg" / "fg_examples"


def feature(kind, name, expression, **more):
    return {
        "feature_type": f"{kind}_feature",
        "feature_name": name,
        "expression": expression,
    } | more


FG = {
    "features": [
        feature("id", "city", "user:city", hash_bucket_size=1000),
        feature("id", "tags", "item:tags", hash_bucket_size=1000, weighted=True),
        feature("raw", "price", "item:price"),
        feature("raw", "hour", "context:hour", boundaries=[6, 12, 18]),
        feature("raw", "vector", "user:vector", value_dim=2, default_value="0"),
        feature(
            "combo", "cross", ["user:city", "item:brand"], hash_bucket_size=1000,
            default_value="none",
        ),
        feature("id", "everyone", "const:all", hash_bucket_size=10),
        feature("id", "city_stub", "user:city", stub_type=True),
        feature(
            "combo", "twice", ["feature:city_stub", "feature:city"],
            hash_bucket_size=99,
        ),
        {
            "sequence_name": "clicks",
            "sequence_length": 3,
            "sequence_delim": ";",
            "sequence_pk": "user:click_ids",
            "features": [
                feature("id", "brand", "item:brand", hash_bucket_size=50),
                feature("raw", "price", "item:price", default_value="0"),
                feature("id", "action", "user:action", num_buckets=10, value_dim=0),
            ],
        },
        feature(
            "sequence_id", "words", "item:words", hash_bucket_size=20,
            sequence_delim=" ", value_dim=0,
        ),
    ]
}  # fmt: skip

USER = {
    "city": pa.array(["hz"]),
    "vector": pa.array([[1.0, 2.0]]),
    "clicks__brand": pa.array([["a", None, "b", "c"]]),
    "clicks__price": pa.array([[1.5, 2.5]], pa.list_(pa.float32())),
    "clicks__action": pa.array(["1;2\x1d3"]),
}
ITEM = {
    "tags": pa.array(["a:0.5", None, "b:2\x1dc"]),
    "price": pa.array([1.0, None, 3.0], pa.float32()),
    "brand": pa.array(["x", "", "z"]),
    "words": pa.array(["p q", "", "r\x1ds t"]),
}
CONTEXT = {"hour": pa.array([13], pa.int32())}
USER_SIDE = {
    "city", "vector", "everyone", "twice",
    "clicks__brand", "clicks__price", "clicks__action",
}  # fmt: skip


def columns(arrays):
    return {name: Column.from_arrow(array) for name, array in arrays.items()}


def online(generator, rows=3, *, tile, user=USER, item=ITEM, context=CONTEXT):
    return generator.generate(
        columns(user), columns(item), columns(context), rows, tile=tile
    )


@pytest.fixture(scope="module")
def generator():
    return FeatureGenerator(FG)


def plain(tensors):
    return {
        name: (array.dtype, array.shape, array.tobytes())
        for name, array in tensors.items()
    }


def test_online_equals_offline(generator):
    offline = generator.transform(USER | ITEM | CONTEXT)
    assert plain(online(generator, tile=False)) == plain(offline)


def test_names_and_shapes(generator):
    tensors = online(generator, tile=False)
    assert set(tensors) == set(generator.tensor_names())
    assert tensors["price.values"].shape == (3, 1)
    assert tensors["vector.values"].tolist() == [[1, 2]] * 3
    assert tensors["price.values"].dtype == np.float32
    assert tensors["tags.weights"].tolist() == [0.5, 2, 1]
    assert tensors["tags.lengths"].tolist() == [1, 0, 2]
    assert tensors["clicks__brand.lengths"].tolist() == [3, 3, 3]
    assert "clicks__brand.key_lengths" not in tensors
    assert tensors["clicks__price.values"].tolist() == [[1.5], [2.5]] * 3
    assert tensors["clicks__action.values"].tolist() == [1, 2, 3] * 3
    assert tensors["clicks__action.key_lengths"].tolist() == [1, 2] * 3
    assert tensors["words.lengths"].tolist() == [2, 1, 2]
    assert tensors["words.key_lengths"].tolist() == [1, 1, 1, 2, 1]
    assert not any(name.startswith("city_stub") for name in tensors)


def test_tiling_repeats_what_one_row_holds(generator):
    untiled = online(generator, tile=False)
    tiled = online(generator, tile=True)
    batch_size = tiled.pop("batch_size")
    assert (batch_size.dtype, batch_size.shape, int(batch_size)) == (np.int64, (), 3)
    assert tiled.keys() == untiled.keys()
    for name, array in tiled.items():
        if name.rsplit(".", 1)[0] in USER_SIDE:
            repeats = [3] + [1] * (array.ndim - 1)
            array = np.tile(array, repeats)
        assert plain({name: array}) == plain({name: untiled[name]}), name


def test_item_side_features_always_have_all_rows(generator):
    """Nulls, one-row and missing columns included."""
    tensors = generator.generate({}, {}, columns(CONTEXT), 4, tile=True)
    assert len(tensors["price.values"]) == 4
    assert len(tensors["hour.lengths"]) == 4
    assert tensors["cross.lengths"].tolist() == [1] * 4
    assert len(tensors["city.lengths"]) == 1
    assert tensors["clicks__brand.lengths"].tolist() == [1]


@pytest.mark.parametrize("tile", [False, True])
def test_zero_rows_yield_every_output(generator, tile):
    item = {name: array.slice(0, 0) for name, array in ITEM.items()}
    tensors = online(generator, 0, tile=tile, item=item)
    assert set(tensors) - {"batch_size"} == set(generator.tensor_names())
    assert tensors["price.values"].shape == (0, 1)
    assert len(tensors["city.lengths"]) == (1 if tile else 0)
    offline = generator.transform({n: a.slice(0, 0) for n, a in (USER | ITEM).items()})
    assert offline["vector.values"].shape == (0, 2)


def test_the_first_rows_count(generator):
    fewer = online(generator, 2, tile=False)
    assert len(fewer["price.values"]) == 2
    with pytest.raises(BadFeature, match="3 rows, not 4"):
        online(generator, 4, tile=False)
    with pytest.raises(BadFeature, match=r"user feature 'city' has 2 rows"):
        online(generator, tile=False, user=USER | {"city": pa.array(["a", "b"])})


def test_offline_columns_must_agree(generator):
    with pytest.raises(BadFeature, match=r"\[2, 3\] rows"):
        generator.transform(ITEM | {"city": pa.array(["a", "b"])})
    with pytest.raises(BadFeature, match="column 'city'"):
        generator.transform({"city": pa.array([{"a": 1}])})


def test_bytes_that_are_no_text_are_refused(generator):
    with pytest.raises(BadFeature, match="column 'city'"):
        generator.transform({"city": pa.array([b"\xff\xfe"])})


def test_no_features_and_no_inputs():
    empty = FeatureGenerator({"features": []})
    assert empty.transform({}) == {}
    assert list(empty.generate({}, {}, {}, 5, tile=True)) == ["batch_size"]
    literal = FeatureGenerator(
        {"features": [feature("id", "f", "const:a", hash_bucket_size=10)]}
    )
    found = literal.generate({}, {}, {}, 5, tile=False)
    assert found["f.lengths"].tolist() == [1] * 5
    assert len(literal.generate({}, {}, {}, 5, tile=True)["f.lengths"]) == 1


def test_an_item_input_beside_a_sequence_crosses_per_item():
    """A group's non-sequence item input gives every item its own sequence."""
    child = feature(
        "combo", "f", ["item:cat", "item:brand"], sequence_fields=["cat"],
        hash_bucket_size=1000, value_dim=1,
    )  # fmt: skip
    generator = FeatureGenerator(
        {"features": [{"sequence_name": "s", "features": [child]}]}
    )
    assert generator.describe()[0]["side"] == "crossing"
    arrays = {"s__cat": pa.array(["1;2"])}, {"brand": pa.array(["x", "y", None])}
    found = generator.generate(columns(arrays[0]), columns(arrays[1]), {}, 3, tile=True)
    assert found["s__f.lengths"].tolist() == [2, 2, 2]
    assert generator.unbucketized(arrays[0] | arrays[1])["s__f"] == [
        [["1_x"], ["2_x"]], [["1_y"], ["2_y"]], [["0"], ["0"]],
    ]  # fmt: skip
    assert generator.sequence_joins[0].inputs == {"cat": "s__cat"}


def test_chunked_and_dictionary_columns(generator):
    chunked = pa.chunked_array([["hz"], ["bj", None]])
    whole = generator.transform({"city": pa.array(["hz", "bj", None])})
    assert plain(generator.transform({"city": chunked})) == plain(whole)
    encoded = pa.array(["hz", "bj", None]).dictionary_encode()
    assert plain(generator.transform({"city": encoded})) == plain(whole)


@pytest.mark.parametrize(
    ("cells", "same"),
    [
        (pa.array(["a", None, "b\x1dc"]), "a;;b\x1dc"),
        (pa.array([7, None, 8], pa.int64()), "7;;8"),
        (pa.array([["a", "b"], None, []]), "a\x1db;;"),
        (pa.array([], pa.string()), ""),
    ],
)
def test_joined_item_features_are_a_sequence(generator, cells, same):
    """Item columns gathered for a list of ids, nested into one user cell."""
    joined = {"clicks__brand": Column.from_arrow(cells).nest()}
    written = columns({"clicks__brand": pa.array([same])})
    found = generator.generate(joined, {}, {}, 2, tile=True)
    expected = generator.generate(written, {}, {}, 2, tile=True)
    assert plain(found) == plain(expected)


def test_default_row(generator):
    row = generator.default_row()
    assert row["vector"].tolist() == [0, 0]
    assert row["city"].tolist() == []
    assert len(row["clicks__brand"]) == 1
    assert "city_stub" not in row


def test_unbucketized(generator):
    found = generator.unbucketized(USER | ITEM | CONTEXT)
    assert found["cross"] == [["hz_x"], ["none"], ["hz_z"]]
    assert found["city_stub"] == [["hz"]] * 3
    assert found["hour"] == [[13.0]] * 3
    assert found["clicks__action"] == [[["1"], ["2", "3"]]] * 3


def test_what_it_reads(generator):
    assert set(generator.item_inputs) == {"tags", "price", "brand", "words"}
    assert generator.context_inputs == ("hour",)
    assert set(generator.user_inputs) == set(USER)
    assert generator.sequence_pks == {"clicks": "user:click_ids"}
    assert generator.sequence_joins == (
        SequenceJoin(
            "clicks", "user", "click_ids", ";", 3,
            {"brand": "clicks__brand", "price": "clicks__price"},
        ),
    )  # fmt: skip


def test_description(generator):
    described = {one["name"]: one for one in generator.describe()}
    assert {n for n, one in described.items() if one["side"] == "user"} == (
        USER_SIDE | {"city_stub"}
    )
    assert {n for n, one in described.items() if one["side"] == "item"} == {
        "tags", "price", "words",
    }  # fmt: skip
    assert described["cross"]["side"] == described["hour"]["side"] == "crossing"
    assert described["clicks__action"]["tensors"] == [
        "clicks__action.values", "clicks__action.lengths", "clicks__action.key_lengths",
    ]  # fmt: skip
    assert described["city_stub"]["tensors"] == []
    json.dumps(generator.describe())


def test_a_sequence_feeds_a_plain_feature():
    """A stub of a group crossed with an item's category, as in section 10."""
    stub = feature("id", "stub", "item:cat", stub_type=True, default_value="0")
    generator = FeatureGenerator(
        {
            "features": [
                feature(
                    "combo", "f", ["feature:s__stub", "item:cat"], hash_bucket_size=100
                ),
                {"sequence_name": "s", "features": [stub]},
            ]
        }
    )
    found = generator.unbucketized(
        {"s__cat": pa.array(["10;11;12"]), "cat": pa.array([1, 2], pa.int64())}
    )
    assert found["f"] == [["10_1", "11_1", "12_1"], ["10_2", "11_2", "12_2"]]


def test_text_without_a_bucketizer_is_no_tensor(caplog):
    generator = FeatureGenerator({"features": [feature("id", "uid", "user:uid")]})
    assert "'uid'" in caplog.text
    assert generator.transform({"uid": pa.array(["a"])}) == {}
    assert generator.unbucketized({"uid": pa.array(["a"])}) == {"uid": [["a"]]}


def test_farm_hash_is_a_choice():
    fg = {"features": [feature("id", "f", "user:x", hash_bucket_size=100)]}
    column = {"x": pa.array(["abc"])}
    standard = FeatureGenerator(fg).transform(column)["f.values"].tolist()
    farm = FeatureGenerator(fg, farm_hash=True).transform(column)["f.values"].tolist()
    assert (standard, farm) == ([33], [85])


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads"):
        FeatureGenerator(FG, threads=0)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 5))
def test_every_split_gives_the_same_bytes(generator, data, rows):
    texts = st.none() | st.text(alphabet="ab:;.1\x1d ", max_size=6)
    item = {
        name: pa.array(data.draw(st.lists(texts, min_size=rows, max_size=rows)),
                       pa.string())
        for name in ("tags", "brand", "words")
    }  # fmt: skip
    user = {
        name: pa.array([data.draw(texts)], pa.string())
        for name in ("city", "clicks__brand")
    }
    untiled = online(generator, rows, tile=False, user=user, item=item)
    tiled = online(generator, rows, tile=True, user=user, item=item)
    assert plain(untiled) == plain(generator.transform(user | item | CONTEXT))
    for name, array in untiled.items():
        one = tiled[name]
        if name.rsplit(".", 1)[0] in USER_SIDE:
            one = np.tile(one, [rows] + [1] * (one.ndim - 1))
        assert plain({name: one}) == plain({name: array})
