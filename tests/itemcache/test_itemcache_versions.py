"""Item tables published as versions, and when files count as changed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from item_sources import SourceFor, TableFor

from procserver.errors import SourceError
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.sources import CursorLost, open_source


class Root:
    """A root of versions on some file system."""

    def __init__(self, filesystem: Any, path: str, url: str) -> None:
        self.filesystem = filesystem
        self.path = path
        self.url = url

    def put(self, name: str, content: bytes = b"") -> None:
        path = f"{self.path}/{name}"
        self.filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self.filesystem.open(path, "wb") as file:
            file.write(content)

    def add(self, folder: str, value: int, *, ready: bool = True) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"item_id": ["a"], "x": [value]}), sink)
        self.put(f"{folder}/part-0.parquet", sink.getvalue().to_pybytes())
        if ready:
            self.put(f"{folder}/READY")

    def point(self, content: object) -> None:
        self.put("current.json", json.dumps(content).encode())


@pytest.fixture(params=["file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    if request.param == "file":
        path = str(tmp_path / "items")
        yield Root(fsspec.filesystem("file"), path, path)
        return
    memory = fsspec.filesystem("memory")
    yield Root(memory, "/versioned", "memory://versioned")
    memory.rm("/versioned", recursive=True)


def read(control: ControlSegment, root: Root) -> object:
    refresh.build(open_source(SourceFor(root.url)), control)
    item = CacheReader(control.name).current().get("a")
    assert item is not None
    return item["x"]


@pytest.mark.parametrize("below", ["", "versions/"])
def test_the_highest_complete_number_is_read(
    control: ControlSegment, root: Root, below: str
) -> None:
    root.add(f"{below}9", 9)
    root.add(f"{below}10", 10)
    root.add(f"{below}11", 11, ready=False)
    root.add(f"{below}12.tmp.7", 12)
    root.add(f"{below}nightly", 13)
    assert read(control, root) == 10
    root.put(f"{below}11/READY")
    assert read(control, root) == 11


def test_current_json_names_the_version(control: ControlSegment, root: Root) -> None:
    root.add("versions/1", 1)
    root.add("versions/2", 2)
    root.point({"version": "1"})
    assert read(control, root) == 1
    root.point({"version": 2, "of": "no interest"})
    assert read(control, root) == 2
    # A version may have any name when it is named.
    root.add("versions/winter-sale", 3)
    root.point({"version": "winter-sale"})
    assert read(control, root) == 3


def test_without_any_marker_current_json_is_trusted(
    control: ControlSegment, root: Root
) -> None:
    root.add("1", 1, ready=False)
    root.add("2", 2, ready=False)
    root.point({"version": "1"})
    assert read(control, root) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"version": "7"}, "names version 7, which is not there"),
        ({"version": "2"}, "names version 2, which has no READY"),
        ({"version": "../1"}, "'../1' is not the name of a version"),
        ({"version": "1.tmp.4"}, "is not the name of a version"),
        ({"version": None}, "None is not the name of a version"),
        ({"version": True}, "True is not the name of a version"),
        ({}, 'no JSON object with a "version"'),
        ([], 'no JSON object with a "version"'),
    ],
)
def test_a_pointer_that_leads_nowhere(root: Root, content: object, reason: str) -> None:
    root.add("versions/1", 1)
    root.add("versions/2", 2, ready=False)
    root.point(content)
    with pytest.raises(SourceError, match=reason) as refused:
        open_source(SourceFor(root.url)).describe()
    assert "items" in str(refused.value) or "versioned" in str(refused.value)


def test_a_first_version_that_is_not_complete(root: Root) -> None:
    root.add("versions/1", 1, ready=False)
    with pytest.raises(SourceError, match="no version has a READY yet"):
        open_source(SourceFor(root.url)).describe()


def test_folders_of_numbers_are_no_versions(
    control: ControlSegment, root: Root
) -> None:
    root.add("20260101", 1, ready=False)
    root.add("20260102", 2, ready=False)
    assert read(control, root) == 2
    source = open_source(SourceFor(root.url))
    assert source.describe().rows == 2


def test_files_that_stay_are_not_read_again(root: Root) -> None:
    root.add("versions/1", 1)
    source = open_source(SourceFor(root.url))
    cursor, batches = source.snapshot()
    assert sum(batch.num_rows for batch in batches) == 1
    # The cursor may be kept in a file.
    cursor = json.loads(json.dumps(cursor))
    changes = source.changes(cursor)
    assert changes is not None
    assert (list(changes.steps), changes.next_cursor) == ([], cursor)
    root.add("versions/2", 2, ready=False)
    assert source.changes(cursor) is not None
    root.put("versions/2/READY")
    with pytest.raises(CursorLost, match="have changed"):
        source.changes(cursor)


def test_a_file_that_is_replaced_has_changed(tmp_path: Path) -> None:
    for name in "ab":
        pq.write_table(pa.table({"item_id": ["a"], name: [1]}), tmp_path / name)
    tables = (TableFor(name="a"), TableFor(name="b"))
    source = open_source(SourceFor(str(tmp_path), tables))
    cursor, _ = source.snapshot()
    assert source.changes(cursor) is not None
    before = (tmp_path / "b").stat()
    pq.write_table(pa.table({"item_id": ["a"], "b": [2]}), tmp_path / "new")
    # Of the same size and time, as a copy that keeps times would be.
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tmp_path / "new").stat().st_size == before.st_size
    (tmp_path / "new").replace(tmp_path / "b")
    with pytest.raises(CursorLost):
        source.changes(cursor)
