"""Items that end by their age: clocks, horizons, loads, sweeps, outages, restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from delta_oracle import delete, read, upsert
from scripted import QUICK, SECOND, Hand, Loop, Scripted, Store, by_hand, eventually

from cython_ext.column import Kind
from procserver import shm
from procserver.errors import Refused, SourceError
from procserver.itemcache import expiry as ending
from procserver.itemcache import refresh
from procserver.itemcache.compaction import compact
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import Applied, DeltaWriter
from procserver.itemcache.expiry import Expiry, SteadyClock, Sweeper
from procserver.itemcache.guards import Guard, Limits
from procserver.itemcache.loading import Load, load
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.reports import CHANGES, FULL
from procserver.itemcache.sources import ROW_TIME, Changes, Description, Upsert
from procserver.itemcache.sources.combined import CombinedSource
from procserver.itemcache.sources.entries import Entries

START = 1_800_000_000 * SECOND
TTL = 100


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """The clock of whatever is made in the test, which looks often."""
    return by_hand(monkeypatch, START)


# ---------------------------------------------------------------------- clocks


def test_a_clock_that_is_set_ends_nothing() -> None:
    wall, steady = 1000.0, 50.0
    clock = SteadyClock(lambda: wall, lambda: steady)
    wall, steady = 1010.0, 60.0
    assert clock.now() == 1010 * SECOND
    wall, steady = 400.0, 70.0
    assert clock.now() == 1010 * SECOND, "it never goes back"
    wall, steady = 1010.0, 680.0
    assert clock.now() == 1010 * SECOND
    wall, steady = 90_000.0, 690.0
    assert clock.now() == 1030 * SECOND, "nor forward by a leap: twice as fast at most"
    wall, steady = 1035.0, 695.0
    assert clock.now() == 1035 * SECOND


def test_the_age_of_a_followed_source_counts_up_to_its_last_answer(hand: Hand) -> None:
    expiry = Expiry(TTL, None)
    assert expiry.advance() == ending.NO_TIME, "nobody knows anything yet"
    expiry.loaded(hand.at, FULL, follows=True)
    hand.go(1000)
    assert expiry.advance() == START - TTL * SECOND
    expiry.asked(hand.at, CHANGES, follows=True)
    hand.go(1000)
    assert expiry.advance() == START + 900 * SECOND
    expiry.failed(CHANGES)
    assert expiry.advance() == START + 900 * SECOND
    expiry.asked(hand.at, CHANGES, follows=True)
    assert expiry.advance() == START + 1900 * SECOND
    hand.go(-5000)
    expiry.asked(hand.at, CHANGES, follows=True)
    assert expiry.advance() == START + 1900 * SECOND, "it never goes back"


def test_a_followed_source_that_is_not_loaded_any_more_is_no_source(hand: Hand) -> None:
    """Its stream answers, and the table that has most items does not."""
    expiry = Expiry(TTL, 50)
    expiry.loaded(hand.at, FULL, follows=True)
    hand.go(30)
    expiry.asked(hand.at, CHANGES, follows=True)
    assert expiry.advance() == START - 70 * SECOND
    hand.go(1000)
    expiry.asked(hand.at, CHANGES, follows=True)
    assert expiry.advance() == START - 50 * SECOND, "a period after the load"
    expiry.failed(FULL)
    expiry.asked(hand.at, CHANGES, follows=True)
    assert expiry.advance() == START - 50 * SECOND
    expiry.loaded(hand.at, FULL, follows=True)
    assert expiry.advance() == START + 930 * SECOND


def test_a_source_that_is_asked_now_and_then_is_good_for_a_period(hand: Hand) -> None:
    expiry = Expiry(TTL, 50)
    expiry.loaded(hand.at, FULL, follows=False)
    hand.go(20)
    assert expiry.advance() == START - 80 * SECOND
    hand.go(1000)
    assert expiry.advance() == START - 50 * SECOND
    expiry.asked(hand.at, CHANGES, follows=False)
    hand.go(10)
    assert expiry.advance() == START + 930 * SECOND
    expiry.failed(CHANGES)
    hand.go(30)
    assert expiry.advance() == START + 930 * SECOND


# ------------------------------------------------------------- loads and deltas


class Rows:
    """A source of these rows; ``times`` by id in seconds after the start."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, keys: Sequence[str], times: dict[str, float | None] | None):
        self._keys, self._times = list(keys), times

    def describe(self) -> Description:
        return Description("id", {"id": Kind.STRING, "n": Kind.INT64})

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        columns: dict[str, Any] = {"id": self._keys, "n": pa.array(range(len(self)))}
        if self._times is not None:
            given = [self._times.get(key) for key in self._keys]
            columns[ROW_TIME] = pa.array(
                [None if at is None else START + int(at * SECOND) for at in given],
                pa.int64(),
            )
        return None, iter([pa.RecordBatch.from_pydict(columns)])

    def __len__(self) -> int:
        return len(self._keys)

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        return None

    def close(self) -> None:
        pass


