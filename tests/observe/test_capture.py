"""Capturing requests: how many, which, and never more than asked for."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procserver import config
from procserver.config import ServiceConfig
from procserver.observe import capture
from procserver.observe.capture import MAX_BODY_BYTES, Capture, start_capture

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = itertools.count()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bodies(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.glob("*.pb"))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "captures"
    found.mkdir()
    return found


def service(tmp_path: Path, **model: object) -> ServiceConfig:
    (tmp_path / "m.pt").touch()
    content = {
        "metadata": {"name": "captured", "instance": 1},
        "processor": "easyrec-torch-1.12",
        "model_path": "m.pt",
        "model_config": {"warmup_data_path": "warm", **model},
        "procserver": {"state_dir": "state"},
    }
    path = tmp_path / "service.json"
    path.write_text(json.dumps(content))
    return config.load(path, {}).service


def test_bodies_are_written_as_they_were(folder: Path) -> None:
    ours = Capture(folder, 3)
    assert ours.keep(b"one", 1)
    assert ours.keep(b"two\0\n", 2)
    assert ours.is_open
    assert ours.keep(b"three", 3)
    assert not ours.is_open
    assert files(folder) == ["warmup_000.pb", "warmup_001.pb", "warmup_002.pb"]
    assert bodies(folder) == [b"one", b"three", b"two\0\n"]
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {0o600}


def test_equal_bodies_are_kept_once(folder: Path) -> None:
    ours, other = Capture(folder, 8), Capture(folder, 8)
    assert ours.keep(b"probe", 1)
    assert not ours.keep(b"probe", 1)
    assert not other.keep(b"probe", 1), "another worker has written it"
    assert other.keep(b"else", 1)
    assert not Capture(folder, 8).keep(b"else", 1), "an earlier start has"


def test_half_of_the_files_waits_for_other_numbers_of_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Capture(folder, 4)
    kept = [ours.keep(b"%d" % i, 100) for i in range(5)]
    assert kept == [True, True, False, False, False]
    assert ours.keep(b"short", 7)
    later = time.monotonic() + capture.VARIETY_SECONDS
    monkeypatch.setattr(capture.time, "monotonic", lambda: later)
    assert ours.keep(b"again", 100)
    assert not ours.is_open


def test_foreign_files_count(folder: Path) -> None:
    (folder / "from_elsewhere.pb").write_bytes(b"x")
    ours = Capture(folder, 2)
    assert ours.keep(b"a", 1)
    assert not ours.is_open
    assert len(bodies(folder)) == 2


def test_a_file_that_is_being_written_belongs_to_its_writer(folder: Path) -> None:
    claim = folder / ".warmup_000.tmp"
    claim.touch()
    ours = Capture(folder, 2)
    assert ours.keep(b"a", 1)
    assert (folder / "warmup_001.pb").read_bytes() == b"a"
    assert not ours.keep(b"b", 2)
    assert ours.is_open, "the other one may come to nothing"
    long_ago = time.time() - capture.STALE_SECONDS - 1
    os.utime(claim, (long_ago, long_ago))
    assert ours.keep(b"b", 2)
    assert files(folder) == ["warmup_000.pb", "warmup_001.pb"]


def test_offers_are_written_by_a_thread(folder: Path) -> None:
    ours = Capture(folder, 4)
    buffer = bytearray(b"request 0")
    for i in range(4):
        buffer[-1:] = b"%d" % i
        wait_until(lambda: not ours._queue.full())
        ours.offer(memoryview(buffer), i)
    buffer[:] = b"reused!!!"
    wait_until(lambda: not ours.is_open)
    assert bodies(folder) == [b"request %d" % i for i in range(4)]
    ours.offer(b"too late", 99)
    assert len(bodies(folder)) == 4


def test_an_offer_never_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Capture(folder, 64)
    stuck = multiprocessing.get_context("fork").Event()
    monkeypatch.setattr(ours, "keep", lambda body, rows: stuck.wait(30))
    for i in range(100):
        ours.offer(b"%d" % i, i)
    assert ours._queue.qsize() <= capture.QUEUED
    stuck.set()


@pytest.mark.parametrize("size", [0, MAX_BODY_BYTES + 1])
def test_bodies_out_of_bounds_are_not_taken(folder: Path, size: int) -> None:
    ours = Capture(folder, 1)
    ours.offer(bytes(size), 1)
    assert ours._queue.empty()
    ours.offer(b"x", 1)
    wait_until(lambda: not ours.is_open)
    assert bodies(folder) == [b"x"]


def test_a_folder_that_goes_away_ends_the_capture(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Capture(folder, 5)
    folder.rmdir()
    ours.offer(b"x", 1)
    wait_until(lambda: not ours.is_open)
    (line,) = [r for r in caplog.records if "no more requests" in r.getMessage()]
    assert line.levelno == logging.WARNING
    ours.offer(b"y", 2)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    count=st.integers(1, 6),
    offers=st.lists(
        st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=2)), max_size=40
    ),
)
def test_several_captures_in_any_order(
    tmp_path: Path, count: int, offers: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path / str(next(FOLDERS))
    folder.mkdir()
    captures = [Capture(folder, count) for _ in range(3)]
    kept = []
    for which, body in offers:
        if captures[which].is_open and captures[which].keep(body, len(kept)):
            kept.append(body)
    assert bodies(folder) == sorted(kept)
    assert len(set(kept)) == len(kept) <= count
    assert len(kept) == min(count, len({body for _, body in offers}))
    assert not list(folder.glob(".*"))


WORKER = """
import sys
from pathlib import Path
from procserver.observe.capture import Capture

