"""Clients that keep asking, and what they saw: a history that can be checked."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import tiny
from live import LiveServer, exchange

AUTH = {"Authorization": tiny.TOKEN}


@dataclass(frozen=True)
class Seen:
    """One answer: when it came, how long it took, on which connection, from what."""

    at: float
    seconds: float
    connection: int
    version: str
    generation: int


@dataclass
class Traffic:
    """Threads with a kept-alive connection each; a context manager."""

    server: LiveServer
    body: bytes
    clients: int = 4
    pause: float = 0.01
    history: list[Seen] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        for number in range(self.clients):
            thread = threading.Thread(target=self._ask, args=(number,))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        path = f"/api/predict/{self.server.name}"
        connection: http.client.HTTPConnection | None = None
        opened = 0
        while not self._over.wait(self.pause):
            if connection is None or connection.sock is None:
                opened += 1
                connection = http.client.HTTPConnection(
                    "127.0.0.1", self.server.port, timeout=30
                )
            began = time.monotonic()
            try:
                answer = exchange(connection, "POST", path, self.body, AUTH)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            ended = time.monotonic()
            if answer.status != 200:
                self.failures.append(f"{answer.status}: {answer.body!r}")
                continue
            seen = Seen(
                ended,
                ended - began,
                number + self.clients * opened,
                answer.headers["x-model-version"],
                int(answer.headers.get("x-cache-generation", 0)),
            )
            self.history.append(seen)
        if connection is not None:
            connection.close()

    def versions(self, since: float = 0.0) -> set[str]:
        """What answers came from since then."""
        return {seen.version for seen in self.history if seen.at >= since}

    def check(self, order: list[str]) -> None:
        """No request failed, and on no connection did a version go back.

        :param order: the versions in the order in which they were published
        """
        assert self.failures == []
        assert self.history
        last: dict[int, tuple[int, int]] = {}
        for seen in list(self.history):
            now = (order.index(seen.version), seen.generation)
            before = last.get(seen.connection, (0, 0))
            assert now[0] >= before[0], f"{seen} after {order[before[0]]}"
            assert now[1] >= before[1], f"{seen} after generation {before[1]}"
            last[seen.connection] = now
