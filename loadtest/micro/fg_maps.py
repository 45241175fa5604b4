"""Feature types that read maps and term lists: microseconds per request.

Run from the repository root: ``python loadtest/micro/fg_maps.py [--json FILE]``. One
user, 300 items; a user's map of 200 entries.
"""

import argparse
import json
import random
import time
from typing import Any

import pyarrow as pa

from cython_ext.column import Column
from procserver.fg import FeatureGenerator

ROWS = 300
ENTRIES = 200
SOURCE = random.Random(5)
KEYS = [f"item_{i}" for i in range(2 * ENTRIES)]


def texts(count: int, names: list[str], separator: str = "\x1d") -> pa.Array:
    """A text of ``count`` random names for each item."""
    return pa.array(
        [separator.join(SOURCE.choices(names, k=count)) for _ in range(ROWS)]
    )


def features() -> dict[str, tuple[dict[str, Any], dict[str, pa.Array]]]:
    """Entry and columns of each measurement; columns of one row are the user's."""
    flat = pa.array(["\x1d".join(f"{KEYS[i]}:{i / 4}" for i in range(ENTRIES))])
    nested = pa.array(
        [
            "|".join(
                f"cat_{c}^" + ",".join(f"{KEYS[c * 20 + i]}:{i}" for i in range(20))
                for c in range(ENTRIES // 20)
            )
        ]
    )
    ids = texts(1, KEYS)
    categories = pa.array([f"cat_{int(k.as_py()[5:]) // 20}" for k in ids])
    terms = [f"t{i}" for i in range(40)]
    weights = [f"{term}:0.5" for term in terms]
    lookup = {"feature_type": "lookup_feature", "map": "user:m", "key": "item:k"}
    summed = lookup | {"needDiscrete": False, "combiner": "sum"}
    discrete = lookup | {"needDiscrete": True, "hash_bucket_size": 1_000_003}
    match = {
        "feature_type": "match_feature", "user": "user:m", "category": "item:c",
        "item": "item:k", "needDiscrete": False,
    }  # fmt: skip
    overlap = {
        "feature_type": "overlap_feature", "query": "user:q", "title": "item:t",
        "method": "query_common_ratio",
    }  # fmt: skip
    dot = {
        "feature_type": "kv_dot_product", "query": "user:q", "document": "item:t",
        "separator": "\x1d",
    }  # fmt: skip
    query = pa.array(["\x1d".join(terms[:10])])
    return {
        "lookup_sum": (summed, {"m": flat, "k": ids}),
        "lookup_five_keys": (summed, {"m": flat, "k": texts(5, KEYS)}),
        "lookup_discrete": (discrete, {"m": flat, "k": ids}),
        "match_hit": (match, {"m": nested, "c": categories, "k": ids}),
        "overlap": (overlap, {"q": query, "t": texts(15, terms)}),
        "kv_dot_product": (dot, {"q": pa.array(["\x1d".join(weights[:20])]),
                                 "t": texts(20, weights)}),
    }  # fmt: skip


def microseconds(entry: dict[str, Any], columns: dict[str, pa.Array]) -> float:
    """The least time of one request."""
    generator = FeatureGenerator({"features": [entry | {"feature_name": "f"}]})
    bound = {name: Column.from_arrow(array) for name, array in columns.items()}
    user = {name: column for name, column in bound.items() if len(column) == 1}
    item = {name: column for name, column in bound.items() if len(column) != 1}
    best = float("inf")
    for _ in range(300):
        start = time.perf_counter()
        generator.generate(user, item, {}, ROWS, tile=False)
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    found = {name: microseconds(*parts) for name, parts in features().items()}
    for name, value in found.items():
        print(f"{name:20} {value:8.1f} us for {ROWS} items")
    if arguments.json:
        with open(arguments.json, "w") as out:
            json.dump({"rows": ROWS, "microseconds": found}, out)


if __name__ == "__main__":
    main()
