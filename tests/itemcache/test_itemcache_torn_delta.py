"""Other processes read while deltas are published: no row of two states, ever.

Each publication gives some items its own number in every column. A reader sees one
number in all columns of a row, and for each item never an older one than before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from cython_ext.column import Kind
from procserver import shm
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.writer import GenerationWriter

ROWS = 600
READS = 250_000
SCHEMA = {
    "id": Kind.STRING,
    "a": Kind.INT64,
    "b": Kind.FLOAT64,
    "text": Kind.STRING,
    "list": Kind.LIST_INT32,
}

# Reads ROWS rows a time, until enough were read and the pipe tells to end.
READER = """
import select, sys
import numpy as np
import pyarrow as pa
from cython_ext.column import Column
from procserver.itemcache.reader import CacheReader

reader = CacheReader(sys.argv[1])
rows, wanted = int(sys.argv[2]), int(sys.argv[3])
ids = Column.from_arrow(pa.array([f"i{n}" for n in range(rows)]))
reads = torn = back = states = 0
last, known = (0, 0), np.zeros(rows, np.int64)
while reads < wanted or not select.select([sys.stdin], [], [], 0)[0]:
    view = reader.current()
    state = (view.number, view.count)
    back += state < last
    states += state != last
    last = state
    cells = view.gather(view.lookup(ids), ["a", "b", "text", "list"])
    a, b, text, items = (column.to_pylist() for column in cells.values())
    reads += rows
    torn += sum(
        not (n == m == int(t) and i == [n] * (n % 5)) for n, m, t, i in
        zip(a, b, text, items)
    )
    back += int((np.array(a) < known).sum())
    known = np.array(a)
print(reads, torn, back, states)
"""

# Publishes for ever: each batch its number; folds now and then.
WRITER = """
import random, sys, time
import pyarrow as pa
from test_itemcache_torn_delta import numbered
from procserver import shm
from procserver.itemcache.compaction import compact
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import DeltaFull, DeltaWriter
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import Upsert
from procserver.shm import reopen
from cython_ext.shm import Mapping

name, rows, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
control = ControlSegment(name, Mapping(reopen(name), 4096, writable=True))
control.sweep()
reader = CacheReader(name)
delta = DeltaWriter(control, reader.current(), capacity=20_000)
number = first
while True:
    number += 1
    keys = random.sample(range(rows), 60)
    try:
        delta.apply([Upsert(numbered(keys, number))])
    except DeltaFull:
        made = compact(control, delta.view())
        delta.close()
        made.publish()
        made.close()
        delta = DeltaWriter(control, reader.current(), capacity=20_000)
    print(number, flush=True)
    time.sleep(0.02)
"""


def numbered(keys: range | list[int], number: int) -> pa.RecordBatch:
    count = len(keys)
    return pa.RecordBatch.from_pydict(
        {
            "id": [f"i{key}" for key in keys],
            "a": pa.array([number] * count, pa.int64()),
            "b": [float(number)] * count,
            "text": [str(number)] * count,
            "list": pa.array([[number] * (number % 5)] * count, pa.list_(pa.int32())),
        }
    )


@contextmanager
def readers(control: ControlSegment, count: int) -> Iterator[list[subprocess.Popen]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", READER, control.name, str(ROWS), str(READS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        yield running
    finally:
        for reader in running:
            reader.kill()
            if not reader.stdout.closed:
                reader.communicate()


def start_writer(control: ControlSegment, first: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, control.name, str(ROWS), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}."},
    )


def finish(running: list[subprocess.Popen]) -> None:
    for reader in running:
        out, _ = reader.communicate("end\n", timeout=300)
        reads, torn, back, states = map(int, out.split())
        assert reader.returncode == 0
        assert (torn, back) == (0, 0)
        assert reads >= READS
        assert states > 5


def publish_base(control: ControlSegment) -> None:
    with GenerationWriter(control, "id", SCHEMA) as writer:
        writer.append(numbered(range(ROWS), 0))
        writer.publish()


def test_a_million_reads_beside_a_writer_are_whole(control: ControlSegment) -> None:
    publish_base(control)
    with readers(control, 4) as running:
        writer = start_writer(control, 0)
        try:
            finish(running)
        finally:
            writer.kill()
            out, _ = writer.communicate()
    assert len(out.split()) > 20


def test_reads_are_whole_while_writers_are_killed(control: ControlSegment) -> None:
    publish_base(control)
    last = kills = 0
    with readers(control, 1) as running:
        while kills < 12:
            with start_writer(control, last) as writer:
                assert writer.stdout is not None
                for count, line in enumerate(writer.stdout):
                    last = int(line)
                    if count == 3 + kills:
                        # Somewhere in the work of a batch, never at the same place.
                        time.sleep(0.0003 * kills + 0.019)
                        writer.kill()
            kills += 1
            # What the dead one had published without telling.
            last += 1
        finish(running)
    prefix = control.name.removesuffix("control")
    number, _ = control.state()
    control.sweep()
    assert set(shm.list_segments(prefix)) == {
        control.name,
        f"{prefix}{number}",
        f"{prefix}{number}-delta",
    }
