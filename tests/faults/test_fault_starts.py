"""Starts, ends and neighbours of whole services."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import history
import pytest
from faulty import AUTH, BODY, DEADLINE, Service, carriers, wait_until
from history import Operation, Promise
from live import Answer, free_port

Make = Callable[..., Service]
# Long enough that a service which waits for it is found out.
LONG = 100


def ended(one: Service) -> int:
    """The exit status, once the master has ended by itself."""
    assert one.process is not None
    one.asked = True
    return one.process.wait(DEADLINE)


def ask(one: Service, signum: int = signal.SIGTERM) -> None:
    one.asked = True
    os.kill(one.pid, signum)


def pid_file(one: Service) -> Path:
    return one.folder / "state" / "run" / "master.pid"


def is_ready(one: Service) -> bool:
    return one.request("GET", "/v2/health/ready").status == 200


def request_bytes(one: Service, body: bytes = BODY) -> bytes:
    head = f"POST /api/predict/{one.name} HTTP/1.1\r\nHost: x\r\n"
    head += f"Authorization: {AUTH['Authorization']}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while chunk := sock.recv(65536):
        parts.append(chunk)
    return b"".join(parts)


class Background:
    """A predict request whose answer is looked at later."""

    def __init__(self, one: Service) -> None:
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self._one = one
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.answer = self._one.predict()
        except Exception as error:
            self.error = error

    def join(self) -> Background:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self


# F03, F04: the master is killed.


def test_f03_a_killed_master_takes_its_workers_along(service: Make) -> None:
    one = service().start()
    family = [*one.workers_now(), one.refresher]
    with one.load(clients=4, pause=0.0):
        one.kill()
        killed = time.monotonic()
        assert one.process is not None
        one.process.wait(DEADLINE)
        # At the first try, without waiting for anything.
        heir = one.launch()
        wait_until(lambda: not set(carriers(one.name)) & set(family))
        # 0.01 s here; idle workers of gunicorn's own would be there for 15 s.
        assert time.monotonic() - killed < 5
    heir.wait_ready()
    assert heir.predict().status == 200
    assert one.text().count("Listening at") == 1, "the port was free"


def test_f04_a_start_removes_what_the_dead_left_and_nothing_else(
    service: Make,
) -> None:
    beside = service(name="beside").start()
    theirs = beside.shm_segments()
    assert theirs
    one = service().start()
    for _ in range(5):
        one.kill()
        assert one.process is not None
        one.process.wait(DEADLINE)
        wait_until(lambda: not carriers(one.name))
        left = one.shm_segments()
        one.start()
        assert not set(left) & set(one.shm_segments())
        assert beside.shm_segments() == theirs
        told = re.search(r"removed (\d+) shared segments of dead owners", one.text())
        assert "taken over: 50 items" in one.text(), "the item cache is no garbage"
        garbage = [n for n in left if n.endswith(".metrics") or ".weights-" in n]
        # Any service that is started on this machine may have been faster.
        if garbage and told is not None and int(told.group(1)) >= len(garbage):
            break
    else:
        pytest.fail("the log tells no count")
    assert beside.predict().status == 200


# F05, F06: the drain.


@dataclasses.dataclass
class Polite:
    """A client that asks for readiness before each request, as a balancer does."""

    one: Service
    seen: list[int] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    turned_away: bool = False

    def run(self) -> None:
        path = f"/v2/models/{self.one.name}/ready"
        try:
            while self.one.request("GET", path, None, AUTH).status == 200:
                self.seen.append(self.one.predict().status)
            self.turned_away = True
        except Exception as error:
            self.errors.append(repr(error))


def test_f05_a_drain_loses_no_request(service: Make) -> None:
    window = 4.0
    host = {"state_dir": "state", "drain_seconds": window}
    one = service(procserver=host).start()
    assert pid_file(one).exists()
    polite = [Polite(one) for _ in range(3)]
    threads = [threading.Thread(target=client.run) for client in polite]
    with one.load(clients=4, pause=0.005) as naive:
        for thread in threads:
            thread.start()
        wait_until(lambda: len(naive.history) > 40 and all(p.seen for p in polite))
        asked = time.monotonic()
        ask(one)
        wait_until(lambda: not is_ready(one))
        told = [one.request("GET", "/v2/health/ready") for _ in range(12)]
        assert {answer.status for answer in told} == {503}, "in every worker"
        assert json.loads(told[0].body) == {
            "ready": False,
            "reason": "the service is being stopped",
        }
        answer = one.predict()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert one.request("GET", "/v2/health/live").status == 200
        assert ended(one) == 0
        for thread in threads:
            thread.join(DEADLINE)
    for client in polite:
        assert client.errors == []
        assert client.turned_away
        assert set(client.seen) == {200}

    def came_too_late(operation: Operation) -> bool:
        """Nobody listened any more; no connection was ever reset."""
        refused = operation.error.startswith("ConnectionRefusedError")
        return refused and operation.began >= asked + window

    history.check(naive.history, Promise(["1"], may_fail=came_too_late))
    served = [o for o in naive.history if o.answered and o.ended > asked]
    assert served, "requests are taken while readiness says no"
    assert not pid_file(one).exists()


def test_f05_who_waits_in_the_backlog_is_served(service: Make) -> None:
    """They have a connection and sent their request; nobody has accepted them yet."""
    one = service(workers=1).start()
    (worker,) = one.workers_now()
    clients = []
    os.kill(worker, signal.SIGSTOP)
    try:
        for _ in range(8):
            client = one.connect()
            client.sendall(request_bytes(one))
            clients.append(client)
        ask(one)
        one.wait_log("stopping: 1 workers")
    finally:
        os.kill(worker, signal.SIGCONT)
    for client in clients:
        with client:
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b"connection: close" in answer.lower()
    assert ended(one) == 0


def test_f05_a_request_under_way_is_answered(service: Make) -> None:
    one = service(faults="").start()
    one.arm("model.run:1:delay=2")
    slow = Background(one)
    wait_until(lambda: in_flight(one) >= 1)
    ask(one)
    assert slow.join().answer is not None, slow.error
    assert slow.answer.status == 200
    assert ended(one) == 0


def in_flight(one: Service) -> float:
    text = one.request("GET", "/metrics").body.decode()
    found = re.findall(r"^procserver_in_flight\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_f06_a_second_signal_ends_the_drain_at_once(
    service: Make, second: signal.Signals
) -> None:
    host = {"state_dir": "state", "drain_seconds": LONG - 1}
    one = service(faults="", metadata=slow_metadata(), procserver=host).start()
    one.arm("model.run:1:hang")
    stuck = Background(one)
    wait_until(lambda: in_flight(one) >= 1)
    ask(one)
    one.wait_log("draining: readiness says 503")
    again = time.monotonic()
    ask(one, second)
    assert ended(one) == 0
    # 0.3 s here, 2 s at most are promised.
    assert time.monotonic() - again < 20
    assert stuck.join().answer is None
    assert one.shm_segments() == []
    assert not pid_file(one).exists()


def test_f06_a_second_signal_while_requests_finish(service: Make) -> None:
    one = service(faults="", metadata=slow_metadata()).start()
    one.arm("model.run:1:hang")
    stuck = Background(one)
    wait_until(lambda: in_flight(one) >= 1)
    ask(one)
    one.wait_log("stopping: 2 workers")
    again = time.monotonic()
    ask(one)
    assert ended(one) == 0
    assert time.monotonic() - again < 20
    assert stuck.join().answer is None
    assert one.shm_segments() == []


def test_f06_an_interrupt_does_not_drain(service: Make) -> None:
    host = {"state_dir": "state", "drain_seconds": LONG - 1}
    one = service(metadata=slow_metadata(), procserver=host).start()
    asked = time.monotonic()
    ask(one, signal.SIGINT)
    assert ended(one) == 0
    assert time.monotonic() - asked < 20
    assert "draining" not in one.text()


def slow_metadata() -> dict[str, object]:
    """A request may take long, and a service may take long to end."""
    rpc = {"worker_threads": 4, "keepalive": LONG * 1000}
    return {"rpc": rpc, "eas": {"termination_grace_period": LONG}}


# F14: the clock.

CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *ahead;

__attribute__((constructor)) static void map_it(void) {
    int fd = open(getenv("TEST_CLOCK"), O_RDONLY);
    void *where = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (fd < 0 || where == MAP_FAILED) abort();
    ahead = where;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *told) {
    int status = syscall(SYS_clock_gettime, id, told);
    if (!status && ahead && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        told->tv_sec += *ahead;
    return status;
}

int gettimeofday(struct timeval *told, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    told->tv_sec = now.tv_sec;
    told->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The wall clock of a service's processes, which a test can set."""

    def __init__(self, folder: Path) -> None:
        source, self.library = folder / "clock.c", folder / "clock.so"
        source.write_text(CLOCK)
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self.library)]
        subprocess.run([*command, str(source)], check=True)
        self.file = folder / "clock"
        self.file.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(self.library), "TEST_CLOCK": str(self.file)}

    def set(self, ahead: int) -> None:
        with self.file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as words:
            words[:] = struct.pack("=q", ahead)


