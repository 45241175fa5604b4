"""Messages from children to the master."""

import os
import signal
import time

from procserver.lifecycle.process import die_with_parent
from procserver.lifecycle.reports import Reports


def fork(run) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid


def test_messages_arrive_in_order_and_the_end_is_seen() -> None:
    reports = Reports.open()

    def child() -> None:
        reporter = reports.in_child()
        reporter.send("started", pid=os.getpid())
        reporter.send("ready", text="zwölf\nlines")

    pid = fork(child)
    reports.in_master()
    messages = []
    while not reports.closed:
        messages += reports.wait(5)
    os.waitpid(pid, 0)
    assert [m["event"] for m in messages] == ["started", "ready"]
    assert messages[0]["pid"] == pid
    assert messages[1]["text"] == "zwölf\nlines"


def test_a_killed_child_closes_its_pipe() -> None:
    reports = Reports.open()

    def child() -> None:
        reports.in_child()
        signal.pause()

    pid = fork(child)
    reports.in_master()
    assert reports.poll() == []
    assert not reports.closed
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert reports.wait(5) == []
    assert reports.closed


def test_waiting_ends_at_the_timeout() -> None:
    reports = Reports.open()
    started = time.monotonic()
    assert reports.wait(0.2) == []
    assert 0.15 < time.monotonic() - started < 2
    reports.close()
    reports.in_master()


def test_a_child_dies_with_its_parent() -> None:
    reports = Reports.open()

    def parent() -> None:
        reporter = reports.in_child()
        me = os.getpid()
        grandchild = os.fork()
        if grandchild == 0:
            die_with_parent(me)
            reporter.send("alive", pid=os.getpid())
            signal.pause()
        signal.pause()

    pid = fork(parent)
    reports.in_master()
    messages = reports.wait(5)
    assert messages[0]["event"] == "alive"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while not reports.closed and time.monotonic() < deadline:
        reports.wait(0.5)
    assert reports.closed, "the grandchild still holds the pipe"
