"""Feature Generator kernels: nanoseconds per value, and against plain Python.

Run from the repository root: ``python loadtest/micro/fg.py [--json FILE]``. The
column-wise Python baseline hashes with pyfarmhash if that is installed, else with
``hash()`` as a stand-in that costs no more than a C hash behind a Python call.
"""

import argparse
import json
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from cython_ext.column import Column
from cython_ext.fg_hash import fold_hashes
from procserver.fg import FeatureGenerator

try:
    from farmhash import fingerprint64
except ImportError:
    fingerprint64 = hash

ROWS = 300
SIZE = 1_000_003
BOUNDARIES = [float(i) for i in range(32)]


def median_ns(function: Callable[[], Any], rounds: int = 31, inner: int = 20) -> float:
    """Median over rounds of the CPU time of one call, in nanoseconds."""
    times = []
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(inner):
            function()
        times.append((time.thread_time_ns() - start) / inner)
    return statistics.median(times)


def feature(kind: str, name: str, expression: Any, **more: Any) -> dict[str, Any]:
    return {
        "feature_type": f"{kind}_feature",
        "feature_name": name,
        "expression": expression,
        **more,
    }


def mix() -> list[dict[str, Any]]:
    """50 features: 20 text ids, 12 integer ids, 10 crosses, 8 bucketized numbers."""
    entries = [
        feature("id", f"t{i}", f"item:t{i}", hash_bucket_size=SIZE) for i in range(20)
    ]
    entries += [
        feature("id", f"n{i}", f"item:n{i}", hash_bucket_size=SIZE) for i in range(12)
    ]
    entries += [
        feature("combo", f"c{i}", [f"user:u{i}", f"item:t{i}"], hash_bucket_size=SIZE)
        for i in range(10)
    ]
    entries += [
        feature("raw", f"r{i}", f"item:r{i}", boundaries=BOUNDARIES) for i in range(8)
    ]
    return entries


def mix_columns(rows: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    source = random.Random(1)
    item: dict[str, list[Any]] = {}
    for i in range(20):
        item[f"t{i}"] = [f"value_{source.randrange(10**6)}" for _ in range(rows)]
    for i in range(12):
        item[f"n{i}"] = [source.randrange(10**9) for _ in range(rows)]
    for i in range(8):
        item[f"r{i}"] = [source.random() * 40 for _ in range(rows)]
    user: dict[str, list[Any]] = {f"u{i}": [f"segment_{i}"] for i in range(10)}
    return user, item


def columns_of(values: dict[str, list[Any]]) -> dict[str, Column]:
    def array(name: str, cells: list[Any]) -> pa.Array:
        return pa.array(cells, pa.float32() if name[0] == "r" else None)

    return {name: Column.from_arrow(array(name, v)) for name, v in values.items()}


def python_columns(user: dict[str, list[Any]], item: dict[str, list[Any]]) -> Any:
    """The mix, a column at a time, in plain Python."""
    out = {}
    for i in range(20):
        out[f"t{i}"] = [fingerprint64(v) % SIZE for v in item[f"t{i}"]]
    for i in range(12):
        out[f"n{i}"] = [fingerprint64(str(v)) % SIZE for v in item[f"n{i}"]]
    for i in range(10):
        head = user[f"u{i}"][0] + "_"
        out[f"c{i}"] = [fingerprint64(head + v) % SIZE for v in item[f"t{i}"]]
    for i in range(8):
        out[f"r{i}"] = [bisect_right(BOUNDARIES, v) for v in item[f"r{i}"]]
    return out


def time_plan(
    entries: list[dict[str, Any]],
    user: dict[str, list[Any]],
    item: dict[str, list[Any]],
    rows: int,
) -> tuple[float, float]:
    """Nanoseconds of the kernels alone, and of a whole ``generate`` call."""
    generator = FeatureGenerator({"features": entries}, farm_hash=True)
    users, items = columns_of(user), columns_of(item)
    bound = [
        (users if slot.side == "user" else items)[slot.name]
        for slot in generator.plan.slots
    ]
    compiled = generator._compiled
    alone = median_ns(lambda: compiled.compute(bound, rows))
    whole = median_ns(lambda: generator.generate(users, items, {}, rows, tile=False))
    return alone, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    user, item = mix_columns(ROWS)
    parts = {"id": "t", "integer": "n", "combo": "c", "boundaries": "r"}
    for label, letter in parts.items():
        entries = [e for e in mix() if e["feature_name"][0] == letter]
        alone, _ = time_plan(entries, user, item, ROWS)
        figures[f"{label}_ns_per_value"] = alone / (len(entries) * ROWS)
    texts = [column for name, column in columns_of(item).items() if name[0] == "t"]
    bare = median_ns(lambda: [fold_hashes(text, farm=True) for text in texts])
    figures["bare_farmhash_ns"] = bare / (len(texts) * ROWS)
    figures["id_over_bare_farmhash"] = (
        figures["id_ns_per_value"] / figures["bare_farmhash_ns"]
    )
    alone, whole = time_plan(mix(), user, item, ROWS)
    python = median_ns(lambda: python_columns(user, item), rounds=11, inner=2)
    one_user, one_item = mix_columns(1)
    fixed, fixed_whole = time_plan(mix(), one_user, one_item, 1)
    figures |= {
        "mix_kernels_us": alone / 1e3,
        "mix_ns_per_value": alone / (50 * ROWS),
        "mix_generate_us": whole / 1e3,
        "python_us": python / 1e3,
        "python_over_kernels": python / alone,
        "python_over_generate": python / whole,
        "one_item_kernels_us": fixed / 1e3,
        "one_item_generate_us": fixed_whole / 1e3,
        "one_item_over_300_kernels": fixed / alone,
    }
    for name, value in figures.items():
        print(f"{name:28} {value:10.3f}")
    print("baseline hash:", fingerprint64.__name__)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