class Table:
    """A cache that is loaded, changed and swept by hand."""

    def __init__(self, control: ControlSegment) -> None:
        self.control = control
        self.expiry = Expiry(TTL, None)
        self.sweeper = Sweeper(self.expiry)

    @property
    def view(self) -> Generation:
        return CacheReader(self.control.name).current()

    def load(
        self,
        keys: Sequence[str],
        times: dict[str, float | None] | None = None,
        limits: Limits | None = None,
    ) -> dict[str, int]:
        before = self.view if self.control.state()[0] else None
        guard = None if limits is None else Guard(limits, self.control)
        made: Load = load(
            Rows(keys, times),
            self.control,
            expiry=self.expiry,
            guard=guard,
            before=lambda follows, at: before,
        )
        fresh = Generation(shm.attach(made.writer.name))
        with DeltaWriter(self.control, fresh, expiry=self.expiry) as delta:
            if before is not None:
                delta.inherit(before)
            made.writer.publish(delta.release())
        made.writer.close()
        assert made.at is not None
        self.expiry.loaded(made.at, FULL, follows=True)
        return dict(+made.writer.skipped)

    def apply(self, *steps: Any) -> Applied:
        with DeltaWriter(self.control, self.view, expiry=self.expiry) as delta:
            return delta.apply(list(steps))

    def sweep(self) -> int:
        """How many have ended, all that the source has being known."""
        self.expiry.asked(self.expiry.now(), CHANGES, follows=True)
        steps = list(self.sweeper.find(self.view))
        return self.apply(*steps).deleted if steps else 0

    def there(self, *keys: str) -> str:
        return "".join(
            key for key, row in read(self.view, list(keys)).items() if row is not None
        )

    def time(self, key: str) -> float:
        row = self.view.get(key)
        assert row is not None
        return (int(row[ROW_TIME]) - START) / SECOND


@pytest.fixture
def table(control: ControlSegment, hand: Hand) -> Table:
    return Table(control)


def at(*seconds: float) -> list[int]:
    return [START + int(second * SECOND) for second in seconds]


def test_rows_of_a_load_end_a_while_after_it(table: Table, hand: Hand) -> None:
    assert table.load("abc") == {}
    hand.go(99)
    assert table.sweep() == 0
    assert table.apply(upsert(["b"], {"n": [7]})).upserted == 1
    hand.go(2)
    assert table.sweep() == 2
    assert table.there(*"abc") == "b"
    hand.go(99)
    assert table.sweep() == 1
    assert table.sweep() == 0


def test_rows_have_their_own_times(table: Table, hand: Hand) -> None:
    times = {"a": -99.0, "b": -101.0, "c": None, "d": 5000.0}
    assert table.load("abcd", times) == {"expired": 1}
    assert table.there(*"abcd") == "acd"
    hand.go(2)
    assert table.sweep() == 1
    assert table.there(*"abcd") == "cd"
    assert (table.time("c"), table.time("d")) == (0, 0), "no time; one of the future"


