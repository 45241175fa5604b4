"""Items as dictionaries, changed by events one by one: what a delta must equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cython_ext.column import Column, Kind
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import Delete, Upsert

SCHEMA = {
    "id": Kind.STRING,
    "n": Kind.INT64,
    "small": Kind.INT32,
    "real": Kind.FLOAT32,
    "text": Kind.STRING,
    "list": Kind.LIST_INT64,
    "words": Kind.LIST_STRING,
    "map": Kind.MAP_STRING_FLOAT32,
    "lists": Kind.LISTS_INT32,
}
TYPES = {
    "id": pa.string(),
    "n": pa.int64(),
    "small": pa.int32(),
    "real": pa.float32(),
    "text": pa.string(),
    "list": pa.list_(pa.int64()),
    "words": pa.list_(pa.string()),
    "map": pa.map_(pa.string(), pa.float32()),
    "lists": pa.list_(pa.list_(pa.int32())),
}
LONG_AGO = float("-inf")


def cell(name: str, seed: int) -> Any:
    """A value for a column; some are null, some empty."""
    if name == "id":
        raise ValueError("ids are given")
    if seed % 7 == 3:
        return None
    return {
        "n": seed,
        "small": seed % 1000,
        "real": float(seed % 4096),
        "text": f"text {seed}" * (seed % 3),
        "list": list(range(seed % 5)),
        "words": [f"w{seed}", None, ""][: seed % 4],
        "map": [(f"k{i}", float(i)) for i in range(seed % 3)],
        "lists": [[seed % 9], None, []][: seed % 4],
    }[name]


@dataclass
class State:
    """One item: values with the times of the events that set them."""

    values: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    row: float = LONG_AGO
    deleted: float = LONG_AGO
    alive: bool = False


@dataclass
class Oracle:
    """The table; ids are texts."""

    items: dict[str, State] = field(default_factory=dict)

    def upsert(self, key: str, values: dict[str, Any], time: int | None) -> None:
        item = self.items.setdefault(key, State())
        if time is not None and time < item.deleted:
            return
        if not item.alive:
            item.values, item.alive = {}, True
        for name, value in values.items():
            if time is None or time >= item.times.get(name, LONG_AGO):
                item.values[name] = value
                if time is not None:
                    item.times[name] = time
        if time is not None:
            item.row = max(item.row, time)

    def delete(self, key: str, time: int | None) -> None:
        item = self.items.setdefault(key, State())
        if time is None:
            if item.alive:
                self.items[key] = State()
            return
        if time < item.deleted:
            return
        item.deleted = time
        for name in list(item.values):
            if item.times.get(name, LONG_AGO) <= time:
                del item.values[name]
        if time >= item.row:
            item.alive, item.values = False, {}

    def apply(self, steps: list[Upsert | Delete]) -> None:
        for step in steps:
            times = step.times
            if isinstance(step, Delete):
                for i, key in enumerate(step.keys.to_pylist()):
                    self.delete(str(key), None if times is None else int(times[i]))
                continue
            for i, row in enumerate(step.batch.to_pylist()):
                self.upsert(
                    str(row["id"]), row, None if times is None else int(times[i])
                )

    def table(self) -> dict[str, dict[str, Any] | None]:
        return {
            key: {name: item.values.get(name) for name in SCHEMA}
            if item.alive
            else None
            for key, item in self.items.items()
        }


def upsert(
    keys: list[str],
    columns: dict[str, list[Any]],
    times: list[int] | None = None,
) -> Upsert:
    arrays = {name: pa.array(cells, TYPES[name]) for name, cells in columns.items()}
    batch = pa.RecordBatch.from_pydict({"id": pa.array(keys, pa.string()), **arrays})
    return Upsert(batch, None if times is None else np.array(times, np.int64))


def delete(keys: list[str], times: list[int] | None = None) -> Delete:
    stamps = None if times is None else np.array(times, np.int64)
    return Delete(pa.array(keys, pa.string()), stamps)


def read(view: Generation, keys: list[str]) -> dict[str, dict[str, Any] | None]:
    """What a request would see of some items."""
    rows = view.lookup(Column.from_texts(keys))
    columns = view.gather(rows, list(view.schema))
    cells = [column.to_pylist() for column in columns.values()]
    return {
        key: None
        if rows[i] < 0
        else {name: cells[c][i] for c, name in enumerate(columns)}
        for i, key in enumerate(keys)
    }
