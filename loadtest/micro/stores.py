"""Item sources on real servers: PostgreSQL fetch against build, Redis against lookup.

    python loadtest/micro/stores.py [--items 300000] [--json FILE]

Starts PostgreSQL and Redis as the tests do. The build from PostgreSQL is compared with
ADBC merely fetching the same 30 columns, interleaved; lookup and gather of 300 items
in the cache with MGET of their ids over a Unix socket, as strings that are just a
number, so that Redis is not charged for decoding.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "stores"))

import adbc_driver_postgresql.dbapi as adbc
import psycopg
import redis
import servers

from cython_ext.column import Column, Kind
from procserver.config import SourceConfig, TableConfig, Url
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.sources import open_source
from procserver.itemcache.writer import GenerationWriter

ROUNDS = 5
BATCH = 300
BATCHES = 200


def fill(server: servers.Postgres, rows: int) -> None:
    """30 columns: id, 11 bigint, 8 real, 6 text, 4 text arrays."""
    columns = [f"n{i} bigint" for i in range(11)] + [f"f{i} real" for i in range(8)]
    columns += [f"s{i} text" for i in range(6)] + [f"l{i} text[]" for i in range(4)]
    values = ["i::bigint * 7919"] * 11 + ["i / 3.0"] * 8 + ["'word' || i % 5000"] * 6
    values += ["ARRAY['a' || i % 9, 'b', 'c']"] * 4
    server.run(
        f"CREATE TABLE items (item_id text, {', '.join(columns)})",
        f"INSERT INTO items SELECT 'item' || i, {', '.join(values)}"
        f" FROM generate_series(1, {rows}) i",
        "ANALYZE items",
    )


def time_postgres(control: ControlSegment, rows: int) -> dict[str, float]:
    server = servers.start_postgres()
    try:
        fill(server, rows)
        source = open_source(
            SourceConfig(
                remote_type="hologres",
                url=Url(server.url),
                tables=(TableConfig(name="items", key="item_id"),),
            )
        )
        fetching, building = [], []
        for _ in range(ROUNDS):
            fetching.append(_fetch(server.url, rows))
            building.append(refresh.build(source, control).seconds)
        source.close()
        with psycopg.connect(server.url) as connection:
            version = connection.info.server_version
    finally:
        server.remove()
    fetched, built = statistics.median(fetching), statistics.median(building)
    return {
        "rows": rows,
        "server": version,
        "fetch_rows_per_s": rows / fetched,
        "build_rows_per_s": rows / built,
        "ratio": fetched / built,
    }


def _fetch(url: str, rows: int) -> float:
    began = time.monotonic()
    with adbc.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM items")
        got = sum(batch.num_rows for batch in cursor.fetch_record_batch())
    assert got == rows
    return time.monotonic() - began


def time_redis(control: ControlSegment, items: int) -> dict[str, float]:
    ids = pa.array([f"item{i}" for i in range(items)])
    schema = {"item_id": Kind.STRING, "price": Kind.INT64}
    table = pa.table({"item_id": ids, "price": np.arange(items)})
    with GenerationWriter(control, "item_id", schema) as writer:
        for batch in table.to_batches(max_chunksize=65536):
            writer.append(batch)
        writer.publish()
    generation = CacheReader(control.name).current()
    server = servers.start_redis()
    try:
        client = redis.Redis.from_url(server.unix_url, protocol=2)
        for start in range(0, items, 50_000):
            part = range(start, min(start + 50_000, items))
            client.mset({f"item{i}": i for i in part})
        chosen = random.Random(1)
        names = [
            [f"item{chosen.randrange(items)}" for _ in range(BATCH)]
            for _ in range(BATCHES)
        ]
        columns = [Column.from_texts(batch) for batch in names]

        def ask() -> None:
            for batch in names:
                client.mget(batch)

        def look() -> None:
            for column in columns:
                generation.lookup(column)

        def gather() -> None:
            for column in columns:
                generation.gather(generation.lookup(column), ["price"])

        spent = interleaved({"mget": ask, "lookup": look, "gather": gather})
        client.close()
    finally:
        server.remove()
    each = BATCH * BATCHES / 1e9
    return {
        "items": items,
        "mget_ns": spent["mget"] / each,
        "lookup_ns": spent["lookup"] / each,
        "lookup_gather_ns": spent["gather"] / each,
        "lookup_ratio": spent["mget"] / spent["lookup"],
        "gather_ratio": spent["mget"] / spent["gather"],
    }


def interleaved(contenders: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median wall-clock seconds; Redis spends its time in another process."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    control = ControlSegment.create(f"stores-{os.getpid()}")
    try:
        results = {
            "postgres": time_postgres(control, min(arguments.items, 300_000)),
            "redis": time_redis(control, arguments.items),
        }
    finally:
        control.unlink()
    for name, figures in results.items():
        told = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"stores, {name}: {told}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
