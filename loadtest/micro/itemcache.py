"""Micro benchmark of the item cache: medians of interleaved rounds, and ratios.

    python loadtest/micro/itemcache.py [--items 1000000] [--json FILE]

Lookup of 300 random ids against a Python dict, gather of 20 int64 columns against
numpy fancy indexing, both also with a delta of a tenth of the items (at most 100,000),
index memory, a build from Parquet with 30 columns against pyarrow merely reading the
file, and 10,000 row updates a second beside a reader of 30 columns.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cython_ext.column import Column, Kind
from procserver.itemcache import layout, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import DeltaWriter
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import TableConfig, Upsert, open_source
from procserver.itemcache.writer import GenerationWriter

BATCH = 300
BATCHES = 200
ROUNDS = 7
WIDE = 20
# Rows of a delta, updates a second, rows of a batch, seconds with and without them.
CHANGED = 100_000
UPDATES = 10_000
UPDATE_BATCH = 500
WINDOW = 1.0
WINDOWS = 8


@dataclass(frozen=True)
class Source:
    """The item source of a service configuration."""

    url: str
    remote_type: str = "parquet"
    tables: tuple[TableConfig, ...] = ()


def medians(
    prepare: Callable[[], None], contenders: dict[str, Callable[[], object]]
) -> dict[str, float]:
    """Median CPU seconds of each, rounds interleaved, ``prepare`` not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            prepare()
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def build(
    control: ControlSegment, ids: pa.Array, columns: dict[str, np.ndarray]
) -> Generation:
    schema = {name: Kind.INT64 for name in columns}
    table = pa.table({"id": ids, **columns})
    with GenerationWriter(control, "id", schema) as writer:
        for batch in table.to_batches(max_chunksize=65536):
            writer.append(batch)
        writer.publish()
    return CacheReader(control.name).current()


