"""Every moment of a refresh at which its writer can be stopped, one after the other.

``python writer_trials.py SERVICE FAULTS POINT ACTION``: for n = 1, 2, ... a child
refreshes a generation while the n-th hit of POINT does ACTION, until one passes
unharmed. After each, readers see one whole state, and the next refresh leaves
nothing of the one that was stopped. Prints how often it was stopped, and how.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from cython_ext.column import Column, Kind
from procserver import shm
from procserver.errors import ServiceError
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.refresh import build
from procserver.itemcache.sources import Description

# More than two blocks of records.
ROWS = 40_000
DIGEST = "0123456789abcdef"
KIND = {"build": Kind.FLOAT64, "text": Kind.STRING}
PASSED, REFUSED = 0, 9
MOST_TRIALS = 200


class Table:
    """Rows that all carry the number of their build, in several batches."""

    skipped: Mapping[str, int] = {}

    def __init__(self, number: int) -> None:
        self.number = number

    def describe(self) -> Description:
        return Description("id", dict(KIND), ROWS)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        return None, self._batches()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        half = ROWS // 2
        for start in (0, half):
            yield pa.RecordBatch.from_pydict(
                {
                    "id": [f"i{i}" for i in range(start, start + half)],
                    "build": [float(self.number)] * half,
                    "text": [str(self.number)] * half,
                }
            )

    def changes(self, cursor: object, wait: float = 0.0) -> None:
        return None

    def close(self) -> None:
        pass


class Maker:
    """A companion that repeats the build's number."""

    digest = DIGEST
    kinds: ClassVar[dict[str, Kind]] = {"again": Kind.FLOAT64}
    features: Collection[str] = ("again",)

    def inputs(self, schema: Collection[str]) -> tuple[str, ...]:
        return ("build",)

    def sample(self, columns: Mapping[str, Column], rows: int) -> None:
        pass

    def generate(self, columns: Mapping[str, Column], rows: int) -> dict[str, Column]:
        return {"again": columns["build"]}


def refresh(control: ControlSegment, number: int) -> int:
    """In a child, as the refresher is one; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            build(Table(number), control, companion=Maker())
            status = PASSED
        except ServiceError as error:
            print(error, file=sys.stderr)
            status = REFUSED
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def content(generation: Generation) -> float:
    """The one build that a generation's rows are of, its companion's too."""
    generation.verify()
    ids = Column.from_arrow(pa.array([f"i{i}" for i in range(0, ROWS, 97)]))
    rows = generation.lookup(ids)
    assert (rows >= 0).all()
    cells = generation.gather(rows, ["build", "text"])
    builds = set(cells["build"].to_pylist())
    assert {float(text) for text in cells["text"].to_pylist()} == builds
    if generation.companion is not None:
        again = generation.companion.gather(rows, ["again"])["again"].to_pylist()
        assert set(again) == builds
    (found,) = builds
    return float(found)


def names(control: ControlSegment) -> set[str]:
    prefix = control.name.rpartition(".")[0]
    return set(shm.list_segments(prefix + "."))


def whole(control: ControlSegment) -> set[str]:
    number, _ = control.state()
    generation = control.generation_name(number)
    return {control.name, generation, control.companion_name(number, DIGEST)}


def main(service: str, faults: str, point: str, action: str) -> None:
    Path(faults).write_text("")
    control = ControlSegment.create(service)
    ends: Counter[str] = Counter()
    try:
        assert refresh(control, 1) == PASSED
        old = CacheReader(control.name, digest=DIGEST)
        number = 1
        for trial in range(1, MOST_TRIALS):
            before = content(old.current())
            assert before == number
            kept = old.current()
            number += 1
            draft = Path(faults + ".draft")
            draft.write_text(f"{point}:{trial}:{action}")
            draft.replace(faults)
            end = refresh(control, number)
            Path(faults).write_text("")
            # One that reads on, one that is new, one that has held on to it.
            seen = content(old.current())
            complete = old.current().companion is not None
            assert content(CacheReader(control.name, digest=DIGEST).current()) == seen
            assert content(kept) == before
            assert seen in (before, number)
            if end == REFUSED:
                assert seen == before
                # Who fails cleans up at once.
                assert names(control) == whole(control)
            kind = {-9: "killed", PASSED: "passed", REFUSED: "refused", 1: "raised"}
            state = "old" if seen == before else "new" if complete else "bare"
            ends[f"{kind[end]}, {state}"] += 1
            number += 1
            assert refresh(control, number) == PASSED
            assert content(old.current()) == number
            assert names(control) == whole(control), "something was left"
            if end == PASSED and seen != before and complete:
                break
        else:
            raise AssertionError("it never passed")
    finally:
        control.unlink()
    assert names(control) == set()
    print(json.dumps({"trials": trial, "ends": ends}))


if __name__ == "__main__":
    main(*sys.argv[1:])
