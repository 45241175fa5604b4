"""Clients that keep asking, and what they saw: a history that can be checked."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import history
import tiny
from history import Operation, Promise
from live import Answer, LiveServer, exchange

AUTH = {"Authorization": tiny.TOKEN}
TIMEOUT = 30.0

# What an answer's body says of its items' build and of the model.
Reader = Callable[[bytes], tuple[frozenset[float], frozenset[float]]]


@dataclass
class Traffic:
    """Threads that send the same request over and over; a context manager.

    :param pause: between two requests of a client
    :param rate: requests a second of all clients, at random moments of an open loop
        (a client that is late does not pause); None: ``pause`` counts
    :param keepalive: one connection per client, else one per request
    """

    server: LiveServer
    body: bytes
    clients: int = 4
    pause: float = 0.01
    rate: float | None = None
    keepalive: bool = True
    headers: dict[str, str] = field(default_factory=lambda: dict(AUTH))
    read: Reader | None = None
    seed: int = 1
    history: list[Operation] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _numbers: list[int] = field(default_factory=lambda: [0])
    _path: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Tests change the service JSON while they ask.
        self._path = f"/api/predict/{self.server.name}"

    def __enter__(self) -> Traffic:
        # Read once: a test may break the service JSON while clients go on.
        self._path = f"/api/predict/{self.server.name}"
        for number in range(self.clients):
            client = threading.Thread(target=self._ask, args=(number,))
            client.start()
            self._threads.append(client)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the clients when they have their answers."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _open(self) -> tuple[int, http.client.HTTPConnection]:
        with self._lock:
            self._numbers[0] += 1
            number = self._numbers[0]
        port = self.server.port
        return number, http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)

    def _ask(self, client: int) -> None:
        chance = random.Random(self.seed * 1000 + client)
        number, connection = self._open()
        due = time.monotonic()
        while True:
            if self.rate is None:
                due = time.monotonic() + self.pause
            else:
                due += chance.expovariate(self.rate / self.clients)
            if self._over.wait(max(0.0, due - time.monotonic())):
                break
            done = self._once(number, connection, due if self.rate else 0.0)
            self.history.append(done)
            if done.error or connection.sock is None or not self.keepalive:
                connection.close()
                number, connection = self._open()
        connection.close()

    def _once(
        self, number: int, connection: http.client.HTTPConnection, due: float
    ) -> Operation:
        began = time.monotonic()
        try:
            answer = exchange(connection, "POST", self._path, self.body, self.headers)
        except (OSError, http.client.HTTPException) as error:
            ended = time.monotonic()
            return Operation(number, began, ended, 0, due=due, error=repr(error))
        return self._seen(number, began, due, answer)

    def _seen(self, number: int, began: float, due: float, answer: Answer) -> Operation:
        ended = time.monotonic()
        if answer.status != history.OK:
            why = answer.body.decode(errors="replace")
            return Operation(number, began, ended, answer.status, due=due, error=why)
        rows, marks = (
            (frozenset[float](), frozenset[float]())
            if self.read is None
            else self.read(answer.body)
        )
        return Operation(
            number,
            began,
            ended,
            answer.status,
            answer.headers["x-model-version"],
            int(answer.headers.get("x-cache-generation", 0)),
            rows,
            marks,
            due,
            delta=int(answer.headers.get("x-cache-delta", 0)),
        )

    def since(self, start: float, end: float = float("inf")) -> list[Operation]:
        """Operations that began in that time."""
        return [one for one in list(self.history) if start <= one.began < end]

    def versions(self, since: float = 0.0) -> set[str]:
        """What answers came from since then."""
        seen = list(self.history)
        return {one.version for one in seen if one.answered and one.ended >= since}

    def check(self, order: list[str]) -> None:
        """No request failed, and on no connection did a version go back.

        :param order: the versions in the order in which they were published
        """
        history.check(self.history, Promise(order))
