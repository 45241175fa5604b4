"""The features of the test exports, their raw data, and their tensors, slowly.

A raw value is ``(type, value)`` with Arrow's name of the type, as the oracle of
``tests/reference`` takes it: the oracle makes the tensors that a model must be
given, and shares no code with the product.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

from fg_expr_features import ExprOracle
from fg_oracle import Oracle

CATEGORIES = ["books", "games", "garden", "häuser", "服装"]
CITIES = ["hangzhou", "北京", "köln", "porto", "osaka"]
TAGS = [f"tag{i}" for i in range(30)]
WORDS = ["red", "dress", "summer", "shoes", "phone", "case", "裙子"]
ITEMS = 120

VOCABULARY = {"vocab_list": ["", "<OOV>", *CATEGORIES], "default_bucketize_value": 1}
IN_SEQUENCE = {"vocab_list": ["0", "<OOV>", *CATEGORIES], "default_bucketize_value": 1}


def _feature(kind: str, name: str, expression: Any, **more: Any) -> dict[str, Any]:
    default = {} if "default_value" in more else {"default_value": "0"}
    return {
        "feature_type": kind,
        "feature_name": name,
        **({"expression": expression} if expression else {}),
        **default,
        **more,
    }


def _id(name: str, expression: str, **more: Any) -> dict[str, Any]:
    return _feature(
        "id_feature", name, expression, **{"default_value": "", "value_dim": 0, **more}
    )


def _raw(name: str, expression: str, **more: Any) -> dict[str, Any]:
    return _feature("raw_feature", name, expression, **more)


USER_FEATURES: list[dict[str, Any]] = [
    _id("user_id", "user:user_id", hash_bucket_size=1000),
    _raw("age", "user:age", normalizer="method=zscore,mean=30,standard_deviation=10"),
    _raw("age_range", "user:age", default_value="30", boundaries=[18, 25, 35, 50]),
    _raw("home", "user:home", value_dim=2),
    # The vocabulary is an asset: the exporter writes its name with an md5 in it.
    _id("city", "user:city", vocab_file="city_vocab.txt", default_bucketize_value=1),
    _id("level", "user:level", num_buckets=10, default_value="0"),
    _id(
        "interests",
        "user:interests",
        weighted=True,
        hash_bucket_size=200,
        separator="|",
    ),
    _id(
        "recent_cities",
        "user:recent_cities",
        feature_type="sequence_id_feature",
        sequence_delim=";",
        sequence_length=6,
        value_dim=1,
        default_value="0",
        hash_bucket_size=50,
    ),
    _raw(
        "recent_amounts",
        "user:recent_amounts",
        feature_type="sequence_raw_feature",
        sequence_delim=";",
        sequence_length=6,
    ),
]

ITEM_FEATURES: list[dict[str, Any]] = [
    _id("item_id", "item:item_id", hash_bucket_size=500),
    _id("category", "item:category", **VOCABULARY),
    _id(
        "brand",
        "item:brand",
        vocab_dict={"0": 0, "1": 2, "2": 3, "3": 4, "4": 5},
        default_bucketize_value=1,
    ),
    _id("tags", "item:tags", hash_bucket_size=100),
    _raw("price", "item:price", normalizer="method=log10,threshold=0.01,default=-2"),
    _raw("vector", "item:vector", value_dim=4),
    _feature(
        "combine_feature",
        "rating",
        "item:ratings",
        combiner="mean",
        boundaries=[1, 2, 3, 4],
    ),
    _feature(
        "bool_mask_feature",
        "shown_tags",
        ["item:tags", "item:tag_mask"],
        default_value="",
        hash_bucket_size=100,
    ),
]

# One side is the user, the other the item or the context: item-side when tiled.
CROSS_FEATURES: list[dict[str, Any]] = [
    _feature(
        "combo_feature",
        "city_x_category",
        ["user:city", "item:category"],
        default_value="",
        hash_bucket_size=500,
    ),
    _feature(
        "lookup_feature",
        "taste",
        None,
        map="user:tastes",
        key="item:category",
        combiner="sum",
    ),
    _feature(
        "lookup_feature",
        "taste_id",
        None,
        map="user:tastes",
        key="item:tags",
        value_type="string",
        needDiscrete=True,
        needKey=True,
        combiner="",
        hash_bucket_size=100,
    ),
    _feature(
        "match_feature",
        "bought",
        None,
        user="user:bought",
        category="item:category",
        item="item:brand",
        matchType="hit",
        needDiscrete=False,
    ),
    _feature(
        "overlap_feature",
        "title_match",
        None,
        query="user:query",
        title="item:title",
        method="query_common_ratio",
        separator=" ",
    ),
    _feature(
        "kv_dot_product",
        "affinity",
        None,
        query="user:liked_words",
        document="item:keywords",
        separator="|",
        kv_delimiter=":",
    ),
    _feature(
        "expr_feature",
        "relative_price",
        "price / (budget + 1)",
        variables=["item:price", "user:budget"],
        value_dim=1,
    ),
    _id("position", "context:position", num_buckets=10, default_value="0"),
    _raw("hour", "context:hour", boundaries=[6, 12, 18]),
]

# Item-side children are joined by the ids of `sequence_pk`; `dwell` the request has.
CLICKS: dict[str, Any] = {
    "sequence_name": "clicks",
    "sequence_length": 20,
    "sequence_delim": ";",
    "sequence_pk": "user:clicks",
    "features": [
        _id(
            "item_id",
            "item:item_id",
            value_dim=1,
            hash_bucket_size=500,
            default_value="0",
        ),
        _id("category", "item:category", **IN_SEQUENCE, value_dim=1, default_value="0"),
        _id("tags", "item:tags", hash_bucket_size=100, default_value="0"),
        _raw("price", "item:price"),
        _raw("vector", "item:vector", value_dim=4),
        _raw("dwell", "user:dwell", boundaries=[1, 10, 60], default_value="5"),
    ],
}

RANKING = {"features": [*USER_FEATURES, *ITEM_FEATURES, *CROSS_FEATURES, CLICKS]}
USER_TOWER = {"features": [*USER_FEATURES, CLICKS]}
ITEM_TOWER = {"features": ITEM_FEATURES}
# What each kind of model without sequences reads.
SHALLOW = {"features": [*USER_FEATURES[:7], *ITEM_FEATURES, *CROSS_FEATURES]}

CITY_VOCABULARY = "".join(f"{word}\n" for word in ["", "<OOV>", *CITIES])

Raw = tuple[str, Any]
ITEM_TYPES = {
    "item_id": "string",
    "category": "string",
    "brand": "int64",
    "tags": "list<string>",
    "tag_mask": "list<string>",
    "price": "double",
    "vector": "list<float>",
    "ratings": "list<int64>",
    "title": "string",
    "keywords": "string",
}


def item(index: int) -> dict[str, Any]:
    """One row of the item table; some of its cells are null or empty."""
    rng = random.Random(index)
    if index >= ITEMS:
        return dict.fromkeys(ITEM_TYPES)
    tags = rng.sample(TAGS, rng.choice([0, 1, 2, 4]))
    vector = np.round(np.array([rng.uniform(-1, 1) for _ in range(4)]), 3)
    words = rng.sample(WORDS, 3)
    return {
        "item_id": f"item_{index:04d}",
        "category": None if index % 17 == 0 else CATEGORIES[index % len(CATEGORIES)],
        "brand": None if index % 13 == 0 else index % 6,
        "tags": None if index % 11 == 0 else tags,
        "tag_mask": [rng.choice(["true", "false"]) for _ in tags],
        "price": None if index % 19 == 0 else index / 7,
        "vector": None if index % 23 == 0 else vector.astype(np.float32).tolist(),
        "ratings": [rng.randrange(6) for _ in range(rng.choice([0, 1, 3]))],
        "title": None if index % 29 == 0 else " ".join(words),
        "keywords": "|".join(f"{word}:{rng.randrange(9) / 4}" for word in words),
    }


def user(number: int) -> dict[str, Raw]:
    """Request fields of one user; number 0 has none at all."""
    rng = random.Random(1000 + number)
    clicks = [f"item_{rng.randrange(ITEMS + 10):04d}" for _ in range(3 * number)]
    fields: dict[str, Raw] = {
        "user_id": ("string", f"u{number:03d}"),
        "age": ("int32", 20 + 7 * number),
        "home": ("list<double>", [rng.uniform(-90, 90), rng.uniform(-90, 90)]),
        "city": ("string", CITIES[number % len(CITIES)]),
        "level": ("int64", number),
        "interests": ("string", "|".join(f"{w}:{rng.random():.3f}" for w in WORDS[:4])),
        "recent_cities": ("string", ";".join(rng.choices(CITIES, k=number + 3))),
        "recent_amounts": ("list<float>", [0.25 * i for i in range(number)]),
        "tastes": ("map<string, float>", [(c, 0.5) for c in [*CATEGORIES, *TAGS]]),
        "bought": ("string", "books^1:0.5,2:0.25|games^3:0.75|garden^1:2"),
        "query": ("string", "red summer phone"),
        "liked_words": ("string", "red:0.5|shoes:1.5|裙子:2"),
        "budget": ("double", 12.5 * number),
        "clicks": ("list<string>", clicks),
        "clicks__dwell": ("list<double>", [i * 7.5 for i in range(len(clicks))]),
    }
    return fields if number else {}


def context(rows: int) -> dict[str, tuple[str, list[Any]]]:
    return {
        "position": ("int32", [i % 10 for i in range(rows)]),
        "hour": ("double", [None if i % 7 == 3 else i % 24 for i in range(rows)]),
    }


def index_of(item_id: str) -> int:
    """The item's number; ids of no item give one that is out of the table."""
    tail = item_id.removeprefix("item_")
    return int(tail) if tail.isdigit() else ITEMS


