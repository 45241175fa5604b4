"""F62, F64 and F65: disks that are full, slow or strewn with garbage."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import BODY, Service, request, wait_until

Make = Callable[..., Service]
PATIENCE = 180.0


@pytest.fixture(scope="module")
def logging_(shared: Make, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service that saves each request of debug level 100."""
    folder = tmp_path_factory.mktemp("requests")
    one = shared(
        "good",
        name="disk",
        workers=1,
        faults="",
        model_config={"request_log_path": str(folder / "log")},
    )
    one.requests = folder / "log"  # type: ignore[attr-defined]
    return one.start()


def log_of(service: Service) -> Path:
    found: Path = service.requests  # type: ignore[attr-defined]
    return found


def logged(identity: str = "r1") -> bytes:
    """A request that is saved."""
    message = request()
    message.debug_level = 100
    message.meta_data["request_id"] = identity
    return message.SerializeToString()


def files(service: Service) -> list[Path]:
    """Complete files and drafts of the request log."""
    return sorted(path for path in log_of(service).rglob("*") if path.is_file())


def outcome(service: Service, name: str) -> float:
    return service.metric("procserver_log_entries_total", outcome=name)


def save(service: Service, count: int) -> None:
    """Requests that are answered, whatever becomes of their files."""
    for number in range(count):
        answer = service.predict(logged(f"r{number}"))
        assert answer.status == 200, answer.body


@pytest.mark.parametrize("action", ["enospc", "oserror", "raise"])
def test_f62_a_disk_that_refuses(logging_: Service, action: str) -> None:
    failed, there = outcome(logging_, "failed"), files(logging_)
    logging_.arm(f"log.write:1+:{action}")
    save(logging_, 10)
    wait_until(lambda: outcome(logging_, "failed") == failed + 10)
    assert files(logging_) == there, "no part of a file is left"
    logging_.wait_log("a request was not saved")
    logging_.arm("")
    written = outcome(logging_, "written")
    save(logging_, 3)
    wait_until(lambda: outcome(logging_, "written") == written + 3)
    assert len(files(logging_)) == len(there) + 3


def test_f62_a_full_file_system(service: Make) -> None:
    """The kernel says it: /dev/full has no room for anything."""
    one = service(
        "good",
        name="full",
        workers=1,
        model_config={"request_log_path": "/dev/full/log"},
    )
    one.start()
    save(one, 5)
    wait_until(lambda: outcome(one, "failed") == 5)


def test_f62_a_slow_disk_keeps_nobody_waiting(logging_: Service) -> None:
    dropped, began = outcome(logging_, "dropped"), time.monotonic()
    logging_.arm("log.write:1+:delay=1")
    with logging_.load(4, body=logged(), pause=0.0) as load:
        # The queue is full before half a minute's worth of writing is done.
        wait_until(lambda: outcome(logging_, "dropped") > dropped, PATIENCE)
    logging_.arm("")
    assert all(op.answered for op in load.history)
    writing = outcome(logging_, "written") + outcome(logging_, "dropped")
    assert writing > 0
    seconds = time.monotonic() - began
    assert len(load.history) > 3 * seconds, "requests wait for the disk"
    wait_until(lambda: not [p for p in files(logging_) if p.name.startswith(".")], 120)


NAMES = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    ".hidden",
    "a/b/c",
    "a\\b",
    "with blanks and\nlines\t",
    "NUL\0inside",
    "请求",
    "x" * 5000,
    "~root",
    "$(reboot)",
    "-rf",
    "",
]


def test_f64_names_stay_in_their_folder(logging_: Service) -> None:
    before = set(files(logging_))
    for name in NAMES:
        assert logging_.predict(logged(name)).status == 200
    wait_until(lambda: len(set(files(logging_)) - before) == len(NAMES))
    top = log_of(logging_).resolve()
    for path in set(files(logging_)) - before:
        assert path.resolve().parent.parent == top
        assert len(path.name) < 160
        assert path.name.isascii()
        assert not path.name.startswith(".")
        assert not set(path.name) & set(" \n\t\0/\\$~()")


def test_f65_garbage_to_warm_up_with(service: Make) -> None:
    one = service(
        "good",
        name="garbage",
        workers=1,
        model_config={
            "warmup_data_path": "warm",
            "warmup_pb_files_count": 50,
            "warmup_cnt_per_file": 2,
        },
        procserver={"warmup_seconds": 5, "boot_seconds": 120},
    )
    warm = one.folder / "warm"
    warm.mkdir()
    (warm / "00000.pb").write_bytes(BODY)
    (warm / "00001.pb").write_bytes(b"\xff" * 100)
    (warm / "00002.pb").write_bytes(b"")
    (warm / "00003.txt").write_text("!!! no base64\n\0\n")
    (warm / "00004.bin").write_bytes(os.urandom(5000))
    (warm / "00005.exe").write_bytes(b"MZ")
    (warm / "00006.pb").mkdir()
    os.mkfifo(warm / "00007.pb")
    (warm / "00008.pb").symlink_to("/dev/zero")
    (warm / "00009.pb").symlink_to("/etc/passwd")
    (warm / "00010.pb").symlink_to(warm / "nowhere.pb")
    with (warm / "00011.pb").open("wb") as sparse:
        sparse.truncate(1 << 36)
    for number in range(100, 10_100):
        (warm / f"{number:05d}.pb").write_bytes(BODY)
    one.start()
    ready = one.text()
    assert "warmed up in" in ready
    replayed = one.metric("procserver_warmup_files_total", outcome="replayed")
    skipped = one.metric("procserver_warmup_files_total", outcome="skipped")
    failed = one.metric("procserver_warmup_files_total", outcome="failed")
    # As many as there is time for; each file is counted.
    assert replayed >= 1
    assert failed >= 1
    assert replayed + skipped + failed == 10_012
    assert one.outputs()["build"] == [1.0] * 3


def test_f65_warming_up_ends_in_time(service: Make) -> None:
    one = service(
        "good",
        name="tardy",
        workers=1,
        faults="model.run:7+:delay=0.2",
        model_config={
            "warmup_data_path": "warm",
            "warmup_pb_files_count": 1000,
            "warmup_cnt_per_file": 10,
        },
        procserver={"warmup_seconds": 1},
    )
    warm = one.folder / "warm"
    warm.mkdir()
    for number in range(1000):
        (warm / f"{number}.pb").write_bytes(BODY)
    # All of it would take half an hour.
    began = time.monotonic()
    one.start()
    assert time.monotonic() - began < 90
    one.arm("")
    assert one.outputs()["build"] == [1.0] * 3
