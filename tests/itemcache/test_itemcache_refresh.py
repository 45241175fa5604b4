"""Builds from a source, the refresher's loop, and what a killed build leaves."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from item_sources import SourceFor

from cython_ext.column import Kind
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.sources import Changes, Description, open_source


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.parquet"
    pq.write_table(
        pa.table({"item_id": ["a", "b", None, "a"], "v": [1, 2, 3, 4]}), path
    )
    return path


class HalfSource:
    """A source that breaks after one batch, in a way that we do not know."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def describe(self) -> Description:
        return Description("id", {"v": Kind.INT64})

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        def batches() -> Iterator[pa.RecordBatch]:
            yield pa.RecordBatch.from_pydict({"id": ["a"], "v": [1]})
            raise ConnectionError("half way")

        return None, batches()

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        return None

    def close(self) -> None:
        pass


def test_a_build_reports_what_it_did(control: ControlSegment, items: Path) -> None:
    report = refresh.build(open_source(SourceFor(str(items))), control)
    generation = CacheReader(control.name).current()
    assert (report.generation, report.rows) == (1, 2)
    assert report.bytes == generation.nbytes
    assert 0 < report.seconds < 30
    assert report.skipped == {"null_key": 1, "duplicate_key": 1}
    assert generation.get("a") == {"item_id": "a", "v": 4}


def test_a_failed_build_changes_nothing(control: ControlSegment, items: Path) -> None:
    refresh.build(open_source(SourceFor(str(items))), control)
    with pytest.raises(ConnectionError):
        refresh.build(HalfSource(), control)
    assert CacheReader(control.name).current().number == 1
    prefix = control.name.removesuffix("control")
    assert shm.list_segments(prefix) == [f"{prefix}1", control.name]


def test_a_killed_build_is_swept_by_the_next(
    control: ControlSegment, items: Path
) -> None:
    refresh.build(open_source(SourceFor(str(items))), control)
    child = os.fork()
    if child == 0:
        # As the refresher: inherits the control segment, dies in the middle.
        from procserver.itemcache.writer import GenerationWriter

        build = GenerationWriter(control, "id", {"v": Kind.INT64})
        build.append(pa.RecordBatch.from_pydict({"id": ["a"], "v": [1]}))
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    prefix = control.name.removesuffix("control")
    assert f"{prefix}2" in shm.list_segments(prefix)
    assert refresh.reclaim(prefix) == 0
    assert CacheReader(control.name).current().number == 1
    report = refresh.build(open_source(SourceFor(str(items))), control)
    assert report.generation == 3
    assert shm.list_segments(prefix) == [f"{prefix}3", control.name]


class Loop:
    """The refresher's loop on a thread, with both ends of its pipe."""

    def __init__(self, control: ControlSegment, open_: object) -> None:
        self.reports: Queue[object] = Queue()
        self.read, self.write = os.pipe()
        self.thread = threading.Thread(
            target=refresh.run,
            args=(open_, control, self.reports.put, self.read),
            daemon=True,
        )
        self.thread.start()

    def report(self) -> object:
        """The next one that tells how something ended."""
        while isinstance(report := self.reports.get(timeout=60), refresh.BuildBegan):
            pass
        return report

    def end(self) -> None:
        os.close(self.write)
        self.thread.join(20)
        assert not self.thread.is_alive()
        os.close(self.read)


def test_the_loop_builds_on_command_and_ends_with_the_pipe(
    control: ControlSegment, items: Path
) -> None:
    loop = Loop(control, lambda: open_source(SourceFor(str(items))))
    first = loop.report()
    assert isinstance(first, refresh.BuildReport)
    assert first.generation == 1
    pq.write_table(pa.table({"item_id": ["z"], "v": [9]}), items)
    os.write(loop.write, refresh.BUILD * 3)
    second = loop.report()
    assert isinstance(second, refresh.BuildReport)
    assert second.generation == 2
    items.unlink()
    os.write(loop.write, refresh.BUILD)
    third = loop.report()
    assert isinstance(third, refresh.FailureReport)
    assert isinstance(third.error, SourceError)
    assert "items.parquet" in str(third.error)
    assert 0 < third.pause < 2
    assert CacheReader(control.name).current().get("z") == {"item_id": "z", "v": 9}
    loop.end()


def test_the_loop_survives_any_source_and_stops(control: ControlSegment) -> None:
    loop = Loop(control, HalfSource)
    failure = loop.report()
    assert isinstance(failure, refresh.FailureReport)
    assert isinstance(failure.error, SourceError)
    assert "ConnectionError: half way" in str(failure.error)
    os.write(loop.write, refresh.STOP)
    loop.thread.join(20)
    loop.end()


def test_the_loop_ends_with_its_parent(tmp_path: Path, items: Path) -> None:
    script = f"""
import os, sys, time
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.sources import open_source
sys.path.insert(0, {str(Path(__file__).parent)!r})
from item_sources import SourceFor
control = ControlSegment.create(sys.argv[1])
read, write = os.pipe()
parent = os.getpid()
if os.fork() == 0:
    # Holds both ends, so the pipe never ends: only the parent's death tells.
    source = lambda: open_source(SourceFor({str(items)!r}))
    def report(what):
        if isinstance(what, refresh.BuildReport):
            print(os.getpid(), flush=True)
    refresh.run(source, control, report, read, parent=parent)
    control.unlink()
    print("ended", flush=True)
else:
    time.sleep(60)
"""
    name = f"t{os.getpid()}-parent"
    with subprocess.Popen(
        [sys.executable, "-c", script, name], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        assert process.stdout.readline() == "ended\n"
    assert pid != process.pid
