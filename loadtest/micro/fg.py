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
PARTS = {"id": "t", "integer_id": "n", "combo": "c", "boundaries": "r"}
BOUNDARIES = [float(i) for i in range(32)]


def interleaved(
    functions: dict[str, Callable[[], Any]], rounds: int = 31
) -> dict[str, list[float]]:
    """CPU nanoseconds of one call, per round; rounds take the functions in turn.

    Figures of one round are compared with each other, so that a clock which
    changes its pace does not tilt the ratios.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time_ns()
            calls = 0
            while calls < 3 or time.thread_time_ns() - start < 2_000_000:
                function()
                calls += 1
            times[name].append((time.thread_time_ns() - start) / calls)
    return times


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


def python_items(user: dict[str, list[Any]], item: dict[str, list[Any]]) -> Any:
    """The same mix an item at a time, the way feature code is often written."""
    names = list(item)
    rows = [
        dict(zip(names, cells, strict=True))
        for cells in zip(*item.values(), strict=True)
    ]
    return [
        {
            **{f"t{i}": fingerprint64(row[f"t{i}"]) % SIZE for i in range(20)},
            **{f"n{i}": fingerprint64(str(row[f"n{i}"])) % SIZE for i in range(12)},
            **{
                f"c{i}": fingerprint64(f"{user[f'u{i}'][0]}_{row[f't{i}']}") % SIZE
                for i in range(10)
            },
            **{f"r{i}": bisect_right(BOUNDARIES, row[f"r{i}"]) for i in range(8)},
        }
        for row in rows
    ]


def plan_calls(
    entries: list[dict[str, Any]],
    user: dict[str, list[Any]],
    item: dict[str, list[Any]],
    rows: int,
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The kernels alone, and a whole ``generate`` call with its arrays."""
    generator = FeatureGenerator({"features": entries}, farm_hash=True)
    users, items = columns_of(user), columns_of(item)
    bound: list[Column | None] = [
        (users if slot.side == "user" else items)[slot.name]
        for slot in generator.plan.slots
    ]
    compiled = generator.compiled
    return (
        lambda: compiled.compute(bound, rows),
        lambda: generator.generate(users, items, {}, rows, tile=False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    user, item = mix_columns(ROWS)
    calls: dict[str, Callable[[], Any]] = {}
    counts = {}
    for label, letter in PARTS.items():
        entries = [e for e in mix() if e["feature_name"][0] == letter]
        calls[label], _ = plan_calls(entries, user, item, ROWS)
        counts[label] = len(entries) * ROWS
    texts = [column for name, column in columns_of(item).items() if name[0] == "t"]
    calls["bare_farmhash"] = lambda: [fold_hashes(t, farm=True) for t in texts]
    counts["bare_farmhash"] = len(texts) * ROWS
    calls["mix"], calls["mix_generate"] = plan_calls(mix(), user, item, ROWS)
    calls["one_item"], calls["one_item_generate"] = plan_calls(
        mix(), *mix_columns(1), 1
    )
    calls["python"] = lambda: python_columns(user, item)
    calls["python_items"] = lambda: python_items(user, item)
    counts["mix"] = counts["python"] = counts["python_items"] = 50 * ROWS
    times = interleaved(calls)

    def ratio(above: str, below: str) -> float:
        pairs = zip(times[above], times[below], strict=True)
        return statistics.median(a / b for a, b in pairs)

    figures = {
        f"{name}_ns_per_value": statistics.median(times[name]) / count
        for name, count in counts.items()
    }
    figures |= {
        f"{name}_us": statistics.median(times[name]) / 1e3
        for name in ("mix", "mix_generate", "one_item", "one_item_generate", "python")
    }
    figures |= {
        "python_over_kernels": ratio("python", "mix"),
        "python_over_generate": ratio("python", "mix_generate"),
        "python_items_over_kernels": ratio("python_items", "mix"),
        "id_over_bare_farmhash": ratio("id", "bare_farmhash"),
        "one_item_over_300_items": ratio("one_item", "mix"),
    }
    for name, value in figures.items():
        print(f"{name:28} {value:10.3f}")
    print("baseline hash:", fingerprint64.__name__)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
