"""Files written behind the requests' back: bounds, order of failure, names."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procserver.observe import metrics
from procserver.observe.metrics import LOG_ENTRIES
from procserver.observe.spool import Spool, file_name, write_whole

LONG = 30.0


def counted(outcome: str) -> int:
    block = metrics.REGISTRY.block
    assert block is not None
    return LOG_ENTRIES.read(block, metrics.REGISTRY.row, outcome)


@pytest.fixture
def change() -> Callable[[], dict[str, int]]:
    """What has been counted since the test began."""
    outcomes = ("written", "dropped", "failed")
    before = {outcome: counted(outcome) for outcome in outcomes}
    return lambda: {
        outcome: counted(outcome) - before[outcome]
        for outcome in outcomes
        if counted(outcome) != before[outcome]
    }


class Gate:
    """Content that is not there before it is let through."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> bytes:
        self.reached.set()
        assert self.open.wait(LONG)
        return b"late"


def test_files_are_written_whole_by_several_threads(
    tmp_path: Path, change: Callable[[], dict[str, int]]
) -> None:
    spool = Spool(3)
    for number in range(100):
        content = b"%d" % number * 1000
        assert spool.offer(tmp_path / "a" / "b", str(number), 1, lambda c=content: c)
    assert spool.close(LONG)
    files = list((tmp_path / "a" / "b").iterdir())
    assert len(files) == 100
    for path in files:
        number = path.name.partition("_")[0]
        assert path.read_bytes() == number.encode() * 1000
    assert change() == {"written": 100}


def test_a_full_queue_drops_and_counts(
    tmp_path: Path, change: Callable[[], dict[str, int]]
) -> None:
    spool = Spool(1, most_entries=2)
    gate = Gate()
    assert spool.offer(tmp_path, "first", 1, gate)
    assert gate.reached.wait(LONG)
    assert spool.offer(tmp_path, "second", 1, lambda: b"2")
    assert spool.offer(tmp_path, "third", 1, lambda: b"3")
    assert not spool.offer(tmp_path, "fourth", 1, lambda: b"4")
    assert change() == {"dropped": 1}
    gate.open.set()
    assert spool.close(LONG)
    assert sorted(p.name.partition("_")[0] for p in tmp_path.iterdir()) == [
        "first",
        "second",
        "third",
    ]
    assert change() == {"dropped": 1, "written": 3}


def test_bytes_in_memory_are_bounded_until_written(
    tmp_path: Path, change: Callable[[], dict[str, int]]
) -> None:
    spool = Spool(1, most_bytes=100)
    assert not spool.offer(tmp_path, "huge", 101, lambda: b"")
    gate = Gate()
    assert spool.offer(tmp_path, "big", 60, gate)
    assert gate.reached.wait(LONG)
    assert not spool.offer(tmp_path, "next", 41, lambda: b"")
    assert spool.offer(tmp_path, "fits", 40, lambda: b"")
    gate.open.set()
    assert spool.close(LONG)
    assert change() == {"dropped": 2, "written": 2}


def test_closing_gives_up_after_its_time(
    tmp_path: Path, change: Callable[[], dict[str, int]]
) -> None:
    spool = Spool(1)
    gate = Gate()
    spool.offer(tmp_path, "stuck", 1, gate)
    assert gate.reached.wait(LONG)
    spool.offer(tmp_path, "behind", 1, lambda: b"")
    assert not spool.close(0.05)
    assert not spool.offer(tmp_path, "late", 1, lambda: b"")
    assert change() == {"dropped": 2}
    gate.open.set()
    assert spool.close(LONG)


def test_content_that_fails_ends_no_thread(
    tmp_path: Path,
    change: Callable[[], dict[str, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spool = Spool(1)
    for _ in range(3):
        spool.offer(tmp_path, "bad", 1, lambda: bytes(1 // 0))
    spool.offer(tmp_path, "good", 1, lambda: b"good")
    assert spool.close(LONG)
    assert change() == {"failed": 3, "written": 1}
    # One line a minute, whatever the load.
    assert len(caplog.records) == 1
    assert "division" in caplog.text


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, change: Callable[[], dict[str, int]]
) -> None:
    # A file size limit is the disk that is full without root; SIGXFSZ is ignored
    # by Python, so that write fails.
    pid = os.fork()
    if pid == 0:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        status = 1
        try:
            write_whole(tmp_path, "x.pb", b"y" * 5000)
        except OSError:
            status = 0 if os.listdir(tmp_path) == [] else 2
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_name_that_is_taken_by_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / ".x.pb.tmp").symlink_to(target)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path, "x.pb", b"y")
    assert not target.exists()


@given(st.one_of(st.text(), st.text(alphabet="./\\\0-_ a%\n", max_size=300)))
def test_names_stay_in_their_folder(request_id: str) -> None:
    name = file_name(request_id)
    assert os.path.basename(name) == name
    assert not name.startswith(".")
    assert name.endswith(".pb")
    assert name.isascii()
    assert name.isprintable()
    assert 21 <= len(name) <= 121
    assert "/" not in name


def test_names_are_readable_and_differ() -> None:
    assert file_name("abc-1.2_X").startswith("abc-1.2_X_")
    assert file_name("").startswith("request_")
    assert file_name("../../etc").startswith("_._.._etc_")
    assert file_name("a") != file_name("a")