def columns_of(
    fields: Mapping[str, Raw], items: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, list[Any]]]:
    """Raw columns of one request: the join, by hand."""
    columns = {name: (kind, [value]) for name, (kind, value) in fields.items()}
    clicked = [item(index_of(i)) for i in fields.get("clicks", ("", []))[1]]
    ids = fields.get("clicks", ("", []))[1]
    for name, kind in ITEM_TYPES.items():
        columns[name] = (kind, [row[name] for row in items])
        if not fields:
            continue
        cells = ids if name == "item_id" else [row[name] for row in clicked]
        columns[f"clicks__{name}"] = (f"list<{kind}>", [cells])
    columns.update(context(len(items)))
    return columns


def is_user_side(feature: Mapping[str, Any]) -> bool:
    """Whether a tiled export is given one row of it."""
    return feature in USER_FEATURES or feature is CLICKS


def model_tensors(
    fg_json: Mapping[str, Any],
    columns: Mapping[str, tuple[str, list[Any]]],
    rows: int,
    *,
    tile: bool = False,
) -> dict[str, np.ndarray]:
    """What the model is to be given, by the oracle alone."""
    user_side = [f for f in fg_json["features"] if is_user_side(f)]
    item_side = [f for f in fg_json["features"] if not is_user_side(f)]
    tensors = _transform(item_side, columns, rows)
    tensors.update(_transform(user_side, columns, 1 if tile else rows))
    if tile:
        tensors["batch_size"] = np.array(rows, dtype=np.int64)
    return tensors


