"""Readers: lookup, gather, re-mapping, threads, foreign generations."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column, Kind
from procserver import shm
from procserver.errors import ServiceError, SourceError
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.writer import GenerationWriter

SCHEMA = {"id": Kind.STRING, "v": Kind.INT64, "w": Kind.LIST_FLOAT32}


def publish(control: ControlSegment, value: int, rows: int = 4) -> int:
    with GenerationWriter(control, "id", SCHEMA) as build:
        build.append(
            pa.RecordBatch.from_pydict(
                {
                    "id": [str(i) for i in range(rows)],
                    "v": [value] * rows,
                    "w": pa.array([[value, None]] * rows, pa.list_(pa.float32())),
                }
            )
        )
        return build.publish()


def test_reading_needs_no_arrow() -> None:
    # What the master and the workers import must not bring pyarrow's threads.
    script = (
        "import sys, procserver.itemcache.reader, procserver.itemcache.control;"
        "sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_lookup_and_gather(control: ControlSegment) -> None:
    publish(control, 7)
    generation = CacheReader(control.name).current()
    rows = generation.lookup(Column.from_arrow(pa.array(["3", "x", None, "0"])))
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, -1, -1, 0]
    cells = generation.gather(rows, ["w", "id"])
    assert list(cells) == ["w", "id"]
    assert cells["w"].to_pylist() == [[7.0, None], None, None, [7.0, None]]
    assert cells["id"].to_pylist() == ["3", None, None, "0"]
    assert generation.gather(rows, []) == {}
    for ids in (pa.array([3, 9], pa.int64()), pa.array([3, 9], pa.int32())):
        assert generation.lookup(Column.from_arrow(ids)).tolist() == [3, -1]
    with pytest.raises(KeyError, match="nope"):
        generation.gather(rows, ["v", "nope"])
    with pytest.raises(IndexError):
        generation.gather(np.array([4]), ["v"])
    with pytest.raises(TypeError, match="FLOAT64"):
        generation.lookup(Column.from_arrow(pa.array([1.0])))


def test_facts(control: ControlSegment) -> None:
    number = publish(control, 7)
    generation = CacheReader(control.name).current()
    assert generation.number == number
    assert generation.schema == SCHEMA
    assert (generation.key, generation.table) == ("id", 0)
    assert (generation.row_count, generation.item_count) == (4, 4)
    size = (shm.SHM / control.generation_name(number)[1:]).stat().st_size
    assert generation.nbytes == size
    assert generation.get(2) == {"id": "2", "v": 7, "w": [7.0, None]}
    assert generation.get("\udcff\0") is None


def test_current_is_the_same_object_until_a_publication(
    control: ControlSegment,
) -> None:
    publish(control, 1)
    reader = CacheReader(control.name)
    first = reader.current()
    assert reader.current() is first
    publish(control, 2)
    second = reader.current()
    assert second is not first
    assert (first.get(0), second.get(0)) == (
        {"id": "0", "v": 1, "w": [1.0, None]},
        {"id": "0", "v": 2, "w": [2.0, None]},
    )


def test_gathered_columns_outlive_everything(control: ControlSegment) -> None:
    publish(control, 5)
    reader = CacheReader(control.name)
    cells = reader.current().gather(np.array([0, 1]), ["w", "v"])
    publish(control, 6)
    reader.current()
    del reader
    assert cells["w"].to_pylist() == [[5.0, None]] * 2
    assert cells["v"].to_pylist() == [5, 5]


def test_old_maps_are_closed(control: ControlSegment) -> None:
    reader = CacheReader(control.name)
    for value in range(5):
        publish(control, value)
        reader.current()
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if control.generation_name(0)[1:-1] in line]
    # The reader's control and generation, and the owner's control.
    assert len(lines) == 3


def test_a_name_that_is_gone_is_read_again(control: ControlSegment) -> None:
    publish(control, 1)
    reader = CacheReader(control.name)
    shm.unlink(control.generation_name(1))

    def late() -> None:
        publish(control, 2)

    timer = threading.Timer(0.05, late)
    timer.start()
    assert reader.current().number == 2
    timer.join()


def test_a_name_that_stays_gone_is_an_error(control: ControlSegment) -> None:
    publish(control, 1)
    shm.unlink(control.generation_name(1))
    with pytest.raises(SourceError, match=r"generation 1 .* is gone"):
        CacheReader(control.name).current()


def test_a_damaged_successor_leaves_the_old_one_in_service(
    control: ControlSegment, shm_folder: Path
) -> None:
    publish(control, 1)
    reader = CacheReader(control.name)
    first = reader.current()
    publish(control, 2)
    path = shm_folder / control.generation_name(2)[1:]
    good = path.read_bytes()
    path.write_bytes(good[:-16])
    assert reader.current() is first
    assert "generation 2 has" in str(reader.error)
    path.write_bytes(good)
    assert reader.current() is first
    deadline = time.monotonic() + 5
    while reader.current() is first and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reader.current().number == 2
    assert reader.error is None


def test_foreign_and_shrunk_generations_are_refused(
    control: ControlSegment, shm_folder: Path
) -> None:
    publish(control, 1)
    path = shm_folder / control.generation_name(1)[1:]
    good = path.read_bytes()
    for data, message in (
        (good[:-16], "instead of"),
        (good[:50], "not a generation"),
        (b"", "empty"),
        (b"\0" * len(good), "not a generation"),
        (good[:16] + b"\2" + good[17:], "damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(ServiceError, match=message):
            CacheReader(control.name).current()
    other = ControlSegment.create(control.name.split(".")[1] + "-other")
    publish(other, 9)
    publish(other, 9)
    path.write_bytes((shm_folder / other.generation_name(2)[1:]).read_bytes())
    other.unlink()
    with pytest.raises(SourceError, match="another service"):
        CacheReader(control.name).current()


def test_readers_keep_serving_when_the_owner_ends() -> None:
    control = ControlSegment.create(f"t{os.getpid()}-ends")
    publish(control, 3)
    reader = CacheReader(control.name)
    generation = reader.current()
    control.unlink()
    assert reader.current() is generation
    assert generation.get(1) == {"id": "1", "v": 3, "w": [3.0, None]}


def test_threads_share_a_reader(control: ControlSegment) -> None:
    publish(control, 0, rows=300)
    reader = CacheReader(control.name)
    ids = Column.from_arrow(pa.array([str(i) for i in range(300)]))
    stop = threading.Event()

    def read() -> int:
        reads = last = 0
        while not stop.is_set() or reads < 20:
            generation = reader.current()
            assert generation.number >= last
            last = generation.number
            cells = generation.gather(generation.lookup(ids), ["v", "w"])
            values = set(cells["v"].to_pylist())
            assert len(values) == 1
            assert {row[0] for row in cells["w"].to_pylist()} == values
            reads += 1
        return reads

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for value in range(1, 30):
            publish(control, value, rows=300)
        stop.set()
        assert all(reader.result() >= 20 for reader in readers)
