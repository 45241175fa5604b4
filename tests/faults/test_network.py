"""Clients that are slow, many, or gone; and a process without descriptors."""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny
import torch
from faulty import AUTH, BODY, CANARIES, DEADLINE, Service, wait_until
from live import Answer, LiveServer

from procserver.wire.pb.torch_predict_pb2 import PredictRequest

Make = Callable[..., Service]
RESET = struct.pack("ii", 1, 0)


def limits(**rpc: int) -> dict[str, dict[str, int]]:
    return {"rpc": rpc}


@pytest.fixture(scope="module")
def brisk(shared: Make) -> Service:
    """Eight threads in each of two workers; a request has three seconds."""
    rpc = limits(worker_threads=2, max_queue_size=4, keepalive=3000)
    return shared("good", faults="", metadata=rpc).start()


def head(service: Service, *, length: int = len(BODY)) -> bytes:
    return (
        f"POST /api/predict/{service.name} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {CANARIES['token']}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def until_end(sock: socket.socket) -> bytes:
    """All that still comes, until the server ends the connection."""
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def counted(service: Service, status: str) -> float:
    return service.metric("procserver_requests_total", status=status)


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
def test_f52_slow_clients_take_no_thread(brisk: Service, part: str) -> None:
    sent = {
        "nothing": b"",
        "head": head(brisk)[:-4],
        "body": head(brisk) + BODY[:5],
    }[part]
    with ExitStack() as stack:
        slow = [stack.enter_context(brisk.connect()) for _ in range(64)]
        for sock in slow:
            sock.sendall(sent)
        assert brisk.predict().status == 200
        # It did not wait until they were cut.
        assert select.select(slow, [], [], 0)[0] == []
        assert brisk.request("GET", "/v2/health/ready").status == 200
        if sent:
            for sock in slow:
                answer = until_end(sock)
                assert answer.startswith(b"HTTP/1.1 408"), answer
                assert b"[out_of_time]" in answer
        else:
            slow[0].sendall(head(brisk) + BODY)
            assert slow[0].recv(12) == b"HTTP/1.1 200"
    assert brisk.predict().status == 200


def test_f53_a_drip_does_not_prolong_a_request(brisk: Service) -> None:
    for start in (head(brisk)[:10], head(brisk), head(brisk, length=1 << 20)):
        with brisk.connect() as sock:
            sock.sendall(start)
            began = time.monotonic()
            while not select.select([sock], [], [], 0.2)[0]:
                assert time.monotonic() < began + DEADLINE
                sock.sendall(b"x")
            assert until_end(sock).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - began > 2.5


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("length", [len(BODY), 1 << 20])
def test_f54_gone_in_the_body(brisk: Service, how: str, length: int) -> None:
    before = counted(brisk, "499")
    with brisk.connect() as sock:
        sock.sendall(head(brisk, length=length) + BODY[:5])
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wait_until(lambda: counted(brisk, "499") == before + 1)
    wait_until(lambda: in_flight(brisk) == 0)


def test_f54_gone_before_the_answer(brisk: Service) -> None:
    before = counted(brisk, "499")
    brisk.arm("model.run:1+:delay=1")
    with brisk.connect() as sock:
        sock.sendall(head(brisk) + BODY)
        wait_until(lambda: in_flight(brisk) == 1)
    brisk.arm("")
    wait_until(lambda: counted(brisk, "499") == before + 1)
    wait_until(lambda: in_flight(brisk) == 0)
    assert brisk.predict().status == 200


def in_flight(service: Service) -> float:
    return sum(
        service.metric("procserver_in_flight", process=f"worker-{slot}")
        for slot in range(4)
    )


class Wide(torch.nn.Module):
    """Answers with as many values as it is told."""

    def forward(self, count: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(count[0]))


def test_f55_a_slow_reader_is_cut(tmp_path: Path) -> None:
    config = tiny.write_bypass(tmp_path, "wide")
    torch.jit.script(Wide()).save(str(tmp_path / "doubler.pt"))
    server = LiveServer(config, tmp_path / "server.log", workers=1).start()
    try:
        read_slowly(server)
    finally:
        server.stop()


def read_slowly(server: LiveServer) -> None:
    request = PredictRequest()
    array = request.inputs.add(dtype=9)
    array.array_shape.dim.append(1)
    array.int64_val.append(8_000_000)
    body = request.SerializeToString()
    start = (
        f"POST /api/predict/wide HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: {tiny.TOKEN}\r\n\r\n"
    )
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(start.encode() + body)
        sock.settimeout(DEADLINE)
        began = time.monotonic()

        def is_cut() -> bool:
            sock.recv(1)
            text = server.request("GET", "/metrics").body
            return b"\nprocserver_unread_answers_total 1" in text

        while not is_cut():
            assert time.monotonic() < began + 4 * DEADLINE
            time.sleep(1)
        # Bytes that were read do not prolong it.
        assert time.monotonic() - began > 25


def ask_all(service: Service, count: int) -> list[tuple[Answer, float]]:
    """So many requests at once, and how long each answer took."""
    answers: list[tuple[Answer, float]] = []

    def ask() -> None:
        began = time.monotonic()
        answer = service.predict()
        answers.append((answer, time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE)
    assert len(answers) == count
    return answers


def test_f56_a_full_queue_refuses_at_once(service: Make) -> None:
    rpc = limits(worker_threads=2, max_queue_size=4, keepalive=60_000)
    one = service("good", faults="", metadata=rpc).start()
    before = counted(one, "200")
    one.arm("model.run:1+:delay=4")
    answers = ask_all(one, 30)
    served = [took for answer, took in answers if answer.status == 200]
    refused = [(a, took) for a, took in answers if a.status != 200]
    assert len(served) >= 6
    assert len(refused) >= 6
    for answer, took in refused:
        assert answer.status == 450
        assert answer.body.startswith(b"[queue_full]")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        # None waited for any of those that were processed.
        assert took < 4
    one.arm("")
    assert one.predict().status == 200
    wait_until(lambda: counted(one, "450") == len(refused))
    wait_until(lambda: counted(one, "200") == before + len(served) + 1)


def test_f57_what_waited_too_long_is_not_computed(brisk: Service) -> None:
    runs = brisk.metric("procserver_stage_seconds_count", stage="run")
    brisk.arm("model.run:1+:delay=12")
    answers = ask_all(brisk, 6)
    brisk.arm("")
    assert {answer.status for answer, _ in answers} == {408}
    # Those in line are told when their time is over, not when a worker is free.
    assert sum(took < 11 for _, took in answers) >= 4
    wait_until(lambda: in_flight(brisk) == 0)
    now = brisk.metric("procserver_stage_seconds_count", stage="run")
    assert now - runs <= 2


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_f66_no_descriptors_left(service: Make) -> None:
    one = service("good").start()
    workers = one.ready_workers()
    assert len(workers) == 2
    kept = {}
    for pid in workers:
        used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
        kept[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 12, kept[pid][1]))
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(one.connect())
        spent = {pid: cpu_seconds(pid) for pid in workers}
        began = time.monotonic()
        wait_until(lambda: one.metric("procserver_accept_errors_total") > 0)
        # Silent connections go first, so others still get through.
        assert one.predict().status == 200
        wait_until(lambda: time.monotonic() > began + 3)
        lasted = time.monotonic() - began
        for pid in workers:
            assert cpu_seconds(pid) - spent[pid] < lasted / 2, "it spins"
    for pid in workers:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, kept[pid])
    assert one.ready_workers() == workers
    assert one.predict().status == 200
    assert "Too many open files" in one.text()
    assert AUTH["Authorization"] not in one.text()