def _transform(
    features: Iterable[Mapping[str, Any]], columns: Mapping[str, Any], rows: int
) -> dict[str, np.ndarray]:
    made: dict[str, list[Any]] = {}
    plain = [copy.deepcopy(dict(f)) for f in features]
    for feature in plain:
        if feature.pop("vocab_file", None):
            words = CITY_VOCABULARY.splitlines()
            feature["vocab_dict"] = {word: i for i, word in enumerate(words)}
    for feature in plain:
        if feature.get("feature_type") == "expr_feature":
            made.update(ExprOracle(feature).transform(columns))
    rest = [f for f in plain if f.get("feature_type") != "expr_feature"]
    if rest:
        # The column makes the oracle repeat what has one row.
        padded = {**columns, "rows": ("int32", list(range(rows)))}
        counter = _raw("rows", "user:rows")
        made.update(Oracle({"features": [*rest, counter]}).transform(padded))
        del made["rows.values"]
    return {name: _typed(name, values, made) for name, values in made.items()}


def _typed(name: str, values: list[Any], made: Mapping[str, Any]) -> np.ndarray:
    part = name.rpartition(".")[2]
    if part == "weights":
        return np.array(values, dtype=np.float32)
    if part != "values":
        return np.array(values, dtype=np.int32)
    if values and isinstance(values[0], list):
        return np.array(values, dtype=np.float32)
    return np.array(values, dtype=np.int64)
