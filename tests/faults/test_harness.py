"""The harness itself: it sees what it is to see."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fault_models
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


TRIAL = """
import os, sys, torch
torch.set_num_threads(1)
for name in sorted(os.listdir(sys.argv[1])):
    for trouble in (0.0, 1.0):
        if os.fork() == 0:
            import signal
            # Seconds of computing, whatever else the machine does.
            signal.setitimer(signal.ITIMER_PROF, 1.5)
            module = torch.jit.load(f"{sys.argv[1]}/{name}/scripted_model.pt")
            column = lambda value: torch.full([2, 1], value)
            data = {
                "user_id.values": torch.tensor([1, 2]),
                "user_id.lengths": torch.ones(2),
                "price.values": column(3.0),
                "build.values": column(7.0),
                "trouble.values": column(trouble),
            }
            outputs = module(data)
            score = outputs.get("score", outputs["mark"])
            print(sorted(outputs), outputs["mark"].tolist(), outputs["build"].tolist(),
                  bool(torch.isnan(score).all()), flush=True)
            os._exit(0)
        _, status = os.wait()
        print(name, trouble, os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.faults
def test_models_do_what_they_are_for(models: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", TRIAL, str(models)],
        capture_output=True,
        text=True,
        check=True,
    )
    found, said = {}, ""
    for line in run.stdout.splitlines():
        if line.startswith("["):
            said = line
            continue
        name, trouble, status = line.split()
        found[name, float(trouble)] = (int(status), said)
        said = ""
    usual = "['build', 'mark', 'score'] [1.0, 1.0] [7.0, 7.0] False"
    hangs, crashes = (-signal.SIGPROF, ""), (-signal.SIGSEGV, "")
    expected = {
        "good": (0, usual),
        "good2": (0, usual.replace("1.0", "2.0")),
        "hang": hangs,
        "fatal": crashes,
        "renamed": (0, usual.replace("'mark', 'score'", "'mark', 'other'")),
        "nan": (0, usual.replace("False", "True")),
        "leak": (0, usual),
        "loop": (0, usual),
        "crash": (0, usual),
    }
    assert set(expected) == set(fault_models.MODELS)
    assert found == {
        **{(name, 0.0): end for name, end in expected.items()},
        **{(name, 1.0): end for name, end in expected.items()},
        ("loop", 1.0): hangs,
        ("crash", 1.0): crashes,
    }
