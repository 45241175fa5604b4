"""Event times outlive full loads: values are the load's, an older event stays stale."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from delta_oracle import SCHEMA, Oracle, State, cell, delete, read, upsert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from item_sources import NUMBERS, SERVICE
from scripted import SCHEMA as STORED
from scripted import Loop, Store, batch, eventually
from test_itemcache_compaction import folded
from test_itemcache_delta import KEYS, NAMES, build, random_steps

from cython_ext.column import Kind
from procserver import shm
from procserver.itemcache import adoption, layout, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import DeltaWriter
from procserver.itemcache.intake import Intake, Past
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import Upsert
from procserver.itemcache.writer import GenerationWriter


@contextmanager
def loaded(
    control: ControlSegment, step: Any, schema: dict[str, Kind] = SCHEMA
) -> Iterator[tuple[GenerationWriter, DeltaWriter]]:
    """Everything is loaded again; the writer of the new delta, not yet published."""
    before = CacheReader(control.name).current()
    past = Past(before, schema)
    intake = Intake.of(past, None, None)
    with GenerationWriter(control, "id", schema, intake=intake) as writer:
        writer.append(step.batch)
        writer.seal()
        with DeltaWriter(control, Generation(shm.attach(writer.name))) as delta:
            delta.inherit(before)
            yield writer, delta


def load(control: ControlSegment, step: Any, schema: dict[str, Kind] = SCHEMA) -> None:
    with loaded(control, step, schema) as (writer, delta):
        writer.publish(delta.release())


def apply(control: ControlSegment, *steps: Any) -> tuple[int, int, int]:
    with DeltaWriter(control, CacheReader(control.name).current()) as delta:
        done = delta.apply(list(steps))
    return done.upserted, done.deleted, done.stale


def cells(control: ControlSegment, key: str, *names: str) -> list[Any]:
    found = read(CacheReader(control.name).current(), [key])[key]
    assert found is not None
    return [found[name] for name in names]


LOADED = upsert(["a", "b"], {"n": [1, 2], "small": [1, 2]})


def test_an_event_from_before_one_that_was_seen_is_stale_after_a_load(
    control: ControlSegment,
) -> None:
    build(control, Oracle(), ["a", "b"])
    assert apply(control, upsert(["a"], {"n": [10]}, [10])) == (1, 0, 0)
    for _ in range(2):
        load(control, LOADED)
        assert cells(control, "a", "n", "small") == [1, 1]
        assert apply(control, upsert(["a"], {"n": [5]}, [5])) == (0, 0, 1)
        assert cells(control, "a", "n") == [1]
    assert apply(control, upsert(["a"], {"n": [10]}, [10])) == (1, 0, 0)
    assert apply(control, upsert(["a"], {"n": [11]}, [11])) == (1, 0, 0)
    assert cells(control, "a", "n") == [11]


def test_times_are_those_of_each_column(control: ControlSegment) -> None:
    build(control, Oracle(), ["a", "b"])
    apply(control, upsert(["a"], {"n": [10]}, [10]), upsert(["b"], {"n": [3]}, [3]))
    load(control, LOADED)
    step = upsert(["a", "b"], {"n": [5, 5], "small": [5, 5]}, [5, 5])
    assert apply(control, step) == (2, 0, 0)
    assert cells(control, "a", "n", "small") == [1, 5]
    assert cells(control, "b", "n", "small") == [5, 5]


def test_a_deleted_item_that_the_load_has_lives_and_keeps_the_time(
    control: ControlSegment,
) -> None:
    build(control, Oracle(), ["a", "b"])
    assert apply(control, delete(["a", "c"], [10, 10])) == (0, 1, 0)
    load(control, LOADED)
    assert cells(control, "a", "n") == [1]
    late = upsert(["a", "c"], {"n": [5, 5]}, [5, 5])
    assert apply(control, late) == (0, 0, 2)
    assert cells(control, "a", "n") == [1]
    assert apply(control, delete(["a"], [9]))[2] == 1
    assert cells(control, "a", "n") == [1]
    assert apply(control, upsert(["a", "c"], {"n": [7, 7]}, [11, 11])) == (2, 0, 0)


def test_items_without_times_take_no_more(control: ControlSegment) -> None:
    keys = [f"k{i}" for i in range(2000)]
    step = upsert(keys, {"n": list(range(2000))})
    with GenerationWriter(control, "id", SCHEMA) as writer:
        writer.append(step.batch)
        writer.publish()
        plain = writer.nbytes
    load(control, step)
    assert CacheReader(control.name).current().nbytes == plain
    apply(control, upsert(keys[:10], {"n": [1] * 10}, [7] * 10))
    load(control, step)
    # 2 bytes, one time, and a bit for each of 9 columns, row and deletion.
    more = CacheReader(control.name).current().nbytes - plain
    assert more == layout.aligned(10 * (2 + 8 + 2))


def test_columns_may_come_and_go(control: ControlSegment) -> None:
    build(control, Oracle(), ["a", "b"])
    apply(
        control,
        upsert(["a"], {"text": ["t"]}, [10]),
        upsert(["a"], {"n": [1]}, [20]),
    )
    schema = {"new": Kind.INT64, "id": Kind.STRING, "n": Kind.INT64}
    load(control, upsert(["a"], {"n": [5]}), schema)
    apply(control, upsert(["a"], {"n": [4]}, [15]))
    assert CacheReader(control.name).current().get("a") == {
        "new": None,
        "id": "a",
        "n": 5,
    }


def test_times_survive_a_compaction_after_a_load(control: ControlSegment) -> None:
    build(control, Oracle(), ["a", "b"])
    apply(control, upsert(["a"], {"n": [10]}, [10]))
    load(control, LOADED)
    apply(control, upsert(["b"], {"n": [20]}, [20]))
    with folded(control, CacheReader(control.name).current()) as (made, following):
        made.publish(following.release())
    late = upsert(["a", "b"], {"n": [5, 5]}, [5, 5])
    assert apply(control, late) == (0, 0, 2)


def test_what_is_heard_while_a_load_runs_is_known_too(control: ControlSegment) -> None:
    """Of events from before the snapshot that were applied after it had begun."""
    build(control, Oracle(), ["a", "b", "c"])
    apply(control, upsert(["a"], {"n": [3]}, [3]))
    begun = CacheReader(control.name).current()
    apply(
        control,
        upsert(["a", "b", "x"], {"n": [10, 10, 10]}, [10, 10, 10]),
        upsert(["b"], {"small": [10]}, [20]),
        delete(["c"], [30]),
    )
    intake = Intake.of(Past(begun, SCHEMA), None, None)
    step = upsert(["a", "b", "c"], {"n": [1, 2, 3], "small": [1, 2, 3]})
    with GenerationWriter(control, "id", SCHEMA, intake=intake) as writer:
        writer.append(step.batch)
        writer.seal()
        before = CacheReader(control.name).current()
        with DeltaWriter(control, Generation(shm.attach(writer.name))) as delta:
            delta.inherit(before)
            for ids, known in Past(before, SCHEMA).since(begun.count):
                delta.remember(ids, known)
                delta.remember(ids, known)
            assert delta.rows == 3, "once each, and not what the load lacks"
            writer.publish(delta.release())
    found = read(CacheReader(control.name).current(), ["a", "b", "c", "x"])
    assert found["x"] is None
    assert [found[key]["n"] for key in "abc"] == [1, 2, 3]  # type: ignore[index]
    late = upsert(["a", "b", "c"], {"n": [9, 9, 9]}, [9, 9, 29])
    assert apply(control, late) == (0, 0, 3)
    step = upsert(["a", "b", "c"], {"small": [9, 9, 9]}, [9, 19, 31])
    assert apply(control, step) == (2, 0, 1)
    assert cells(control, "a", "n", "small") == [1, 9]
    assert cells(control, "b", "n", "small") == [2, 2]
    assert cells(control, "c", "n", "small") == [3, 9]


def forget(oracle: Oracle, step: Any) -> None:
    """What a load leaves of the oracle: its values, and times of items in both."""
    rows = {str(row["id"]): row for row in step.batch.to_pylist()}
    for key in [*oracle.items]:
        item = oracle.items[key]
        if key not in rows and (item.alive or item.deleted == float("-inf")):
            del oracle.items[key]
    for key, row in rows.items():
        item = oracle.items.setdefault(key, State())
        item.values, item.alive = dict(row), True


@pytest.mark.parametrize("timed", [True, None])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1 << 30),
    acts=st.lists(
        st.sampled_from(["events", "events", "load", "fold", "restart"]),
        min_size=4,
        max_size=14,
    ),
)
def test_loads_among_events(
    control: ControlSegment, timed: bool | None, seed: int, acts: list[str]
) -> None:
    rng = random.Random(seed)
    oracle = Oracle()
    delta = DeltaWriter(control, build(control, oracle, KEYS[::2], seed % 1000))
    since: list[Any] = []
    for round_, act in enumerate(acts):
        if act == "events":
            is_timed = rng.random() < 0.5 if timed is None else timed
            since = random_steps(rng, is_timed, round_)
            oracle.apply(since)
            delta.apply(since)
        elif act == "load":
            keys = rng.sample(KEYS, rng.randint(1, len(KEYS)))
            columns = {
                name: [cell(name, rng.randint(0, 9999)) for _ in keys] for name in NAMES
            }
            step = upsert(keys, columns)
            forget(oracle, step)
            oracle.apply(since)
            with loaded(control, step) as (writer, following):
                # Those since the snapshot, which the old one has seen already.
                following.apply(since, publish=False)
                writer.publish(following.release())
            since = []
        elif act == "fold":
            with folded(control, CacheReader(control.name).current()) as (
                made,
                following,
            ):
                made.publish(following.release())
        if act != "events":
            delta.close()
            delta = DeltaWriter(control, CacheReader(control.name).current())
        wanted = {key: oracle.table().get(key) for key in KEYS}
        assert read(CacheReader(control.name).current(), KEYS) == wanted, act
    delta.close()


def test_in_the_loop_a_late_event_is_stale_after_a_load_and_a_restart(
    control: ControlSegment,
) -> None:
    store = Store(clock=100, items={"a": {"v": 0, "w": 0}})
    loop = Loop(control, store.open)
    try:
        loop.built()
        store.put("a", v=2)
        eventually(lambda: loop.value("a") == 2)
        loop.tell(refresh.BUILD)
        loop.built()
        store.late(50, "a", v=1, w=7)
        eventually(lambda: loop.value("a", "w") == 7)
        assert loop.value("a") == 2, "only the older of its values is stale"
    finally:
        loop.end()
    loop = Loop(control, store.open, reload=True)
    try:
        assert loop.built().generation == 3
        store.late(60, "a", v=1, w=8)
        eventually(lambda: loop.value("a", "w") == 8)
        assert loop.value("a") == 2
        store.put("a", v=3)
        eventually(lambda: loop.value("a") == 3)
    finally:
        loop.end()


def left_by_a_dead_owner(service: str) -> None:
    """Item "a" with an event of time 100 in the base, "b" with one in the delta."""
    pid = os.fork()
    if pid == 0:
        try:
            control = ControlSegment.create(service)
            control.source = "source"
            with GenerationWriter(control, "id", STORED) as writer:
                writer.append(batch({"a": {"v": 1}, "b": {"v": 1}, "c": {"v": 1}}))
                writer.publish()
            event = batch({"a": {"v": 2}})
            apply(control, Upsert(event.select(["id", "v"]), np.array([100])))
            with folded(control, CacheReader(control.name).current()) as (made, delta):
                made.publish(delta.release())
            event = batch({"b": {"v": 2}})
            apply(control, Upsert(event.select(["id", "v"]), np.array([100])))
            apply(control, delete(["c"], [100]))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_a_new_master_knows_them_after_its_first_load() -> None:
    service = f"{SERVICE}-{next(NUMBERS)}"
    left_by_a_dead_owner(service)
    adopted = adoption.take_over(service, "source")
    assert adopted is not None
    shm.reclaim()
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    store = Store(items={item: {"v": 7, "w": 7} for item in "abc"})
    loop = Loop(control, store.open, reload=True)
    try:
        loop.built()
        assert [loop.value(item) for item in "abc"] == [7, 7, 7]
        for item in "abc":
            store.late(50, item, v=1, w=8)
        store.late(50, "d", v=1)
        eventually(lambda: loop.value("d") == 1)
        assert [loop.value(item) for item in "abc"] == [7, 7, 7]
        # What came after the column's time, or the item's deletion, is no news to "c".
        assert [loop.value(item, "w") for item in "abc"] == [8, 8, 7]
        store.late(101, "c", v=9)
        eventually(lambda: loop.value("c") == 9)
    finally:
        loop.end()
        control.unlink()
