"""The refresher's loop: changes, builds beside them, failures, commands meanwhile."""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scripted import QUICK, SECONDS, Loop, Store, eventually, failure
from test_itemcache_companion import Doubled

from cython_ext.column import Kind
from procserver import shm
from procserver.itemcache import building, live, refresh
from procserver.itemcache.commands import keep_command, make_command
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.sources import Changes, Delete, Upsert

Start = Callable[..., Loop]


@pytest.fixture
def start(control: ControlSegment) -> Iterator[Start]:
    """Starts loops, which end with the test whatever happened."""
    loops: list[Loop] = []
    stores: list[Store] = []

    def make(store: Store, **options: object) -> Loop:
        stores.append(store)
        loops.append(Loop(control, store.open, **options))
        return loops[-1]

    yield make
    for store in stores:
        for gate in store.gates.values():
            gate.set()
    for loop in loops:
        if loop.thread.is_alive():
            loop.end()


def changed(loop: Loop) -> refresh.ChangesReport:
    return loop.until(
        refresh.ChangesReport, lambda r: bool(r.upserted or r.deleted or r.stale)
    )


def test_changes_are_seen_and_reported(start: Start) -> None:
    store = Store(items={"a": {"v": 1, "w": 1}, "b": {"v": 2, "w": 2}})
    loop = start(store)
    built = loop.built()
    assert (built.rows, built.delta_rows, built.kind) == (2, 0, "full")
    store.put("a", v=10)
    store.put("c", v=30)
    store.drop("b")
    eventually(lambda: loop.get("b") is None)
    assert loop.get("a") == {"id": "a", "v": 10, "w": 1}
    assert loop.get("c") == {"id": "c", "v": 30, "w": None}
    told = [changed(loop)]
    while sum(r.upserted + r.deleted for r in told) < 3:
        told.append(changed(loop))
    assert sum(r.upserted for r in told) == 2
    assert sum(r.deleted for r in told) == 1
    assert told[-1].delta_rows == 3
    assert told[-1].delta_bytes > 0
    assert told[-1].newest is not None
    assert abs(told[-1].newest - time.time()) < SECONDS
    assert CacheReader(loop.control.name).current().number == 1


def test_an_older_event_that_comes_late_is_stale(start: Start) -> None:
    store = Store(clock=100)
    loop = start(store)
    loop.built()
    store.put("a", v=2)
    eventually(lambda: loop.value("a") == 2)
    store.late(50, "a", v=1, w=7)
    eventually(lambda: loop.value("a", "w") == 7)
    assert loop.value("a") == 2, "only the older of its values is stale"


def test_while_a_build_runs_changes_are_seen_and_none_is_lost(start: Start) -> None:
    store = Store(items={"a": {"v": 0}})
    loop = start(store)
    loop.built()
    opened = store.hold("batch")
    loop.tell(refresh.BUILD)
    eventually(lambda: store.calls.get("batch") == 2)
    for n in range(1, 50):
        store.put("a", v=n)
        store.put(f"new-{n}", v=n)
    eventually(lambda: loop.value("a") == 49)
    store.drop("new-7")
    eventually(lambda: loop.get("new-7") is None)
    assert CacheReader(loop.control.name).current().number == 1
    # As loops went on, the snapshot's cursor stands before all of that.
    opened.set()
    built = loop.built()
    assert built.generation == 2
    assert built.replayed >= 99
    assert loop.value("a") == 49
    assert loop.get("new-7") is None
    assert loop.value("new-8") == 8
    store.put("a", v=1000)
    eventually(lambda: loop.value("a") == 1000)


