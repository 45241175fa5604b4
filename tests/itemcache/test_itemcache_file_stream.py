"""Changes appended to a file: lines, positions, gaps."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from item_sources import SourceFor, TableFor

from procserver.errors import SourceError
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Delete,
    ItemSource,
    Upsert,
    file_stream,
    open_source,
)
from procserver.itemcache.sources.file_stream import FileStream, Position


@dataclass(frozen=True)
class StreamFor:
    url: str
    key: str | None = None
    id: str | None = None
    timekey: str | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some changes.jsonl"


@pytest.fixture
def source(tmp_path: Path, file: Path) -> Iterator[ItemSource]:
    """One item with a list and a map, and a file beside it that is not there yet."""
    items = pa.table(
        {
            "item_id": ["a"],
            "price": pa.array([1.0], pa.float32()),
            "stock": pa.array([1], pa.int64()),
            "name": ["x"],
            "tags": pa.array([["t"]], pa.list_(pa.string())),
            "parts": pa.array([[("k", 1.0)]], pa.map_(pa.string(), pa.float32())),
        }
    )
    pq.write_table(items, tmp_path / "items.parquet")
    source = open_source(
        SourceFor(
            str(tmp_path / "items.parquet"),
            [TableFor(key="item_id")],
            stream=StreamFor(file.as_uri()),
        )
    )
    yield source
    source.close()


def begin(source: ItemSource) -> object:
    assert source.describe().follows
    cursor, batches = source.snapshot()
    assert sum(batch.num_rows for batch in batches) == 1
    return cursor


def write(file: Path, *lines: object) -> None:
    with file.open("a") as out:
        for line in lines:
            out.write(line if isinstance(line, str) else json.dumps(line) + "\n")


def changes(source: ItemSource, cursor: object, wait: float = 0.0) -> Changes:
    # As a refresher that was started again has it.
    found = source.changes(json.loads(json.dumps(cursor)), wait)
    assert found is not None
    return found


def shape(steps: Any) -> list[Any]:
    """Rows of upserts, and ids of deletes."""
    assert all(step.times is None for step in steps)
    return [
        step.batch.to_pylist() if isinstance(step, Upsert) else step.keys.to_pylist()
        for step in steps
    ]


def test_changes_in_order(source: ItemSource, file: Path) -> None:
    cursor = begin(source)
    assert changes(source, cursor).steps == []
    write(
        file,
        {"item_id": "a", "price": 2.5},
        {"item_id": "b", "price": "3", "stock": 4, "unknown": {"x": [1]}},
        {"item_id": 7, "price": 5, "_op": "upsert"},
        {"item_id": "b", "_op": "delete"},
        {"item_id": "b", "price": 6},
        {"item_id": "a", "price": None, "stock": 5},
        {"item_id": "c", "price": 1, "stock": [1]},
        {"item_id": "ü", "name": "né", "tags": ["p", "q"], "parts": {"k": 0.5}},
    )
    found = changes(source, cursor)
    assert shape(found.steps) == [
        [{"item_id": "a", "price": 2.5}, {"item_id": "7", "price": 5.0}],
        [
            {"item_id": "b", "price": 3.0, "stock": 4},
            {"item_id": "a", "price": None, "stock": 5},
        ],
        ["b"],
        [{"item_id": "b", "price": 6.0}],
        [{"item_id": "ü", "name": "né", "parts": [("k", 0.5)], "tags": ["p", "q"]}],
    ]
    assert source.skipped == {"bad_value": 1}
    assert found.more is False
    assert found.newest == pytest.approx(file.stat().st_mtime)
    assert changes(source, found.next_cursor).steps == []


def test_only_whole_lines(source: ItemSource, file: Path) -> None:
    write(file, {"item_id": "old", "price": 1}, '{"item_id": "ha')
    cursor = begin(source)
    assert changes(source, cursor).steps == []
    write(file, 'lf", "price": 2}')
    assert changes(source, cursor).steps == []
    write(file, "\n")
    found = changes(source, cursor)
    assert shape(found.steps) == [[{"item_id": "half", "price": 2.0}]]


def test_bad_lines_are_counted(source: ItemSource, file: Path) -> None:
    cursor = begin(source)
    write(
        file,
        "\n  \nnonsense\n[1]\n",
        "[" * 100_000 + "\n",
        '{"item_id": "\\ud800"}\n',
        {"price": 1},
        {"item_id": None, "price": 1},
        {"item_id": "a", "_op": "drop"},
        {"item_id": "a", "_op": None},
        {"item_id": "a", "price": 3},
    )
    found = changes(source, cursor)
    assert shape(found.steps) == [[{"item_id": "a", "price": 3.0}]]
    assert source.skipped == {"bad_line": 4, "bad_key": 2, "bad_op": 2}


def test_times_and_the_field_of_the_id(file: Path) -> None:
    stream = FileStream(StreamFor(file.as_uri(), id="sku", timekey="at"))
    write(
        file,
        {"sku": "a", "item_id": "no", "at": 1_700_000_000},
        {"sku": "b", "at": "1700000000.25", "_op": "delete"},
        {"sku": "c", "at": "yesterday"},
        {"sku": "c"},
    )
    found = stream.read(Position(0, 0), 0)
    steps = stream.steps(found.entries, "item_id", {})
    assert [type(step) for step in steps] == [Upsert, Delete]
    assert [list(step.times) for step in steps if step.times is not None] == [
        [1_700_000_000_000_000],
        [1_700_000_000_250_000],
    ]
    assert stream.skipped == {"bad_time": 2}


def test_more_than_one_read_has(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_stream, "READ_BYTES", 40)
    monkeypatch.setattr(file_stream, "READ_ENTRIES", 3)
    stream = FileStream(StreamFor(file.as_uri()))
    names = [f"{n}" * 30 if n % 4 == 0 else f"{n}" for n in range(20)]
    write(file, *({"item_id": name} for name in names), "{" + " " * 200)
    place, found = Position(0, 0), []
    for _ in range(100):
        entries = stream.read(place, 0)
        assert len(entries.entries) <= 3
        found += [fields[b"item_id"] for _, fields in entries.entries]
        if entries.next == place:
            break
        place = entries.next
    assert found == [name.encode() for name in names]
    assert not entries.more
    assert stream.position() == place
    assert stream.restored(json.loads(json.dumps(asdict(place)))) == place


def test_a_line_ends_the_wait(source: ItemSource, file: Path) -> None:
    cursor = begin(source)
    arrived: list[Any] = []
    thread = threading.Thread(
        target=lambda: arrived.append(changes(source, cursor, wait=60.0))
    )
    thread.start()
    sent = time.monotonic()
    write(file, {"item_id": "a", "price": 2})
    thread.join(90)
    # Without a look in between it would be a minute.
    assert time.monotonic() - sent < 30
    assert shape(arrived[0].steps) == [[{"item_id": "a", "price": 2.0}]]


def test_nothing_comes(source: ItemSource) -> None:
    cursor = begin(source)
    began = time.monotonic()
    assert changes(source, cursor, wait=0.3).steps == []
    assert time.monotonic() - began >= 0.29


@pytest.mark.parametrize("how", ["removed", "cut", "replaced", "rewritten"])
def test_gaps(how: str, source: ItemSource, file: Path, tmp_path: Path) -> None:
    write(file, {"item_id": "a", "price": 2})
    cursor = begin(source)
    if how == "removed":
        file.unlink()
    elif how == "cut":
        os.truncate(file, 3)
    elif how == "replaced":
        other = tmp_path / "other"
        write(other, {"item_id": "a", "price": 2}, {"item_id": "b", "price": 2})
        other.rename(file)
    else:
        file.write_text('{"item_id": "a", "price": 3}\n{"item_id": "b"}\n')
    with pytest.raises(CursorLost, match="some changes"):
        changes(source, cursor)
    write(file, "\n")
    cursor = begin(source)
    write(file, {"item_id": "new", "price": 2})
    assert len(changes(source, cursor).steps) == 1


def test_other_cursors_and_files(source: ItemSource, tmp_path: Path) -> None:
    cursor = begin(source)
    assert isinstance(cursor, dict)
    with pytest.raises(CursorLost):
        source.changes(cursor | {"stream": {"id": "1-0", "added": 1, "first": False}})
    stream = FileStream(StreamFor((tmp_path / "items.parquet/x").as_uri()))
    with pytest.raises(SourceError, match="Not a directory"):
        stream.position()
    with pytest.raises(SourceError, match="directory"):
        FileStream(StreamFor(tmp_path.as_uri())).read(Position(0, 0), 0)