def seconds_ahead(one: Service) -> float:
    date = one.request("GET", "/v2/health/live").headers["date"]
    return parsedate_to_datetime(date).timestamp() - time.time()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_f14_the_wall_clock_may_jump(service: Make, tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    host = {"state_dir": "state", "drain_seconds": 2}
    metadata = slow_metadata()
    one = service(env=clock.env, faults="", metadata=metadata, procserver=host).start()
    workers = one.workers_now()
    with one.load(clients=3) as traffic:
        for jump in (3600, -3600, 0):
            clock.set(jump)
            assert abs(seconds_ahead(one) - jump) < 600, "the test's own clock works"
            count = len(traffic.history)
            wait_until(lambda count=count: len(traffic.history) > count + 100)
            assert is_ready(one)
            for name in ("cache_age_seconds", "uptime_seconds"):
                assert 0 <= one.metric(f"procserver_{name}") < 600
    traffic.check(["1"])
    assert one.workers_now() == workers
    assert one.metric("procserver_worker_deaths_total", cause="signal") == 0
    # gunicorn's own drain ends here: its time is over an hour ago.
    one.arm("model.run:1:delay=3")
    slow = Background(one)
    wait_until(lambda: in_flight(one) >= 1)
    asked = time.monotonic()
    ask(one)
    wait_until(lambda: not is_ready(one))
    clock.set(3600)
    one.wait_log("stopping: 2 workers")
    assert time.monotonic() - asked >= 2, "the window is as long as ever"
    clock.set(-3600)
    assert slow.join().answer is not None, slow.error
    assert slow.answer.status == 200
    assert ended(one) == 0


# F15: neighbours.


def test_f15_a_second_start_is_refused_and_neighbours_are_not(service: Make) -> None:
    one, other = service().start(), service(name="other").start()
    again = dataclasses.replace(
        one, log=one.folder / "again.log", port=free_port(), process=None
    )
    again.launch()
    assert ended(again) == 2
    assert f"process {one.pid} serves from" in again.text()
    assert "Traceback (most" not in again.text()
    assert pid_file(one).read_text().split()[0] == str(one.pid)
    assert not set(one.shm_segments()) & set(other.shm_segments())
    assert pid_file(one) != pid_file(other)
    for path in (one.folder, other.folder):
        assert not list(path.rglob("*.ctl")), "no control socket to fight for"
    # One that is killed and one that ends leave the other alone.
    one.kill()
    assert one.process is not None
    one.process.wait(DEADLINE)
    assert other.predict().status == 200
    one.start()
    assert one.predict().status == 200
    other.stop()
    assert one.predict().status == 200


# F25: the end of a service whose reload goes on.


def test_f25_a_reload_is_given_up(service: Make) -> None:
    host = {"state_dir": "state", "drain_seconds": 1}
    one = service(faults="", procserver=host).start()
    before = one.workers_now()
    one.publish("good2")
    one.arm("model.load:1+:hang")
    with one.load(clients=2) as traffic:
        one.hup()
        wait_until(lambda: len(one.workers_now()) == len(before) + 1)
        asked = time.monotonic()
        ask(one)
        assert ended(one) == 0
        # 3 s here; the new worker would hang for an hour, its boot_seconds are 600.
        assert time.monotonic() - asked < 40
    assert "refused, version 1 stays: the service is being stopped" in one.text()

    def came_too_late(operation: Operation) -> bool:
        return operation.error.startswith("ConnectionRefusedError")

    history.check(traffic.history, Promise(["1"], may_fail=came_too_late))


# F63: rotation.


def test_f63_rotated_logs_lose_no_line(service: Make) -> None:
    host = {"state_dir": "state", "drain_seconds": 0, "access_log": "state/access.log"}
    one = service(procserver=host)
    one.env["GUNICORN_CMD_ARGS"] = f"--log-file {one.log}"
    one.start()
    refresher = one.refresher
    access = one.folder / "state" / "access.log"
    # Connections of their own, so that both workers are asked.
    with one.load(clients=3, pause=0.0, keepalive=False) as traffic:
        for turn in range(3):
            wait_until(access.exists)
            lines = len(traffic.history)
            wait_until(lambda lines=lines: len(traffic.history) > lines + 50)
            access.rename(f"{access}.{turn}")
            one.log.rename(f"{one.log}.{turn}")
            ask(one, signal.SIGUSR1)
            one.asked = False
            wait_until(lambda: one.log.exists() and access.exists())
            wait_until(lambda: not still_open(one, {one.log.name, access.name}))
    wait_until(lambda: access_lines(one) >= len(traffic.history))
    traffic.check(["1"])
    told = [
        json.loads(line)
        for file in access.parent.glob("access.log*")
        for line in file.read_text().splitlines()
    ]
    assert len(told) == len(traffic.history)
    assert {line["status"] for line in told} == {200}
    assert all(line["items"] == 3 and line["ms"]["run"] > 0 for line in told)
    assert {line["model_version"] for line in told} == {"1"}
    assert len({line["pid"] for line in told}) == 2
    # The service's own log goes on in the new file, the old ones stay as they are.
    os.kill(refresher, signal.SIGKILL)
    one.wait_log("refresher started (pid")
    for turn in range(3):
        one.lines += Path(f"{one.log}.{turn}").read_text()


def access_lines(one: Service) -> float:
    return one.metric("procserver_access_log_lines_total", outcome="written")


def still_open(one: Service, names: set[str]) -> list[str]:
    """Moved log files that a process would still write lines to."""
    found = []
    for pid in carriers(one.name):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                path = Path(os.readlink(entry))
            except OSError:
                continue
            # What the shell gave as standard output and error is nobody's log.
            if int(entry.name) > 2 and path.stem in names:
                found.append(f"{pid} {path}")
    return found
