"""Folding deltas: nothing is lost, no event time either, and companions go along."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pyarrow as pa
import pytest
from delta_oracle import SCHEMA, Oracle, delete, read, upsert
from test_itemcache_companion import DIGEST, Doubled
from test_itemcache_delta import KEYS, build, random_steps

from cython_ext.column import Column, Kind
from procserver import shm
from procserver.errors import SharedMemoryError
from procserver.itemcache import writer as writing
from procserver.itemcache.compaction import compact, fold_companion
from procserver.itemcache.companion import make_companion
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import DeltaWriter
from procserver.itemcache.reader import CacheReader, Companion, Generation
from procserver.itemcache.sources import Upsert
from procserver.itemcache.writer import GenerationWriter


@contextmanager
def folded(
    control: ControlSegment, view: Generation
) -> Iterator[tuple[GenerationWriter, DeltaWriter]]:
    """A new generation on its way, with the writer of its delta."""
    with closing(compact(control, view)) as made:
        fresh = Generation(shm.attach(made.name))
        with DeltaWriter(control, fresh) as delta:
            delta.inherit(view)
            yield made, delta


@pytest.mark.parametrize("timed", [False, True, None])
def test_random_events_with_compactions(
    control: ControlSegment, timed: bool | None
) -> None:
    rng = random.Random(11)
    oracle = Oracle()
    generation = build(control, oracle, [*KEYS[::2], KEYS[0]])
    reader = CacheReader(control.name)
    delta = DeltaWriter(control, generation)
    for round_ in range(60):
        steps = random_steps(
            rng, rng.random() < 0.5 if timed is None else timed, round_
        )
        oracle.apply(steps)
        delta.apply(steps)
        wanted = {key: oracle.table().get(key) for key in KEYS}
        if round_ % 12 == 11:
            before = reader.current()
            with folded(control, before) as (made, following):
                assert made.rows == sum(item is not None for item in wanted.values())
                made.publish(following.release())
            assert read(before, KEYS) == wanted
            delta.close()
            delta = DeltaWriter(control, reader.current())
        assert read(reader.current(), KEYS) == wanted
    delta.close()
    assert reader.current().number == 6


def test_older_events_come_too_late_after_a_compaction(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a", "b", "c"])
    with DeltaWriter(control, generation) as delta:
        delta.apply([upsert(["a"], {"n": [5]}, [50]), delete(["b", "x"], [50, 50])])
        delta.apply([delete(["c"])])
    before = CacheReader(control.name).current()
    with folded(control, before) as (made, following):
        assert following.rows == 2
        made.publish(following.release())
    view = CacheReader(control.name).current()
    with DeltaWriter(control, view) as delta:
        done = delta.apply(
            [upsert(["a", "b", "x", "c"], {"n": [1, 1, 1, 1]}, [40, 40, 40, 40])]
        )
        assert (done.upserted, done.stale) == (1, 3)
        found = read(delta.view(), ["a", "b", "x", "c"])
        assert found["a"] is not None
        assert found["a"]["n"] == 5
        assert (found["b"], found["x"]) == (None, None)
        assert found["c"] is not None
        done = delta.apply([upsert(["a", "b"], {"n": [7, 7]}, [50, 60])])
        assert (done.upserted, done.stale) == (2, 0)


def test_deletions_are_not_inherited_by_what_has_the_item(
    control: ControlSegment,
) -> None:
    generation = build(control, Oracle(), ["a", "b"])
    with DeltaWriter(control, generation) as delta:
        delta.apply([delete(["a", "b"], [9, 9])])
    before = CacheReader(control.name).current()
    after = build(control, Oracle(), ["b"])
    with DeltaWriter(control, after) as delta:
        assert delta.inherit(before) == 1
        found = read(delta.view(), ["a", "b"])
        assert found["a"] is None
        assert found["b"] is not None


def test_of_too_many_deletions_the_latest_are_inherited(
    control: ControlSegment,
) -> None:
    generation = build(control, Oracle(), ["a"])
    keys = [f"k{i}" for i in range(20)]
    with DeltaWriter(control, generation) as delta:
        delta.apply([delete(keys, [(7 * i) % 20 for i in range(20)])])
    before = CacheReader(control.name).current()
    after = build(control, Oracle(), ["a"])
    with DeltaWriter(control, after, capacity=32) as delta:
        assert delta.inherit(before) == 8
        done = delta.apply([upsert(keys, {}, [11] * 20)])
        assert (done.upserted, done.stale) == (12, 8)


def test_times_of_a_snapshot_are_known(control: ControlSegment) -> None:
    step = upsert(["a", "b"], {"n": [1, 2], "small": [1, 2]}, [10, 20])
    with GenerationWriter(control, "id", SCHEMA) as writer:
        writer.append(step.batch, step.times)
        writer.publish()
    with DeltaWriter(control, CacheReader(control.name).current()) as delta:
        done = delta.apply([upsert(["a", "b"], {"n": [8, 9]}, [15, 15])])
        assert (done.upserted, done.stale) == (1, 1)
        found = read(delta.view(), ["a", "b"])
    assert found["a"] is not None
    assert found["b"] is not None
    assert (found["a"]["n"], found["b"]["n"]) == (8, 2)


def test_no_memory_for_a_compaction_leaves_nothing(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = build(control, Oracle(), ["a", "b"])
    known = shm.list_segments(control.generation_name(0)[:-1])

    def refuse(*_: object, **__: object) -> None:
        raise SharedMemoryError("no shared memory")

    monkeypatch.setattr(writing.GenerationWriter, "_flush", refuse)
    with pytest.raises(SharedMemoryError):
        compact(control, view)
    assert shm.list_segments(control.generation_name(0)[:-1]) == known


# ------------------------------------------------------------------ companions


def table(control: ControlSegment, numbers: list[int]) -> Generation:
    """Items "i0" ... with a number each, published with a companion."""
    schema = {"id": Kind.STRING, "n": Kind.INT64}
    with GenerationWriter(control, "id", schema) as writer:
        writer.append(numbered(range(len(numbers)), numbers))
        writer.seal()
        fresh = Generation(shm.attach(writer.name))
        make_companion(fresh, control, Doubled())
        writer.publish()
    return CacheReader(control.name).current()


def numbered(keys: object, numbers: list[int]) -> pa.RecordBatch:
    ids = [f"i{key}" for key in keys]  # type: ignore[attr-defined]
    return pa.RecordBatch.from_pydict({"id": ids, "n": pa.array(numbers, pa.int64())})


def doubles(view: Generation, keys: range) -> list[object]:
    assert view.companion is not None
    rows = view.lookup(Column.from_texts([f"i{key}" for key in keys]))
    assert view.companion.covers(rows)
    return view.companion.gather(rows, ["double"])["double"].to_pylist()


def test_what_is_generated_of_changes_comes_with_them(control: ControlSegment) -> None:
    generation = table(control, [1, 2, 3])
    reader = CacheReader(control.name, digest=DIGEST)
    before = reader.current()
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(numbered([1, 7], [20, 70])), delete(["i0"])])
        assert delta.companion_problem == ""
    view = reader.current()
    assert doubles(before, range(3)) == [2, 4, 6]
    assert doubles(view, range(8)) == [None, 40, 6, None, None, None, None, 140]
    assert f"{control.companion_name(1, DIGEST)}-delta" in shm.list_segments("/")


def test_a_maker_that_comes_later_begins_with_what_is_there(
    control: ControlSegment,
) -> None:
    generation = table(control, [1, 2, 3])
    with DeltaWriter(control, generation) as delta:
        delta.apply([Upsert(numbered([1], [20]))])
        delta.add_maker(Doubled())
        delta.add_maker(Doubled("nobody's"))
        assert doubles(
            CacheReader(control.name, digest=DIGEST).current(), range(3)
        ) == [2, 40, 6]
    reader = CacheReader(control.name, digest=DIGEST)
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(numbered([2], [30]))])
        assert doubles(reader.current(), range(3)) == [2, 40, 60]
        delta.keep_makers(())
        delta.apply([Upsert(numbered([0], [10]))])
    assert doubles(reader.current(), range(1, 3)) == [40, 60]


def test_what_fits_no_longer_is_generated_by_requests(control: ControlSegment) -> None:
    generation = table(control, [1, 2, 3])
    reader = CacheReader(control.name, digest=DIGEST)
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(numbered([1], [20]))])
        delta.apply([Upsert(numbered([2], [-30]))])
        assert "fits the companion no longer" in delta.companion_problem
        delta.apply([Upsert(numbered([1], [21]))])
    view = reader.current()
    rows = view.lookup(Column.from_texts(["i0", "i1", "i2"]))
    assert view.companion is not None
    assert not view.companion.covers(rows)
    assert view.companion.covers(rows[:1])
    assert view.gather(rows, ["n"])["n"].to_pylist() == [1, 21, -30]


def test_an_abandoned_batch_leaves_no_companion_behind(
    control: ControlSegment,
) -> None:
    generation = table(control, [1, 2, 3])
    dead = DeltaWriter(control, generation, makers=[Doubled()])
    dead.apply([Upsert(numbered([1], [20]))])
    dead.apply([Upsert(numbered([1, 2], [99, 99]))], publish=False)
    dead.close()
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(numbered([0], [10]))])
    view = CacheReader(control.name, digest=DIGEST).current()
    assert doubles(view, range(3)) == [20, 40, 6]


def test_a_successor_without_the_maker_leaves_no_companion_behind(
    control: ControlSegment,
) -> None:
    generation = table(control, [1, 2, 3])
    dead = DeltaWriter(control, generation, makers=[Doubled()])
    dead.apply([Upsert(numbered([1], [20]))])
    dead.apply([Upsert(numbered([1, 2], [99, 99]))], publish=False)
    dead.close()
    with DeltaWriter(control, generation) as delta:
        delta.apply([Upsert(numbered([0, 2], [10, 30]))])
    view = CacheReader(control.name, digest=DIGEST).current()
    assert doubles(view, range(1, 2)) == [40]
    assert view.companion is not None
    assert view.companion.count == 1


def test_companions_are_folded(control: ControlSegment) -> None:
    generation = table(control, list(range(100)))
    reader = CacheReader(control.name, digest=DIGEST)
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(numbered(range(50, 70), [7] * 20)), delete(["i3"])])
        delta.apply([Upsert(numbered([200, 60], [8, 9]))])
    view = reader.current()
    wanted = doubles(view, range(201))
    with folded(control, view) as (made, following):
        fresh = Generation(shm.attach(made.name))
        report = fold_companion(control, view, fresh, DIGEST)
        assert report is not None
        assert fold_companion(control, view, fresh, "f" * 32) is None
        assert made.rows == 100
        made.publish(following.release())
    view = reader.current()
    assert doubles(view, range(201)) == wanted
    mapping = shm.attach(control.companion_name(view.number, DIGEST))
    Companion(mapping).verify()


def test_a_companion_that_ends_early_is_not_folded(control: ControlSegment) -> None:
    generation = table(control, [1, 2, 3])
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(numbered([2], [-30]))])
        view = delta.view()
    with folded(control, view) as (made, _):
        fresh = Generation(shm.attach(made.name))
        assert fold_companion(control, view, fresh, DIGEST) is None
