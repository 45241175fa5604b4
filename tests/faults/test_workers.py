"""Workers that die, hang, leak or cannot start."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import (
    BODY,
    CANARIES,
    DEADLINE,
    TROUBLE,
    Service,
    made_of,
    request,
    wait_until,
)
from live import ROOT, Answer, children

Make = Callable[..., Service]
SDK_PYTHON = Path(
    os.environ.get("PROCSERVER_SDK_PYTHON", ROOT / ".venv-sdk" / "bin" / "python")
)
SDK_CLIENT = ROOT / "tests" / "sdk" / "eas_client.py"
# Requests that one of two workers computes at once (four in the service).
TURNS = 2
# Requests that wait do so outside of workers.
SHARED_LINE = importlib.util.find_spec("procserver.lifecycle.line") is not None


def deaths(one: Service, cause: str) -> float:
    return one.metric("procserver_worker_deaths_total", cause=cause)


def readiness(one: Service) -> dict[str, Any]:
    answer = one.request("GET", "/v2/health/ready")
    assert answer.status == 200
    found: dict[str, Any] = json.loads(answer.body)
    return found


def in_background(ask: Callable[[], Answer]) -> Callable[[], Answer | OSError]:
    """Asks in a thread; the result waits for what has come of it."""
    came: list[Answer | OSError] = []

    def run() -> None:
        try:
            came.append(ask())
        except OSError as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> Answer | OSError:
        thread.join(DEADLINE)
        assert came, "neither an answer nor an end"
        return came[0]

    return wait


def poison(one: Service) -> list[Path]:
    return sorted((one.folder / "state" / "poison").glob("[!.]*"))


@pytest.fixture(scope="module")
def good(shared: Make) -> Iterator[Service]:
    rpc = {"worker_threads": 4, "keepalive": 60_000}
    one = shared("good", faults="", metadata={"rpc": rpc}).start()
    yield one
    one.arm("")


def test_f01_only_what_it_computes_dies_with_a_worker(good: Service) -> None:
    before = deaths(good, "signal")
    good.arm("model.run:1+:delay=0.1")
    with good.load(12, pause=0) as load:
        wait_until(lambda: sum(op.answered for op in load.history) > 30)
        victim = good.ready_workers()[0]
        killed = time.monotonic()
        good.kill(victim)
        good.wait_workers()
        came_back = time.monotonic()
        wait_until(lambda: max(op.began for op in load.history) > came_back)
    failed = [op for op in load.history if not op.answered]
    assert all(op.status == 0 for op in failed), failed
    inside = [op for op in failed if op.began < killed]
    # Without the line that worker may have had all connections, or none.
    assert len(inside) <= (TURNS if SHARED_LINE else 12)
    # One that was idle at that moment is found closed; nothing is lost.
    assert len({op.connection for op in failed}) == len(failed) <= 12
    assert deaths(good, "signal") == before + 1
    good.arm("")
    good.predict()


def test_f02_nobody_is_refused_while_all_workers_start_again(good: Service) -> None:
    generation = good.generation()
    before = deaths(good, "signal")
    for pid in good.ready_workers():
        good.kill(pid)
    # Waits in the backlog for the first one that is ready.
    answer = in_background(good.predict)()
    assert isinstance(answer, Answer)
    assert answer.status == 200
    good.wait_workers()
    assert good.generation() == generation
    wait_until(lambda: deaths(good, "signal") == before + 2)
    wait_until(lambda: readiness(good)["state"] == "ready")
    assert readiness(good)["workers"] == {"ready": 2, "wanted": 2}


def test_f13_the_master_never_runs_an_operator(good: Service) -> None:
    # It imports torch, for all workers at once; OpenMP would have made threads.
    assert "libtorch_cpu" in Path(f"/proc/{good.pid}/maps").read_text()
    assert len(os.listdir(f"/proc/{good.pid}/task")) == 1
    assert good.predict().status == 200
    assert len(os.listdir(f"/proc/{good.pid}/task")) == 1


PARALLEL = """
import os, sys
from procserver.lifecycle.boot import _import_for_workers
_import_for_workers()
child = os.fork()
if child == 0:
    import torch
    torch.set_num_threads(4)
    a = torch.ones(600, 600)
    ok = bool((a @ a == 600).all()) and float(torch.ones(1 << 20).sum()) == 1 << 20
    os._exit(0 if ok else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_f13_a_fork_of_what_the_master_imports_runs_in_parallel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARALLEL], cwd=ROOT, timeout=2 * DEADLINE, check=False
    )
    assert done.returncode == 0


def test_f12_the_kernel_takes_workers_before_the_master(good: Service) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    master = score(good.pid)
    assert score(good.refresher) == min(1000, master + 200)
    for pid in good.ready_workers():
        assert score(pid) == min(1000, master + 300)
    assert 'cause="oom"' in good.request("GET", "/metrics").body.decode()


