"""One Feature Generator call over several threads, and files: wall time and rows/s.

Run from the repository root: ``python loadtest/micro/fg_threads.py [--json FILE]``.
Wall time needs cores that are free: compare ratios of one run.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fg import columns_of, mix, mix_columns

from procserver.fg import FeatureGenerator, parts
from procserver.offline.progress import Progress
from procserver.offline.transform import prepare, transform

SIZES = (50, 100, 300, 1000, 10_000, 100_000)


def best(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Microseconds of a call: the least median of three, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(3):
        for name, function in functions.items():
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
            found[name].append(statistics.median(times) * 1e6)
    return {name: min(times) for name, times in found.items()}


def table(rows: int) -> dict[str, pa.Array]:
    user, item = mix_columns(rows)
    columns = {
        name: pa.array(cells, pa.float32() if name[0] == "r" else None)
        for name, cells in item.items()
    }
    return columns | {name: pa.array(cells * rows) for name, cells in user.items()}


def calls(threads: int) -> list[dict[str, Any]]:
    """Calls of 50 features over ``SIZES`` rows, on one and on ``threads`` threads."""
    parts.VALUES_PER_THREAD = 0
    fg = {"features": mix()}
    one = FeatureGenerator(fg, farm_hash=True)
    many = FeatureGenerator(fg, farm_hash=True, threads=threads)
    users, items = mix_columns(max(SIZES))
    user, whole = columns_of(users), columns_of(items)
    results = []
    for rows in SIZES:
        item = {name: column.slice(0, rows) for name, column in whole.items()}
        times = best(
            {
                "one": lambda i=item, n=rows: one.generate(user, i, {}, n, tile=False),
                "many": lambda i=item, n=rows: many.generate(
                    user, i, {}, n, tile=False
                ),
            },
            max(3, min(300, 100_000 // rows)),
        )
        results.append({"rows": rows, "threads": threads, **times})
        print(
            f"{rows:>7} rows: 1 thread {times['one']:>9,.0f} us, {threads} threads "
            f"{times['many']:>9,.0f} us, {times['one'] / times['many']:.2f} x"
        )
    return results


def files(rows: int) -> list[dict[str, Any]]:
    """The transform command's work over a file of ``rows`` rows."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(pa.table(table(rows)), folder / "in.parquet")
        generator = FeatureGenerator(
            {"features": mix()}, farm_hash=True, for_parser=True
        )
        job = prepare([folder / "in.parquet"], generator)
        for threads in (1, 2):
            start = time.perf_counter()
            progress = Progress(rows, io.StringIO())
            transform(job, folder / "out.parquet", threads=threads, progress=progress)
            rate = rows / (time.perf_counter() - start)
            results.append({"file_rows": rows, "threads": threads, "rate": rate})
            print(f"files, {threads} generating threads: {rate:,.0f} rows/s")
    return results


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", metavar="FILE")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    results = calls(options.threads) + files(300_000)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
