"""Rate, queue and turns: the words that all workers share."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest

from procserver.errors import OutOfTime, QueueFull, TooManyRequests
from procserver.lifecycle.admission import Admission, SharedCounts

SECOND = 1_000_000_000


def admission(counts: SharedCounts, slot: int = 0, **changes: int) -> Admission:
    limits = {"rate": 0, "most": 100, "most_here": 100, "turns": 2, **changes}
    return Admission(counts, slot, **limits)


def soon() -> float:
    return time.monotonic() + 30


@pytest.mark.parametrize("rate", [1, 3, 100, 10_000_000])
def test_the_rate_is_kept_after_a_second_at_once(rate: int) -> None:
    counts = SharedCounts()
    now = 50 * SECOND
    taken = sum(counts.take_turn(rate, now) for _ in range(min(2 * rate, 1000)))
    assert taken == min(rate, 1000)
    if rate > 1000:
        return
    later = sum(
        counts.take_turn(rate, now + i * SECOND // (2 * rate))
        for i in range(1, 20 * rate + 1)
    )
    assert later == 10 * rate
    # Nothing is saved up beyond a second.
    idle = now + 1000 * SECOND
    assert sum(counts.take_turn(rate, idle) for _ in range(2 * rate)) == rate


def test_the_rate_holds_for_all_processes() -> None:
    counts = SharedCounts()
    now = 50 * SECOND
    context = multiprocessing.get_context("fork")
    pipes = [os.pipe() for _ in range(4)]

    def take(writer: int) -> None:
        taken = sum(counts.take_turn(1000, now) for _ in range(1000))
        os.write(writer, str(taken).encode())

    children = [context.Process(target=take, args=(w,)) for _, w in pipes]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    taken = [int(os.read(reader, 100)) for reader, _ in pipes]
    assert sum(taken) == 1000
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_over_the_rate_nobody_enters() -> None:
    counts = SharedCounts()
    counts.open_slot(0)
    door = admission(counts, rate=1)
    with door.enter():
        pass
    with pytest.raises(TooManyRequests), door.enter():
        pass
    assert counts.inside() == 0


def test_places_are_of_the_whole_service() -> None:
    counts = SharedCounts()
    for slot in (0, 1):
        counts.open_slot(slot)
    first, second = (admission(counts, slot, most=3) for slot in (0, 1))
    with first.enter(), first.enter(), second.enter():
        assert counts.inside() == 3
        for door in (first, second):
            with pytest.raises(QueueFull), door.enter():
                pass
        assert counts.inside() == 3
    assert counts.inside() == 0


def test_places_of_one_worker() -> None:
    counts = SharedCounts()
    counts.open_slot(0)
    door = admission(counts, most_here=1)
    with door.enter(), pytest.raises(QueueFull), door.enter():
        pass
    with door.enter():
        pass


def test_a_killed_workers_requests_are_not_counted() -> None:
    counts = SharedCounts()
    for slot in (0, 1):
        counts.open_slot(slot)
    gone, other = admission(counts, 0), admission(counts, 1)
    stay = gone.enter()
    stay.__enter__()
    with other.enter():
        assert counts.inside() == 2
        # The master, before it forks the successor.
        counts.open_slot(0)
        assert counts.inside() == 1
    assert counts.inside() == 0


def test_an_error_inside_gives_the_place_back() -> None:
    counts = SharedCounts()
    counts.open_slot(0)
    door = admission(counts, turns=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), door.enter(), door.turn(soon()):
            raise ZeroDivisionError
    assert counts.inside() == 0


def test_turns_are_waited_for_until_the_deadline() -> None:
    door = admission(SharedCounts(), turns=1)
    with door.turn(soon()):
        with pytest.raises(OutOfTime), door.turn(time.monotonic() + 0.05):
            pass
        with pytest.raises(OutOfTime), door.turn(time.monotonic() - 1):
            pass
    entered = threading.Event()
    with door.turn(soon()):

        def wait() -> None:
            with door.turn(soon()):
                entered.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not entered.wait(0.1)
    assert entered.wait(30)
    waiter.join()


def test_late_work_is_not_answered() -> None:
    door = admission(SharedCounts(), turns=1)
    with pytest.raises(OutOfTime), door.turn(time.monotonic() + 0.02):
        time.sleep(0.05)
    with door.turn(soon()):
        pass


def test_slots_are_bounded() -> None:
    counts = SharedCounts()
    for slot in (-1, 4096):
        with pytest.raises(ValueError, match="slot"):
            counts.open_slot(slot)
