"""The demo's ``fg.json`` and the columns that its features read.

The entries have the form in which TorchEasyRec exports them: ids with a hash
bucket size or a vocabulary, numbers with a normalizer or boundaries, crosses, and a
grouped click sequence whose item attributes the server joins by ``sequence_pk``.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from procserver.demo.interactions import HISTORY, SOURCES, Impressions, Requests
from procserver.demo.shop import CITIES, GENDERS, Items, Users, user_id

Feature = dict[str, Any]

SEQUENCE = "click_seq"
# Item columns that a click of the history is described by.
SEQUENCE_ITEM_COLUMNS = ("item_id", "category", "brand", "price")
AGE_BOUNDARIES = [18, 25, 30, 35, 40, 50, 60]
SALES_BOUNDARIES = [1, 3, 10, 30, 100, 300]
HOURS_BOUNDARIES = [0.5, 1, 3, 12, 48, 168]
LOG_PRICE = "method=log10,threshold=0.01,default=-2"
BUCKETS = {
    "user_id": 20_000,
    "city": 1_000,
    "item_id": 100_000,
    "category": 1_000,
    "brand": 5_000,
    "tags": 1_000,
    "recall_source": 100,
    "gender_x_category": 2_000,
    "spend_x_price": 2_000,
    "search_words": 1_000,
}


def id_feature(name: str, expression: str, **bucketizer: Any) -> Feature:
    return {
        "feature_type": "id_feature",
        "feature_name": name,
        "default_value": "",
        "expression": expression,
        "value_type": "string",
        "need_prefix": False,
        "value_dim": 0,
        **(bucketizer or {"hash_bucket_size": BUCKETS[name]}),
    }


def raw_feature(name: str, expression: str, **keys: Any) -> Feature:
    return {
        "feature_type": "raw_feature",
        "feature_name": name,
        "default_value": "0",
        "expression": expression,
        "value_type": "float",
        **keys,
    }


def combo_feature(name: str, *expressions: str) -> Feature:
    return {
        "feature_type": "combo_feature",
        "feature_name": name,
        "default_value": "",
        "expression": list(expressions),
        "value_type": "string",
        "need_prefix": False,
        "value_dim": 0,
        "hash_bucket_size": BUCKETS[name],
    }


def in_sequence(feature: Feature) -> Feature:
    """The same feature with one value per element; an empty default is not legal."""
    return {**feature, "default_value": "0", "value_dim": 1}


def fg_document() -> dict[str, Any]:
    """The content of ``fg.json``."""
    user = [
        id_feature("user_id", "user:user_id"),
        id_feature(
            "gender",
            "user:gender",
            default_value="unknown",
            vocab_list=["unknown", "<OOV>", "female", "male"],
            default_bucketize_value=1,
        ),
        raw_feature("age", "user:age", boundaries=AGE_BOUNDARIES),
        id_feature("city", "user:city"),
        id_feature("spend_level", "user:spend_level", num_buckets=10),
    ]
    item = [
        id_feature("item_id", "item:item_id"),
        id_feature("category", "item:category"),
        id_feature("brand", "item:brand"),
        id_feature("tags", "item:tags"),
        id_feature("price_level", "item:price_level", num_buckets=10),
        raw_feature("sales", "item:sales", boundaries=SALES_BOUNDARIES),
        raw_feature("price", "item:price", normalizer=LOG_PRICE),
        raw_feature("rating", "item:rating", normalizer="method=minmax,min=1,max=5"),
        raw_feature("stats", "item:stats", value_dim=3),
    ]
    context = [
        id_feature("hour", "context:hour", num_buckets=24),
        id_feature("recall_source", "context:recall_source"),
    ]
    crosses = [
        combo_feature("gender_x_category", "user:gender", "item:category"),
        combo_feature("spend_x_price", "user:spend_level", "item:price_level"),
    ]
    clicks = {
        "sequence_name": SEQUENCE,
        "sequence_length": HISTORY,
        "sequence_delim": ";",
        "sequence_pk": f"user:{SEQUENCE}",
        "features": [
            in_sequence(id_feature("item_id", "item:item_id")),
            in_sequence(id_feature("category", "item:category")),
            in_sequence(id_feature("brand", "item:brand")),
            in_sequence(raw_feature("price", "item:price", normalizer=LOG_PRICE)),
            in_sequence(
                raw_feature("hours_ago", "user:hours_ago", boundaries=HOURS_BOUNDARIES)
            ),
        ],
    }
    words = in_sequence(id_feature("search_words", "user:search_words"))
    words |= {
        "feature_type": "sequence_id_feature",
        "sequence_delim": ";",
        "sequence_length": 8,
    }
    return {"features": [*user, *item, *context, *crosses, clicks, words]}


def training_columns(
    items: Items, users: Users, requests: Requests, shown: Impressions
) -> dict[str, pa.Array]:
    """The input columns of FG, one row per impression.

    This is the join that the server makes at request time: user columns repeated
    per item, item columns by item id, and the attributes of the click history.
    """
    item_rows = pa.array(shown.item)
    columns = {
        name: column.take(item_rows).combine_chunks()
        for name, column in zip(
            items.table.column_names, items.table.columns, strict=True
        )
        if name != "title"
    }
    of_request = pa.array(shown.request)
    for name, column in request_columns(items, users, requests).items():
        columns[name] = column.take(of_request)
    columns["recall_source"] = pa.array([SOURCES[s] for s in shown.source])
    return columns


def request_columns(
    items: Items, users: Users, requests: Requests
) -> dict[str, pa.Array]:
    """The user and context columns of FG, one row per request."""
    user = requests.user
    columns = {
        "user_id": pa.array([user_id(u) for u in user]),
        "gender": pa.array([GENDERS[g] for g in users.gender[user]]),
        "age": pa.array(users.age[user], pa.int32()),
        "city": pa.array([city_name(c) for c in users.city[user]]),
        "spend_level": pa.array(users.spend_level[user], pa.int32()),
        "search_words": pa.array(requests.words),
        "hour": pa.array(requests.hour, pa.int32()),
    }
    held = np.arange(HISTORY) < requests.history_length[:, None]
    ends = np.cumsum(requests.history_length)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    clicked = pa.array(requests.history[held])
    for name in SEQUENCE_ITEM_COLUMNS:
        values = items.table[name].take(clicked).combine_chunks()
        columns[f"{SEQUENCE}__{name}"] = pa.ListArray.from_arrays(offsets, values)
    hours = pa.array(requests.hours_ago[held].astype(np.float32))
    columns[f"{SEQUENCE}__hours_ago"] = pa.ListArray.from_arrays(offsets, hours)
    return columns


def city_name(number: int) -> str:
    if not 0 <= number < CITIES:
        raise ValueError(f"there is no city {number}")
    return f"city_{number:02d}"
