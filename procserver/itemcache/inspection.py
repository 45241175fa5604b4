"""A look into the item cache of a service, running or not: for humans and scripts.

Everything is mapped read-only by name, so a service is never disturbed; what it
unlinks meanwhile stays readable here. Results are plain trees for JSON.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column, Kind, Shape, shape_of, value_kind
from procserver import shm
from procserver.errors import ServiceError
from procserver.itemcache import layout
from procserver.itemcache.adoption import KEPT
from procserver.itemcache.control import ControlSegment, is_cache_part
from procserver.itemcache.reader import CacheReader, Companion, Generation

Tree = dict[str, Any]
# Rows that a table's statistics are taken from unless all are asked for.
SAMPLE = 20_000
BATCH = 4096
MOST_DISTINCT = 10_000
EXAMPLES = 5
WIDTHS = {Kind.INT32: 4, Kind.FLOAT32: 4, Kind.INT64: 8, Kind.FLOAT64: 8}


@dataclass(frozen=True)
class Found:
    """The item cache of one service process, and whether that lives."""

    control: ControlSegment
    is_alive: bool
    is_kept: bool


def find(service: str) -> list[Found]:
    """The service's item caches: a live owner's first, then the newest."""
    clean = shm.clean_service(service)
    found = []
    for prefix in (shm.PREFIX, KEPT):
        for name in shm.list_segments(f"/{prefix}{clean}."):
            if not name.endswith(f".{layout.CONTROL}"):
                continue
            try:
                control = ControlSegment.open(name)
            except ServiceError:
                continue
            alive = shm.is_alive(control.owner)
            found.append(Found(control, alive, prefix == KEPT))
    return sorted(found, key=lambda one: (not one.is_alive, one.is_kept))


def open_generation(control: ControlSegment) -> Generation:
    """What is published, as workers see it now.

    :raises SourceError: if nothing is, or it is damaged
    """
    return CacheReader(control.name).current()


def describe(found: Found, *, verify: bool = False) -> Tree:
    """Segments, generation, schema, age, companions of one cache.

    :param verify: compare the checksums of all bytes, too
    """
    control = found.control
    number, deltas = control.state()
    tree: Tree = {
        "control": control.name,
        "owner": {"pid": control.owner.pid, "alive": found.is_alive},
        "kept": found.is_kept,
        "generation": number,
        "delta_rows": deltas,
        "segments": _segments(control),
    }
    if not number:
        return tree
    generation = open_generation(control)
    tree |= {
        "items": generation.count_items(),
        "rows": generation.row_count,
        "bytes": generation.nbytes,
        "delta_bytes": delta_bytes(control),
        "bytes_per_item": round(generation.nbytes / max(generation.item_count, 1), 1),
        "built_at": time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime(generation.built_at)
        ),
        "age_seconds": round(max(0.0, time.time() - generation.built_at), 1),
        "key": generation.key,
        "schema": {name: kind.name for name, kind in generation.schema.items()},
        "companions": [_companion(one) for one in companions(control)],
    }
    if verify:
        generation.verify()
        for one in companions(control):
            one.verify()
        tree["verified"] = True
    return tree


def delta_bytes(control: ControlSegment) -> int:
    """Memory that the changes of what is published have taken, companions' too."""
    number, _ = control.state()
    names = shm.list_segments(f"{control.generation_name(number)}-")
    deltas = [name for name in names if name.endswith(f"-{layout.DELTA_PART}")]
    return sum(shm.total_size(name) for name in deltas)


def _segments(control: ControlSegment) -> list[Tree]:
    start = control.name.removesuffix(layout.CONTROL)
    return [
        {"name": name, "bytes": shm.total_size(name)}
        for name in shm.list_segments(start)
        if name == control.name or is_cache_part(name.removeprefix(start))
    ]


def _companion(companion: Companion) -> Tree:
    return {
        "digest": companion.digest[: layout.DIGEST_DIGITS],
        "bytes": companion.nbytes,
        "columns": {name: kind.name for name, kind in companion.schema.items()},
    }


def companions(control: ControlSegment) -> list[Companion]:
    """What was generated ahead from what is published, as far as it is sound."""
    found = []
    number, _ = control.state()
    for name in shm.list_segments(f"{control.generation_name(number)}-"):
        try:
            digest = Companion(shm.attach(name)).digest
            companion = CacheReader(control.name, digest=digest).current().companion
        except (FileNotFoundError, ServiceError):
            # A delta; or what is gone, or damaged.
            continue
        if companion is not None:
            found.append(companion)
    return found


