"""Limits of time and memory, and what our processes ask of the kernel."""

from __future__ import annotations

import json
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from procserver.errors import ServiceError
from procserver.lifecycle import memory
from procserver.lifecycle.process import (
    allow_open_files,
    no_core_dumps,
    rather_kill_me,
)
from procserver.lifecycle.settings import Settings, read_settings

SIZE = 64 << 20


def settings(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    rpc: dict[str, Any],
    host: dict[str, Any],
) -> Settings:
    content = {
        "metadata": {"name": "svc", "instance": 1, "rpc": rpc},
        "processor": "easyrec-torch-1.12",
        "model_path": "m.pt",
        "procserver": host,
    }
    (folder / "service.json").write_text(json.dumps(content))
    monkeypatch.setenv("PROCSERVER_CONFIG", str(folder / "service.json"))
    return read_settings()


DETECT = {"enable_service_hang_detect": "true"}


@pytest.mark.parametrize(
    ("rpc", "host", "kill", "silent"),
    [
        ({}, {}, 30.0, 30),
        ({}, {"request_kill_seconds": 7.5}, 7.5, 30),
        ({}, {"request_kill_seconds": 2}, 5.0, 30),
        ({"keepalive": 500}, {"request_kill_seconds": 2}, 2.0, 30),
        ({"keepalive": 60_000}, {}, 60.0, 30),
        ({"service_hang_detect_period": 9}, {}, 30.0, 30),
        ({**DETECT}, {}, 30.0, 30),
        ({**DETECT, "service_hang_detect_period": 9.5}, {}, 9.5, 10),
        (
            {**DETECT, "service_hang_detect_period": 90},
            {"request_kill_seconds": 12},
            12.0,
            90,
        ),
    ],
)
def test_how_long_a_worker_may_be_silent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rpc: dict[str, Any],
    host: dict[str, Any],
    kill: float,
    silent: int,
) -> None:
    found = settings(tmp_path, monkeypatch, rpc, host)
    assert (found.kill_seconds, found.timeout) == (kill, silent)
    assert not [line for line in found.remarks if "hang" in line]


def test_shared_memory_is_not_a_processs_own() -> None:
    pid = os.getpid()
    before, cheap_before = memory.own(pid), memory.own_at_most(pid)
    assert before is not None
    assert cheap_before is not None
    assert 0 < before <= cheap_before + (1 << 20)
    with mmap.mmap(-1, SIZE) as shared:
        shared[:] = b"1" * SIZE
        after = memory.own(pid)
        assert after is not None
        assert after - before < SIZE // 2
        kept = bytearray(b"1" * SIZE)
        more = memory.own(pid)
        assert more is not None
        assert more - after > SIZE * 3 // 4
        assert (memory.own_at_most(pid) or 0) - cheap_before > SIZE * 3 // 4
        del kept
    assert memory.own(1 << 30) is None
    assert memory.own_at_most(1 << 30) is None


@pytest.mark.parametrize(
    ("shared", "free", "fits"),
    [
        (True, 1_799, False),
        (True, 1_800, True),
        (False, 1_199, False),
        (False, 1_200, True),
    ],
)
def test_room_for_one_more_worker(
    monkeypatch: pytest.MonkeyPatch, shared: bool, free: int, fits: bool
) -> None:
    weights = SimpleNamespace(published=shared)
    member = SimpleNamespace(pid=1, release=SimpleNamespace(weights=weights))
    state = SimpleNamespace(serving=lambda: [member])
    monkeypatch.setattr(memory, "master", lambda: state)
    monkeypatch.setattr(memory, "own", lambda pid: 1000)
    monkeypatch.setattr(memory, "total_bytes", lambda package: 500)
    monkeypatch.setenv(memory.PRETEND, str(free))
    new: Any = SimpleNamespace(package=None)
    if fits:
        memory.check_room_for(new)
        return
    with pytest.raises(ServiceError, match=f"{free + 1} bytes needed, {free} free"):
        memory.check_room_for(new)


def in_a_child(check: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            ok = check()
        finally:
            os._exit(0 if ok else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_process_without_core_files() -> None:
    def check() -> bool:
        no_core_dumps()
        return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)

    assert in_a_child(check)


@pytest.mark.parametrize(("soft", "hard"), [(50, 200), (200, 200)])
def test_open_files_as_far_as_it_goes(soft: int, hard: int) -> None:
    def check() -> bool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = allow_open_files()
        return (most, most) == resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)

    assert in_a_child(check)


def test_who_goes_first_when_memory_runs_out() -> None:
    def check() -> bool:
        file = Path("/proc/self/oom_score_adj")
        before = int(file.read_text())
        rather_kill_me(150)
        once = int(file.read_text())
        rather_kill_me(2000)
        return (once, int(file.read_text())) == (min(1000, before + 150), 1000)

    assert in_a_child(check)
