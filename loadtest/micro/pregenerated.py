"""Item features generated ahead against generated at once: nanoseconds per value.

    python loadtest/micro/pregenerated.py [--items 200000] [--json FILE]

30 item-only features (text ids, integer ids, bucketized and dense numbers, lists of
ids, a vector) of 300 random items in a table. Taking a value from the companion
segment is its gather and the making of the tensor; generating it is the gather of
the raw column and the Feature Generator's run. Rounds are interleaved.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cython_ext.column import Kind, kind_of_arrow
from procserver.fg import FeatureGenerator
from procserver.fg.pregenerated import Pregenerated, Pregenerator
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import Changes, Description

BATCH = 300
BATCHES = 100
ROUNDS = 11
SIZE = 1_000_003
# Features of each sort; the last two are not single-valued.
SORTS = {"text": 12, "integer": 8, "boundaries": 4, "dense": 3, "list": 2, "vector": 1}
WIDTH = 16


class Table:
    """An item source in memory."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def describe(self) -> Description:
        kinds: dict[str, Kind] = {
            field.name: kind_of_arrow(field.type) for field in self.table.schema
        }
        return Description("id", kinds, self.table.num_rows)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        return None, iter(self.table.to_batches(max_chunksize=65536))

    def changes(self, cursor: object) -> Changes | None:
        return None

    def close(self) -> None:
        pass


def column(sort: str, items: int, rng: np.random.Generator) -> pa.Array:
    if sort == "text":
        words = pa.array([f"value_{n}" for n in range(50_000)])
        return words.take(pa.array(rng.integers(0, len(words), items)))
    if sort == "integer":
        return pa.array(rng.integers(0, 10**9, items))
    if sort in ("boundaries", "dense"):
        return pa.array((rng.random(items) * 40).astype(np.float32))
    if sort == "vector":
        flat = pa.array(rng.random(items * WIDTH).astype(np.float32))
        return pa.FixedSizeListArray.from_arrays(flat, WIDTH).cast(
            pa.list_(pa.float32())
        )
    counts = rng.integers(0, 6, items)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    flat = pa.array(rng.integers(0, 10**6, offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def entry(sort: str, name: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "feature_type": "id_feature",
        "feature_name": name,
        "expression": f"item:{name}",
    }
    if sort in ("boundaries", "dense", "vector"):
        made["feature_type"] = "raw_feature"
    if sort == "boundaries":
        made["boundaries"] = [float(i) for i in range(32)]
    elif sort == "vector":
        made["value_dim"] = WIDTH
    elif sort != "dense":
        made["hash_bucket_size"] = SIZE
    return made


def interleaved(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """CPU seconds of each call, per round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    return times


def contenders(
    generation: Generation, generator: FeatureGenerator, names: list[str]
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Generating at once, taking what is ready, and a plan run without features."""
    rng = np.random.default_rng(3)
    picks = [rng.integers(0, generation.row_count, BATCH) for _ in range(BATCHES)]
    companion = generation.companion
    assert companion is not None
    nowhere = np.array([-1], dtype=np.int64)
    ready = Pregenerated(
        generator,
        companion.schema,
        generation.schema,
        lambda inputs: generation.gather(nowhere, inputs),
    )
    assert set(names) == set(ready.features)
    served = ready.served(())

    def generate(rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        item = generation.gather(rows, names)
        return generator.generate({}, item, {}, len(rows), tile=True)

    def take(rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        return served.tensors(rows, companion.gather(rows, served.columns))

    def rest(rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        return generator.generate({}, {}, {}, len(rows), tile=True, part=served.part)

    for rows in picks[:3]:
        wanted, found = generate(rows), take(rows) | rest(rows)
        assert wanted.keys() == found.keys()
        assert all(found[n].tobytes() == wanted[n].tobytes() for n in wanted)

    def over_all(call: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[], None]:
        def run() -> None:
            # As requests do: what one has made is gone before the next.
            for rows in picks:
                call(rows)

        return run

    return over_all(generate), over_all(take), over_all(rest)


def measure(counts: dict[str, int], items: int) -> dict[str, float]:
    """The figures of a table and features with so many of each sort."""
    rng = np.random.default_rng(1)
    sorts = [(sort, f"{sort}{i}") for sort, n in counts.items() for i in range(n)]
    columns = {name: column(sort, items, rng) for sort, name in sorts}
    source = Table(pa.table({"id": pa.array(range(items)), **columns}))
    generator = FeatureGenerator(
        {"features": [entry(sort, name) for sort, name in sorts]}, farm_hash=True
    )
    control = ControlSegment.create(f"micro-{os.getpid()}")
    try:
        report = refresh.build(source, control, companion=Pregenerator(generator))
        assert not report.companion_problem, report.companion_problem
        reader = CacheReader(control.name, digest=generator.digest)
        generate, take, rest = contenders(
            reader.current(), generator, [name for _, name in sorts]
        )
        times = interleaved({"generate": generate, "take": take, "rest": rest})
    finally:
        control.unlink()
    values = BATCH * BATCHES * len(sorts) / 1e9
    ratios = zip(times["take"], times["generate"], strict=True)
    return {
        "generated_ns_per_value": statistics.median(times["generate"]) / values,
        "pregenerated_ns_per_value": statistics.median(times["take"]) / values,
        "pregenerated_over_generated": statistics.median(a / b for a, b in ratios),
        "empty_plan_run_us": 1e6 * statistics.median(times["rest"]) / BATCHES,
        "raw_bytes_per_item": report.bytes / items,
        "companion_bytes_per_item": report.companion_bytes / items,
        "companion_seconds": report.companion_seconds,
        "build_seconds": report.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    total = sum(SORTS.values())
    tables = {"mix": SORTS} | {sort: {sort: total} for sort in SORTS}
    # Wide rows: fewer of them tell the same.
    tables |= {sort: {sort: 5} for sort in ("list", "vector")}
    figures = {
        name: measure(counts, arguments.items) for name, counts in tables.items()
    }
    for name, found in figures.items():
        print(f"{name}, {sum(tables[name].values())} features:")
        for key, value in found.items():
            print(f"  {key:30} {value:10.3f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