def get(found: Found, item_id: str) -> Tree | None:
    """One item: what the tables say of it and what was generated ahead from that.

    None: there is no such item.
    """
    generation = open_generation(found.control)
    [row] = generation.lookup(Column.from_texts([item_id])).tolist()
    if row < 0:
        return None
    return {
        "item_id": item_id,
        "generation": generation.number,
        "row": row,
        "raw": _cells(generation, row),
        "generated": {
            one.digest[: layout.DIGEST_DIGITS]: _cells(one, row)
            for one in companions(found.control)
            if one.number == generation.number
            and one.covers(np.array([row], dtype=np.int64))
        },
    }


def _cells(rows: Generation | Companion, row: int) -> Tree:
    numbers = np.array([row], dtype=np.int64)
    columns = rows.gather(numbers, list(rows.schema))
    return {
        name: _plain(columns[name].to_pylist()[0], kind)
        for name, kind in rows.schema.items()
    }


def _plain(cell: Any, kind: Kind) -> Any:
    """A cell for JSON: maps as objects, what is no finite number as text."""
    if cell is not None and shape_of(kind) == Shape.MAP:
        return {str(key): _plain(value, Kind.ABSENT) for key, value in cell}
    if isinstance(cell, list):
        return [_plain(one, Kind.ABSENT) for one in cell]
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)
    return cell


def statistics(found: Found, *, sample: int | None = SAMPLE) -> Tree:
    """Per column: nulls, sizes, widths, distinct values; largest columns first.

    :param sample: rows to look at, spread over the table; None: all
    """
    generation = open_generation(found.control)
    rows = generation.row_count
    looked = rows if sample is None else min(rows, sample)
    numbers = np.linspace(0, max(rows - 1, 0), looked).astype(np.int64)
    columns = {name: _Column(kind) for name, kind in generation.schema.items()}
    for batch in _batches(numbers):
        for name, column in generation.gather(batch, list(columns)).items():
            columns[name].add(column.to_pylist())
    told = sorted(columns.items(), key=lambda one: -one[1].bytes)
    return {
        "generation": generation.number,
        "items": generation.count_items(),
        "rows": rows,
        "delta_rows": generation.count,
        "looked_at": looked,
        "bytes": generation.nbytes,
        "delta_bytes": delta_bytes(found.control),
        "index_bytes": layout.index_bytes(rows),
        "columns": {name: column.tell() for name, column in told},
    }


def _batches(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH]


class _Column:
    """What is learnt of one column, batch by batch."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._shape = shape_of(kind)
        self._rows = self._nulls = self._most_bytes = 0
        self._widths: list[int] = []
        self._numbers: list[float] = []
        self._distinct: set[str] = set()
        self._examples: list[Any] = []
        self.bytes = 0

    def add(self, cells: Sequence[Any]) -> None:
        """More cells, as Python objects."""
        self._rows += len(cells)
        for cell in cells:
            if cell is None:
                self._nulls += 1
                continue
            size = _size(cell, self._kind)
            self.bytes += size
            self._most_bytes = max(self._most_bytes, size)
            if self._shape == Shape.SCALAR:
                if isinstance(cell, int | float):
                    self._numbers.append(cell)
            else:
                self._widths.append(len(cell))
            self._note(_plain(cell, self._kind))

    def _note(self, cell: Any) -> None:
        if len(self._distinct) >= MOST_DISTINCT:
            return
        text = repr(cell)
        if text not in self._distinct:
            self._distinct.add(text)
            if len(self._examples) < EXAMPLES:
                self._examples.append(cell)

    def tell(self) -> Tree:
        """What is known now."""
        given = self._rows - self._nulls
        tree: Tree = {
            "kind": self._kind.name,
            "null_share": round(self._nulls / self._rows, 4) if self._rows else 0.0,
            "bytes": self.bytes,
            "mean_bytes": round(self.bytes / given, 1) if given else 0.0,
            "most_bytes": self._most_bytes,
            "distinct": len(self._distinct),
            "more_distinct": len(self._distinct) >= MOST_DISTINCT,
            "examples": self._examples,
        }
        if self._widths:
            tree["widths"] = _spread(self._widths)
        if self._numbers:
            tree["values"] = _spread(self._numbers)
        return tree


def _spread(numbers: Sequence[float]) -> Tree:
    found = np.asarray(numbers, dtype=np.float64)
    finite = found[np.isfinite(found)]
    tree: Tree = {"not_finite": int(len(found) - len(finite))}
    if not len(finite):
        return tree
    low, middle, high = np.quantile(finite, [0, 0.5, 1]).tolist()
    return {"least": low, "median": middle, "most": high, **tree}


def _size(cell: Any, kind: Kind) -> int:
    """Bytes of a cell's values."""
    if isinstance(cell, str):
        return len(cell.encode("utf-8", "surrogateescape"))
    if isinstance(cell, bytes):
        return len(cell)
    if isinstance(cell, list | tuple):
        return sum(_size(one, kind) for one in cell if one is not None)
    return WIDTHS.get(value_kind(kind), 8)
