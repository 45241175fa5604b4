"""Causes of deaths, with real children and a control group's file of our own."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

import pytest

from procserver.cgroup import Groups
from procserver.lifecycle.deaths import Ending, OomKills, ending_of

CRASH, KILL = Ending(signum=signal.SIGSEGV), Ending(signum=signal.SIGKILL)


def test_a_worker_that_said_so_left_in_order(tmp_path: Path) -> None:
    kills = OomKills(Groups(tmp_path / "absent", tmp_path))
    assert kills.cause(Ending(code=0), was_ready=True, said_so=True) == "exit"
    assert kills.cause(KILL, was_ready=True, said_so=False) == "signal"
    assert kills.cause(None, was_ready=True, said_so=False) == "signal"
    assert kills.cause(Ending(code=1), was_ready=False, said_so=False) == "boot"


def test_the_kernels_count_tells_kills_for_memory(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 4\noom_kill 2\n")
    (tmp_path / "membership").write_text("0::/\n")
    kills = OomKills(Groups(tmp_path / "membership", tmp_path))
    assert kills.cause(KILL, was_ready=True, said_so=False) == "signal"
    events.write_text("low 0\noom 9\noom_kill 3\n")
    assert kills.cause(KILL, was_ready=True, said_so=False) == "oom"
    assert kills.cause(KILL, was_ready=True, said_so=False) == "signal"
    # Another process of the group was killed, this one crashed.
    events.write_text("low 0\noom 9\noom_kill 4\n")
    assert kills.cause(CRASH, was_ready=True, said_so=False) == "signal"


@pytest.mark.parametrize(
    ("signum", "expected"),
    [
        (0, Ending(code=7)),
        (signal.SIGKILL, KILL),
        (signal.SIGSEGV, CRASH),
    ],
)
def test_how_a_child_ended_is_seen_before_it_is_reaped(
    signum: int, expected: Ending
) -> None:
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        if not signum:
            os._exit(7)
        time.sleep(600)
    try:
        assert signum == 0 or ending_of(pid) is None
    finally:
        os.kill(pid, signum)
    deadline = time.monotonic() + 60
    while ending_of(pid) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ending_of(pid) == ending_of(pid) == expected
    assert expected.by_itself == (signum != signal.SIGKILL)
    os.waitpid(pid, 0)
    assert ending_of(pid) is None
