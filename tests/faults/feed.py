"""Changes of items that never end, and what has become of the items since."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

LOG_ITEMS = 3
PAUSE = 0.02


class Feed:
    """Appends to a file of changes, as its own thread (a context manager) or when told.

    Items 1 to 3 hold the last three entries of a log: entry ``n`` is the ``build`` of
    item ``1 + n % 3``, so that an answer tells how much of the log it has seen. Others
    come and go at random. ``builds``: what all of them should be, None: deleted.
    """

    def __init__(self, path: Path, items: int) -> None:
        self.builds: dict[str, float | None] = {f"item_{n}": 0.0 for n in range(items)}
        self.last = -1
        self._others = [f"item_{n}" for n in range(LOG_ITEMS + 1, items)]
        self._fillers = 0
        self._chance = random.Random(7)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        self._file = os.open(path, flags, 0o600)
        self._write(self._entries(LOG_ITEMS))

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if not self._lock.locked():
            self._lock.acquire()
        self._lock.release()
        self._thread.join()
        os.close(self._file)

    def pause(self) -> None:
        """Nothing more is written until :meth:`go_on`, but for bursts."""
        self._lock.acquire()

    def go_on(self) -> None:
        self._lock.release()

    def burst(self, rounds: int = 3) -> None:
        """Entries at once of which one item is ended and made anew each time: what
        comes behind that cannot be applied together with what comes before.
        """
        lines = []
        for _ in range(rounds):
            lines += self._entries(LOG_ITEMS + 1)
            lines += [self._end("item_0"), *self._entries(1), self._set("item_0")]
        self._write(lines)

    def fill(self, count: int) -> None:
        """Changes of items that nobody knows yet, and no table does."""
        first, self._fillers = self._fillers, self._fillers + count
        numbers = range(first, self._fillers)
        self._write([{"item_id": f"filler_{n}", "build": 1.0} for n in numbers])

    def _run(self) -> None:
        while not self._over.is_set():
            with self._lock:
                other = self._chance.choice(self._others)
                change = self._end if self._chance.random() < 0.3 else self._set
                self._write([*self._entries(2), change(other), *self._entries(1)])
            # A lock that is let go of is for others first.
            time.sleep(PAUSE)

    def _entries(self, count: int) -> list[dict[str, Any]]:
        return [
            self._set(f"item_{1 + (self.last + 1) % LOG_ITEMS}") for _ in "x" * count
        ]

    def _set(self, item: str) -> dict[str, Any]:
        if item in ("item_1", "item_2", "item_3"):
            self.last += 1
        self.builds[item] = float(self.last)
        return {"item_id": item, "build": float(self.last)}

    def _end(self, item: str) -> dict[str, Any]:
        self.builds[item] = None
        return {"item_id": item, "_op": "delete"}

    def _write(self, lines: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        assert os.write(self._file, data) == len(data)