def test_f61_no_process_leaves_a_core_file(good: Service) -> None:
    for pid in (good.pid, *children(good.pid)):
        text = Path(f"/proc/{pid}/limits").read_text()
        [line] = [row for row in text.splitlines() if row.startswith("Max core file")]
        assert line.split()[4:6] == ["0", "0"], line
        [line] = [row for row in text.splitlines() if row.startswith("Max open files")]
        assert line.split()[3] == line.split()[4], "raised as far as it goes"


@pytest.fixture(scope="module")
def loop(shared: Make) -> Service:
    """Never ends with a request that has trouble; three seconds are given."""
    return shared(
        "loop",
        metadata={
            "rpc": {
                "worker_threads": 4,
                "keepalive": 2000,
                # For a main loop: a busy machine must not be taken for a hang.
                "enable_service_hang_detect": True,
                "service_hang_detect_period": 8,
            }
        },
        procserver={"request_kill_seconds": 3},
    ).start()


def test_f07_a_request_without_an_end_ends_its_worker_alone(loop: Service) -> None:
    with loop.load(2, keepalive=False) as load:
        wait_until(lambda: len(load.history) > 5)
        began = time.monotonic()
        stuck = in_background(lambda: loop.predict(TROUBLE))
        wait_until(lambda: "has been computing request" in loop.text())
        assert isinstance(stuck(), OSError), "a closed connection"
        # Ten times what it takes after the limit, on a busy machine.
        assert time.monotonic() - began < 3 + 20
        [victim] = re.findall(r"worker (\d+) has been computing", loop.text())
        wait_until(lambda: int(victim) not in loop.workers_now())
        loop.wait_workers()
        # The other worker goes on; what waits in this one goes with it.
        wait_until(
            lambda: sum(op.answered for op in load.history if op.began > began) > 5
        )
    failed = [op for op in load.history if not op.answered]
    assert all(op.ended > began and op.status in (0, 408) for op in failed), failed
    assert deaths(loop, "stuck") == 1
    assert "died before it was ready" not in loop.text()
    wait_until(lambda: "SIGABRT" in loop.text())
    assert "Fatal Python error: Aborted" in loop.text()
    assert "procserver/model" in loop.text(), "the stacks of all threads"
    wait_until(lambda: TROUBLE in [path.read_bytes() for path in poison(loop)])
    [body] = [path for path in poison(loop) if path.read_bytes() == TROUBLE]
    assert re.fullmatch(r"stuck-[0-9a-f]{16}_[0-9a-f]{16}\.pb", body.name)
    assert body.parent.stat().st_mode & 0o777 == 0o700


def test_f07_what_did_not_end_is_not_tried_again(loop: Service) -> None:
    answer = in_background(lambda: loop.predict(TROUBLE))()
    if isinstance(answer, OSError):
        # Other requests had waited for it: two times make the proof.
        loop.wait_workers()
        answer = loop.predict(TROUBLE)
    assert deaths(loop, "stuck") <= 2
    workers = loop.workers_now()
    answer = loop.predict(TROUBLE)
    assert answer.status == 400
    assert answer.body.startswith(b"[poison_request]")
    assert loop.predict(BODY).status == 200
    assert loop.workers_now() == workers
    assert loop.metric("procserver_poison_requests_total") >= 1


def test_f07_a_worker_whose_main_loop_hangs_is_replaced(loop: Service) -> None:
    """A stopped process does nothing at all, and no handler of its runs."""
    before = deaths(loop, "stuck")
    victim = loop.ready_workers()[0]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: victim not in loop.workers_now(), 2 * DEADLINE)
    loop.wait_workers()
    assert "WORKER TIMEOUT" in loop.text()
    wait_until(lambda: deaths(loop, "stuck") == before + 1)


def test_f08_a_model_that_hangs_ends_the_start(service: Make) -> None:
    one = service("hang", procserver={"boot_seconds": 4})
    one.status = 3
    one.launch()
    assert one.process is not None
    assert one.process.wait(2 * DEADLINE) == 3, one.text()
    text = one.text()
    assert "Timeout (0:00:04)!" in text, "the watchdog"
    assert "procserver/model/runner" in text, "the stacks of all threads"


def test_f08_a_model_that_hangs_is_refused(service: Make) -> None:
    one = service("good", procserver={"boot_seconds": 6}).start()
    with one.load(2) as load:
        bad = one.publish("hang")
        last = one.reload()
    assert last["outcome"] == "refused"
    assert "was not ready in 6 s" in last["reason"]
    assert all(op.answered for op in load.history)
    assert deaths(one, "boot") == 1
    one.withdraw(bad)


@pytest.fixture(scope="module")
def crash(shared: Make) -> Service:
    return shared("crash").start()


