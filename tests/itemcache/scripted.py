"""An item source that does what a test says, and the refresher's loop around it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Kind
from procserver.errors import SourceError
from procserver.itemcache import expiry, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.expiry import SteadyClock
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.schedule import Plan
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Delete,
    Description,
    Upsert,
)

SECONDS = 60.0
SECOND = 1_000_000
SCHEMA = {"id": Kind.STRING, "v": Kind.INT64, "w": Kind.INT64}
# Deadlines of tests are long, pauses of the refresher short.
QUICK = Plan(first_pause=0.05, longest_pause=0.4)
Found = TypeVar("Found", bound=object)


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What is true at last."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return found


@dataclass
class Event:
    """``cells`` None: the item was deleted."""

    time: int
    item: str
    cells: dict[str, int] | None


@dataclass
class Store:
    """A table and the log of its changes; any thread writes."""

    follows: bool = True
    with_times: bool = True
    # The most events of one answer.
    limit: int = 1000
    tells_more: bool = True
    items: dict[str, dict[str, int]] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    first: int = 0
    clock: int = 0
    # An answer of upserts alone is one step.
    in_one: bool = False
    failing: set[str] = field(default_factory=set)
    # Cleared: whoever comes to the place waits there.
    gates: dict[str, threading.Event] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def open(self) -> Scripted:
        self.come("open")
        return Scripted(self)

    def put(self, item: str, **cells: int) -> None:
        with self.changed:
            self.clock += 1
            self.items.setdefault(item, {}).update(cells)
            self.log.append(Event(self.clock, item, cells))
            self.changed.notify_all()

    def drop(self, item: str) -> None:
        with self.changed:
            self.clock += 1
            self.items.pop(item, None)
            self.log.append(Event(self.clock, item, None))
            self.changed.notify_all()

    def late(self, time_: int, item: str, **cells: int) -> None:
        """An event that comes after newer ones; the table has those."""
        with self.changed:
            self.log.append(Event(time_, item, cells))
            self.changed.notify_all()

    def forget(self) -> None:
        """Drops the log so far."""
        with self.changed:
            self.first = len(self.log)

    def hold(self, place: str) -> threading.Event:
        """Whoever comes to ``place`` waits until the event is set."""
        self.gates[place] = threading.Event()
        return self.gates[place]

    def come(self, place: str) -> None:
        self.calls[place] = self.calls.get(place, 0) + 1
        gate = self.gates.get(place)
        if gate is not None:
            gate.wait(SECONDS)
        if place in self.failing:
            raise ConnectionError(f"{place} is down")


class Scripted:
    """One connection to a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.skipped: dict[str, int] = {}
        self.closed = False

    def describe(self) -> Description:
        self.store.come("describe")
        return Description("id", SCHEMA, len(self.store.items), self.store.follows)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        with self.store.changed:
            cursor = len(self.store.log)
            items = {item: dict(cells) for item, cells in self.store.items.items()}

        def batches() -> Iterator[pa.RecordBatch]:
            self.store.come("batch")
            yield batch(items)

        return cursor, batches()

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        store = self.store
        store.come("changes")
        assert isinstance(cursor, int)
        with store.changed:
            if cursor < store.first:
                raise CursorLost(f"changes before {store.first} are gone")
            store.changed.wait_for(lambda: len(store.log) > cursor, wait)
            events = store.log[cursor : cursor + store.limit]
            more = cursor + len(events) < len(store.log)
        steps = [self._step(event) for event in events]
        if store.in_one and steps:
            rows = [step.batch for step in steps if isinstance(step, Upsert)]
            assert len(rows) == len(steps)
            times = [step.times for step in steps if step.times is not None]
            one = pa.Table.from_batches(rows).combine_chunks().to_batches()[0]
            steps = [Upsert(one, np.concatenate(times) if times else None)]
        return Changes(
            steps,
            cursor + len(events),
            newest=time.time() if events else None,
            more=more if store.tells_more else None,
        )

    def _step(self, event: Event) -> Upsert | Delete:
        times = None
        if self.store.with_times:
            times = np.array([event.time], dtype=np.int64)
        if event.cells is None:
            return Delete(pa.array([event.item]), times)
        row = pa.RecordBatch.from_pylist([{"id": event.item, **event.cells}])
        return Upsert(row, times)

    def close(self) -> None:
        self.closed = True


def batch(items: dict[str, dict[str, int]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array(list(items), pa.string()),
            "v": pa.array([cells.get("v") for cells in items.values()], pa.int64()),
            "w": pa.array([cells.get("w") for cells in items.values()], pa.int64()),
        }
    )


class Hand(SteadyClock):
    """A clock that is set by hand."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def now(self) -> int:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += int(seconds * SECOND)


def by_hand(monkeypatch: pytest.MonkeyPatch, at: int) -> Hand:
    """The clock of what ends items from now on; it looks often."""
    clock = Hand(at)
    monkeypatch.setattr(expiry, "SteadyClock", lambda: clock)
    monkeypatch.setattr(expiry, "LONGEST_PAUSE", 0.02)
    return clock


class Loop:
    """The refresher's loop on a thread, both ends of its pipe, and what it told."""

    def __init__(
        self,
        control: ControlSegment,
        open_source: Callable[[], Any],
        plan: Plan = QUICK,
        **options: Any,
    ) -> None:
        self.control = control
        self.reports: Queue[refresh.Report] = Queue()
        self.seen: list[refresh.Report] = []
        self.read, self.write = os.pipe()
        self.thread = threading.Thread(
            target=refresh.run,
            args=(open_source, control, self.reports.put, self.read),
            kwargs={"plan": plan, **options},
            daemon=True,
        )
        self.thread.start()

    def tell(self, command: bytes) -> None:
        os.write(self.write, command)

    def until(
        self,
        kind: type[Found],
        matches: Callable[[Found], bool] = lambda report: True,
    ) -> Found:
        """The next such report; others are kept in ``seen``."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                report = self.reports.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {kind.__name__} after {self.seen}") from None
            self.seen.append(report)
            if isinstance(report, kind) and matches(report):
                return report

    def built(self) -> refresh.BuildReport:
        return self.until(refresh.BuildReport)

    def get(self, item: str) -> dict[str, Any] | None:
        return CacheReader(self.control.name).current().get(item)

    def value(self, item: str, column: str = "v") -> int | None:
        found = self.get(item)
        return None if found is None else found[column]

    def end(self) -> None:
        os.close(self.write)
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        os.close(self.read)


def failure(report: refresh.FailureReport) -> str:
    assert isinstance(report.error, SourceError)
    return str(report.error)