folder, me, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
capture = Capture(folder, count)
print("up", flush=True)
sys.stdin.readline()
wrote = 0
for i in range(400):
    if not capture.is_open:
        break
    # Every third body is one that the other processes offer too.
    text = f"{i}" if i % 3 == 0 else f"{me} {i}"
    wrote += capture.keep((text * 3000).encode(), i)
print(wrote, capture.is_open)
"""


def test_several_processes_write_exactly_as_many_files(folder: Path) -> None:
    count = 48
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(i), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    answers = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        answers.append(out.split())
    assert files(folder) == [f"warmup_{i:03}.pb" for i in range(count)]
    assert sum(int(wrote) for wrote, _ in answers) == count
    for body in bodies(folder):
        text = body.decode()
        assert text == text[: len(text) // 3000] * 3000, "a torn file"


def test_the_folder_is_made(tmp_path: Path) -> None:
    ours = start_capture(service(tmp_path))
    assert ours is not None
    assert (tmp_path / "warm").stat().st_mode & 0o777 == 0o700
    assert files(tmp_path / "warm") == []
    assert ours.keep(b"x", 1)
    assert files(tmp_path / "warm") == ["warmup_000.pb"]


@pytest.mark.parametrize(
    "model", [{"warmup_data_path": None}, {"warmup_pb_files_count": 0}]
)
def test_no_capture_is_asked_for(tmp_path: Path, model: dict[str, object]) -> None:
    assert start_capture(service(tmp_path, **model)) is None


@pytest.mark.parametrize("place", ["warm", "state/warmup"])
def test_enough_files_are_enough(tmp_path: Path, place: str) -> None:
    wanted = service(tmp_path, warmup_pb_files_count=2)
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "a.pb").write_bytes(b"1")
    ours = start_capture(wanted)
    assert ours is not None
    assert ours.keep(b"x", 1)
    assert not ours.is_open
    (folder / "b.pb").write_bytes(b"2")
    assert start_capture(wanted) is None


def test_an_unwritable_folder_falls_back_to_the_state_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = service(tmp_path, warmup_data_path="m.pt/warm")
    ours = start_capture(wanted)
    assert ours is not None
    assert ours.keep(b"x", 1)
    assert files(tmp_path / "state" / "warmup") == ["warmup_000.pb"]
    (line,) = [r.getMessage() for r in caplog.records]
    assert "captures go to" in line


def test_nowhere_to_write_is_one_more_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = service(tmp_path, warmup_data_path="m.pt/warm")
    (tmp_path / "state").touch()
    assert start_capture(wanted) is None
    assert "no requests are captured" in caplog.text


def test_a_copy_of_a_remote_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "m.pt").touch()
    content = {
        "metadata": {"name": "copied", "instance": 1},
        "processor": "easyrec-torch-1.12",
        "model_path": "m.pt",
        "model_config": {"warmup_data_path": "/warmup"},
        "storage": [{"mount_path": "/warmup", "oss": {"path": "file:///none/here"}}],
        "procserver": {"state_dir": "state"},
    }
    path = tmp_path / "service.json"
    path.write_text(json.dumps(content))
    environ = {"PROCSERVER_ROOT": str(tmp_path / "root")}
    ours = start_capture(config.load(path, environ).service)
    assert ours is not None
    assert ours.keep(b"x", 1)
    assert files(tmp_path / "state" / "warmup") == ["warmup_000.pb"]