def test_f09_a_request_that_crashes_costs_two_workers_at_most(crash: Service) -> None:
    assert SDK_PYTHON.exists(), "no SDK environment: `make test` creates it"
    call = {
        "kind": "torchrec",
        "endpoint": crash.url,
        "service": crash.name,
        "token": CANARIES["token"],
        "user": [["user_id", "u1", "STRING"], ["trouble", 1000.0, "FLOAT"]],
        "items": ["item_1"],
        "retries": 5,
    }
    done = subprocess.run(
        [str(SDK_PYTHON), str(SDK_CLIENT)],
        input=json.dumps(call),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer.get("status") == 400, answer
    assert "poison_request" in answer["text"]
    crash.wait_workers()
    assert 1 <= deaths(crash, "signal") <= 2
    assert "Fatal Python error: Segmentation fault" in crash.text()
    wait_until(lambda: bool(poison(crash)))
    assert all(path.name.startswith("crash-") for path in poison(crash))
    # Everybody else is answered, also with other requests of the same user.
    assert crash.predict().status == 200
    assert crash.predict(request(["item_1"]).SerializeToString()).status == 200


def test_f10_a_start_that_always_fails_ends_soon(service: Make) -> None:
    one = service("good", faults="model.load:1+:raise").launch()
    one.tracebacks = True
    assert one.process is not None
    assert one.process.wait(DEADLINE) == 3
    assert "cannot start" in one.text()
    assert "InjectedFault" in one.text()
    one.status = 3


def test_f10_workers_that_cannot_come_back_are_waited_for(service: Make) -> None:
    one = service("good", faults="").start()
    one.tracebacks = True
    one.arm("model.load:1+:raise")
    with one.load(2, keepalive=False) as load:
        wait_until(lambda: len(load.history) > 5)
        killed = one.kill(one.ready_workers()[0])
        one.wait_log("the next one comes in 2 s")
        found = readiness(one)
        assert found["ready"] is True
        assert found["state"] == "degraded"
        assert found["workers"] == {"ready": 1, "wanted": 2}
        one.arm("")
        one.wait_workers()
        wait_until(lambda: readiness(one)["state"] == "ready")
    assert killed not in one.workers_now()
    failed = [op for op in load.history if not op.answered]
    assert len(failed) <= 2, failed
    assert "next one comes in 1 s" in one.text()
    assert deaths(one, "boot") >= 2


def test_f11_a_worker_that_leaks_is_replaced_before_it_ends(service: Make) -> None:
    limit = 450 << 20
    one = service("leak", workers=1, procserver={"max_rss_bytes": limit}).start()
    first = one.ready_workers()
    with one.load(2, pause=0.2) as load:
        one.wait_log("over max_rss_bytes")
        wait_until(lambda: not set(first) & set(one.workers_now()), 2 * DEADLINE)
    assert all(op.answered for op in load.history), "no request was lost"
    wait_until(lambda: deaths(one, "memory") >= 1)
    assert deaths(one, "oom") == deaths(one, "signal") == 0
    text = one.text()
    ready = [m.start() for m in re.finditer(r"worker \d+ is ready", text)]
    assert ready[1] < text.index(f"Worker exiting (pid: {first[0]})")


def test_f11_in_place_no_more_workers_than_there_should_be(service: Make) -> None:
    one = service(
        "leak",
        procserver={"max_rss_bytes": 450 << 20, "reload_mode": "in_place"},
    ).start()
    first = one.ready_workers()
    most = 0
    with one.load(2, pause=0.1, keepalive=False) as load:
        deadline = time.monotonic() + 2 * DEADLINE
        while len(one.ready_workers()) < 2 or not set(first) - set(one.workers_now()):
            assert time.monotonic() < deadline
            most = max(most, len(one.workers_now()))
            time.sleep(0.02)
    assert most <= 2
    assert all(op.answered for op in load.history), "the other one answers"
    wait_until(lambda: deaths(one, "memory") >= 1)


def test_f27_without_memory_for_another_worker_a_reload_is_refused(
    service: Make,
) -> None:
    one = service("good", env={"PROCSERVER_FREE_MEMORY": str(1 << 20)}).start()
    with one.load(2) as load:
        one.publish("good2")
        last = one.reload()
    assert last["outcome"] == "refused"
    assert re.search(r"\d+ bytes needed, 1048576 free", last["reason"])
    assert last["version"] == "1"
    assert all(op.answered for op in load.history)


def test_f27_a_reload_in_place_needs_no_memory_for_another_worker(
    service: Make,
) -> None:
    one = service(
        "good",
        env={"PROCSERVER_FREE_MEMORY": str(1 << 20)},
        procserver={"reload_mode": "in_place"},
    ).start()
    most = 0
    with one.load(2, keepalive=False) as load:
        for version in ("2", "3"):
            one.publish("good2")
            number = one.last_reload()["number"] + 1
            one.hup()
            while one.last_reload()["number"] < number:
                most = max(most, len(one.workers_now()))
            assert one.last_reload()["version"] == version
            one.wait_workers()
        bad = one.publish("nan")
        assert one.reload()["outcome"] == "refused"
        one.wait_workers()
        one.withdraw(bad)
    assert most <= 2, "never one worker more"
    assert all(op.answered for op in load.history), "another worker answers meanwhile"
    assert made_of(one.predict().body)[1] == {2.0}