def test_the_latest_event_counts_whatever_comes_late(table: Table, hand: Hand) -> None:
    table.load("abv", dict.fromkeys("abv", -90.0))
    table.apply(upsert(["a"], {"n": [1]}, at(-20)))
    table.apply(upsert(["a", "b"], {"id": ["a", "b"]}, at(-95, -95)))
    assert (table.time("a"), table.time("b")) == (-20, -90)
    table.apply(upsert(["b"], {"n": [2]}, at(5000)))
    assert table.time("b") == 0, "not beyond the present"
    # Version numbers are no times: it counts when they come.
    hand.go(10)
    table.apply(upsert(["v"], {"n": [2]}, [17]))
    assert table.time("v") == 10


def test_what_is_newer_brings_an_item_back_and_nothing_older(
    table: Table, hand: Hand
) -> None:
    table.load("abv")
    table.apply(upsert(["a"], {"n": [1]}, at(10)), upsert(["v"], {"n": [1]}, [17]))
    hand.go(111)
    assert table.sweep() == 3
    done = table.apply(upsert(["a", "a"], {"n": [2, 3]}, at(9, 10)))
    assert (done.upserted, done.skipped) == (0, {"expired": 2})
    # As they would be read by one that knows no horizon yet.
    blind = Expiry(TTL, None)
    with DeltaWriter(table.control, table.view, expiry=blind) as delta:
        done = delta.apply([upsert(["a", "a"], {"n": [2, 3]}, at(9, 10))])
        assert (done.upserted, done.stale) == (0, 2)
    assert table.there("a") == ""
    step = upsert(["a", "b", "v"], {"n": [4, 4, 4]}, [*at(20, 11), 18])
    done = table.apply(step)
    assert (done.upserted, done.skipped) == (3, {})
    assert table.there(*"abv") == "abv"
    assert table.apply(upsert(["v"], {"n": [5]}, [17])).stale == 1


def test_what_was_deleted_stays_deleted(table: Table, hand: Hand) -> None:
    table.load("ab")
    table.apply(delete(["a"], at(10)))
    hand.go(50)
    assert table.sweep() == 0
    hand.go(60)
    assert table.sweep() == 1
    assert table.sweep() == 0


def test_a_load_does_not_make_an_item_older(table: Table, hand: Hand) -> None:
    table.load("abc", {"a": -90.0, "b": -90.0, "c": -90.0})
    table.apply(upsert(["a"], {"n": [1]}, at(-20)), upsert(["b"], {"n": [1]}))
    hand.go(50)
    assert table.load("abc", {"a": -90.0, "b": -90.0, "c": -90.0}) == {"expired": 1}
    assert (table.time("a"), table.time("b")) == (-20, 0)
    assert table.apply(upsert(["a"], {"n": [5]}, at(-25))).stale == 1
    hand.go(31)
    assert table.sweep() == 1
    assert table.there(*"abc") == "b"


def test_times_are_folded(table: Table, hand: Hand) -> None:
    table.load("ab")
    hand.go(50)
    table.apply(upsert(["a"], {"n": [1]}))
    with compact(table.control, table.view) as made:
        made.publish()
    hand.go(60)
    assert table.sweep() == 1
    assert table.there(*"ab") == "a"


def test_many_items_end_in_slices(
    table: Table, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "SLICE", 100)
    monkeypatch.setattr(ending, "BATCH", 64)
    keys = [str(n) if n % 2 else f"item {n}" for n in range(1000)]
    table.load(keys, {key: -(n % 100) - 0.5 for n, key in enumerate(keys)})
    hand.go(30)
    table.expiry.asked(hand.at, CHANGES, follows=True)
    steps = list(table.sweeper.find(table.view))
    assert [len(step.keys) for step in steps] == [100, 100, 100]
    assert table.apply(*steps).deleted == 300
    assert table.sweep() == 0
    assert sum(row is not None for row in read(table.view, keys).values()) == 700
    hand.go(10)
    assert table.sweep() == 100


