"""Building generations: blocks, bad rows, failures, names that are taken."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cython_ext.column import Kind
from procserver import shm
from procserver.errors import SharedMemoryError, SourceError
from procserver.itemcache import layout, writer
from procserver.itemcache.cells import column_kind
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.writer import GenerationWriter


def batch(**columns: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def names_of(control: ControlSegment) -> list[str]:
    prefix = control.name.removesuffix("control")
    return [name.removeprefix(prefix) for name in shm.list_segments(prefix)]


def test_rows_spread_over_blocks_and_batches(control: ControlSegment) -> None:
    rows = 3 * (1 << layout.BLOCK_SHIFT) + 17
    table = pa.table(
        {
            "id": [None if i % 10 == 3 else f"i{i}" for i in range(rows)],
            "n": pa.array(range(rows), pa.int64()),
            "t": [["x", str(i)] for i in range(rows)],
        }
    )
    schema = {"id": Kind.STRING, "n": Kind.INT64, "t": Kind.LIST_STRING}
    with GenerationWriter(control, "id", schema) as build:
        for part in table.to_batches(max_chunksize=5000):
            build.append(part)
        build.publish()
    generation = CacheReader(control.name).current()
    generation.verify()
    nulls = sum(i % 10 == 3 for i in range(rows))
    assert build.skipped["null_key"] == nulls
    assert generation.row_count == build.items == rows - nulls
    for i in (0, 4999, 5000, 16_384, 20_001, 40_000, rows - 1):
        found = generation.get(f"i{i}")
        assert found == (
            None if i % 10 == 3 else {"id": f"i{i}", "n": i, "t": ["x", str(i)]}
        )


def test_bad_rows_are_counted_and_never_abort(control: ControlSegment) -> None:
    ids = ["a", None, "b", "a", "x" * 65_536, "12", ""]
    with GenerationWriter(control, "id", {"n": Kind.INT32}) as build:
        build.append(batch(id=ids, n=pa.array(range(7), pa.int32())))
        build.append(batch(id=pa.array([12]), n=pa.array([9], pa.int32())))
        build.publish()
    assert {k: v for k, v in build.skipped.items() if v} == {
        "null_key": 1,
        "long_key": 1,
        "duplicate_key": 2,
    }
    generation = CacheReader(control.name).current()
    assert generation.item_count == 4
    assert generation.row_count == 6
    assert [generation.get(i) for i in ("a", "b", 12, "", "c")] == [
        {"n": 3}, {"n": 2}, {"n": 9}, {"n": 6}, None,
    ]  # fmt: skip


def test_a_64_kilobyte_text_is_kept(control: ControlSegment) -> None:
    text = "ü" * 40_000
    with GenerationWriter(control, "id", {"t": Kind.STRING}) as build:
        build.append(batch(id=[1], t=[text]))
        build.publish()
    assert CacheReader(control.name).current().get("1") == {"t": text}


def test_no_rows_at_all(control: ControlSegment) -> None:
    with GenerationWriter(control, "id", {"n": Kind.INT32}) as build:
        build.append(batch(id=pa.nulls(2), n=pa.nulls(2)))
        build.publish()
    generation = CacheReader(control.name).current()
    assert (generation.row_count, generation.item_count) == (0, 0)
    assert generation.get("a") is None


def test_missing_and_null_columns_are_null(control: ControlSegment) -> None:
    schema = {"a": Kind.INT64, "b": Kind.LIST_FLOAT32, "c": Kind.ABSENT}
    with GenerationWriter(control, "id", schema) as build:
        build.append(batch(id=[1], a=pa.nulls(1), c=pa.nulls(1), unknown=["x"]))
        build.append(batch(id=[2], a=pa.array([5], pa.int8())))
        build.publish()
    generation = CacheReader(control.name).current()
    assert generation.get(1) == {"a": None, "b": None, "c": None}
    assert generation.get(2) == {"a": 5, "b": None, "c": None}


def test_columns_that_do_not_fit_are_named(control: ControlSegment) -> None:
    schema = {"n": Kind.INT32}
    for bad, message in (
        (batch(id=[1], n=[[2]]), "column 'n' cannot be read as INT32"),
        (batch(id=[1], n=pa.array([0], pa.timestamp("us"))), "column 'n' .*timestamp"),
        (batch(id=[1.5], n=[1]), "key column 'id' has Arrow type double"),
        (batch(other=[1], n=[1]), "key column 'id' is missing"),
    ):
        with (
            pytest.raises(SourceError, match=message),
            GenerationWriter(control, "id", schema) as build,
        ):
            build.append(bad)
    assert names_of(control) == ["control"]


@pytest.mark.parametrize(
    "type_",
    [
        pa.timestamp("us"),
        pa.date32(),
        pa.decimal128(10, 2),
        pa.uint64(),
        pa.time64("us"),
        pa.struct([("a", pa.int32())]),
        pa.list_(pa.date32()),
        pa.map_(pa.float32(), pa.int32()),
    ],
    ids=str,
)
def test_unsupported_types_are_refused_by_name(type_: pa.DataType) -> None:
    with pytest.raises(SourceError, match=r"column 'when' has Arrow type .* supported"):
        column_kind("when", type_)


def test_publication_replaces_and_unlinks(control: ControlSegment) -> None:
    reader = CacheReader(control.name)
    with pytest.raises(SourceError, match="published yet"):
        reader.current()
    seen = []
    for value in range(3):
        with GenerationWriter(control, "id", {"v": Kind.INT64}) as build:
            build.append(batch(id=["a"], v=[value]))
            number = build.publish()
        assert names_of(control) == [str(number), "control"]
        seen.append(reader.current())
    # Generations that were replaced stay readable for whoever holds them.
    assert [g.get("a") for g in seen] == [{"v": 0}, {"v": 1}, {"v": 2}]
    assert [g.number for g in seen] == [1, 2, 3]


def test_a_build_given_up_leaves_nothing(control: ControlSegment) -> None:
    with GenerationWriter(control, "id", {"v": Kind.INT64}) as build:
        build.append(batch(id=["a"], v=[1]))
        build.seal()
    assert names_of(control) == ["control"]
    assert control.state() == (0, 0)


def test_taken_names_are_passed_over(control: ControlSegment, shm_folder: Path) -> None:
    taken = shm_folder / control.generation_name(1)[1:]
    taken.write_bytes(b"somebody else's")
    with GenerationWriter(control, "id", {}) as build:
        assert build.publish() == 2
    assert taken.read_bytes() == b"somebody else's"
    assert control.sweep() == 0
    taken.unlink()


def test_every_name_taken(
    control: ControlSegment, shm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TRIES", 2)
    taken = [shm_folder / control.generation_name(n)[1:] for n in (1, 2)]
    for path in taken:
        path.write_bytes(b"x")
    with pytest.raises(SourceError, match="taken"):
        GenerationWriter(control, "id", {})
    for path in taken:
        path.unlink()


def test_full_memory_is_an_error_with_figures(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a tmpfs that is full after the first block: the next one asks the kernel
    # for more than any machine has.
    with GenerationWriter(control, "id", {"v": Kind.INT64}) as build:
        build.append(batch(id=["a"], v=[1]))
        build.publish()
    real = shm.allocate

    def allocate(fd: int, start: int, stop: int, detail: str = "") -> None:
        real(fd, start, stop if stop < 1 << 19 else stop + (1 << 50), detail)

    monkeypatch.setattr(shm, "allocate", allocate)
    rows = 1 << layout.BLOCK_SHIFT
    with (
        pytest.raises(
            SharedMemoryError, match=r"bytes needed .*about \d+ .*40000 rows.* free"
        ),
        GenerationWriter(
            control, "id", {"v": Kind.INT64}, expected_rows=40_000
        ) as build,
    ):
        build.append(batch(id=range(rows), v=range(rows)))
    assert names_of(control) == ["1", "control"]
    assert CacheReader(control.name).current().get("a") == {"v": 1}


SMALL = """
import os
import pyarrow as pa
from cython_ext.column import Kind
from procserver.errors import SharedMemoryError
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.writer import GenerationWriter

