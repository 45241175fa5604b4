"""Other processes read while generations are published: no row of two states."""

import subprocess
import sys
import time

import pyarrow as pa

from cython_ext.column import Kind
from procserver import shm
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.writer import GenerationWriter

ROWS = 500
SECONDS = 3.0
SCHEMA = {
    "a": Kind.INT64,
    "b": Kind.FLOAT64,
    "text": Kind.STRING,
    "list": Kind.LIST_INT32,
}

READER = """
import random, sys, time
import numpy as np
import pyarrow as pa
from cython_ext.column import Column
from procserver.itemcache.reader import CacheReader

reader = CacheReader(sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
ids = Column.from_arrow(pa.array([f"i{n}" for n in random.sample(range(500), 100)]))
reads = torn = last = generations = 0
while time.monotonic() < end:
    generation = reader.current()
    assert generation.number >= last, "went back"
    generations += generation.number != last
    last = generation.number
    rows = generation.lookup(ids)
    assert (rows >= 0).all()
    cells = generation.gather(rows, list(generation.schema))
    for a, b, text, items in zip(*(c.to_pylist() for c in cells.values())):
        reads += 1
        torn += not (a == generation.number == b == int(text) and items == [a, a])
print(reads, torn, generations)
"""


def publish(control: ControlSegment) -> None:
    with GenerationWriter(control, "id", SCHEMA) as build:
        n = build.number
        build.append(
            pa.RecordBatch.from_pydict(
                {
                    "id": [f"i{i}" for i in range(ROWS)],
                    "a": [n] * ROWS,
                    "b": [float(n)] * ROWS,
                    "text": [str(n)] * ROWS,
                    "list": pa.array([[n, n]] * ROWS, pa.list_(pa.int32())),
                }
            )
        )
        build.publish()


def test_no_torn_reads_while_publishing(control: ControlSegment) -> None:
    publish(control)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, control.name, str(SECONDS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    while any(reader.poll() is None for reader in readers):
        publish(control)
        time.sleep(0.01)
    for reader in readers:
        out, _ = reader.communicate()
        reads, torn, generations = map(int, out.split())
        assert reader.returncode == 0
        assert torn == 0
        assert reads > 10_000
        assert generations > 20
    prefix = control.name.removesuffix("control")
    assert len(shm.list_segments(prefix)) == 2


def test_a_killed_reader_pins_nothing(control: ControlSegment) -> None:
    publish(control)
    script = (
        "import sys; from procserver.itemcache.reader import CacheReader\n"
        "g = CacheReader(sys.argv[1]).current(); print('ready', flush=True); input()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, control.name],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    with reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        publish(control)
        reader.kill()
    prefix = control.name.removesuffix("control")
    assert shm.list_segments(prefix) == [f"{prefix}2", control.name]