@pytest.mark.parametrize("with_times", [True, False])
@pytest.mark.parametrize("tells_more", [True, False])
def test_readers_never_go_back_in_time(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    with_times: bool,
    tells_more: bool,
) -> None:
    # A source that never stops and does not tell whether there is more.
    monkeypatch.setattr(building, "PATIENCE", 0.5)
    store = Store(
        items={"a": {"v": 0}}, with_times=with_times, tells_more=tells_more, limit=20
    )
    loop = start(store)
    loop.built()
    ended = threading.Event()
    wrong: list[tuple[int, int]] = []

    def watch() -> None:
        reader = CacheReader(loop.control.name)
        last = 0
        while not ended.is_set():
            found = reader.current().get("a")
            assert found is not None
            if found["v"] < last:
                wrong.append((last, found["v"]))
            last = found["v"]
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        count = 0
        for _ in range(3):
            loop.tell(refresh.BUILD)
            began = len([r for r in loop.seen if isinstance(r, refresh.BuildReport)])
            while True:
                count += 1
                store.put("a", v=count)
                time.sleep(0.02)
                if loop.reports.qsize():
                    loop.seen.append(loop.reports.get())
                built = [r for r in loop.seen if isinstance(r, refresh.BuildReport)]
                if len(built) > began:
                    break
        eventually(lambda: loop.value("a") == count)
    finally:
        ended.set()
        thread.join(SECONDS)
    assert wrong == []
    assert CacheReader(loop.control.name).current().number == 4


def test_a_gap_leads_to_a_full_build(start: Start) -> None:
    store = Store(items={"a": {"v": 1}})
    loop = start(store)
    loop.built()
    eventually(lambda: store.calls.get("changes"))
    held = store.hold("changes")
    before = store.calls["changes"]
    eventually(lambda: store.calls["changes"] > before)
    store.put("a", v=2)
    store.put("a", v=3)
    store.forget()
    held.set()
    lost = loop.until(refresh.FailureReport)
    assert lost.kind == "gap"
    assert "are gone" in failure(lost)
    assert loop.built().generation == 2
    assert loop.value("a") == 3
    store.put("a", v=4)
    eventually(lambda: loop.value("a") == 4)


def test_failures_are_tried_again_with_growing_pauses(start: Start) -> None:
    store = Store(items={"a": {"v": 1}})
    loop = start(store)
    loop.built()
    store.failing.add("changes")
    pauses = [loop.until(refresh.FailureReport).pause for _ in range(5)]
    assert all(
        0.75 * most <= pause <= 1.25 * most
        for pause, most in zip(pauses, [0.05, 0.1, 0.2, 0.4, 0.4], strict=True)
    )
    told = loop.until(refresh.FailureReport)
    assert told.kind == "changes"
    assert "ConnectionError: changes is down" in failure(told)
    store.put("a", v=2)
    assert loop.value("a") == 1, "the old state goes on being served"
    store.failing.clear()
    eventually(lambda: loop.value("a") == 2)
    # After a success the pauses begin anew.
    store.failing.add("changes")
    while loop.until(refresh.FailureReport).pause > 0.1:
        pass
    store.failing.clear()


def test_a_build_that_fails_is_tried_again(start: Start) -> None:
    store = Store(items={"a": {"v": 1}})
    loop = start(store)
    loop.built()
    store.failing.add("batch")
    loop.tell(refresh.BUILD)
    for _ in range(3):
        told = loop.until(refresh.FailureReport)
        assert (told.kind, failure(told)) == ("full", "ConnectionError: batch is down")
    store.put("a", v=5)
    eventually(lambda: loop.value("a") == 5)
    store.failing.clear()
    loop.built()
    assert loop.value("a") == 5


def test_without_a_source_an_empty_table_is_served_until_there_is_one(
    start: Start,
) -> None:
    store = Store(items={"a": {"v": 1}}, failing={"open"})
    loop = start(store, plan=replace(QUICK, required=False, key="id"))
    assert loop.until(refresh.FailureReport).kind == "full"
    empty = loop.built()
    assert (empty.kind, empty.rows, empty.generation) == ("empty", 0, 1)
    generation = CacheReader(loop.control.name).current()
    assert generation.schema == {"id": Kind.STRING}
    assert generation.get("a") is None
    store.failing.clear()
    assert loop.built().kind == "full"
    assert loop.value("a") == 1


