"""The line of connections that wait for any worker."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from procserver.lifecycle.line import Line, Ticket, waiting


@pytest.fixture
def line() -> Iterator[Line]:
    one = Line(1)
    yield one
    one.empty()
    one.close()


def put(line: Line, number: int = 1) -> socket.socket:
    """Puts one end of a new pair into the line; the caller closes the other one."""
    far, near = socket.socketpair()
    assert line.put(near.fileno(), Ticket(number, 2, 3, 4))
    near.close()
    return far


def test_first_come_first_served(line: Line) -> None:
    far = [put(line, number) for number in (5, 6, 7)]
    assert line.waiting() == 3
    for number, end in zip((5, 6, 7), far, strict=True):
        assert line.first() == Ticket(number, 2, 3, 4)
        taken = line.take()
        assert taken is not None
        ticket, fd = taken
        assert ticket == Ticket(number, 2, 3, 4)
        with socket.socket(fileno=fd) as near, end:
            near.sendall(b"hello")
            assert end.recv(9) == b"hello"
    assert line.take() is None
    assert line.first() is None
    assert line.waiting() == 0


def test_who_waits_outlives_the_process_that_put_it_there(line: Line) -> None:
    far, near = socket.socketpair()
    context = multiprocessing.get_context("fork")

    def put_and_die() -> None:
        line.put(near.fileno(), Ticket(1, 1, 0, 0))
        os.kill(os.getpid(), 9)

    child = context.Process(target=put_and_die)
    child.start()
    child.join(60)
    near.close()
    assert line.waiting() == 1
    taken = line.take()
    assert taken is not None
    with socket.socket(fileno=taken[1]) as mine, far:
        far.sendall(b"still here")
        assert mine.recv(99) == b"still here"


def test_a_full_line_takes_no_more(line: Line) -> None:
    far, near = socket.socketpair()
    with far, near:
        count = 0
        while line.put(near.fileno(), Ticket(1, 1, 0, 0)):
            count += 1
            assert count < 1_000_000
        assert line.waiting() == count > 100
        line.empty()
        assert line.waiting() == 0
        assert line.put(near.fileno(), Ticket(1, 1, 0, 0))


def test_emptying_closes_connections(line: Line) -> None:
    with put(line) as far:
        line.empty()
        assert far.recv(1) == b""


def test_threads_may_count_while_lines_are_dropped(line: Line) -> None:
    far = put(line)
    lines = [line]
    counted: list[int] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def count() -> None:
        try:
            while not ended.is_set():
                counted.append(waiting(lines))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for release in range(2, 2000):
            lines.insert(0, Line(release))
            lines.pop(0).close()
            # Someone in an order of removal that a thread may be in the middle of.
            later = Line(release)
            lines.append(later)
            later.close()
            lines.remove(later)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert counted
    assert max(counted) == 1
    assert later.waiting() == 0
    far.close()


def test_the_last_descriptor_is_kept_for_who_waits(line: Line) -> None:
    with put(line) as first, put(line) as second:
        assert line.first() is not None
        taken = line.take()
        assert taken is not None
        os.close(taken[1])
        opened: list[int] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
            for _ in range(200):
                with suppress(OSError):
                    opened.append(os.dup(0))
            taken = line.take()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in opened:
                os.close(fd)
        assert taken is not None
        assert taken[1] >= 0
        with socket.socket(fileno=taken[1]) as near:
            near.sendall(b"x")
            assert second.recv(1) == b"x"
        assert first.recv(1) == b""
