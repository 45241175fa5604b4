"""Requests that wait for any worker: who dies or is replaced takes none along."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable

import pytest
from faulty import AUTH, BODY, CANARIES, DEADLINE, Service, wait_until
from live import exchange

Make = Callable[..., Service]
WAITING = 6


class Crowd:
    """Requests at the same time, each on a connection of its own."""

    def __init__(self, service: Service, count: int) -> None:
        self.statuses: list[int] = []
        self.broken: list[str] = []
        self._service = service
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        try:
            self.statuses.append(self._service.predict().status)
        except (OSError, http.client.HTTPException) as error:
            self.broken.append(repr(error))

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(2 * DEADLINE)
        assert not any(thread.is_alive() for thread in self._threads)


def is_full(service: Service) -> bool:
    """Whether as many requests are inside as may be; if not, it is one for a moment.

    A head with two of one kind does not wait in line, and its body never comes.
    """
    with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as sock:
        sock.sendall(
            f"POST /api/predict/{service.name} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {CANARIES['token']}\r\n"
            "Content-Length: 10\r\nA: 1\r\nA: 2\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        return sock.recv(12) == b"HTTP/1.1 450"


def test_f01_who_waits_survives_a_killed_worker(service: Make) -> None:
    rpc = {"worker_threads": 2, "max_queue_size": WAITING, "keepalive": 60_000}
    one = service("good", faults="", metadata={"rpc": rpc}).start()
    one.arm("model.run:1+:delay=6")
    crowd = Crowd(one, 2 + WAITING)
    wait_until(lambda: one.metric("procserver_requests_inside") == 2 + WAITING)
    assert is_full(one)
    one.kill(one.ready_workers()[0])
    one.arm("")
    crowd.wait()
    wait_until(lambda: one.metric("procserver_requests_inside") == 0)
    # What it was computing is lost, and nothing else.
    assert len(crowd.broken) <= 1, crowd.broken
    assert crowd.statuses == [200] * (2 + WAITING - len(crowd.broken))
    one.wait_workers()


def test_an_idle_worker_takes_over(service: Make) -> None:
    """Eight connections of one worker are answered by both."""
    rpc = {"worker_threads": 2, "max_queue_size": 20, "keepalive": 60_000}
    one = service("good", faults="", metadata={"rpc": rpc}).start()
    one.arm("model.run:1+:delay=0.3")
    crowd = Crowd(one, 16)
    crowd.wait()
    assert crowd.broken == []
    assert crowd.statuses == [200] * 16
    asked = [
        one.metric("procserver_worker_requests_total", process=f"worker-{slot}")
        for slot in (0, 1)
    ]
    assert sum(asked) == 16
    assert min(asked) >= 5, asked
    assert one.metric("procserver_handed_over_total") > 0
    waited = one.metric("procserver_queue_seconds_sum")
    assert waited > 3, "of 16 requests on 2 workers, 0.3 s each"


@pytest.mark.parametrize("busy", [False, True])
def test_a_reload_keeps_idle_connections(service: Make, busy: bool) -> None:
    one = service("good").start()
    connections = [one.http() for _ in range(12)]
    path = f"/api/predict/{one.name}"
    for connection in connections:
        answer = exchange(connection, "POST", path, BODY, AUTH)
        assert answer.headers["x-model-version"] == "1"
        # It must not connect again by itself.
        connection.auto_open = 0
    one.publish()
    if busy:
        with one.load(4) as traffic:
            assert one.reload()["outcome"] == "done"
        traffic.check(one.order)
    else:
        assert one.reload()["outcome"] == "done"
    wait_until(lambda: len(one.workers_now()) == 2)
    for connection in connections:
        answer = exchange(connection, "POST", path, BODY, AUTH)
        assert answer.status == 200
        assert answer.headers["x-model-version"] == "2"
        connection.close()