def test_the_guard_takes_what_is_too_old_for_no_loss(table: Table, hand: Hand) -> None:
    limits = Limits()
    keys = [f"k{n}" for n in range(10)]
    table.load(keys, dict.fromkeys(keys, 0.0), limits)
    hand.go(60)
    times: dict[str, float | None] = dict.fromkeys(keys, 0.0)
    hand.go(60)
    times["k0"] = 100.0
    assert table.load(keys, times, limits) == {"expired": 9}
    assert table.view.item_count == 1
    # The source removes what is old, too; nine have ended here.
    table.load(keys, None, limits)
    hand.go(90)
    table.apply(upsert(["k0"], {"n": [1]}))
    hand.go(20)
    assert table.sweep() == 9
    table.load(["k0"], None, limits)
    # All is too old: that is what was asked for.
    hand.go(300)
    assert table.load(["k0"], {"k0": 0.0}, limits) == {"expired": 1}
    assert table.view.item_count == 0
    # A loss is one all the same.
    table.load(keys, None, limits)
    with pytest.raises(Refused, match="1 items instead of 10"):
        table.load(["k0"], None, limits)


def test_without_a_time_to_live_there_is_no_time(control: ControlSegment) -> None:
    made = load(Rows("ab", {"a": 1.0}), control)
    with made.writer as writer:
        writer.publish()
    assert list(CacheReader(control.name).current().schema) == ["id", "n"]


def test_a_table_gets_times_with_its_next_load(table: Table, hand: Hand) -> None:
    with load(Rows("ab", None), table.control).writer as writer:
        writer.publish()
    table.expiry.loaded(hand.at, FULL, follows=True)
    hand.go(1000)
    assert table.apply(upsert(["a"], {"n": [3]})).upserted == 1
    assert table.sweep() == 0
    table.load("ab")
    hand.go(101)
    assert table.sweep() == 2


# --------------------------------------------------------------------- the loop

Start = Callable[..., Loop]


@pytest.fixture
def start(control: ControlSegment, hand: Hand) -> Iterator[Start]:
    loops: list[Loop] = []

    def make(store: Store, **options: Any) -> Loop:
        plan = replace(QUICK, ttl=TTL, period=options.pop("period", None))
        loops.append(Loop(control, store.open, plan, **options))
        return loops[-1]

    yield make
    for loop in loops:
        if loop.thread.is_alive():
            loop.end()


def a_store(hand: Hand, **options: Any) -> Store:
    items = {key: {"v": 1, "w": 1} for key in "abc"}
    return Store(clock=hand.at, items=items, **options)


def put(loop: Loop, store: Store, hand: Hand, item: str, v: int) -> None:
    store.clock = hand.at
    store.put(item, v=v)
    eventually(lambda: loop.value(item) == v)


def ended(loop: Loop, count: int) -> None:
    total = 0
    while total < count:
        total += loop.until(refresh.ChangesReport, lambda r: bool(r.expired)).expired
    assert total == count


def test_items_end_unless_something_is_heard_of_them(start: Start, hand: Hand) -> None:
    store = a_store(hand)
    loop = start(store)
    loop.built()
    hand.go(90)
    put(loop, store, hand, "b", 2)
    hand.go(20)
    ended(loop, 2)
    assert [loop.value(key) for key in "abc"] == [None, 2, None]
    put(loop, store, hand, "a", 3)
    assert loop.get("a") == {"id": "a", "v": 3, "w": None, ROW_TIME: hand.at}


def test_an_outage_of_the_source_ends_nothing(start: Start, hand: Hand) -> None:
    store = a_store(hand)
    loop = start(store)
    loop.built()
    hand.go(50)
    put(loop, store, hand, "b", 2)
    store.failing.add("changes")
    loop.until(refresh.FailureReport)
    hand.go(10_000)
    for _ in range(3):
        loop.until(refresh.FailureReport)
    assert [loop.value(key) for key in "abc"] == [1, 2, 1]
    # What it tells first thing when it is back comes in time.
    store.clock = hand.at
    store.put("c", v=3)
    store.failing.clear()
    ended(loop, 2)
    assert [loop.value(key) for key in "abc"] == [None, None, 3]