control = ControlSegment.create("small")
with GenerationWriter(control, "id", {"v": Kind.INT64}) as build:
    build.append(pa.RecordBatch.from_pydict({"id": [1], "v": [1]}))
    build.publish()
try:
    with GenerationWriter(control, "id", {"v": Kind.INT64}) as build:
        for start in range(0, 1_000_000, 20_000):
            ids = range(start, start + 20_000)
            build.append(pa.RecordBatch.from_pydict({"id": ids, "v": ids}))
except SharedMemoryError as error:
    print(error)
print(CacheReader(control.name).current().get(1), sorted(os.listdir("/dev/shm")))
control.unlink()
print(os.listdir("/dev/shm"))
"""


def test_a_small_tmpfs_gives_an_error_and_no_sigbus() -> None:
    mount = "mount -t tmpfs -o size=4m tmpfs /dev/shm && exec "
    private = [
        "unshare",
        "--mount",
        *([] if os.geteuid() == 0 else ["-Ur"]),
        "sh",
        "-c",
    ]
    try:
        probe = subprocess.run([*private, mount + "true"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if probe.returncode:
        pytest.skip("no private mounts here")
    done = subprocess.run(
        [*private, mount + '"$0" "$@"', sys.executable, "-c", SMALL],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    error, item, left = done.stdout.splitlines()
    assert re.search(r": \d+ bytes needed .* \d+ free in /dev/shm", error)
    assert item.startswith("{'v': 1} [")
    assert item.count("procserver.small") == 2
    assert left == "[]"


def test_tables_have_generations_of_their_own(control: ControlSegment) -> None:
    for table in (0, 1):
        with GenerationWriter(control, "id", {"v": Kind.INT64}, table=table) as build:
            build.append(batch(id=["a"], v=[table]))
            build.publish()
    assert control.sweep() == 0
    readers = [CacheReader(control.name, table=table) for table in (0, 1)]
    assert [r.current().get("a") for r in readers] == [{"v": 0}, {"v": 1}]
    assert [r.current().table for r in readers] == [0, 1]
