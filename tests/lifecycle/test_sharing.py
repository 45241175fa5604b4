"""Which requests may wait for any worker, and whom they are left to."""

from __future__ import annotations

import time

import pytest

from procserver.lifecycle.admission import Admission, SharedCounts
from procserver.lifecycle.arrival import may_wait
from procserver.lifecycle.line import Line
from procserver.lifecycle.sharing import HEAD_START, Sharing
from procserver.wire.auth import Authenticator

TOKEN = "dG9rZW4="
GOOD = f"POST /x HTTP/1.1\r\nAuthorization: {TOKEN}\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (GOOD, True),
        (GOOD + "123456789POST /next HTTP/1.1\r\n\r\n", True),
        (GOOD.replace("Content-Length: 9", "Transfer-Encoding: chunked"), True),
        (GOOD.replace("Content-Length: 9", "content-length:100"), True),
        (GOOD.replace("Content-Length: 9", "Content-Length: 101"), False),
        (GOOD.replace("Content-Length: 9", "Content-Length: 9" + "9" * 30), False),
        (GOOD.replace("Content-Length: 9", "Content-Length: -1"), False),
        (GOOD.replace("Content-Length: 9", "Content-Length: ²"), False),
        (GOOD.replace("/1.1\r\n", "/1.1\r\nTransfer-Encoding: chunked\r\n"), False),
        (GOOD.replace("/1.1\r\n", "/1.1\r\ncontent-length: 9\r\n"), False),
        (GOOD.replace("/1.1\r\n", "/1.1\r\nBad Name: 9\r\n"), False),
        (GOOD.replace("/1.1\r\n", "/1.1\r\nA: b\r\n c\r\n"), False),
        (GOOD.replace(TOKEN, "other"), False),
        (GOOD.replace("POST", "GET"), False),
        (GOOD.replace("POST", "post"), False),
        (GOOD.replace("/x", "/x y"), False),
        (GOOD[:-2], False),
        ("POST", False),
        ("", False),
        ("\r\n\r\n", False),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False),
    ],
)
def test_only_what_will_be_computed_may_wait(head: str, expected: bool) -> None:
    assert may_wait(head.encode(), Authenticator(TOKEN), 100) == expected


def sharing(counts: SharedCounts, slot: int, capacity: int = 1) -> Sharing:
    limits = {"rate": 0, "most": 9, "most_here": 9, "turns": 2}
    return Sharing(
        counts,
        slot,
        [Line(2), Line(1)],
        Admission(counts, slot, **limits),
        capacity=capacity,
    )


def close(*ones: Sharing) -> None:
    for one in ones:
        for line in one.lines:
            line.close()


def test_a_worker_puts_into_its_own_line_and_takes_from_older_ones() -> None:
    one = sharing(SharedCounts(), 0)
    assert one.line.release == 2
    assert [line.release for line in one.lines] == [1, 2]
    close(one)


def test_the_others() -> None:
    counts = SharedCounts()
    one = sharing(counts, 0)
    for slot in range(3):
        counts.open_slot(slot, 2)
    assert one.others() == (False, False)
    counts.start_taking(0, 2)
    assert one.others() == (False, False)
    # An older release's never takes what has seen a later one.
    counts.start_taking(1, 1)
    assert one.others() == (False, False)
    counts.start_taking(1, 2)
    assert one.others() == (True, True)
    counts.add_busy(1, 1)
    assert one.others() == (True, False)
    counts.start_taking(2, 3)
    assert one.others() == (True, True)
    counts.stop_taking(2)
    counts.clear_slot(1)
    assert one.others() == (False, False)
    close(one)


def test_whose_request_it_is() -> None:
    counts = SharedCounts()
    narrow, wide = sharing(counts, 0), sharing(counts, 1, capacity=3)
    for slot in (0, 1):
        counts.open_slot(slot, 2)
        counts.start_taking(slot, 2)
    now, before = time.monotonic_ns(), time.monotonic_ns() - 10 * int(HEAD_START * 1e9)
    assert narrow.has_room(now)
    assert wide.has_room(now)
    counts.add_busy(1, 1)
    # The idle one comes first, but must not keep the other from it for long.
    assert wide.has_room(now) == (time.monotonic_ns() - now > HEAD_START * 1e9)
    assert wide.has_room(before)
    counts.add_busy(0, 1)
    assert not narrow.has_room(before)
    assert wide.has_room(time.monotonic_ns())
    counts.add_busy(1, 2)
    assert not wide.has_room(before)
    close(narrow, wide)


def test_lines_of_releases_without_workers_are_dropped() -> None:
    counts = SharedCounts()
    one = sharing(counts, 0)
    counts.open_slot(0, 2)
    counts.open_slot(1, 1)
    assert one.forget_lines() == []
    counts.clear_slot(1)
    (dropped,) = one.forget_lines()
    assert dropped.release == 1
    assert [line.release for line in one.lines] == [2]
    dropped.close()
    close(one)


def test_who_waits_counts_as_inside() -> None:
    counts = SharedCounts()
    waiting = [0]
    admission = Admission(
        counts, 0, rate=0, most=2, most_here=9, turns=1, waiting=lambda: waiting[0]
    )
    counts.open_slot(0)
    with admission.enter():
        assert not admission.is_full
        waiting[0] = 1
        assert admission.is_full
        assert admission.inside() == 2
