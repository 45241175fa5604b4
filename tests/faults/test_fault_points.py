"""Fault points: nothing without the variable, and what they say with it."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live import ROOT

from procserver import faults, shm
from procserver.errors import ConfigError
from procserver.faults import Armed, Fault, InjectedFault
from procserver.itemcache import building, delta, following, writer
from procserver.lifecycle import reload
from procserver.model import runner
from procserver.observe import spool


def test_unset_points_are_one_function_that_does_nothing() -> None:
    assert faults.VARIABLE not in os.environ
    for module in (building, delta, following, reload, runner, shm, spool, writer):
        assert module.hit is faults._nothing
    # Neither globals nor other names: nothing is looked up, nothing is called.
    assert faults._nothing.__code__.co_names == ()
    assert faults._nothing("model.run") is None


def test_every_point_is_somewhere_and_nowhere_else() -> None:
    found = set()
    for path in (ROOT / "procserver").rglob("*.py"):
        if path.name != "faults.py":
            found |= set(re.findall(r'\bhit\("([a-z.]+)"\)', path.read_text()))
    assert found == set(faults.POINTS)


def test_the_nth_call_once() -> None:
    armed = Armed("cache.write:3:raise")
    for _ in range(2):
        armed.hit("cache.write")
    armed.hit("cache.alloc")
    with pytest.raises(InjectedFault, match=r"cache\.write, call 3"):
        armed.hit("cache.write")
    armed.hit("cache.write")


def test_from_the_nth_call_on_and_several_points() -> None:
    armed = Armed("cache.write:2+:enospc, source.read:1:oserror")
    armed.hit("cache.write")
    for _ in range(3):
        with pytest.raises(OSError, match="No space") as caught:
            armed.hit("cache.write")
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="error") as caught:
        armed.hit("source.read")
    assert caught.value.errno == errno.EIO
    armed.hit("source.read")


def test_a_delay_takes_its_time() -> None:
    armed = Armed("model.run:1:delay=0.2")
    began = time.monotonic()
    armed.hit("model.run")
    assert time.monotonic() - began >= 0.2


def forked(act: Callable[[], object]) -> int:
    """The status of a child that does this."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(7)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_children_count_together_and_one_is_killed_once() -> None:
    armed = Armed("cache.publish:2:kill")
    ends = [forked(lambda: armed.hit("cache.publish")) for _ in range(4)]
    assert ends == [7, -signal.SIGKILL, 7, 7]


def test_a_file_arms_what_runs(tmp_path: Path) -> None:
    told = tmp_path / "faults"
    armed = Armed(f"@{told}")
    armed.hit("model.run")
    told.write_text("model.run:2:raise")
    armed.hit("model.run")
    # Another process counts on where this one is.
    assert forked(lambda: armed.hit("source.read")) == 7
    with pytest.raises(InjectedFault):
        armed.hit("model.run")
    draft = tmp_path / "draft"
    draft.write_text("model.run:1:raise")
    draft.replace(told)
    with pytest.raises(InjectedFault):
        armed.hit("model.run")
    told.unlink()
    armed.hit("model.run")


@pytest.mark.parametrize(
    "told",
    [
        "cache.write",
        "cache.write:1",
        "cache.write:0:kill",
        "cache.write:x:kill",
        "cache.wrote:1:kill",
        "cache.write:1:explode",
        "cache.write:1:delay",
        "cache.write:1:delay=long",
        "cache.write:1:kill=2",
    ],
)
def test_what_cannot_be_read_is_refused(told: str) -> None:
    with pytest.raises(ConfigError, match="is not point:call:action"):
        Fault.read(told)
    run = subprocess.run(
        [sys.executable, "-c", "from procserver import faults; faults.announce()"],
        env={**os.environ, faults.VARIABLE: told},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "is not point:call:action" in run.stderr


def test_armed_faults_are_announced() -> None:
    code = (
        "import logging; logging.basicConfig(level='INFO');"
        "from procserver import faults; faults.announce()"
    )
    for told, said in [("cache.write:3:kill", True), ("", False)]:
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, faults.VARIABLE: told},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        wanted = "fails on purpose: cache.write:3:kill"
        assert (wanted in run.stderr) is said
        assert ("WARNING" in run.stderr) is said
