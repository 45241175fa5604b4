"""Rate limit, queue and deadline of a real service, by a slow model."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from google.protobuf.message import DecodeError
from live import LiveServer, exchange

from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse

AUTH = {"Authorization": tiny.TOKEN}
PATH = "/api/predict/bare"


class Busy(torch.nn.Module):
    """Works for as many rounds as it is told."""

    def forward(self, rounds: torch.Tensor) -> torch.Tensor:
        matrix = torch.ones(256, 256) / 256
        for _ in range(int(rounds[0])):
            matrix = matrix @ matrix
        return matrix[0, :1]


def busy(rounds: int) -> bytes:
    request = PredictRequest()
    array = request.inputs.add(dtype=9)
    array.array_shape.dim.append(1)
    array.int64_val.append(rounds)
    body: bytes = request.SerializeToString()
    return body


def work(server: LiveServer, seconds: float) -> bytes:
    """A request that this server works on for at least so long."""
    rounds = 64
    while True:
        started = time.monotonic()
        answer = post(server, busy(rounds))
        if time.monotonic() - started >= seconds:
            return busy(rounds)
        if answer.status == 408:
            # Not just so, but by far.
            return busy(rounds * 4)
        rounds *= 2


def slow_service(folder: Path, **rpc: int) -> Path:
    # NOTE: two threads of one product wait for each other; where somebody else has a
    # core too, that takes 40 times as long, until he leaves.
    config = tiny.write_bypass(
        folder,
        "bare",
        metadata={"name": "bare", "rpc": rpc},
        model_config={"intra_op_parallelism_threads": 1},
    )
    torch.jit.script(Busy()).save(str(folder / "doubler.pt"))
    return config


def post(server: LiveServer, body: bytes) -> Any:
    return server.request("POST", PATH, body, AUTH)


def wait_until_busy(server: LiveServer) -> None:
    """Returns when a predict request has reached the app and is not answered."""
    deadline = time.monotonic() + 30
    gauge = re.compile(rb"^procserver_in_flight\{[^}]*\} (\d+)", re.MULTILINE)
    while not any(map(int, gauge.findall(server.request("GET", "/metrics").body))):
        assert time.monotonic() < deadline, "no request arrived"
        time.sleep(0.01)


class Crowd:
    """Requests that run at the same time."""

    def __init__(self, server: LiveServer, body: bytes, count: int) -> None:
        self.answers: list[Any] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(server, body))
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: LiveServer, body: bytes) -> None:
        self.answers.append(post(server, body))

    def wait(self) -> list[int]:
        for thread in self._threads:
            thread.join(60)
        return sorted(answer.status for answer in self.answers)


def refused(answer: Any, code: bytes) -> None:
    assert answer.body.startswith(b"[" + code + b"]")
    with pytest.raises(DecodeError):
        PredictResponse.FromString(answer.body)


def test_a_full_queue(tmp_path: Path, launch: Callable[..., LiveServer]) -> None:
    config = slow_service(
        tmp_path, worker_threads=2, max_queue_size=2, keepalive=60_000
    )
    server = launch(config, workers=1).start()
    crowd = Crowd(server, work(server, 1.5), 10)
    # While they wait: health is answered, and so is a description.
    assert server.request("GET", "/v2/health/ready").status == 200
    assert server.request("GET", "/", None, AUTH).status == 200
    assert crowd.wait() == [200] * 4 + [450] * 6
    for answer in crowd.answers:
        if answer.status == 450:
            refused(answer, b"queue_full")
            assert answer.headers["connection"] == "close"
    assert post(server, busy(1)).status == 200
    server.stop()


def test_a_full_queue_refuses_before_the_body(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    config = slow_service(
        tmp_path, worker_threads=1, max_queue_size=0, keepalive=60_000
    )
    server = launch(config, workers=1).start()
    crowd = Crowd(server, work(server, 2), 1)
    wait_until_busy(server)
    answer = server.raw(
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        f"Authorization: {tiny.TOKEN}\r\nExpect: 100-continue\r\n\r\n".encode(),
        half_close=True,
    )
    assert answer.startswith(b"HTTP/1.1 450")
    assert crowd.wait() == [200]
    server.stop()


def test_waiting_longer_than_the_deadline(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    config = slow_service(tmp_path, worker_threads=1, max_queue_size=50, keepalive=2000)
    server = launch(config, workers=1).start()
    assert post(server, busy(1)).status == 200
    # Each takes longer than its time alone.
    crowd = Crowd(server, work(server, 60), 4)
    assert crowd.wait() == [408] * 4
    for answer in crowd.answers:
        refused(answer, b"out_of_time")
        assert answer.headers["connection"] == "close"
    assert post(server, busy(1)).status == 200
    server.stop()


def test_the_rate_of_the_whole_service(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    config = slow_service(tmp_path, rate_limit=20)
    server = launch(config, workers=2).start()
    connections = [
        http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for _ in range(4)
    ]
    started = time.monotonic()
    statuses = []
    answers = []
    while len(statuses) < 200:
        for connection in connections:
            answers.append(exchange(connection, "POST", PATH, busy(1), AUTH))
            statuses.append(answers[-1].status)
    took = time.monotonic() - started
    assert set(statuses) == {200, 429}
    assert 20 <= statuses.count(200) <= 20 + 20 * took + 1
    for answer in answers:
        if answer.status == 429:
            refused(answer, b"too_many_requests")
    # Cheap refusals keep their connection, unless the body is late.
    kept = [a.headers["connection"] for a in answers if a.status == 429]
    assert kept.count("keep-alive") > len(kept) / 2
    assert server.request("GET", "/v2/health/live").status == 200
    for connection in connections:
        connection.close()
    server.stop()


def test_a_killed_worker_leaves_no_request_behind(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    config = slow_service(
        tmp_path, worker_threads=1, max_queue_size=0, keepalive=60_000
    )
    server = launch(config, workers=1).start()
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    (worker,) = map(int, children.read_text().split())

    body = busy(10**9)

    def ask() -> None:
        with pytest.raises((http.client.HTTPException, OSError)):
            post(server, body)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1)
    os.kill(worker, signal.SIGKILL)
    asking.join(60)
    deadline = time.monotonic() + 60
    status = 0
    while status != 200 and time.monotonic() < deadline:
        try:
            status = post(server, busy(1)).status
        except (http.client.HTTPException, OSError):
            time.sleep(0.1)
    assert status == 200
    server.stop()