def test_loads_that_fail_end_nothing_either(start: Start, hand: Hand) -> None:
    store = a_store(hand, follows=False)
    loop = start(store, period=3600)
    loop.built()
    store.failing.add("batch")
    loop.tell(refresh.BUILD)
    loop.until(refresh.FailureReport)
    hand.go(10_000)
    loop.until(refresh.FailureReport)
    assert [loop.value(key) for key in "abc"] == [1, 1, 1]
    store.failing.clear()
    loop.built()
    hand.go(101)
    ended(loop, 3)


def test_the_next_refresher_goes_on(
    start: Start, hand: Hand, control: ControlSegment
) -> None:
    store = a_store(hand)
    loop = start(store)
    loop.built()
    hand.go(60)
    put(loop, store, hand, "b", 2)
    loop.end()
    hand.go(50)
    loop = start(store)
    assert loop.until(refresh.AttachReport).continues
    ended(loop, 2)
    assert [loop.value(key) for key in "abc"] == [None, 2, None]
    assert control.state()[0] == 1
    loop.end()
    # Its successor is a new master's, which loads everything: the source has all.
    loop = start(store, reload=True)
    loop.built()
    assert [loop.value(key) for key in "abc"] == [1, 2, 1]


def test_what_was_loaded_long_ago_does_not_end_before_the_next_load(
    start: Start, hand: Hand
) -> None:
    """After a restart nobody remembers that loads have failed for days."""
    store = a_store(hand)
    loop = start(store, period=50)
    loop.built()
    loop.end()
    hand.go(10_000)
    store.failing.add("batch")
    loop = start(store, period=50)
    loop.until(refresh.AttachReport)
    put(loop, store, hand, "b", 2)
    loop.tell(refresh.BUILD)
    loop.until(refresh.FailureReport)
    assert [loop.value(key) for key in "abc"] == [1, 2, 1]


def test_what_ends_during_a_load_does_not_come_back_with_it(
    start: Start, hand: Hand
) -> None:
    store = a_store(hand)
    loop = start(store)
    loop.built()
    hand.go(99)

    class Timed(Scripted):
        def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
            cursor, batches = super().snapshot()
            old = [START] * 3
            return cursor, (ending.with_times(b, np.array(old)) for b in batches)

    store.open = lambda: Timed(store)  # type: ignore[method-assign]
    gate = store.hold("batch")
    loop.end()
    loop = start(store)
    loop.until(refresh.AttachReport)
    before = store.calls["batch"]
    loop.tell(refresh.BUILD)
    eventually(lambda: store.calls["batch"] > before)
    hand.go(2)
    ended(loop, 3)
    gate.set()
    assert loop.built().generation == 2
    assert [loop.value(key) for key in "abc"] == [None] * 3


# ----------------------------------------------------- a stream beside a table


class Silent:
    """A stream in which nothing comes."""

    def __init__(self) -> None:
        self.skipped: Any = {}

    def position(self) -> Any:
        return Place()

    def restored(self, kept: Any) -> Any:
        return Place()

    def read(self, since: Any, wait: float) -> Entries:
        return Entries([], since)

    def steps(self, entries: Any, key: str, schema: Any) -> list[Upsert]:
        return []

    def close(self) -> None:
        pass


class Place:
    """In the stream."""


class Down(Rows):
    """A table that cannot be asked for changes while it ``is_down``."""

    is_down = False

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        if self.is_down:
            raise SourceError("it is down")
        return Changes([], cursor)


def test_a_stream_says_when_its_table_cannot_be_asked() -> None:
    base = Down("a", None)
    source = CombinedSource(base, Silent(), 0.0)  # type: ignore[arg-type]
    cursor = {"base": None, "stream": {}}
    found = source.changes(cursor)
    assert found is not None
    assert found.whole
    base.is_down = True
    found = source.changes(cursor)
    assert found is not None
    assert not found.whole
    base.is_down = False
    found = source.changes(cursor)
    assert found is not None
    assert found.whole