def test_with_a_required_source_nothing_is_published(
    control: ControlSegment, start: Start
) -> None:
    loop = start(Store(failing={"open"}))
    for _ in range(3):
        assert loop.until(refresh.FailureReport).kind == "full"
    assert control.state() == (0, 0)


def test_what_hangs_keeps_no_command_from_being_obeyed(
    control: ControlSegment, start: Start
) -> None:
    store = Store(items={"a": {"v": 1}})

    def open_maker(what: str) -> Doubled:
        return Doubled(what)

    loop = start(store, open_maker=open_maker)
    loop.built()
    store.hold("changes")
    store.hold("batch")
    loop.tell(refresh.BUILD)
    eventually(lambda: store.calls.get("batch") == 2)
    loop.tell(make_command("2", "c" * 32))
    made = loop.until(refresh.CompanionReport)
    assert (made.label, made.generation, made.companion_problem) == ("2", 1, "")
    loop.tell(keep_command("2"))
    loop.tell(refresh.STOP)
    loop.thread.join(SECONDS)
    assert not loop.thread.is_alive()
    store.gates["batch"].set()
    store.gates["changes"].set()


def test_a_maker_that_comes_during_a_build_is_in_what_is_published(
    control: ControlSegment, start: Start
) -> None:
    store = Store(items={"a": {"v": 1}})
    makers: dict[str, Made] = {}

    def open_maker(what: str) -> Made:
        return makers.setdefault(what, Made(what))

    loop = start(store, open_maker=open_maker, companion=Made("a" * 32))
    loop.built()
    store.put("a", v=3)
    eventually(lambda: loop.value("a") == 3)
    opened = store.hold("batch")
    loop.tell(refresh.BUILD)
    eventually(lambda: store.calls.get("batch") == 2)
    loop.tell(make_command("2", "b" * 32))
    assert loop.until(refresh.CompanionReport).pregenerated == 1
    assert ahead(control, "a" * 32, "a") == 6
    assert ahead(control, "b" * 32, "a") == 6
    opened.set()
    assert loop.built().generation == 2
    store.put("b", v=21)
    eventually(lambda: loop.value("b") == 21)
    for digest in ("a" * 32, "b" * 32):
        assert ahead(control, digest, "a") == 6
        assert ahead(control, digest, "b") == 42
    loop.tell(keep_command("2"))
    loop.tell(refresh.BUILD)
    assert loop.built().generation == 3
    names = shm.list_segments(control.name.removesuffix("control") + "3-")
    assert any("b" * 12 in name for name in names)
    assert not any("a" * 12 in name for name in names)


class Made(Doubled):
    """Doubles ``v``."""

    def fresh(self) -> Made:
        return Made(self.digest)

    def inputs(self, schema: object) -> tuple[str, ...]:
        return ("v",)

    def generate(self, columns, rows):  # type: ignore[no-untyped-def]
        return super().generate({"n": columns["v"]}, rows)

    def continued(self, kinds):  # type: ignore[no-untyped-def]
        other = Made(self.digest)
        other.kinds = dict(kinds)
        return other


def ahead(control: ControlSegment, digest: str, item: str) -> int:
    """What was generated ahead of an item, as a worker reads it."""
    from cython_ext.column import Column

    generation = CacheReader(control.name, digest=digest).current()
    rows = generation.lookup(Column.from_texts([item]))
    assert generation.companion is not None
    assert generation.companion.covers(rows)
    [value] = generation.companion.gather(rows, ["double"])["double"].to_pylist()
    return value[0] if isinstance(value, list) else value


def test_builds_and_polls_come_by_the_period(start: Start) -> None:
    store = Store(items={"a": {"v": 1}})
    loop = start(store, plan=replace(QUICK, period=0.2))
    assert [loop.built().generation for _ in range(3)] == [1, 2, 3]


