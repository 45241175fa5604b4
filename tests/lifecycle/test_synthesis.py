"""Requests made up from fg.json: accepted by every feature, and not empty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from procserver.errors import FgConfigError
from procserver.fg import FeatureGenerator
from procserver.lifecycle.synthesis import (
    ELEMENTS,
    UNKNOWN_ITEM,
    FeatureRequests,
    TensorRequests,
)
from procserver.wire import torch as torch_wire
from procserver.wire import torchrec as torchrec_wire

DATA = Path(__file__).parent.parent / "data" / "fg"
CASES = json.loads((DATA / "fg_cases.json").read_text())["cases"]
EXAMPLES = sorted((DATA / "fg_examples").glob("*.json"))


def generator(content: object, **options: object) -> FeatureGenerator:
    try:
        return FeatureGenerator(content, asset_dir=DATA, **options)
    except FgConfigError as error:
        pytest.skip(f"not served: {error}")


def generate(
    fg: FeatureGenerator, rows: int, *, filled: bool, tile: bool = False
) -> dict[str, np.ndarray]:
    body = FeatureRequests(fg).body(rows, filled=filled)
    sent = torchrec_wire.decode(body)
    assert not sent.is_empty
    return fg.generate(sent.user, sent.item, sent.context, rows, tile=tile)


# Reads pairs of numbers out of texts of a map of texts: nobody guesses that.
UNGUESSED = {"tz/lookup/sequence_lookup_feature_dense_2"}


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c["mode"] == "fg" and c["id"] not in UNGUESSED],
    ids=lambda c: c["id"],
)
def test_every_kind_of_feature_takes_what_is_made_up(case) -> None:
    fg = generator(case["fg_json"])
    for rows in (9, 1):
        for filled in (True, False):
            tensors = generate(fg, rows, filled=filled)
            assert set(tensors) == set(fg.tensor_names())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("tile", [False, True], ids=["flat", "tile"])
def test_whole_files(path: Path, tile: bool) -> None:
    content = json.loads(path.read_text())
    fg = generator(content)
    full = generate(fg, 37, filled=True, tile=tile)
    empty = generate(fg, 37, filled=False, tile=tile)
    assert full.keys() == empty.keys()
    differing = [
        name
        for name, array in full.items()
        if name.endswith(".values") and not np.array_equal(array, empty[name])
    ]
    values = [name for name in full if name.endswith(".values")]
    assert len(differing) > 0.6 * len(values), "hardly anything is filled"


def test_sequences_have_elements_and_some_cells_are_missing() -> None:
    features = [
        {
            "feature_type": "id_feature",
            "feature_name": "tag",
            "expression": "item:tag",
            "default_value": "",
            "hash_bucket_size": 100,
        },
        {
            "feature_type": "id_feature",
            "feature_name": "hour",
            "expression": "context:hour",
            "default_value": "",
            "num_buckets": 24,
        },
        {
            "sequence_name": "clicks",
            "sequence_length": 10,
            "sequence_delim": ";",
            "sequence_pk": "user:clicks",
            "features": [
                {
                    "feature_type": "id_feature",
                    "feature_name": "shop",
                    "expression": "item:shop",
                    "hash_bucket_size": 10,
                },
                {
                    "feature_type": "raw_feature",
                    "feature_name": "price",
                    "expression": "user:price",
                    "value_dim": 2,
                },
            ],
        },
    ]
    fg = generator({"features": features})
    tensors = generate(fg, 20, filled=True)
    assert set(tensors["clicks__shop.lengths"]) == {ELEMENTS}
    assert set(tensors["clicks__price.lengths"]) == {ELEMENTS}
    assert set(tensors["tag.lengths"]) == {0, 2}
    assert set(tensors["hour.lengths"]) == {0, 2}
    sent = torchrec_wire.decode(FeatureRequests(fg).body(20, filled=True))
    ids = sent.item_ids.to_pylist()
    assert len(ids) == 20
    assert ids[-1] == UNKNOWN_ITEM
    assert UNKNOWN_ITEM not in ids[:-1]
    assert len(sent.user["clicks"].elements(0)) == ELEMENTS


def test_a_user_tower_is_asked_without_items_too() -> None:
    feature = {
        "feature_type": "id_feature",
        "feature_name": "user_id",
        "expression": "user:user_id",
        "default_value": "",
        "hash_bucket_size": 100,
    }
    requests = FeatureRequests(generator({"features": [feature]}))
    assert 1 in requests.shapes
    alone = torchrec_wire.decode(requests.body(1, filled=True))
    assert len(alone.item_ids) == 0
    assert alone.user["user_id"].to_pylist() == [["1", "2"]]


@pytest.mark.parametrize("most", [1, 30, 100, 5000])
def test_shapes_keep_to_the_most_items(most: int) -> None:
    feature = {
        "feature_type": "raw_feature",
        "feature_name": "price",
        "expression": "item:price",
    }
    shapes = FeatureRequests(generator({"features": [feature]}), None, most).shapes
    assert 1 in shapes
    assert max(shapes) == min(most, 100)
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("tile", [False, True], ids=["flat", "tile"])
def test_tensors_arrive_as_they_were_generated(tile: bool) -> None:
    path = DATA / "fg_examples" / "multi_tower_din_taobao.fg.json"
    fg = generator(json.loads(path.read_text()))
    expected = generate(fg, 37, filled=True, tile=tile)
    body = TensorRequests(fg, tile).body(37, filled=True)
    named = torch_wire.decode(body).map_inputs
    assert named is not None
    assert named.keys() == expected.keys()
    for name, array in expected.items():
        assert named[name].values.dtype == array.dtype, name
        assert np.array_equal(named[name].values, array), name
