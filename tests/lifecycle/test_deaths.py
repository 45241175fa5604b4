"""Causes of deaths, with a control group's file of our own."""

from pathlib import Path

from procserver.lifecycle.deaths import OomKills


def test_a_worker_that_said_so_left_in_order(tmp_path: Path) -> None:
    kills = OomKills(tmp_path / "absent")
    assert kills.cause(was_ready=True, said_so=True) == "exit"
    assert kills.cause(was_ready=True, said_so=False) == "signal"
    assert kills.cause(was_ready=False, said_so=False) == "boot"


def test_the_kernels_count_tells_kills_for_memory(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 4\noom_kill 2\n")
    kills = OomKills(events)
    assert kills.cause(was_ready=True, said_so=False) == "signal"
    events.write_text("low 0\noom 9\noom_kill 3\n")
    assert kills.cause(was_ready=True, said_so=False) == "oom"
    assert kills.cause(was_ready=True, said_so=False) == "signal"