def test_a_source_to_poll_is_asked_once_a_period(start: Start) -> None:
    store = Store(items={"a": {"v": 1}}, follows=False)
    loop = start(store, plan=replace(QUICK, period=1.5))
    loop.built()
    store.put("a", v=2)
    told = changed(loop)
    assert told.upserted == 1
    assert loop.value("a") == 2
    loop.until(refresh.ChangesReport, lambda r: not r.upserted)
    assert store.calls["changes"] <= 1 + loop.seen.__len__()
    assert store.calls["batch"] == 1, "no full load"
    store.put("a", v=3)
    store.forget()
    assert loop.built().generation == 2
    assert loop.value("a") == 3
    assert not any(isinstance(r, refresh.FailureReport) for r in loop.seen)


def test_a_source_without_changes_is_loaded_once_a_period(start: Start) -> None:
    class Whole(Store):
        def open(self):  # type: ignore[no-untyped-def]
            source = super().open()
            source.changes = self.nothing  # type: ignore[method-assign]
            return source

        def nothing(self, cursor: object, wait: float = 0.0) -> Changes | None:
            return None

    loop = start(Whole(follows=False), plan=replace(QUICK, period=0.3))
    assert [loop.built().generation for _ in range(3)] == [1, 2, 3]


def test_a_tee_that_overflows_is_begun_anew(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TEE_BYTES", 10)
    test_while_a_build_runs_changes_are_seen_and_none_is_lost(start)


def test_a_large_delta_is_folded_while_changes_go_on(
    control: ControlSegment, start: Start
) -> None:
    items = {f"i{n}": {"v": n} for n in range(100)}
    store = Store(items=items, limit=20, clock=100)
    loop = start(store, plan=replace(QUICK, delta_rows=150), companion=Made("a" * 32))
    loop.built()
    store.drop("i5")
    for n in range(400):
        store.put(f"i{n % 90 + 10}", v=1000 + n)
        if n % 50 == 0:
            time.sleep(0.01)
    folded = loop.until(refresh.BuildReport)
    assert folded.kind == "compaction"
    assert folded.generation >= 2
    assert folded.rows == 99
    assert folded.companion_bytes > 0
    store.put("i10", v=5)
    eventually(lambda: loop.value("i10") == 5)
    assert loop.get("i5") is None
    for n in range(11, 100):
        assert loop.value(f"i{n}") == store.items[f"i{n}"]["v"]
        assert ahead(control, "a" * 32, f"i{n}") == 2 * store.items[f"i{n}"]["v"]
    # What was deleted before the fold is not brought back by an older event.
    store.late(1, "i5", v=3)
    store.late(1, "i10", v=3)
    store.put("i11", v=7)
    eventually(lambda: loop.value("i11") == 7)
    assert loop.get("i5") is None
    assert loop.value("i10") == 5
    assert store.calls["batch"] == 1, "the source was not loaded again"


def test_a_full_delta_is_folded_before_anything_else_is_applied(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(live.DeltaWriter, capacity=64)
    monkeypatch.setattr(live, "DeltaWriter", small)
    store = Store(items={"a": {"v": 0}})
    loop = start(store)
    loop.built()
    opened = store.hold("batch")
    for n in range(1, 500):
        store.put(f"i{n}", v=n)
    eventually(lambda: loop.value("i499") == 499)
    # So much happens during a build that its delta is full before it is published.
    loop.tell(refresh.BUILD)
    eventually(lambda: store.calls.get("batch") == 2)
    for n in range(1, 500):
        store.put(f"i{n}", v=10 * n)
    opened.set()
    loop.until(refresh.BuildReport, lambda report: report.kind == "full")
    eventually(lambda: loop.value("i499") == 4990)
    for n in range(1, 500):
        assert loop.value(f"i{n}") == 10 * n


def test_a_change_that_no_delta_can_hold_is_loaded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(live.DeltaWriter, capacity=64)
    monkeypatch.setattr(live, "DeltaWriter", small)
    store = Store(items={"a": {"v": 0}}, limit=1000, in_one=True)
    loop = start(store)
    loop.built()
    with store.changed:
        for n in range(100):
            store.put(f"i{n}", v=n)
    eventually(lambda: loop.value("i99") == 99)
    assert store.calls["batch"] >= 2
    assert all(loop.value(f"i{n}") == n for n in range(100))
    store.put("i5", v=50)
    eventually(lambda: loop.value("i5") == 50)


def test_many_bytes_are_applied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SLICE_BYTES", 1000)
    monkeypatch.setattr(live, "SLICE_ROWS", 40)
    ids = [f"{n:03}" for n in range(100)]
    table = pa.record_batch({"id": ids, "text": ["x" * 100] * 100})
    steps = [
        Upsert(table, np.arange(100)),
        Upsert(table.select(["id"])),
        Upsert(table.slice(0, 0)),
        Delete(pa.array(ids[:2])),
    ]
    pieces = list(live.sliced(steps))
    assert [live.step_rows(piece) for piece in pieces] == [9] * 11 + [1, 34, 34, 32, 2]
    again = pa.Table.from_batches([p.batch for p in pieces[:12]])
    assert again.equals(pa.Table.from_batches([table]))
    times = np.concatenate([p.times for p in pieces[:12]])
    assert times.tolist() == list(range(100))


def killed(control: ControlSegment, store: Store, until: Callable[[], object]) -> None:
    """Runs the loop in a child, which is killed as soon as ``until`` is true."""
    child = os.fork()
    if child == 0:
        read, _ = os.pipe()
        refresh.run(store.open, control, lambda report: None, read, plan=QUICK)
        os._exit(0)
    try:
        eventually(until)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_after_a_kill_the_next_one_goes_on_from_the_cursor(
    control: ControlSegment, start: Start
) -> None:
    store = Store(items={"a": {"v": 1}})
    for n in range(100):
        store.put(f"k{n}", v=n)

    class Later(Store):
        """The child's copy: events that come after its snapshot."""

        def come(self, place: str) -> None:
            super().come(place)
            if place == "changes" and self.calls["changes"] == 1:
                for n in range(100):
                    self.put(f"k{n}", v=1000 + n)

    child = Later(items=dict(store.items), log=list(store.log), clock=store.clock)
    killed(
        control,
        child,
        lambda: control.state()[0] and _value(control, "k99") == 1099,
    )
    assert control.state() == (1, 100)
    for n in range(100):
        store.put(f"k{n}", v=1000 + n)
    store.put("a", v=77)
    loop = start(store)
    attached = loop.until(refresh.AttachReport)
    assert (attached.generation, attached.delta_rows) == (1, 100)
    assert attached.continues
    eventually(lambda: loop.value("a") == 77)
    assert loop.value("k99") == 1099
    assert control.state()[0] == 1
    assert "batch" not in store.calls, "nothing was loaded again"


def _value(control: ControlSegment, item: str) -> int | None:
    found = CacheReader(control.name).current().get(item)
    return None if found is None else found["v"]


def test_without_a_saved_cursor_everything_is_loaded_again(
    control: ControlSegment, start: Start
) -> None:
    store = Store(items={"a": {"v": 1}})
    killed(control, store, lambda: control.state()[0])
    shm.unlink(control.name.removesuffix("control") + "cursor")
    loop = start(store)
    assert not loop.until(refresh.AttachReport).continues
    assert loop.built().generation == 2


def test_at_random_nothing_is_lost(start: Start) -> None:
    chosen = random.Random(7)
    store = Store(limit=50, items={f"i{n}": {"v": n} for n in range(50)})
    loop = start(store, plan=replace(QUICK, share=1000, delta_rows=300))
    loop.built()
    for round_ in range(1500):
        item = f"i{chosen.randrange(80)}"
        if chosen.random() < 0.15:
            store.drop(item)
        else:
            column = chosen.choice("vw")
            store.put(item, **{column: round_})
        if round_ % 300 == 100:
            loop.tell(refresh.BUILD)
        if round_ % 20 == 0:
            time.sleep(0.002)
    store.put("last", v=1)
    eventually(lambda: loop.value("last") == 1)
    for n in range(80):
        wanted = store.items.get(f"i{n}")
        found = loop.get(f"i{n}")
        if wanted is None:
            assert found is None
        else:
            assert found is not None
            assert (found["v"], found["w"]) == (wanted.get("v"), wanted.get("w"))
