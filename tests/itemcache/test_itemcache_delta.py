"""Deltas against dictionaries: upserts, deletions, times, counts, restarts."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from delta_oracle import SCHEMA, Oracle, cell, delete, read, upsert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cython_ext.column import Column, Kind
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import layout
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import Applied, DeltaFull, DeltaWriter
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import Delete, Upsert
from procserver.itemcache.writer import GenerationWriter

KEYS = [*(str(n) for n in range(12)), *(f"item {n}" for n in range(12)), "", "007"]
NAMES = [name for name in SCHEMA if name != "id"]


def build(
    control: ControlSegment, oracle: Oracle, keys: list[str], seed: int = 0
) -> Generation:
    """A published generation; the oracle knows the same."""
    columns = {name: [cell(name, seed + i) for i in range(len(keys))] for name in NAMES}
    step = upsert(keys, columns)
    oracle.apply([step])
    with GenerationWriter(control, "id", SCHEMA) as writer:
        writer.append(step.batch)
        writer.publish()
    return CacheReader(control.name).current()


def random_steps(
    rng: random.Random, timed: bool, clock: int = 0
) -> list[Upsert | Delete]:
    steps: list[Upsert | Delete] = []
    for _ in range(rng.randint(1, 4)):
        keys = rng.choices(KEYS, k=rng.randint(0, 8))
        times = [clock + rng.randint(-30, 30) for _ in keys] if timed else None
        if rng.random() < 0.3:
            steps.append(delete(keys, times))
            continue
        names = rng.sample(NAMES, rng.randint(0, len(NAMES)))
        columns = {
            name: [cell(name, rng.randint(0, 10_000)) for _ in keys] for name in names
        }
        steps.append(upsert(keys, columns, times))
    return steps


@pytest.mark.parametrize("timed", [False, True, None])
def test_random_events_against_dictionaries(
    control: ControlSegment, timed: bool | None
) -> None:
    rng = random.Random(7)
    oracle = Oracle()
    generation = build(control, oracle, KEYS[::2])
    views: list[tuple[Generation, dict[str, object]]] = []
    reader = CacheReader(control.name)
    writer = DeltaWriter(control, generation)
    for round_ in range(100):
        steps = random_steps(
            rng, rng.random() < 0.5 if timed is None else timed, round_
        )
        oracle.apply(steps)
        writer.apply(steps)
        if round_ % 40 == 20:
            writer.close()
            writer = DeltaWriter(control, generation)
        view = reader.current()
        assert (view.number, view.count) == control.state()
        wanted = {key: oracle.table().get(key) for key in KEYS}
        assert read(view, KEYS) == wanted
        views.append((view, wanted))
    writer.close()
    for view, wanted in views:
        assert read(view, KEYS) == wanted
    assert views[-1][0].count > 200


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 1 << 30), cuts=st.sets(st.integers(0, 12)))
def test_timed_events_may_come_in_any_order(
    control: ControlSegment, seed: int, cuts: set[int]
) -> None:
    """Twelve events of one item, each with a time of its own: their order is theirs."""
    rng = random.Random(seed)
    events: list[Upsert | Delete] = []
    for time in range(12):
        if rng.random() < 0.3:
            events.append(delete(["a"], [time]))
        else:
            names = rng.sample(NAMES, rng.randint(0, 4))
            cells = {name: [cell(name, 100 * time)] for name in names}
            events.append(upsert(["a"], cells, [time]))
    oracle = Oracle()
    generation = build(control, oracle, ["a", "b"])
    oracle.apply(events)
    rng.shuffle(events)
    with DeltaWriter(control, generation) as writer:
        for start, stop in itertools.pairwise([0, *sorted(cuts), 12]):
            writer.apply(events[start:stop])
        assert read(writer.view(), ["a", "b"]) == oracle.table()


def test_counts_of_what_was_applied(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a", "b", "c"])
    with DeltaWriter(control, generation) as writer:
        done = writer.apply([upsert(["a", "b"], {"n": [1, 2]}, [5, 5])])
        assert done == Applied(upserted=2)
        done = writer.apply([upsert(["a", "b"], {"n": [3, 4]}, [4, 6])])
        assert done == Applied(upserted=1, stale=1)
        assert writer.apply([delete(["a", "x"])]) == Applied(deleted=1, stale=1)
        assert writer.apply([delete(["b"], [4])]) == Applied(deleted=0, upserted=0)
    assert control.state() == (1, 5)


def applied(control: ControlSegment, batch: pa.RecordBatch) -> Applied:
    with DeltaWriter(control, CacheReader(control.name).current()) as writer:
        return writer.apply([Upsert(batch)])


def test_bad_rows_are_counted_and_left_out(control: ControlSegment) -> None:
    build(control, Oracle(), ["a", "b"])
    batch = pa.RecordBatch.from_pydict(
        {
            "id": ["a", "b", None, "x" * 70_000, "c", "d"],
            "small": pa.array([1, 1 << 40, 3, 4, 5, 6], pa.int64()),
            "n": ["10", "20", "30", "40", "50", "sixty"],
            "what": [1, 2, 3, 4, 5, 6],
        }
    )
    done = applied(control, batch)
    assert done.upserted == 2
    assert done.skipped == {
        "bad_value": 2,
        "null_key": 1,
        "long_key": 1,
        "unknown_column": 1,
    }
    view = CacheReader(control.name).current()
    assert view.get("d") is None
    item = view.get("c")
    assert item is not None
    assert (item["n"], item["small"]) == (50, 5)


def test_a_column_of_a_hopeless_type(control: ControlSegment) -> None:
    build(control, Oracle(), ["a", "b"])
    batch = pa.RecordBatch.from_pydict(
        {"id": ["a", "b"], "n": [[1], None], "small": [7, 8]}
    )
    done = applied(control, batch)
    assert (done.upserted, done.skipped) == (1, {"bad_value": 1})
    item = CacheReader(control.name).current().get("b")
    assert item is not None
    assert (item["n"], item["small"]) == (None, 8)


def test_no_key_column_is_an_error_and_changes_nothing(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a"])
    with DeltaWriter(control, generation) as writer:
        bad = Upsert(pa.RecordBatch.from_pydict({"n": [1]}))
        with pytest.raises(SourceError, match="key column 'id' is missing"):
            writer.apply([upsert(["a"], {"n": [5]}), bad])
        assert writer.rows == 0
        assert read(writer.view(), ["a"])["a"] == generation.get("a")


def test_integer_ids_and_their_texts_are_one(control: ControlSegment) -> None:
    schema = {"id": Kind.INT64, "n": Kind.INT64}
    with GenerationWriter(control, "id", schema) as writer:
        writer.append(pa.RecordBatch.from_pydict({"id": [1, 2, -3], "n": [1, 2, 3]}))
        writer.publish()
    reader = CacheReader(control.name)
    texts = pa.RecordBatch.from_pydict({"id": ["2", "-3"], "n": [20, 30]})
    with DeltaWriter(control, reader.current()) as delta:
        delta.apply([Upsert(texts), Delete(pa.array([1]))])
    view = reader.current()
    ids = Column.from_arrow(pa.array([1, 2, -3], pa.int64()))
    rows = view.lookup(ids)
    assert rows.tolist() == [-1, 3 + 0, 3 + 1]
    assert view.gather(rows, ["n"])["n"].to_pylist() == [None, 20, 30]
    assert view.item_id(int(rows[1])) == 2
    with pytest.raises(IndexError):
        view.gather(np.array([3 + 3]), ["n"])


def test_a_full_delta_changes_nothing(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a", "b"])
    with DeltaWriter(control, generation, capacity=10) as writer:
        many = [f"k{i}" for i in range(11)]
        with pytest.raises(DeltaFull, match=r"11 records with .* beside 0"):
            writer.apply([upsert(many, {})])
        writer.apply([upsert([f"k{i}"], {"n": [i]}) for i in range(6)])
        assert (writer.rows, writer.fullness) == (6, 0.6)
        before = read(writer.view(), ["a", "k1", "k9"])
        with pytest.raises(DeltaFull, match="5 records"):
            writer.apply([upsert(["a", "b", "k1", "k8", "k9"], {"n": [0] * 5})])
        assert read(writer.view(), ["a", "k1", "k9"]) == before
        assert control.state() == (1, 6)
        writer.apply([upsert(["a"], {"n": [99]})])
        assert read(CacheReader(control.name).current(), ["a"])["a"]["n"] == 99


def test_no_memory_changes_nothing(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = build(control, Oracle(), ["a", "b"])
    with DeltaWriter(control, generation) as writer:
        writer.apply([upsert(["a"], {"n": [1]})])

        def refuse(*_: object, **__: object) -> None:
            raise shm.SharedMemoryError("no shared memory")

        monkeypatch.setattr(shm, "allocate", refuse)
        with pytest.raises(shm.SharedMemoryError):
            writer.apply([upsert(["a", "b"], {"text": ["x" * (1 << 20)] * 2})])
        monkeypatch.undo()
        assert read(writer.view(), ["a", "b"]) == read(
            CacheReader(control.name).current(), ["a", "b"]
        )
        writer.apply([upsert(["b"], {"n": [2]})])
    assert read(CacheReader(control.name).current(), ["b"])["b"]["n"] == 2


def test_unpublished_records_are_forgotten_by_a_successor(
    control: ControlSegment,
) -> None:
    oracle = Oracle()
    generation = build(control, oracle, ["a", "b"])
    first = [upsert(["a", "new"], {"n": [1, 2]})]
    oracle.apply(first)
    dead = DeltaWriter(control, generation)
    dead.apply(first)
    reader = CacheReader(control.name)
    view = reader.current()
    dead.apply(
        [upsert(["a", "b", "other"], {"n": [7, 8, 9]}), delete(["new"])], publish=False
    )
    keys = ["a", "b", "new", "other"]
    wanted = {key: oracle.table().get(key) for key in keys}
    assert read(view, keys) == wanted
    with DeltaWriter(control, generation) as heir:
        assert heir.rows == 2
        assert read(view, keys) == wanted
        # Records of others take the places of the forgotten ones.
        heir.apply([upsert(["x", "y", "z"], {"n": [1, 2, 3]})], publish=False)
        assert read(view, keys) == wanted
        heir.publish()
    assert read(reader.current(), keys) == wanted
    assert read(reader.current(), ["y"])["y"]["n"] == 2
    dead.close()


def test_a_delta_before_its_generation_is_published(control: ControlSegment) -> None:
    build(control, Oracle(), ["a"])
    reader = CacheReader(control.name)
    seen = []
    with GenerationWriter(control, "id", SCHEMA) as writer:
        writer.append(upsert(["a", "b"], {"n": [1, 2]}).batch)
        writer.seal()
        fresh = Generation(shm.attach(writer.name))
        with DeltaWriter(control, fresh) as delta:
            delta.apply([upsert(["b"], {"n": [3]})], publish=False)
            seen.append((reader.current().number, reader.current().count))
            writer.publish(delta.release())
            delta.publish()
    view = reader.current()
    assert seen == [(1, 0)]
    assert (view.number, view.count) == (2, 1)
    assert read(view, ["b"])["b"]["n"] == 3


def test_deltas_go_with_their_generation(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a"])
    prefix = control.generation_name(0)[:-1]
    with DeltaWriter(control, generation) as writer:
        writer.apply([upsert(["a"], {"n": [1]})])
    assert control.sweep() == 0
    assert f"{prefix}1-delta" in shm.list_segments(prefix)
    build(control, Oracle(), ["a"])
    assert shm.list_segments(prefix) == [f"{prefix}2", control.name]


def test_a_damaged_delta_is_refused(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a"])
    with DeltaWriter(control, generation) as writer:
        writer.apply([upsert(["a"], {"n": [1]})])
    name = control.delta_name(1)
    with (shm.SHM / name[1:]).open("r+b") as file:
        file.seek(60)
        file.write(b"\xff")
    with pytest.raises(SourceError, match="damaged"):
        CacheReader(control.name).current()
    with pytest.raises(SourceError, match="damaged"):
        DeltaWriter(control, generation)


def test_memory_is_taken_as_it_is_needed(control: ControlSegment) -> None:
    generation = build(control, Oracle(), ["a"])
    with DeltaWriter(control, generation) as writer:
        first = writer.nbytes
        assert first < 1 << 20
        writer.apply([upsert(["a"], {"text": ["x" * (3 << 20)]})])
        assert 3 << 20 < writer.nbytes - first < 8 << 20
        size = (shm.SHM / control.delta_name(1)[1:]).stat().st_size
        assert size > layout.DeltaPlan.of(0, 0, 0, 0).size + (1 << 28)
