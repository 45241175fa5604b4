"""The harness itself: it sees what it is to see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faulty import AUTH, CANARIES, DEADLINE, Service, carriers, wait_until
from history import Promise, check


def test_a_service_from_start_to_end(service: Callable[..., Service]) -> None:
    one = service("good", faults="").start()
    assert "fails on purpose" in one.text()
    outputs = one.outputs()
    assert outputs["build"] == [1.0] * 3
    assert outputs["mark"] == [1.0] * 3
    assert len(one.ready_workers()) == 2
    assert one.shm_segments()
    assert len(carriers(one.name)) == 4
    with one.load(3) as load, one.load(1, keepalive=False) as unkept:
        one.publish("good2")
        last = one.reload()
        assert last["outcome"] == "done", last
        one.kill(one.workers_now()[0])
        one.wait_workers()
        one.refresh(2)
        one.arm("model.run:1:oserror")
        wait_until(lambda: any(not op.answered for op in load.history + unkept.history))
    # The checker has seen all of it.
    both = [*load.history, *unkept.history]
    assert {op.version for op in both if op.answered} == {"1", "2"}
    assert {op.generation for op in both if op.answered} >= {1, 2}
    assert len({op.connection for op in unkept.history}) == len(unkept.history)
    check(load.history, Promise(one.order, may_fail=lambda op: True))
    one.tracebacks = True


def test_what_is_left_is_seen(service: Callable[..., Service]) -> None:
    one = service("good", workers=1).start()
    assert one.shm_segments()
    assert carriers(one.name)
    one.captured += CANARIES["password"].encode()
    with pytest.raises(AssertionError, match="password in answers"):
        one.check_quiet()
    one.captured.clear()
    with one.log.open("ab") as file:
        file.write(b"Traceback (most recent call last)\n")
    with pytest.raises(AssertionError, match="Traceback"):
        one.check_quiet()
    one.tracebacks = True
    assert one.request("GET", "/", None, AUTH).status == 200


def test_wrong_faults_stop_the_start(service: Callable[..., Service]) -> None:
    one = service("good", env={"PROCSERVER_FAULTS": "cache.wrote:1:kill"}).launch()
    assert one.process is not None
    assert one.process.wait(DEADLINE) == 4
    assert "is not point:call:action" in one.text()
    one.status = 4