def time_reads(control: ControlSegment, items: int, text: bool) -> dict[str, float]:
    rng = np.random.default_rng(1)
    numbers = rng.permutation(items * 8)[:items] + 10_000_000
    ids = pa.array([f"{n:07x}k" for n in numbers] if text else numbers)
    columns = {f"c{i}": rng.integers(0, 1 << 40, items) for i in range(WIDE)}
    generation = build(control, ids, columns)
    plain = {id_: row for row, id_ in enumerate(ids.to_pylist())}
    picks = rng.integers(0, items, (BATCHES, BATCH))
    asked = [ids.take(pa.array(pick)) for pick in picks]
    as_columns = [Column.from_arrow(batch) for batch in asked]
    as_lists: list[list[object]] = []
    arrays = list(columns.values())
    names = list(columns)
    found = [generation.lookup(batch) for batch in as_columns]
    assert all((rows == pick).all() for rows, pick in zip(found, picks, strict=True))

    def fresh_ids() -> None:
        # As ids arrive in a request: str objects that were never hashed before.
        as_lists[:] = [batch.to_pylist() for batch in asked]

    def by_cache() -> None:
        for batch in as_columns:
            generation.lookup(batch)

    def by_dict() -> None:
        for batch in as_lists:
            [plain.get(id_, -1) for id_ in batch]

    def by_gather() -> None:
        for rows in found:
            generation.gather(rows, names)

    def by_numpy() -> None:
        for rows in found:
            [array[rows] for array in arrays]

    with DeltaWriter(control, generation) as writer:
        some = rng.choice(items, min(CHANGED, items // 10), replace=False)
        changes = pa.RecordBatch.from_pydict(
            {"id": ids.take(pa.array(some)), "c0": rng.integers(0, 1 << 40, len(some))}
        )
        writer.apply([Upsert(changes)])
    changed = CacheReader(control.name).current()
    assert changed.count == len(some)
    rows_now = [changed.lookup(batch) for batch in as_columns]

    def by_delta() -> None:
        for batch in as_columns:
            changed.lookup(batch)

    def by_delta_gather() -> None:
        for rows in rows_now:
            changed.gather(rows, names)

    contenders = {"lookup": by_cache, "dict": by_dict, "gather": by_gather}
    contenders |= {"numpy": by_numpy, "delta": by_delta, "changed": by_delta_gather}
    spent = medians(fresh_ids, contenders)
    lookups = BATCH * BATCHES / 1e9
    texts = int(pa.compute.sum(pa.compute.binary_length(ids)).as_py()) if text else 0
    return {
        "lookup_ns": spent["lookup"] / lookups,
        "dict_ns": spent["dict"] / lookups,
        "lookup_ratio": spent["dict"] / spent["lookup"],
        "gather_ns": spent["gather"] / lookups / WIDE,
        "numpy_ns": spent["numpy"] / lookups / WIDE,
        "gather_ratio": spent["numpy"] / spent["gather"],
        "delta_lookup_ratio": spent["dict"] / spent["delta"],
        "delta_gather_ratio": spent["numpy"] / spent["changed"],
        "index_bytes_per_item": (layout.index_bytes(items) + texts) / items,
    }


def write_items(path: Path, items: int) -> None:
    """30 columns: 12 int64, 8 float, 6 strings, 4 lists."""
    rng = np.random.default_rng(2)
    words = np.array([f"word{i}" for i in range(5000)])
    columns: dict[str, object] = {"item_id": [f"item{i}" for i in range(items)]}
    for i in range(11):
        columns[f"n{i}"] = rng.integers(0, 1 << 30, items)
    for i in range(8):
        columns[f"f{i}"] = rng.random(items).astype(np.float32)
    for i in range(6):
        columns[f"s{i}"] = words[rng.integers(0, len(words), items)]
    for i in range(4):
        values = rng.integers(0, 1000, items * 3)
        columns[f"l{i}"] = pa.ListArray.from_arrays(
            pa.array(range(0, items * 3 + 1, 3), pa.int32()), pa.array(values)
        )
    pq.write_table(pa.table(columns), path, row_group_size=100_000)


def read_for_ever(name: str, items: int, counters: list[object]) -> None:
    """A reader: gathers whole items; counts reads and the CPU seconds they took."""
    rng = np.random.default_rng(3)
    reader = CacheReader(name)
    names = list(reader.current().schema)
    asked = [
        Column.from_texts([f"item{i}" for i in pick])
        for pick in rng.integers(0, items, (50, BATCH))
    ]
    reads, seconds = counters
    while True:
        for batch in asked:
            view = reader.current()
            view.gather(view.lookup(batch), names)
            reads.value += BATCH  # type: ignore[attr-defined]
        seconds.value = time.process_time()  # type: ignore[attr-defined]


def changes_of(items: int, rng: np.random.Generator) -> Upsert:
    """As many rows as a batch has, a third of their columns."""
    count = UPDATE_BATCH
    ids = [f"item{i}" for i in rng.integers(0, items, count)]
    columns: dict[str, object] = {"item_id": ids, "s0": ["new"] * count}
    for i in range(5):
        columns[f"n{i}"] = rng.integers(0, 1 << 30, count)
        columns[f"f{i}"] = rng.random(count).astype(np.float32)
    times = np.full(count, time.time_ns(), np.int64)
    return Upsert(pa.RecordBatch.from_pydict(columns), times)


def time_updates(control: ControlSegment, items: int) -> dict[str, float]:
    """Reads per CPU second of a reader beside updates, to those without any."""
    rng = np.random.default_rng(4)
    steps = [changes_of(items, rng) for _ in range(UPDATES // UPDATE_BATCH)]
    fork = multiprocessing.get_context("spawn")
    counters = [fork.Value("d", 0.0, lock=False) for _ in range(2)]
    child = fork.Process(target=read_for_ever, args=(control.name, items, counters))
    child.start()
    rates: dict[bool, list[float]] = {True: [], False: []}
    spent = 0.0
    try:
        while not counters[1].value:
            time.sleep(0.1)
        with DeltaWriter(control, CacheReader(control.name).current()) as writer:
            for window in range(2 * WINDOWS):
                busy = window % 2 == 1
                before = [counter.value for counter in counters]
                began = time.monotonic()
                for number, step in enumerate(steps):
                    if busy:
                        started = time.process_time()
                        writer.apply([step])
                        spent += time.process_time() - started
                    due = began + (number + 1) * WINDOW / len(steps)
                    time.sleep(max(0.0, due - time.monotonic()))
                reads, seconds = (
                    counter.value - known
                    for counter, known in zip(counters, before, strict=True)
                )
                rates[busy].append(reads / seconds)
    finally:
        child.kill()
        child.join()
    quiet, disturbed = statistics.median(rates[False]), statistics.median(rates[True])
    rows = WINDOWS * len(steps) * UPDATE_BATCH
    return {
        "reader_rows_per_cpu_s": quiet,
        "reader_share_beside_updates": disturbed / quiet,
        "writer_us_per_row": spent / rows * 1e6,
    }


def time_build(control: ControlSegment, items: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.parquet"
        write_items(path, items)
        source = open_source(Source(str(path)))
        reading, building = [], []
        for _ in range(3):
            began = time.monotonic()
            rows = sum(b.num_rows for b in ds.dataset(path).to_batches())
            reading.append(time.monotonic() - began)
            assert rows == items
            building.append(refresh.build(source, control).seconds)
    read, built = statistics.median(reading), statistics.median(building)
    return {
        "build_rows_per_s": items / built,
        "read_rows_per_s": items / read,
        "build_ratio": read / built,
        "bytes_per_item": CacheReader(control.name).current().nbytes / items,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    items = arguments.items
    control = ControlSegment.create(f"micro-{os.getpid()}")
    try:
        results = {
            "int": time_reads(control, items, text=False),
            "text": time_reads(control, items, text=True),
            "build": time_build(control, min(items, 2_000_000)),
            "updates": time_updates(control, min(items, 300_000)),
        }
    finally:
        control.unlink()
    for name, figures in results.items():
        told = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"itemcache {items} items, {name}: {told}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"items": items, **results}, indent=1))


if __name__ == "__main__":
    main()
