"""Companions: rows, kinds, failures, and where they go."""

import errno
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column, Kind
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import companion, layout, refresh, writer
from procserver.itemcache.control import ControlSegment, base_name, is_sealed
from procserver.itemcache.reader import CacheReader, Companion, Generation
from procserver.itemcache.sources import Changes, Description
from procserver.itemcache.writer import CompanionWriter, GenerationWriter

DIGEST = "0123456789abcdef"


class Items:
    """An item source in memory."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, *batches: pa.RecordBatch) -> None:
        self.batches = batches

    def describe(self) -> Description:
        return Description("id", {"id": Kind.STRING, "n": Kind.INT64})

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        return None, iter(self.batches)

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        return None

    def close(self) -> None:
        pass


class Doubled:
    """Makes ``n`` twice as large; lists once a number is negative."""

    def __init__(self, digest: str = DIGEST) -> None:
        self.digest = digest
        self.kinds: dict[str, Kind] = {}
        self.features = ("double",)
        self.reader = None
        self.sampled = 0
        self.started = 0
        self.on_batch: Callable[[], object] = lambda: None

    def fresh(self) -> "Doubled":
        return Doubled(self.digest)

    def inputs(self, schema: Collection[str]) -> tuple[str, ...]:
        return ("n",) if "n" in schema else ()

    def sample(self, columns: Mapping[str, Column], rows: int) -> None:
        self.sampled = rows
        self.kinds = {"double": Kind.INT64}

    def continued(self, kinds: Mapping[str, Kind]) -> "Doubled | None":
        if list(kinds) != ["double"]:
            return None
        other = Doubled(self.digest)
        other.kinds = dict(kinds)
        return other

    def generate(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, Column] | None:
        self.on_batch()
        numbers = columns["n"].to_pylist()
        assert len(numbers) == rows
        self.started += numbers[:1] == [0]
        if self.kinds["double"] == Kind.INT64 and min(numbers) < 0:
            self.kinds = {"double": Kind.LIST_INT64}
            return None
        type_ = pa.int64()
        cells: list[object] = [2 * number for number in numbers]
        if self.kinds["double"] == Kind.LIST_INT64:
            type_, cells = pa.list_(type_), [[cell, 1] for cell in cells]
        return {"double": Column.from_arrow(pa.array(cells, type_))}


def batch(numbers: Collection[int], null: int = -1) -> pa.RecordBatch:
    ids = [None if number == null else f"i{number}" for number in numbers]
    columns = {"id": ids, "n": pa.array(list(numbers), pa.int64())}
    return pa.RecordBatch.from_pydict(columns)


def names_of(control: ControlSegment) -> list[str]:
    prefix = control.name.removesuffix("control")
    return [name.removeprefix(prefix) for name in shm.list_segments(prefix)]


def current(control: ControlSegment, digest: str = DIGEST) -> Generation:
    return CacheReader(control.name, digest=digest).current()


def doubles(generation: Generation, rows: np.ndarray) -> list[object]:
    assert generation.companion is not None
    return generation.companion.gather(rows, ["double"])["double"].to_pylist()


def test_rows_are_those_of_the_generation(control: ControlSegment) -> None:
    rows = 2 * (1 << layout.BLOCK_SHIFT) + 5
    # A null id and a duplicate: numbers of rows are not numbers of items.
    source = Items(batch(range(100), null=7), batch(range(50, rows)))
    maker = Doubled()
    report = refresh.build(source, control, companion=maker)
    assert (report.pregenerated, report.companion_problem) == (1, "")
    assert report.companion_bytes > 24 * rows
    assert report.companion_seconds > 0
    assert report.skipped == {"null_key": 1, "duplicate_key": 50}
    assert names_of(control) == ["1", f"1-{DIGEST[:12]}", "control"]
    generation = current(control)
    found = generation.lookup(Column.from_texts(["i8", "i60", "no", f"i{rows - 1}"]))
    assert doubles(generation, found) == [16, 120, None, 2 * rows - 2]
    every = np.arange(generation.row_count)
    numbers = generation.gather(every, ["n"])["n"].to_pylist()
    assert doubles(generation, every) == [2 * number for number in numbers]
    assert generation.companion is not None
    generation.companion.verify()
    assert generation.companion.row_count == generation.row_count == rows + 49
    assert generation.companion.nbytes == report.companion_bytes


def test_a_maker_that_changes_its_mind_starts_again(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companion, "BATCH", 3)
    monkeypatch.setattr(companion, "SAMPLE", 4)
    maker = Doubled()
    refresh.build(Items(batch([0, 1, 2, 3, -4, 5, 6])), control, companion=maker)
    assert (maker.started, maker.sampled) == (2, 4)
    generation = current(control)
    assert doubles(generation, np.arange(3, 5)) == [[6, 1], [-8, 1]]
    assert names_of(control) == ["1", f"1-{DIGEST[:12]}", "control"]


def test_an_endless_change_of_mind_ends(control: ControlSegment) -> None:
    class Fickle(Doubled):
        def generate(self, *_: object) -> None:
            return None

    report = refresh.build(Items(batch([0])), control, companion=Fickle())
    assert "fits no kind" in report.companion_problem
    assert names_of(control) == ["1", "control"]


@pytest.mark.parametrize("rows", [0, 1])
def test_tables_with_hardly_any_rows(control: ControlSegment, rows: int) -> None:
    refresh.build(Items(batch(range(rows))), control, companion=Doubled())
    assert doubles(current(control), np.array([-1])) == [None]


def test_nothing_to_generate_leaves_no_segment(control: ControlSegment) -> None:
    class Idle(Doubled):
        def inputs(self, schema: Collection[str]) -> tuple[str, ...]:
            return ()

    report = refresh.build(Items(batch([0])), control, companion=Idle())
    assert (report.pregenerated, report.companion_problem) == (0, "")
    assert names_of(control) == ["1", "control"]
    assert current(control).companion is None


def test_whatever_fails_costs_the_companion_only(control: ControlSegment) -> None:
    maker = Doubled()

    def fail() -> None:
        raise ZeroDivisionError("a plug-in's")

    maker.on_batch = fail
    report = refresh.build(Items(batch([0, 1])), control, companion=maker)
    assert report.companion_problem == "ZeroDivisionError: a plug-in's"
    assert (report.rows, report.pregenerated) == (2, 0)
    assert names_of(control) == ["1", "control"]
    assert current(control).companion is None


def test_no_memory_for_the_companion(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Doubled()

    def run_out() -> None:
        def refuse(fd: int, start: int, size: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(shm.os, "posix_fallocate", refuse)

    maker.on_batch = run_out
    report = refresh.build(Items(batch([0, 1])), control, companion=maker)
    assert "enlarge it" in report.companion_problem
    assert "for all of its" not in report.companion_problem
    assert names_of(control) == ["1", "control"]
    assert current(control).row_count == 2


def test_companions_go_with_their_generation(control: ControlSegment) -> None:
    refresh.build(Items(batch([0])), control, companion=Doubled())
    old = current(control)
    other = Doubled("fedcba9876543210")
    companion.make_companion(old, control, other)
    assert names_of(control) == ["1", f"1-{DIGEST[:12]}", "1-fedcba987654", "control"]
    refresh.build(Items(batch([0, 1])), control, companion=Doubled())
    assert names_of(control) == ["2", f"2-{DIGEST[:12]}", "control"]
    assert doubles(old, np.array([0])) == [0], "what is mapped stays"
    assert doubles(current(control), np.array([1])) == [2]


def test_a_build_that_fails_after_its_companion(
    control: ControlSegment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GenerationWriter) -> int:
        raise OSError("just before publication")

    monkeypatch.setattr(GenerationWriter, "publish", fail)
    with pytest.raises(OSError, match="just before"):
        refresh.build(Items(batch([0])), control, companion=Doubled())
    assert names_of(control) == ["control"]


@pytest.mark.parametrize("sealed", [True, False])
def test_a_killed_build_is_swept_by_the_next(
    control: ControlSegment, sealed: bool
) -> None:
    child = os.fork()
    if child == 0:
        maker = Doubled()
        if sealed:
            writer.GenerationWriter.publish = lambda self: os.kill(  # type: ignore
                os.getpid(), signal.SIGKILL
            )
        else:
            maker.on_batch = lambda: os.kill(os.getpid(), signal.SIGKILL)
        refresh.build(Items(batch([0])), control, companion=maker)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert names_of(control) == ["1", f"1-{DIGEST[:12]}", "control"]
    refresh.build(Items(batch([0])), control, companion=Doubled())
    assert names_of(control) == ["2", f"2-{DIGEST[:12]}", "control"]


def test_a_companion_that_was_not_completed_is_swept_alone(
    control: ControlSegment,
) -> None:
    refresh.build(Items(batch([0])), control, companion=Doubled())
    late = CompanionWriter(control, current(control), "ff" * 32, {"x": Kind.INT64})
    assert len(names_of(control)) == 4
    assert not is_sealed(late.name)
    assert control.sweep() == 1
    assert names_of(control) == ["1", f"1-{DIGEST[:12]}", "control"]
    late.close()


def test_a_dash_in_the_service_name_is_no_companion() -> None:
    name = "/procserver.a-b.12.34"
    assert base_name(name) == name
    assert base_name(f"{name}-0a1b") == name


def test_a_name_that_is_taken(control: ControlSegment) -> None:
    refresh.build(Items(batch([0])), control, companion=Doubled())
    with pytest.raises(SourceError, match="exists already"):
        companion.make_companion(current(control), control, Doubled())
    assert doubles(current(control), np.array([0])) == [0]


def test_rows_must_be_as_many(control: ControlSegment) -> None:
    refresh.build(Items(batch([0, 1])), control)
    generation = current(control)
    with CompanionWriter(control, generation, DIGEST, {"x": Kind.INT64}) as late:
        late.append_columns({"x": Column.from_arrow(pa.array([1]))})
        with pytest.raises(SourceError, match="1 rows, its generation 2"):
            late.keep()
    assert names_of(control) == ["1", "control"]


def test_a_companion_is_no_generation(control: ControlSegment) -> None:
    refresh.build(Items(batch([0, 1])), control, companion=Doubled())
    name = control.companion_name(1, DIGEST)
    with pytest.raises(SourceError, match="not complete"):
        Generation(shm.attach(name))
    with pytest.raises(SourceError, match="not complete"):
        Companion(shm.attach(control.generation_name(1)))
    late = CompanionWriter(control, current(control), "ab" * 9, {})
    with pytest.raises(TypeError):
        late.publish()
    late.close()


@pytest.mark.parametrize("damage", ["header", "schema", "short", "unsealed", "other"])
def test_a_damaged_companion_is_not_used(
    control: ControlSegment, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    refresh.build(Items(batch([0, 1])), control, companion=Doubled())
    path = shm.SHM / control.companion_name(1, DIGEST).removeprefix("/")
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[20] ^= 1
    elif damage == "schema":
        data[layout.HEAD_BYTES + 2] ^= 1
    elif damage == "short":
        del data[-1]
    elif damage == "unsealed":
        header = layout.Header.unpack(data)
        data[: layout.HEAD_BYTES] = (
            layout.Header(**{**vars(header), "flags": layout.COMPANION})
            .pack()
            .ljust(layout.HEAD_BYTES, b"\0")
        )
    else:
        header = layout.Header.unpack(data)
        data[: layout.HEAD_BYTES] = (
            layout.Header(**{**vars(header), "owner_started": 1})
            .pack()
            .ljust(layout.HEAD_BYTES, b"\0")
        )
    path.write_bytes(data)
    generation = current(control)
    assert generation.companion is None
    assert generation.get("i1") == {"id": "i1", "n": 1}
    assert "is not used" in caplog.text
    # What does not look like ours is nobody's to remove.
    path.unlink()


def test_digests_with_one_beginning_are_told_apart(control: ControlSegment) -> None:
    refresh.build(Items(batch([0])), control, companion=Doubled())
    assert current(control, DIGEST[:-1] + "0").companion is None
    assert current(control).companion is not None
