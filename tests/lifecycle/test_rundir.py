"""Who may serve from a state folder, with real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from procserver.errors import ServiceError, StateInUse
from procserver.lifecycle.rundir import Lock
from procserver.shm import this_process

SECONDS = 30.0


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Forks; returns the child's pid and a descriptor that ``work`` writes to."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            work(writer)
        finally:
            os._exit(0)
    os.close(writer)
    return pid, reader


def end(pid: int, signum: int = signal.SIGKILL) -> None:
    os.kill(pid, signum)
    os.waitpid(pid, 0)


def test_only_one_process_has_the_lock(tmp_path: Path) -> None:
    def hold(writer: int) -> None:
        Lock(tmp_path).take()
        os.write(writer, b"x")
        time.sleep(SECONDS)

    pid, reader = in_child(hold)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    with pytest.raises(StateInUse, match=f"process {pid} serves from") as caught:
        Lock(tmp_path).take()
    assert caught.value.pid == pid
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run" / "master.lock").stat().st_mode & 0o777 == 0o600
    # The kernel lets go of it, at once.
    end(pid)
    lock = Lock(tmp_path)
    lock.take()
    assert lock.is_held
    assert (tmp_path / "run" / "master.lock").read_text().split()[0] == str(os.getpid())
    lock.release()
    assert not lock.is_held


def test_a_holder_that_has_not_said_so_yet_is_waited_for(tmp_path: Path) -> None:
    """Between getting the lock and writing who has it is a moment."""

    def hold(writer: int) -> None:
        file = (tmp_path / "run" / "master.lock").open("r+")
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.write(writer, b"x")
        time.sleep(0.1)
        me = this_process()
        os.pwrite(file.fileno(), f"{me.pid}\n{me.started}\n".encode(), 0)
        time.sleep(SECONDS)

    for before in ("", "1\n1\n"):
        lock = tmp_path / "run" / "master.lock"
        lock.parent.mkdir(exist_ok=True)
        lock.write_text(before)
        pid, reader = in_child(hold)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        with pytest.raises(StateInUse, match=f"process {pid} serves from"):
            Lock(tmp_path).take()
        end(pid)


def test_who_has_the_lock_can_be_read_at_any_moment(tmp_path: Path) -> None:
    """Masters come and go while somebody reads; none finds half of it."""

    def take(writer: int) -> None:
        lock = Lock(tmp_path)
        stop = time.monotonic() + 0.5
        while time.monotonic() < stop:
            lock.take()
            lock.release()
        os.write(writer, b"x")

    lock = Lock(tmp_path)
    lock.take()
    lock.release()
    pid, reader = in_child(take)
    reads = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        found = (tmp_path / "run" / "master.lock").read_text().split()
        assert found[0] in (str(os.getpid()), str(pid))
        assert len(found) == 2
        reads += 1
    assert reads > 10
    assert os.read(reader, 1) == b"x"
    os.close(reader)


def test_a_dead_holder_s_child_does_not_have_it(tmp_path: Path) -> None:
    def hold(writer: int) -> None:
        Lock(tmp_path).take()
        child = os.fork()
        if child == 0:
            time.sleep(SECONDS)
            os._exit(0)
        os.write(writer, str(child).encode())
        time.sleep(SECONDS)

    pid, reader = in_child(hold)
    child = int(os.read(reader, 32))
    os.close(reader)
    try:
        end(pid)
        lock = Lock(tmp_path)
        lock.take()
        lock.release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.take()
    lock.release()
    lock.release()

    def take(writer: int) -> None:
        Lock(tmp_path).take()
        os.write(writer, b"x")

    pid, reader = in_child(take)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.waitpid(pid, 0)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="file"):
        Lock(tmp_path / "file").take()
    # A link in the lock's place would have another file written to.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "master.lock").symlink_to(tmp_path / "file")
    with pytest.raises(ServiceError):
        Lock(tmp_path).take()
    assert (tmp_path / "file").read_text() == ""
